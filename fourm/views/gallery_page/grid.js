// The overview: cards of all samples that fit, of which only those near the window exist.

const SIZES = { small: 140, medium: 220, large: 340 }; // pixels that a card is at least wide
const NARROW = { small: 96, medium: 148, large: 280 }; // the same on a phone
const CAPTION = 5; // rem under each picture

const grid = {
  filter: { text: "", modality: "", variation: null, failed: false },
  size: "medium",
  shown: [], // the samples that fit
  current: 0, // the one among them that Tab leads to
  cards: new Map(), // sample id -> card
  waiting: [], // cards without their picture yet
  columns: 1,
  width: 0,
  height: 0,
};

function fits(sample) {
  const { text, modality, failed } = grid.filter;
  return (!modality || sample.modalities.includes(modality)) && (!failed || sample.failed > 0) &&
    folded(text).split(/\s+/).every((word) => sample.words.includes(word));
}

/** Applies the filter; cards are made anew where they show something else now. */
function filterGrid(rebuild = false) {
  const before = grid.shown[grid.current];
  grid.shown = samples.filter(fits);
  grid.current = Math.max(0, grid.shown.indexOf(before));
  if (rebuild) dropCards();
  layoutGrid();
  describeGrid();
}

function describeGrid() {
  const loading = samples.length < ALBUM.total && document.readyState === "loading";
  const all = plural(ALBUM.total, "sample");
  const count = grid.shown.length;
  byId("status").textContent = loading
    ? `Reading: ${samples.length.toLocaleString("en")} of ${all}`
    : count === ALBUM.total ? all : `${count.toLocaleString("en")} of ${all}`;
  byId("nothing").hidden = count > 0 || loading;
  byId("grid").hidden = count === 0;
}

function layoutGrid() {
  const list = byId("grid");
  const style = getComputedStyle(list);
  const gap = parseFloat(style.columnGap);
  const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
  const wide = list.clientWidth || byId("status").clientWidth;
  const least = (innerWidth < 600 ? NARROW : SIZES)[grid.size];
  grid.columns = Math.max(1, Math.floor((wide + gap) / (least + gap)));
  grid.width = (wide - gap * (grid.columns - 1)) / grid.columns;
  grid.height = grid.width + CAPTION * rem;
  grid.stepX = grid.width + gap;
  grid.stepY = grid.height + gap;
  const rows = Math.ceil(grid.shown.length / grid.columns);
  list.style.height = `${Math.max(0, rows * grid.stepY - gap)}px`;
  for (const card of grid.cards.values()) card.placed = -1;
  drawGrid();
}

/** Makes the cards near the window, drops those far from it; the one with the focus stays. */
function drawGrid() {
  const top = byId("grid").getBoundingClientRect().top;
  const first = Math.floor((-top - innerHeight / 2) / grid.stepY);
  const last = Math.ceil((-top + innerHeight * 1.5) / grid.stepY);
  const from = Math.max(0, first) * grid.columns;
  const to = Math.min(grid.shown.length, Math.max(0, last + 1) * grid.columns);
  const wanted = new Map();
  for (let index = from; index < to; index++) wanted.set(grid.shown[index].id, index);
  if (grid.shown[grid.current]) wanted.set(grid.shown[grid.current].id, grid.current);
  for (const [id, card] of grid.cards) if (!wanted.has(id)) dropCard(id, card);
  const order = [...wanted].sort((a, b) => a[1] - b[1]);
  for (const [id, index] of order) placeCard(grid.cards.get(id) ?? makeCard(samples[id]), index);
  sortCards(order);
  fillCards();
}

/** Cards stand in the document as they stand on the page, for Tab and for those who listen. */
function sortCards(order) {
  const list = byId("grid");
  let next = list.firstChild;
  for (const [id] of order) {
    const { node } = grid.cards.get(id);
    if (node === next) next = next.nextSibling;
    else list.insertBefore(node, next);
  }
}

function makeCard(sample) {
  const badges = el("span", { class: "badges" });
  if (sample.failed) badges.append(el("span", { class: "badge bad" }, sample.failed === 1 ? "1 problem" : `${sample.failed} problems`));
  else if (sample.variations > 1) badges.append(el("span", { class: "badge" }, plural(sample.variations, "variation")));
  const frame = el("span", { class: "frame" });
  const words = el("span", { dir: "auto" });
  const link = el("a", { href: hashOf(sample.key), class: "card", tabIndex: -1 },
    frame,
    words,
    el("span", { class: "under" }, el("span", { class: "key" }, sample.key), badges));
  const card = { sample, frame, words, link, node: el("li", {}, link), placed: -1 };
  grid.cards.set(sample.id, card);
  grid.waiting.push(card);
  return card;
}

