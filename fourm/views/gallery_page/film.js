// How a target came to be: its pictures after decoding steps, and the step that decided each token as a map of colours.

const RAMP = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]]; // viridis
const GIVEN = "#9a9a9a"; // tokens that were given
const MAP = 320; // pixels of a map's side, before the screen's own scale

function colourOf(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (RAMP.length - 1);
  const [low, high] = [RAMP[Math.floor(at)], RAMP[Math.floor(at) + 1]];
  return `rgb(${low.map((value, i) => Math.round(value + (high[i] - value) * (at % 1))).join(" ")})`;
}

/** The film section of a sample; follow(panel) turns it to the film of that panel. */
function makeFilm(films) {
  const select = fillSelect(el("select", {}), films.map((film, index) => [String(index), shortName(film, films)]), "0");
  const slider = el("input", { type: "range", step: 1, "aria-label": "Decoding step" });
  const play = el("button", { type: "button", class: "button", onclick: () => (timer ? stop() : start()) }, "Play");
  const back = el("button", { type: "button", class: "button", "aria-label": "Step back", "aria-keyshortcuts": ",", onclick: () => stepBy(-1) }, "‹");
  const on = el("button", { type: "button", class: "button", "aria-label": "Step on", "aria-keyshortcuts": ".", onclick: () => stepBy(1) }, "›");
  const where = el("p", { class: "where", role: "status" });
  const frame = el("div", { class: "screen" });
  const map = el("canvas", { role: "img" });
  const token = el("p", { class: "token" });
  const given = el("p", { class: "label" }, el("span", { class: "swatch", "aria-hidden": "true" }), " given");
  given.firstChild.style.background = GIVEN;
  const scaleNode = el("div", { class: "ramp" }, el("span", {}), el("i", { "aria-hidden": "true" }), el("span", {}));
  const strip = el("ul", { class: "strip", role: "list", "aria-label": "Pictures after decoding steps", tabIndex: -1 });
  const mapNode = el("figure", { class: "map" }, map, el("figcaption", {}, el("span", { class: "label" }, "Step that decided each token"), scaleNode, given, token));
  const node = el("section", { class: "film", "aria-labelledby": "film-title" },
    el("div", { class: "heading" }, el("h3", { id: "film-title" }, "Decoding, step by step"), el("label", { class: "pick" }, "Film of ", select)),
    el("div", { class: "player" },
      el("figure", {}, frame, el("figcaption", {}, el("span", { class: "label" }, "Picture after the step"))), mapNode,
      el("div", { class: "remote" }, where, slider, el("div", { class: "buttons" }, back, play, on))), strip);
  let film = films[0];
  let steps = rangeOf(film);
  let step = steps.last;
  let timer = 0;

  function open(index) {
    film = films[index];
    steps = rangeOf(film);
    step = steps.last;
    stop();
    select.value = String(index);
    slider.min = steps.first;
    slider.max = steps.last;
    mapNode.hidden = !film.order;
    given.hidden = !film.order?.includes(0);
    scaleNode.firstChild.textContent = String(steps.first);
    scaleNode.lastChild.textContent = String(steps.last);
    strip.replaceChildren(...film.frames.map((each) => el("li", {}, el("button", {
      type: "button", "aria-label": `Step ${each.step}, ${plural(each.decided, "token")}`, onclick: () => { stop(); goTo(each.step); },
    }, image(each.picture, "", 72), el("span", { "aria-hidden": "true" }, String(each.step))))));
    draw();
  }

  function draw() {
    const last = film.frames.findLast((each) => each.step <= step);
    const tokens = film.order ? film.order.filter((each) => each >= 0 && each <= step).length : last?.decided ?? 0;
    const text = `Step ${step} of ${steps.first} to ${steps.last}`;
    const all = film.grid[0] * film.grid[1];
    where.replaceChildren(el("strong", {}, text), el("span", {}, `${tokens} of ${plural(all, "token")} decided`));
    slider.value = step;
    slider.setAttribute("aria-valuetext", `${text}, ${tokens} of ${plural(all, "token")}`);
    frame.replaceChildren(last ? image(last.picture, `${film.title} after step ${last.step}`, 320)
      : el("span", {}, film.frames.length ? "No picture was kept yet" : "No pictures were kept"));
    for (const [index, item] of [...strip.children].entries()) {
      const current = film.frames[index] === last;
      if (current) item.firstChild.setAttribute("aria-current", "step");
      else item.firstChild.removeAttribute("aria-current");
      if (current) strip.scrollTo({ left: item.offsetLeft - strip.clientWidth / 2 + item.clientWidth / 2, behavior: "instant" });
    }
    if (film.order) drawMap(tokens);
  }

  function drawMap(tokens) {
    const [rows, columns] = film.grid;
    const cell = Math.max(2, Math.floor((MAP * Math.min(2, devicePixelRatio || 1)) / Math.max(rows, columns)));
    const gap = cell > 12 ? Math.round(cell / 14) : 0;
    map.width = columns * cell;
    map.height = rows * cell;
    map.setAttribute("aria-label", `Map of ${rows} by ${columns} tokens, ${tokens} decided`);
    const paint = map.getContext("2d");
    for (const [index, at] of film.order.entries()) {
      const [x, y] = [(index % columns) * cell + gap, Math.floor(index / columns) * cell + gap];
      if (at < 0 || at > step) continue;
      paint.fillStyle = at === 0 ? GIVEN : colourOf((at - steps.first) / Math.max(1, steps.last - steps.first));
      paint.fillRect(x, y, cell - 2 * gap, cell - 2 * gap);
      if (at !== step) continue;
      paint.lineWidth = Math.max(1, cell / 14); // decided just now: a black line and a white one, seen on every colour
      for (const [ring, colour] of [[0.5, "#000"], [1.5, "#fff"]]) {
        const inset = paint.lineWidth * ring;
        paint.strokeStyle = colour;
        paint.strokeRect(x + inset, y + inset, cell - 2 * gap - 2 * inset, cell - 2 * gap - 2 * inset);
      }
    }
  }

  function goTo(to) {
    step = Math.min(steps.last, Math.max(steps.first, to));
    draw();
  }

  function stepBy(by) { stop(); goTo(step + by); }

  function start() {
    if (step === steps.last) goTo(steps.first);
    play.textContent = "Pause";
    timer = setInterval(() => (step === steps.last || !node.isConnected ? stop() : goTo(step + 1)), 300);
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
  }

  map.addEventListener("pointermove", (event) => {
    const box = map.getBoundingClientRect();
    const [rows, columns] = film.grid;
    const row = Math.min(rows - 1, Math.floor((event.clientY - box.top) / box.height * rows));
    const column = Math.min(columns - 1, Math.floor((event.clientX - box.left) / box.width * columns));
    const at = film.order[row * columns + column];
    const when = at < 0 ? "not decided" : at === 0 ? "given" : `step ${at}`;
    token.textContent = `Row ${row + 1}, column ${column + 1}: ${when}`;
  });
  map.addEventListener("pointerleave", () => { token.textContent = ""; });
  slider.addEventListener("input", () => { stop(); goTo(Number(slider.value)); });
  select.addEventListener("change", () => open(Number(select.value)));

  function follow(panel) {
    const index = films.findIndex((each) => each.modality === panel.modality && (each.variation === panel.variation || panel.variation === null));
    if (index >= 0 && films[index] !== film) open(index);
  }

  open(0);
  return { node, follow, stepBy, stop };
}

/** First and last step of the chain in which a film's target was decoded. */
function rangeOf(film) {
  const steps = [...(film.order ?? []).filter((each) => each > 0), ...film.frames.map((each) => each.step)];
  return { first: steps.reduce((a, b) => Math.min(a, b), Infinity), last: steps.reduce((a, b) => Math.max(a, b), 0) };
}
