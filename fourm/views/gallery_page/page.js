// Starts the page: address, theme, keys, filters.

const KEYS = [
  ["/", "Search"], ["← → ↑ ↓", "Move between samples"], ["Home, End", "First and last sample"], ["Enter", "Open a sample"],
  ["Esc", "Close a sample; empty the search"], ["← →", "Previous and next sample, when one is open"],
  ["+ − 0", "Zoom in, out, fit"], ["C", "Compare: one, wipe, side by side"], [", .", "Decoding step back and on"],
  ["T", "Dark, light or as the system"], ["?", "These keys"],
];
const THEMES = ["system", "light", "dark"];
let cameFromGrid = false; // then the browser's own way back leads to it

const hashOf = (key) => `#${key.split("/").map(encodeURIComponent).join("/")}`;

function keyOfHash() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch { // a broken address
    return "";
  }
}

/** Shows what the address says. A sample that is not read yet is waited for. */
function route() {
  const key = keyOfHash();
  const sample = byKey.get(key);
  if (sample && detail?.sample !== sample) openDetail(sample);
  else if (!sample && detail) closeDetail();
  if (!key) cameFromGrid = false;
}

function leaveDetail() {
  if (cameFromGrid) return history.back();
  history.replaceState(null, "", location.pathname + location.search);
  return route();
}

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = { system: "Theme: auto", light: "Theme: light", dark: "Theme: dark" }[theme];
  try {
    localStorage.setItem("fourm-theme", theme);
  } catch { /* a browser that keeps nothing for local files */ }
}

function currentTheme() {
  return document.documentElement.dataset.theme ?? "system";
}

function nextTheme() {
  setTheme(THEMES[(THEMES.indexOf(currentTheme()) + 1) % THEMES.length]);
  say(byId("theme").textContent);
}

function storedTheme() {
  try {
    const theme = localStorage.getItem("fourm-theme");
    return THEMES.includes(theme) ? theme : "system";
  } catch {
    return "system";
  }
}

function openHelp() {
  const help = byId("help");
  const before = document.activeElement;
  help.replaceChildren(
    el("h2", { id: "help-title" }, "Keys"),
    el("dl", {}, ...KEYS.map(([keys, does]) => el("div", {}, el("dt", {}, el("kbd", {}, keys)), el("dd", {}, does)))),
    el("p", {}, "Shift and click on a picture compares it. Ctrl and the wheel zoom, a double click too."),
    el("button", { type: "button", class: "button", autofocus: true, onclick: () => help.close() }, "Close"));
  help.onclose = () => before?.focus({ preventScroll: true });
  help.showModal();
}

function isTyping(target) {
  return target.matches("select, textarea, input:not([type=range], [type=radio], [type=checkbox])");
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || byId("help").open) return;
  const { key, target } = event;
  if (key === "Escape" && detail) {
    event.preventDefault();
    return leaveDetail();
  }
  if (isTyping(target)) return undefined;
  const usesArrows = event.defaultPrevented || target.matches("input, pre, .stage.zoomed");
  const enter = usesArrows ? null : () => focusCard(firstSeen());
  const actions = detail ? {
    ArrowLeft: usesArrows ? null : () => stepSample(-1), ArrowRight: usesArrows ? null : () => stepSample(1),
    "+": () => detail.viewer?.zoomBy(1), "=": () => detail.viewer?.zoomBy(1), "-": () => detail.viewer?.zoomBy(-1), 0: () => detail.viewer?.zoomTo(1),
    c: cycleMode, ",": () => detail.film?.stepBy(-1), ".": () => detail.film?.stepBy(1), t: nextTheme, "?": openHelp,
  } : {
    ArrowLeft: enter, ArrowRight: enter, ArrowUp: enter, ArrowDown: enter,
    Home: enter && (() => focusCard(0)), End: enter && (() => focusCard(Infinity)),
    "/": () => byId("search").select(), t: nextTheme, "?": openHelp,
  };
  const action = actions[key.length === 1 ? key.toLowerCase() : key];
  if (!action) return undefined;
  event.preventDefault();
  if (key === "/") byId("search").focus();
  return action();
}

