"""Sheets as files: one and a film strip for each sample, contact sheets for all."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fourm.codecs.colours import GREY, UNKNOWN, turbo
from fourm.codecs.drawing import font_for, text_card, undrawable
from fourm.data.layout import Key, path_of
from fourm.errors import UsageError
from fourm.files.writing import remove_leftovers, write_atomic
from fourm.output.record import PLOTS
from fourm.sources.datasets import CAPTION
from fourm.views.album import Album
from fourm.views.contact import Layout, choose_parts, draw_cell, draw_contact, sheet_name
from fourm.views.layout import (
    ALARM,
    COLUMNS,
    FAINT,
    GAP,
    LINE,
    PAPER,
    RULE,
    SMALL,
    colour_bar,
    legend,
    paste,
    slack,
    stack,
    starts,
    text_block,
)
from fourm.views.panels import ROLES, Film, Frame, Panel, View, picture_alone
from fourm.views.saving import fill_file

# Names of plots, which no sample's sheet may have.
RESERVED_NAMES = re.compile(r"contact(-[0-9]+)?|index|.*-film", re.DOTALL)
CELL, LARGE = 256, 448  # pixels per side of a place on a sheet; where super-resolution needs more
MAX_VARIATIONS, MAX_PROBLEMS = 32, 6  # rows and lines of a sheet
MIN_WIDTH, ROW_LABEL = 400, 34  # pixels of a sheet, and for the name of a variation
FILM_LABEL, FILM_TEXT = 130, 34  # pixels on a film strip: for the name of a target, below a picture
MAX_FILMS, MAX_FRAMES = 64, 8  # rows of a film strip; pictures of a row, evenly chosen
Column = Mapping[int | None, Panel]  # one modality of a sample, by variation
Cell = tuple[Image.Image, str]  # a picture and the lines under it


@dataclass(frozen=True, slots=True)
class Plotted:
    """One sample that was drawn."""

    key: str
    files: tuple[Path, ...]
    problems: tuple[str, ...]  # what of it could not be shown, and why
    undrawn: set[str]  # characters that no font here has


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is drawn of an album, and as what."""

    count: int | None = None  # samples, from the first on; None: all
    films: bool = True
    contact: bool = True
    show: tuple[str, ...] = ()  # what contact sheets show, see `choose_parts`
    kind: str = "png"  # or pdf, svg
    width: float | None = None  # of sheets on paper, in inches


def plot_album(album: Album, wanted: Wanted) -> Iterator[Plotted]:
    """Draw one sample after the other into the folder of plots, and after the last one the contact sheets.

    Files appear whole; those of before are replaced. UsageError: contact sheets cannot show what is wanted.
    """
    folder, names = plots_folder(album.root), plot_paths(album.root, album.keys, wanted.kind)
    keys, variations = album.keys[: wanted.count], album.variations if wanted.contact else ()
    layout = Layout(choose_parts(album, wanted.show))
    total, cells, pages = len(keys) * len(variations), list[Image.Image](), set[Path]()

    def save(sheet: Image.Image, path: Path) -> Path:
        folder.mkdir(exist_ok=True)
        write_atomic(folder, path, partial(fill_file, drawing=sheet, width=wanted.width))
        return path

    try:
        for number, key in enumerate(keys, 1):
            view = album.view(key)
            files = [save(draw_sample(view), names[key])]
            if wanted.films and view.films:
                path = names[key].with_name(f"{names[key].stem}-film{names[key].suffix}")
                files.append(save(draw_films(view), path))
            for variation in variations:
                cells.append(draw_cell(view, variation, layout))
                if len(cells) == layout.per_sheet or (number == len(keys) and variation == variations[-1]):
                    path = folder / f"{sheet_name(len(pages), total, layout)}.{wanted.kind}"
                    title = f"{album.root.name or album.root}  ·  "
                    pages.add(save(draw_contact(cells, layout, title, len(pages), total), path))
                    cells = []
            undrawn = undrawable(" ".join((view.prompt or "", *(panel.text for panel in view.panels))))
            yield Plotted(key.text, tuple(files), view.problems, undrawn)
        if wanted.contact and folder.is_dir():
            for path in folder.glob(f"contact*.{wanted.kind}"):  # those of before, when there were more
                if re.fullmatch("contact(-[0-9]+)?", path.stem) and path not in pages and not path.is_dir():
                    path.unlink()
    finally:
        remove_leftovers(folder)