function placeCard(card, index) {
  card.link.tabIndex = index === grid.current ? 0 : -1;
  entitle(card);
  if (card.placed === index) return;
  card.placed = index;
  const { style } = card.node;
  style.width = `${grid.width}px`;
  style.height = `${grid.height}px`;
  style.transform = `translate(${(index % grid.columns) * grid.stepX}px, ${Math.floor(index / grid.columns) * grid.stepY}px)`;
  card.node.setAttribute("aria-posinset", index + 1);
  card.node.setAttribute("aria-setsize", grid.shown.length);
}

function entitle({ sample, words }) {
  const title = titleOf(sample, grid.filter.text);
  if (words.className && words.textContent === (title || "no prompt")) return;
  words.className = title ? "words" : "words none";
  words.textContent = title || "no prompt";
}

function dropCard(id, card) {
  card.gone = true;
  card.frame.replaceChildren();
  card.node.remove();
  grid.cards.delete(id);
}

function dropCards() {
  for (const [id, card] of grid.cards) dropCard(id, card);
}

/** Gives the cards their pictures, a few at a time. */
let filling = false;
function fillCards() {
  if (filling || !grid.waiting.length) return;
  filling = true;
  setTimeout(() => {
    filling = false;
    const end = performance.now() + SLICE;
    while (grid.waiting.length && performance.now() < end) fillCard(grid.waiting.shift());
    fillCards();
  });
}

function fillCard(card) {
  if (card.gone) return;
  const { modality, variation } = grid.filter;
  const panel = cover(contents(card.sample).panels, modality, variation);
  if (panel) {
    card.frame.replaceChildren(image(panel.picture, "", grid.width));
    if (modality === "" && !panel.rgb) card.frame.append(el("span", { class: "what" }, panel.title));
  } else {
    const reason = card.sample.failed ? "Failed" : "No picture";
    card.frame.classList.add("empty");
    card.frame.replaceChildren(el("span", {}, variation === null ? reason : `${reason} for variation ${variation}`));
  }
}

/** Moves the focus to a sample of those shown. */
function focusCard(index, smooth = true) {
  if (!grid.shown.length) return;
  grid.current = Math.min(Math.max(index, 0), grid.shown.length - 1);
  const row = Math.floor(grid.current / grid.columns);
  const top = byId("grid").getBoundingClientRect().top + row * grid.stepY;
  const head = document.querySelector(".top").getBoundingClientRect().bottom + 12;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches || !smooth;
  if (top < head) scrollBy({ top: top - head, behavior: calm ? "instant" : "auto" });
  else if (top + grid.height > innerHeight - 12) scrollBy({ top: top + grid.height - innerHeight + 12, behavior: "instant" });
  drawGrid();
  grid.cards.get(grid.shown[grid.current].id).link.focus({ preventScroll: true });
}

/** The card that keys begin with: the one that Tab leads to, or the first in the window if that is not in it. */
function firstSeen() {
  const head = document.querySelector(".top").getBoundingClientRect().bottom;
  const top = byId("grid").getBoundingClientRect().top;
  const at = top + Math.floor(grid.current / grid.columns) * grid.stepY;
  if (at + grid.height > head && at < innerHeight) return grid.current;
  return Math.max(0, Math.ceil((head - top) / grid.stepY)) * grid.columns;
}

function gridKey(event) {
  const page = Math.max(1, Math.floor(innerHeight / grid.stepY)) * grid.columns;
  const moves = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.columns, ArrowDown: grid.columns,
    PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity,
  };
  if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const to = grid.current + moves[event.key];
  if (event.key === "ArrowUp" && to < 0) byId("search").focus();
  else focusCard(to);
}

function startGrid() {
  const list = byId("grid");
  list.addEventListener("keydown", gridKey);
  list.addEventListener("focusin", (event) => {
    const card = [...grid.cards.values()].find((each) => each.link === event.target);
    if (card && card.placed !== grid.current) { grid.current = card.placed; drawGrid(); }
  });
  let asked = false;
  addEventListener("scroll", () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => { asked = false; drawGrid(); });
  }, { passive: true });
  new ResizeObserver(() => layoutGrid()).observe(byId("status"));
}