function cycleMode() {
  if (!detail.viewer) return;
  const names = MODES.map(([name]) => name);
  const next = names[(names.indexOf(detail.viewer.state.mode) + 1) % names.length];
  detail.viewer.setMode(next);
  say(`Compare: ${MODES.find(([name]) => name === next)[1]}`);
}

function setFilter(change) {
  Object.assign(grid.filter, change);
  filterGrid("modality" in change || "variation" in change);
}

function clearFilters() {
  byId("search").value = "";
  byId("failed").checked = false;
  document.querySelector("#modalities input").checked = true;
  setFilter({ text: "", failed: false, modality: "" });
  byId("search").focus();
}

function startFilters() {
  const search = byId("search");
  search.addEventListener("input", () => { scrollToTop(); setFilter({ text: search.value.trim() }); });
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "Enter") { event.preventDefault(); focusCard(grid.current); }
    else if (event.key === "Escape" && search.value) { search.value = ""; setFilter({ text: "" }); }
    else if (event.key === "Escape") search.blur();
  });
  const shown = ALBUM.modalities.map(({ name, title, twin }) => [name, twin ? `${title} ${name}` : title]);
  choices(byId("modalities"), "modality", [["", "Best picture"], ...shown], "", (modality) => { scrollToTop(); setFilter({ modality }); });
  choices(byId("sizes"), "size", [["small", "S"], ["medium", "M"], ["large", "L"]], "medium", (size) => { grid.size = size; filterGrid(true); });
  for (const input of byId("sizes").querySelectorAll("input")) input.setAttribute("aria-label", `${input.value} pictures`);
  const { variations } = ALBUM;
  fillSelect(byId("variation"), [["", "Any"], ...variations.map((each) => [String(each), String(each)])], "");
  byId("variation-pick").hidden = variations.length < 2;
  byId("variation").addEventListener("change", (event) => setFilter({ variation: event.target.value === "" ? null : Number(event.target.value) }));
  byId("failed").addEventListener("change", (event) => { scrollToTop(); setFilter({ failed: event.target.checked }); });
  byId("clear").addEventListener("click", clearFilters);
}

function scrollToTop() {
  scrollTo({ top: 0, behavior: "instant" });
}

/** Takes up what was read since the last time. */
function takeUp() {
  if (readSamples()) {
    const failed = samples.filter((sample) => sample.failed).length;
    byId("failed-pick").hidden = failed === 0;
    byId("failed-pick").lastChild.textContent = `With problems (${failed.toLocaleString("en")})`;
    filterGrid();
    if (detail) byId("detail").firstChild.replaceWith(detailBar(detail.sample));
    else if (location.hash) route();
  } else describeGrid();
}

function start() {
  byId("folder").textContent = ALBUM.name;
  byId("origin").textContent = ALBUM.stages.map((stage) => stage.model).join(" + ");
  if (ALBUM.problems.length) byId("notes").append(noticeOf(ALBUM.problems));
  setTheme(storedTheme());
  byId("theme").addEventListener("click", nextTheme);
  byId("keys").addEventListener("click", openHelp);
  byId("failed-pick").hidden = true;
  startFilters();
  startGrid();
  addEventListener("hashchange", route);
  addEventListener("popstate", route);
  document.addEventListener("keydown", onKey);
  document.addEventListener("click", (event) => { if (event.target.closest?.("a.card") && !event.ctrlKey && !event.metaKey && !event.shiftKey) cameFromGrid = true; });
  byId("detail").addEventListener("cancel", (event) => { event.preventDefault(); });
  byId("detail").addEventListener("close", () => { if (detail) leaveDetail(); });
  takeUp();
  const reading = setInterval(takeUp, 100);
  const finish = () => { clearInterval(reading); takeUp(); route(); };
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", finish);
  else finish();
}

start();
