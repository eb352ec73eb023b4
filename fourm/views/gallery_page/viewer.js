// The large picture of a sample: zoomed, and compared with another one by a wipe or side by side.

const MODES = [["single", "One"], ["wipe", "Wipe"], ["beside", "Side by side"]];
const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8, 12, 16];

/** The viewer of a sample's panels that have pictures. changed(panel, against) is called with what is looked at. */
function makeViewer(panels, legends, changed) {
  const state = { one: 0, two: counterpart(panels, 0), chosen: false, mode: "single", zoom: 1, x: 0, y: 0, wipe: 50 };
  const options = panels.map((panel, index) => [String(index), shortName(panel, panels)]);
  const stage = el("div", { class: "stage", tabIndex: 0, role: "group", "aria-label": "Picture. Plus and minus zoom, arrow keys move it when it is zoomed." });
  const slider = el("input", { type: "range", min: 0, max: 100, step: 1, value: 50, "aria-label": "Wipe between the two pictures", class: "wipe" });
  const scale = el("span", { class: "scale", role: "status" });
  const caption = el("figcaption", {});
  const first = pickOf("Picture", "one");
  const second = pickOf("Against", "two");
  const modes = choices(el("fieldset", { class: "segments" }, el("legend", { class: "unseen" }, "Compare")), "mode", MODES, "single", setMode);
  const zooms = el("div", { class: "zooms", role: "group", "aria-label": "Zoom" },
    el("button", { type: "button", class: "plain", "aria-label": "Zoom out", onclick: () => zoomBy(-1) }, "−"), scale,
    el("button", { type: "button", class: "plain", "aria-label": "Zoom in", onclick: () => zoomBy(1) }, "+"),
    el("button", { type: "button", class: "plain", onclick: () => zoomTo(1) }, "Fit"));
  const node = el("figure", { class: "viewer" },
    el("div", { class: "controls" }, modes, zooms), el("div", { class: "picks" }, first.label, second.label), stage, slider, caption);

  function pickOf(text, name) {
    const select = fillSelect(el("select", {}), options, "0");
    select.addEventListener("change", () => show(name, Number(select.value)));
    return { select, label: el("label", { class: "pick" }, `${text} `, select) };
  }

  function show(name, index) {
    state[name] = index;
    if (name === "two") {
      state.chosen = true;
      if (state.mode === "single") state.mode = "wipe";
    } else if (!state.chosen) state.two = counterpart(panels, index);
    draw();
  }

  function setMode(mode) {
    state.mode = mode;
    draw();
  }

  function pane(which) {
    const panel = panels[state[which]];
    const layer = el("div", { class: `layer ${which}` }, image(panel.picture, nameOf(panel), 640));
    if (state.mode !== "single") layer.append(el("span", { class: "tag", "aria-hidden": "true" }, shortName(panel, panels)));
    return layer;
  }

  function draw() {
    node.dataset.mode = state.mode;
    first.select.value = String(state.one);
    second.select.value = String(state.two);
    second.label.hidden = state.mode === "single";
    slider.hidden = state.mode !== "wipe";
    for (const input of modes.querySelectorAll("input")) input.checked = input.value === state.mode;
    const panes = state.mode === "single" ? [pane("one")] : [pane("one"), pane("two")];
    stage.replaceChildren(...panes);
    if (state.mode === "wipe") stage.append(el("div", { class: "edge", "aria-hidden": "true" }));
    caption.replaceChildren(...describe(panels[state.one], legends));
    place();
    changed(panels[state.one], state.mode === "single" ? null : panels[state.two]);
  }

  /** Puts zoom, position and wipe into effect. */
  function place() {
    const room = (state.zoom - 1) / 2;
    state.x = Math.min(room, Math.max(-room, state.x));
    state.y = Math.min(room, Math.max(-room, state.y));
    for (const img of stage.querySelectorAll("img")) {
      img.style.transform = `translate(${state.x * 100}%, ${state.y * 100}%) scale(${state.zoom})`;
    }
    stage.classList.toggle("zoomed", state.zoom > 1);
    scale.textContent = `${state.zoom}×`;
    slider.value = state.wipe;
    slider.setAttribute("aria-valuetext", `${state.wipe}% of ${nameOf(panels[state.one])}`);
    const two = stage.querySelector(".layer.two");
    const edge = stage.querySelector(".edge");
    if (edge) {
      two.style.clipPath = `inset(0 0 0 ${state.wipe}%)`;
      edge.style.left = `${state.wipe}%`;
    }
  }

  function zoomTo(zoom, x = 0, y = 0) {
    const grown = zoom / state.zoom; // the point (x, y), from the middle, stays where it is
    state.x = x - (x - state.x) * grown;
    state.y = y - (y - state.y) * grown;
    state.zoom = zoom;
    place();
  }

  function zoomBy(direction, x, y) {
    const at = ZOOMS.indexOf(state.zoom) + direction;
    if (at >= 0 && at < ZOOMS.length) zoomTo(ZOOMS[at], x, y);
  }

  function pointOf(event) {
    const box = stage.querySelector(".layer").getBoundingClientRect();
    return [(event.clientX - box.left) / box.width - 0.5, (event.clientY - box.top) / box.height - 0.5];
  }

  slider.addEventListener("input", () => { state.wipe = Number(slider.value); place(); });
  stage.addEventListener("dblclick", (event) => (state.zoom > 1 ? zoomTo(1) : zoomTo(3, ...pointOf(event))));
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 1 : -1, ...pointOf(event));
  }, { passive: false });
  stage.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (state.zoom === 1 || !(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    state.x += moves[event.key][0] * 0.15;
    state.y += moves[event.key][1] * 0.15;
    place();
  });
  drag(stage, (event, start) => {
    const box = stage.querySelector(".layer").getBoundingClientRect();
    if (start.edge) state.wipe = Math.round(Math.min(100, Math.max(0, (event.clientX - box.left) / box.width * 100)));
    else if (state.zoom > 1) {
      state.x += event.movementX / box.width;
      state.y += event.movementY / box.height;
    } else return;
    place();
  });

  draw();
  return { node, show, setMode, zoomBy, zoomTo, state };
}

