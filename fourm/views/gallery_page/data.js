// What the page holds: blocks of JSON, read when they are needed; and how text and pictures get into the document.
// Text of users only ever becomes text nodes and attributes that hold no code.

const ALBUM = JSON.parse(document.getElementById("album").textContent);
const SLICE = 8; // milliseconds of work at a time, so that scrolling and typing stay smooth
const KEPT = 24; // samples whose block stays parsed

const samples = []; // {id, key, prompt, texts, modalities, failed, words, block}: all that searching needs
const byKey = new Map();
const parsed = new Map(); // id -> a sample's pictures, the latest last

/** An element: properties as they are, attributes where the name has a dash or is in `attrs`, then its children. */
function el(name, props = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (key === "class") node.className = value;
    else if (key.includes("-") || key === "role" || key === "for") node.setAttribute(key, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node[key] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const byId = (id) => document.getElementById(id);
const plural = (count, one, many = one + "s") => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const folded = (text) => text.normalize("NFKC").toLowerCase();

/** Takes up samples that the parser has passed. A block is whole when the next one has begun. */
function readSamples() {
  const blocks = document.getElementsByClassName("sample");
  const whole = document.readyState === "loading" ? blocks.length - 1 : blocks.length;
  const before = samples.length;
  while (samples.length < whole) {
    const block = blocks[samples.length];
    const row = JSON.parse(block.textContent);
    const sample = { ...row, id: samples.length, words: folded([row.key, row.prompt, ...row.texts].join("\n")), block };
    samples.push(sample);
    byKey.set(sample.key, sample);
  }
  return samples.length > before;
}

/** The pictures, films and texts of a sample. */
function contents(sample) {
  let found = parsed.get(sample.id);
  if (found) parsed.delete(sample.id);
  else found = JSON.parse(sample.block.nextElementSibling.textContent);
  parsed.set(sample.id, found);
  if (parsed.size > KEPT) parsed.delete(parsed.keys().next().value);
  return found;
}

/** An image of an embedded picture. `shown`: its longest side on the page; small exact ones grow with sharp pixels. */
function image(picture, alt, shown) {
  const img = el("img", { alt, width: picture.width, height: picture.height, decoding: "async", draggable: false });
  if (picture.exact && Math.max(picture.width, picture.height) < shown) img.className = "pixels";
  img.src = `data:image/${picture.type};base64,${picture.data}`;
  return img;
}

/** What stands under a sample: its prompt, else what was said of it; while searching, the text that was found. */
function titleOf(sample, searched = "") {
  const words = folded(searched).split(/\s+/).filter(Boolean);
  const missed = words.filter((word) => !folded(`${sample.key}\n${sample.prompt}`).includes(word));
  const found = missed.length ? sample.texts.find((text) => missed.some((word) => folded(text).includes(word))) : null;
  return found ?? (sample.prompt || sample.texts[0] || "");
}

/** What a panel is called where several are named. */
function nameOf(panel) {
  return panel.variation === null ? panel.title : `${panel.title}, variation ${panel.variation}`;
}

/** The picture that stands for a sample: the finest RGB, else the last thing that was made, else what was given. */
function cover(panels, modality, variation) {
  const rank = (panel) =>
    (variation !== null && (panel.variation === variation || panel.variation === null) ? 100 : 0) +
    (panel.rgb ? 10 : 0) + ["condition", "target", "sr"].indexOf(panel.role);
  const fit = panels.filter((p) => p.picture && (modality === "" || p.modality === modality) &&
    (variation === null || p.variation === null || p.variation === variation));
  return fit.reduce((best, panel) => (best === null || rank(panel) > rank(best) ? panel : best), null);
}

/** Says something to those who listen to the page. */
function say(text) {
  byId("said").textContent = "";
  requestAnimationFrame(() => { byId("said").textContent = text; });
}

/** A block of code and the button that copies it. */
function codeBlock(label, code) {
  const button = el("button", { type: "button", class: "copy", "aria-label": `Copy: ${label}`, onclick: () => copy(code, button) }, "Copy");
  const options = code.startsWith("--") ? code.split(/ (?=--)/) : [code];
  const lines = options.map((option, index) => el("span", { class: "option" },
    ...`${option}${index < options.length - 1 ? " \\" : ""}`.split(/(?<=,)/).flatMap((part) => [part, el("wbr")])));
  return el("div", { class: "code" }, el("pre", { tabIndex: 0, role: "region", "aria-label": label }, el("code", {}, ...lines)), button);
}

async function copy(text, button) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // refused, or a browser that takes local files for unsafe
    const area = el("textarea", { value: text, class: "unseen", "aria-hidden": "true" });
    button.after(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = done ? "Copied" : "Not copied";
  say(button.textContent);
  setTimeout(() => { button.textContent = "Copy"; }, 1600);
}

/** Radio buttons in a row. options: [value, text]. */
function choices(set, name, options, value, pick) {
  for (const [each, text] of options) {
    const input = el("input", { type: "radio", name, value: each, checked: each === value, onchange: () => pick(each) });
    set.append(el("label", { class: "chip" }, input, el("span", {}, text)));
  }
  return set;
}

/** Options of a select. */
function fillSelect(select, options, value) {
  select.replaceChildren(...options.map(([each, text]) => el("option", { value: each, selected: each === value }, text)));
  return select;
}
