// One sample: its pictures, how it was decoded, what it was made from, and how to make it again.

let detail = null; // what is open: {sample, viewer, film}

function openDetail(sample) {
  const { panels, films, problems, legends, repeat } = contents(sample);
  const pictures = panels.filter((panel) => panel.picture);
  const tiles = new Map();
  const command = el("div", {});
  const film = films.length ? makeFilm(films) : null;
  const looked = (panel, against) => {
    for (const [each, tile] of tiles) {
      tile.setAttribute("aria-pressed", String(each === panel));
      tile.toggleAttribute("data-against", each === against);
    }
    command.replaceChildren(codeBlock("Command that repeats this sample", repeatOf(repeat, panel)));
    film?.follow(panel);
  };
  const viewer = pictures.length ? makeViewer(pictures, legends, looked) : null;
  const rows = panelRows(panels, sample.prompt, (panel, against) => viewer.show(against ? "two" : "one", pictures.indexOf(panel)), tiles);
  if (!viewer) command.append(codeBlock("Command that repeats this sample", repeatOf(repeat, null)));
  const dialog = byId("detail");
  const title = titleOf(sample);
  dialog.replaceChildren(
    detailBar(sample),
    el("div", { class: "page" },
      el("div", { class: "title" },
        el("h2", { id: "prompt", tabIndex: -1, dir: "auto", class: title ? "" : "none" }, title || "No prompt"),
        el("p", { class: "key" }, title && !sample.prompt ? `${sample.key} · no prompt; the title was made` : sample.key)),
      problems.length ? noticeOf(problems) : null,
      el("div", { class: "columns" }, viewer?.node ?? el("p", { class: "stage blank" }, "This sample has no picture."), rows),
      film?.node ?? null,
      factsOf(command)));
  detail = { sample, viewer, film };
  if (viewer) viewer.show("one", pictures.indexOf(cover(pictures, "", grid.filter.variation) ?? cover(pictures, "", null)));
  if (!dialog.open) dialog.showModal();
  document.documentElement.classList.add("held");
  document.title = `${title || sample.key} · ${ALBUM.name}`;
  dialog.scrollTop = 0;
  byId("prompt").focus();
}

function closeDetail() {
  if (!detail) return;
  const { sample } = detail;
  detail.film?.stop();
  detail = null;
  byId("detail").replaceChildren();
  if (byId("detail").open) byId("detail").close();
  document.documentElement.classList.remove("held");
  document.title = ALBUM.name;
  const index = grid.shown.indexOf(sample);
  if (index >= 0) focusCard(index, false);
  else byId("search").focus();
}

/** Where a sample stands among those that are shown, and the ways to others. */
function detailBar(sample) {
  const at = grid.shown.indexOf(sample);
  const step = (by, text, keys) => el("button", {
    type: "button", class: "button", disabled: at < 0 || !grid.shown[at + by], "aria-keyshortcuts": keys, onclick: () => stepSample(by),
  }, text);
  return el("div", { class: "bar" },
    el("button", { type: "button", class: "button", "aria-keyshortcuts": "Escape", onclick: leaveDetail }, "← All", el("span", { class: "wide" }, " samples")),
    el("p", { class: "count" }, at < 0 ? "" : `${(at + 1).toLocaleString("en")} of ${grid.shown.length.toLocaleString("en")}`),
    el("div", { class: "buttons" }, step(-1, "Previous", "ArrowLeft"), step(1, "Next", "ArrowRight")));
}

function stepSample(by) {
  const next = grid.shown[grid.shown.indexOf(detail.sample) + by];
  if (!next) return;
  history.replaceState(history.state, "", hashOf(next.key));
  route();
  say(`Sample ${next.key}`);
}

function noticeOf(problems) {
  return el("section", { class: "notice", "aria-labelledby": "problems" },
    el("h3", { id: "problems" }, plural(problems.length, "problem")),
    el("ul", {}, ...problems.map((text) => el("li", { dir: "auto" }, text))));
}

/** All panels: a row for each modality, its variations next to each other. */
function panelRows(panels, prompt, pick, tiles) {
  const rows = new Map();
  for (const panel of panels) {
    if (panel.role === "condition" && panel.words && panel.text === prompt) continue; // it is the title already
    const name = `${panel.role} ${panel.modality}`;
    rows.set(name, [...(rows.get(name) ?? []), panel]);
  }
  const titles = { condition: "Given", target: "Made", sr: "Made finer" };
  const parts = [];
  let group = null;
  let role = "";
  for (const row of rows.values()) {
    if (row[0].role !== role) {
      role = row[0].role;
      group = el("div", { class: "rows" });
      parts.push(el("section", { "aria-label": titles[role] }, el("h3", {}, titles[role]), group));
    }
    const legend = row[0].role === "sr" ? row[0].title.replace(/, super-resolution$/, "") : row[0].title;
    group.append(el("div", { class: "row", role: "group", "aria-label": row[0].title },
      el("p", { class: "row-title" }, el("span", {}, legend), el("code", {}, row[0].modality)),
      el("div", { class: "tiles" }, ...row.map((panel) => tileOf(panel, pick, tiles)))));
  }
  return el("div", { class: "panels" }, ...parts);
}

function tileOf(panel, pick, tiles) {
  const version = panel.variation === null ? null : el("span", { class: "version", "aria-hidden": "true" }, `v${panel.variation}`);
  if (!panel.picture) {
    const text = panel.text || panel.note || "nothing";
    return el("div", { class: panel.text ? "words tile-text" : "tile blank", dir: "auto" }, version, el("span", {}, text));
  }
  const tile = el("button", {
    type: "button", class: "tile", "aria-pressed": "false", "aria-label": nameOf(panel), title: "Shift and click compares",
    onclick: (event) => pick(panel, event.shiftKey),
  }, image(panel.picture, "", 96), version);
  tiles.set(panel, tile);
  return tile;
}

function repeatOf(repeat, panel) {
  const fit = repeat.filter((each) => panel && each.variation === panel.variation);
  return (fit.find((each) => each.role === panel.role) ?? fit[0] ?? repeat[0]).command;
}

function factsOf(command) {
  const stages = ALBUM.stages.map((stage) => el("section", { class: "facts", "aria-label": stage.name },
    el("h4", {}, stage.name),
    el("dl", {}, ...[["Model", stage.model], ["Seed", String(stage.seed)], ["Variations", String(stage.variations)],
      ["From", stage.conditions.join(", ") || "nothing"], ["To", stage.targets.join(", ")]]
      .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    el("p", { class: "label" }, "Schedule"), codeBlock(`Schedule, ${stage.name}`, stage.options)));
  return el("section", { class: "made", "aria-labelledby": "made-title" },
    el("h3", { id: "made-title" }, "How it was made"),
    el("p", { class: "label" }, "Make it again"), command, el("div", { class: "stages" }, ...stages));
}