/** Follows a pointer that was pressed on a node until it is lifted. */
function drag(node, move) {
  node.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const start = { edge: event.target.classList.contains("edge") };
    if (!start.edge && !node.classList.contains("zoomed")) return;
    node.setPointerCapture(event.pointerId);
    const follow = (each) => move(each, start);
    node.addEventListener("pointermove", follow);
    node.addEventListener("lostpointercapture", () => node.removeEventListener("pointermove", follow), { once: true });
  });
}

/** What a panel is best compared with: its super-resolution, or what that was made from, else another variation. */
function counterpart(panels, index) {
  const panel = panels[index];
  const scores = panels.map((other, at) => {
    if (at === index) return -1;
    const kin = other.codec === panel.codec;
    const same = other.variation === panel.variation;
    return (kin && same ? 8 : 0) + (kin && other.modality === panel.modality ? 4 : 0) + (same ? 2 : 0) + (kin ? 1 : 0);
  });
  return scores.indexOf(Math.max(...scores));
}

/** A name as short as it can be: the variation where only that differs. */
function shortName(panel, panels) {
  const several = new Set(panels.map((each) => each.variation)).size > 1;
  return several && panel.variation !== null ? `${panel.title} · v${panel.variation}` : panel.title;
}

/** The line under the picture, and the legend of a map of labels. */
function describe(panel, legends) {
  const { width, height } = panel.size;
  const lines = [el("p", { class: "file" }, el("span", {}, `${width} × ${height} px`), el("code", {}, panel.file))];
  if (panel.scale.length) {
    const [low, high] = panel.scale;
    lines.push(el("div", { class: "ramp turbo", role: "img", "aria-label": `Colours from ${low} to ${high}` },
      el("span", {}, low), el("i", {}), el("span", {}, high)));
  }
  if (panel.text) lines.push(el("p", { class: "said", dir: "auto" }, panel.text));
  const labels = (legends[panel.modality] ?? []).filter((_, index) => panel.labels.includes(index));
  if (labels.length) lines.push(legendOf(labels));
  return lines;
}

function legendOf(labels) {
  return el("ul", { class: "legend", "aria-label": "Legend", role: "list" }, ...labels.map(([name, colour]) => {
    const swatch = el("span", { class: "swatch", "aria-hidden": "true" });
    swatch.style.background = colour;
    return el("li", {}, swatch, name);
  }));
}