def plots_folder(root: Path) -> Path:
    """Where plots of a folder go; UsageError where something else is in their place."""
    folder = root / PLOTS
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise UsageError(f"{folder}: is no folder of this one, so no plots can be put there")
    return folder


def plot_paths(root: Path, keys: Sequence[Key], kind: str = "png") -> Mapping[Key, Path]:
    """The sheet of each sample: plots/NAME.png, or plots/FOLDER/NAME.png where names alone are not clear."""
    names = [key.name for key in keys]
    is_flat = len(set(names)) == len(names) and not any(map(RESERVED_NAMES.fullmatch, names))
    paths = {key: path_of(root, PLOTS, key, f".{kind}") for key in keys}
    return {key: root / PLOTS / path.name for key, path in paths.items()} if is_flat else paths


def draw_sheet(rows: Sequence[Sequence[Cell]], heads: Sequence[str] = ()) -> Image.Image:
    """Rows of cells on white paper; the first cell of a row stands apart, as what the others belong to.

    heads: what stands above the columns.
    """
    columns, lines = max(map(len, rows)), max(text.count("\n") + 1 for row in rows for _, text in row)
    lefts = starts(columns, SMALL + GAP, GAP, {1: GAP})
    width, pitch = GAP + columns * (SMALL + GAP) + GAP, SMALL + lines * LINE + GAP
    first = GAP + (LINE + GAP // 2 if heads else 0)
    sheet = Image.new("RGB", (width, first + len(rows) * pitch), PAPER)
    draw = ImageDraw.Draw(sheet)
    for left, head in zip(lefts, heads, strict=False):
        sheet.paste(text_block(head, SMALL, 13, FAINT, most=1, centred=True), (left, GAP))
    for top, row in zip(range(first, sheet.height, pitch), rows, strict=True):
        for left, (picture, text) in zip(lefts, row, strict=False):
            paste(sheet, picture, (left, top), SMALL)
            draw.rectangle((left - 1, top - 1, left + SMALL, top + SMALL), outline=RULE)
            for number, line in enumerate(text.split("\n")):
                block = text_block(line, SMALL, 11, most=1, centred=True)
                sheet.paste(block, (left, top + SMALL + 2 + number * LINE))
        draw.line((SMALL + 2 * GAP, top, SMALL + 2 * GAP, top + SMALL), fill=RULE)
    return sheet


def draw_sample(view: View) -> Image.Image:
    """The sheet of one sample: what was given and what was made of it, a row for each variation."""
    variations = sorted({panel.variation for panel in view.panels if panel.variation is not None})
    rows: list[int | None] = [*variations[:MAX_VARIATIONS]] or [None]
    is_large = any(p.role == "sr" and p.picture and max(p.picture.size) > CELL for p in view.panels)
    by_modality, headline = dict[tuple[str, str], dict[int | None, Panel]](), None
    for panel in view.panels:
        column = by_modality.setdefault((panel.role, panel.modality), {})
        column[panel.variation] = panel
        if panel.role == "condition" and panel.codec == CAPTION and panel.text == view.prompt:
            headline = column  # its caption is above the sheet; left out here, if there is something else
    columns = [one for one in by_modality.values() if one is not headline] or [*by_modality.values()]
    size = math.ceil(len(columns) / max(math.ceil(len(columns) / COLUMNS), 1))  # bands of about equal width
    parts = [columns[at : at + size] for at in range(0, len(columns), max(size, 1))]
    bands = [_band(part, rows, LARGE if is_large else CELL) for part in parts]
    width = max([MIN_WIDTH, *(band.width for band in bands)])
    facts = [view.key.text if view.headline != view.key.text else "", view.made_by]
    title = text_block(view.headline, width, 22, most=6)
    head = [title, text_block("  ·  ".join(filter(None, facts)), width, 13, FAINT)]
    blocks = [stack(head, gap=4, margin=0), *bands]
    if labels := dict.fromkeys(label for panel in view.panels for label in panel.labels):
        blocks.append(legend(sorted(labels, key=lambda label: label[0] == "no class"), width))
    rest, more = len(view.problems) - MAX_PROBLEMS, len(variations) - MAX_VARIATIONS
    notes = (*view.problems[:MAX_PROBLEMS], *([f"and {rest} more"] if rest > 0 else []))
    blocks += [text_block(note, width, 12, ALARM) for note in notes]
    if more > 0:
        blocks.append(text_block(f"and {more} more variations", width, 13, FAINT))
    return stack(blocks)


def _band(columns: Sequence[Column], rows: Sequence[int | None], side: int) -> Image.Image:
    """Some columns below their titles."""
    panels = [next(iter(column.values())) for column in columns]
    titles = [text_block(panel.title, side, 15, most=2, centred=True) for panel in panels]
    scales = [next((p.limits for p in column.values() if p.limits), None) for column in columns]
    bars = [None if limits is None else colour_bar(limits, side) for limits in scales]
    top = 20 + max(title.height for title in titles) + 4
    roles = [number for number, one in enumerate(panels) if not number or one.role != panels[number - 1].role]
    left = ROW_LABEL if len(rows) > 1 else 0
    # A pixel is for the line around the first.
    lefts = starts(len(columns), side + GAP, left + 1, dict.fromkeys(roles[1:], 2 * GAP))
    shown = [
        [_shown(column, row, number == 0, side) for column in columns] for number, row in enumerate(rows)
    ]
    cuts = [slack((one for one in row if one is not None), side) for row in shown]
    bottom = top + sum(side - 2 * cut + GAP for cut in cuts) - GAP
    below = max((GAP // 2 + bar.height for bar in bars if bar), default=0)
    band = Image.new("RGB", (lefts[-1] + side + 1, bottom + 1 + below), PAPER)
    draw = ImageDraw.Draw(band)
    for number in roles:
        band.paste(text_block(ROLES[panels[number].role], side, 12, FAINT), (lefts[number], 0))
        if number:
            x = lefts[number] - 3 * GAP // 2
            draw.line((x, 0, x, band.height), fill=RULE)
    for title, place in zip(titles, lefts, strict=True):
        band.paste(title, (place, top - 4 - title.height))
    y = top
    for variation, row, cut in zip(rows, shown, cuts, strict=True):
        if left:
            label = text_block(f"v{variation}", left, 14, FAINT, most=1)
            band.paste(label, (0, y - cut + side // 2 - 9))
        for picture, place in zip(row, lefts, strict=True):
            if picture is not None:
                paste(band, picture, (place, y - cut), side, line=0)
        y += side - 2 * cut + GAP
    for bar, place in zip(bars, lefts, strict=True):
        if bar:
            band.paste(bar, (place, bottom + GAP // 2 + 1))
    return band


def _shown(column: Column, variation: int | None, is_first: bool, side: int) -> Image.Image | str | None:
    """A picture, the note in its place, or nothing; what all variations share stands in the first row."""
    panel = column.get(variation, column.get(None) if is_first else None)
    if panel is None:
        return None
    if panel.picture is not None and panel.codec == CAPTION and panel.text.strip():
        return text_card(panel.text, side)
    return panel.picture or panel.note


def draw_films(view: View) -> Image.Image:
    """A row for each target and variation: kept steps, the result, the order of decoding."""
    rows = [(film, chosen(film.frames)) for film in view.films[:MAX_FILMS]]
    frames = max(len(shown) for _, shown in rows)
    lefts = starts(frames + 2, SMALL + GAP, FILM_LABEL, {frames: GAP})  # the result and the order apart
    width = FILM_LABEL + (frames + 2) * (SMALL + GAP) + GAP
    titles = Image.new("RGB", (width, 36), PAPER)
    names = {0: "while it was decoded", frames: "result", frames + 1: "which step decided which token"}
    for column, name in names.items():
        title = text_block(name, SMALL if column else max(SMALL, frames * (SMALL + GAP)), 13, FAINT, most=2)
        titles.paste(title, (lefts[column], titles.height - title.height))
    blocks = [text_block(view.headline, width, 20), titles]
    blocks += [_strip(film, shown, lefts, width, view) for film, shown in rows]
    if (more := len(view.films) - MAX_FILMS) > 0:
        blocks.append(text_block(f"and {more} more", width, 13, FAINT))
    return stack(blocks, gap=8)


def chosen(frames: Sequence[Frame]) -> list[Frame]:
    """Not too many frames, evenly chosen, the last one among them."""
    count = min(len(frames), MAX_FRAMES)
    return [frames[place] for place in np.linspace(0, len(frames) - 1, count).round().astype(int).tolist()]


def order_map(film: Film) -> Image.Image:
    """A pixel for each token: the first decided dark blue, the last dark red; undecided ones grey.

    Those that were given are light grey, as what is not known of a value.
    """
    order = np.array(film.order, dtype=np.int64).reshape(film.grid)
    colours = turbo(np.where(order > 0, order, np.nan))
    return Image.fromarray(np.where((order >= 0)[..., None], colours, np.uint8(GREY)))


def _strip(film: Film, shown: Sequence[Frame], lefts: Sequence[int], width: int, view: View) -> Image.Image:
    strip = Image.new("RGB", (width, SMALL + FILM_TEXT), PAPER)
    name = text_block(film.title, FILM_LABEL - GAP, 14, most=4)
    which = "" if film.variation is None else f"v{film.variation}"
    label = stack([name, text_block(which, FILM_LABEL - GAP, 14, FAINT)], gap=0, margin=0)
    strip.paste(label, (0, max(0, (SMALL - label.height) // 2)))
    total = film.grid[0] * film.grid[1]
    for left, frame in zip(lefts, shown, strict=False):
        paste(strip, frame.picture, (left, 0), SMALL, line=0)
        for number, text in enumerate((f"step {frame.step}", f"{frame.decided} of {total} tokens")):
            line = text_block(text, SMALL, 12, FAINT, most=1, centred=True)
            strip.paste(line, (left, SMALL + 3 + 15 * number))
    results = (p for p in view.panels if (p.modality, p.variation) == (film.modality, film.variation))
    if panel := next((p for p in results if p.role != "condition"), None):
        paste(strip, picture_alone(panel) or panel.note, (lefts[-2], 0), SMALL, line=0)
    if film.order is not None:
        paste(strip, order_map(film), (lefts[-1], 0), SMALL, line=0)
        strip.paste(_order_bar(film.order), (lefts[-1], SMALL + 5))
    return strip


def _order_bar(order: Sequence[int]) -> Image.Image:
    """The colours of an `order_map`, with the first and the last step, and what given tokens look like."""
    steps = [step for step in order if step > 0] or [0]
    first, last = min(steps), max(steps)
    block = Image.new("RGB", (SMALL, FILM_TEXT - 5), PAPER)
    draw, font, middle = ImageDraw.Draw(block), font_for("", 12), 19
    bar = Image.fromarray(turbo(np.arange(SMALL if last > first else 1)[None]))
    block.paste(bar.resize((SMALL, 8), Image.Resampling.NEAREST))
    draw.text((0, middle), f"step {first}", FAINT, font, anchor="lm")
    if last > first:
        draw.text((SMALL - 1, middle), str(last), FAINT, font, anchor="rm")
    if 0 in order:
        draw.rectangle((52, middle - 4, 60, middle + 4), fill=(UNKNOWN,) * 3, outline=RULE)
        draw.text((65, middle), "given", FAINT, font, anchor="lm")
    return block
