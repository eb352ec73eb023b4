"""Sheets as PNG files: one and a film strip for each sample, contact sheets for all; their layout."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from fourm.codecs.drawing import Ink, font_for, lines_of, text_card, undrawable
from fourm.codecs.maps import GREY, turbo
from fourm.data.layout import Key, path_of
from fourm.data.writing import DRAWING, remove_leftovers, write_alone, write_atomic
from fourm.errors import UsageError
from fourm.output.record import PLOTS
from fourm.runs.inputs import CAPTION
from fourm.views.album import Album
from fourm.views.panels import RGB, ROLES, Film, Frame, Panel, View

# Names of plots, which no sample's sheet may have.
RESERVED_NAMES = re.compile(r"contact(-[0-9]+)?|index|.*-film", re.DOTALL)
SMALL, GAP, LINE = 128, 10, 16  # pixels: side of a small picture, space around it, height of a line of text
INK, PAPER, RULE = "#1a1a1a", "#ffffff", "#c8c8c8"
FAINT, BLANK, ALARM = "#6e6e6e", "#eeeeee", "#a81818"
_SWATCH = 14  # pixels per side of a colour in a legend
CELL, LARGE = 256, 448  # pixels per side of a place on a sheet; where super-resolution needs more
COLUMNS = 6  # side by side; more go below
MAX_VARIATIONS, MAX_PROBLEMS = 32, 6  # rows and lines of a sheet
MIN_WIDTH, ROW_LABEL = 400, 34  # pixels of a sheet, and for the name of a variation
FILM_LABEL, FILM_TEXT = 130, 34  # pixels on a film strip: for the name of a target, below a picture
MAX_FILMS, MAX_FRAMES = 64, 8  # rows of a film strip; pictures of a row, evenly chosen
CONTACT, CONTACT_GAP = 192, 14  # pixels per side of a place on a contact sheet, and between two
PER_SHEET = 10 * COLUMNS  # pictures of a contact sheet

Column = Mapping[int | None, Panel]  # one modality of a sample, by variation
Cell = tuple[Image.Image, str]  # a picture and what stands under it


@dataclass(frozen=True, slots=True)
class Plotted:
    """One sample that was drawn."""

    key: str
    files: tuple[Path, ...]
    problems: tuple[str, ...]  # what of it could not be shown, and why
    undrawn: set[str]  # characters that no font here has


def plot_album(
    album: Album, count: int | None = None, films: bool = True, contact: bool = True
) -> Iterator[Plotted]:
    """Draw one sample after the other into the folder of plots, and after the last one the contact sheets.

    Files appear whole; those of before are replaced. count: samples, from the first on; None: all.
    """
    folder, names = plots_folder(album.root), plot_paths(album.root, album.keys)
    keys, variations = album.keys[:count], album.variations if contact else ()
    total, cells, pages = len(keys) * len(variations), list[Image.Image](), set[Path]()
    try:
        for number, key in enumerate(keys, 1):
            view = album.view(key)
            files = [_save(draw_sample(view), folder, names[key])]
            if films and view.films:
                path = names[key].with_name(f"{names[key].stem}-film.png")
                files.append(_save(draw_films(view), folder, path))
            for variation in variations:
                cells.append(contact_cell(view, variation))
                if len(cells) == PER_SHEET or (number == len(keys) and variation == variations[-1]):
                    digits = max(2, len(str(math.ceil(total / PER_SHEET))))
                    name = f"contact-{len(pages) + 1:0{digits}d}.png" if total > PER_SHEET else "contact.png"
                    title = f"{album.root.name or album.root}  ·  "
                    pages.add(_save(draw_contact(cells, title, len(pages), total), folder, folder / name))
                    cells = []
            undrawn = undrawable(" ".join((view.prompt or "", *(panel.text for panel in view.panels))))
            yield Plotted(key.text, tuple(files), view.problems, undrawn)
        if contact and folder.is_dir():
            for path in folder.glob("contact*.png"):  # those of an earlier time, when there were more
                if re.fullmatch("contact(-[0-9]+)?", path.stem) and path not in pages and not path.is_dir():
                    path.unlink()
    finally:
        remove_leftovers(folder)


def _save(sheet: Image.Image, folder: Path, path: Path) -> Path:
    folder.mkdir(exist_ok=True)
    write_atomic(folder, path, partial(sheet.save, format="PNG"))
    return path


def plots_folder(root: Path) -> Path:
    """Where plots of a folder go; UsageError where something else is in their place."""
    folder = root / PLOTS
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise UsageError(f"{folder}: is no folder of this one, so no plots can be put there")
    return folder


def plot_paths(root: Path, keys: Sequence[Key]) -> Mapping[Key, Path]:
    """The sheet of each sample: plots/NAME.png, or plots/FOLDER/NAME.png where names alone are not clear."""
    names = [key.name for key in keys]
    is_flat = len(set(names)) == len(names) and not any(map(RESERVED_NAMES.fullmatch, names))
    paths = {key: path_of(root, PLOTS, key, ".png") for key in keys}
    return {key: root / PLOTS / path.name for key, path in paths.items()} if is_flat else paths


def draw_sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Rows of cells on white paper; the first cell of a row stands apart, as what the others belong to."""
    columns = max(map(len, rows))
    lefts = starts(columns, SMALL + GAP, GAP, {1: GAP})
    width, pitch = GAP + columns * (SMALL + GAP) + GAP, SMALL + LINE + GAP
    sheet = Image.new("RGB", (width, GAP + len(rows) * pitch), PAPER)
    draw = ImageDraw.Draw(sheet)
    for top, row in zip(range(GAP, sheet.height, pitch), rows, strict=True):
        for left, (picture, text) in zip(lefts, row, strict=False):
            paste(sheet, picture, (left, top), SMALL)
            draw.rectangle((left - 1, top - 1, left + SMALL, top + SMALL), outline=RULE)
            sheet.paste(text_block(text, SMALL, 11, most=1, centred=True), (left, top + SMALL + 2))
        draw.line((SMALL + 2 * GAP, top, SMALL + 2 * GAP, top + SMALL), fill=RULE)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    said = PngInfo()
    for name, value in DRAWING.items():
        said.add_text(name, value)
    write_alone(path, partial(sheet.save, format="PNG", optimize=True, pnginfo=said))


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
    top = 20 + max(title.height for title in titles) + 4
    roles = [number for number, one in enumerate(panels) if not number or one.role != panels[number - 1].role]
    left = ROW_LABEL if len(rows) > 1 else 0
    # A pixel is for the line around the first.
    lefts = starts(len(columns), side + GAP, left + 1, dict.fromkeys(roles[1:], 2 * GAP))
    band = Image.new("RGB", (lefts[-1] + side + 1, top + len(rows) * (side + GAP) - GAP + 1), PAPER)
    draw = ImageDraw.Draw(band)
    for number in roles:
        band.paste(text_block(ROLES[panels[number].role], side, 12, FAINT), (lefts[number], 0))
        if number:
            x = lefts[number] - 3 * GAP // 2
            draw.line((x, 0, x, band.height), fill=RULE)
    for title, place in zip(titles, lefts, strict=True):
        band.paste(title, (place, top - 4 - title.height))
    for number, variation in enumerate(rows):
        y = top + number * (side + GAP)
        if left:
            band.paste(text_block(f"v{variation}", left, 14, FAINT, most=1), (0, y + side // 2 - 9))
        for column, place in zip(columns, lefts, strict=True):
            panel = column.get(variation, column.get(None) if number == 0 else None)
            if panel is not None:
                is_words = panel.picture is not None and panel.codec == CAPTION and panel.text.strip()
                picture = text_card(panel.text, side) if is_words else panel.picture
                paste(band, picture or panel.note, (place, y), side, line=0)
    return band


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
    """A pixel for each token: the first decided dark blue, the last dark red, undecided ones grey."""
    order = np.array(film.order, dtype=np.int64).reshape(film.grid)
    decided = order >= 0
    colours = turbo(np.where(decided, order, order.min(where=decided, initial=order.max())))
    return Image.fromarray(np.where(decided[..., None], colours, np.uint8(GREY)))


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
        paste(strip, panel.picture or panel.note, (lefts[-2], 0), SMALL, line=0)
    if film.order is not None:
        paste(strip, order_map(film), (lefts[-1], 0), SMALL, line=0)
        steps = [step for step in film.order if step >= 0] or [0]
        first, last = min(steps), max(steps)
        bar = Image.fromarray(turbo(np.arange(SMALL if last > first else 1)[None]))
        strip.paste(bar.resize((SMALL, 8), Image.Resampling.NEAREST), (lefts[-1], SMALL + 5))
        draw, font = ImageDraw.Draw(strip), font_for("", 12)
        draw.text((lefts[-1], SMALL + 24), f"step {first}", FAINT, font, anchor="lm")
        if last > first:
            draw.text((lefts[-1] + SMALL - 1, SMALL + 24), str(last), FAINT, font, anchor="rm")
    return strip


def draw_contact(cells: Sequence[Image.Image], title: str, page: int, total: int) -> Image.Image:
    """A page with cells side by side; `total` of them are on all pages."""
    lefts = starts(min(COLUMNS, len(cells)), CONTACT + CONTACT_GAP)
    blocks = list[Image.Image]()
    for at in range(0, len(cells), COLUMNS):
        row = cells[at : at + COLUMNS]
        blocks.append(Image.new("RGB", (lefts[-1] + CONTACT, max(cell.height for cell in row)), PAPER))
        for left, cell in zip(lefts, row, strict=False):
            blocks[-1].paste(cell, (left, 0))
    what, first = f"{total} pictures" if total > 1 else "1 picture", page * PER_SHEET + 1
    if total > PER_SHEET:
        what = f"{first} to {first + len(cells) - 1} of {what}"
    head = text_block(title + what, blocks[0].width, 15, FAINT, most=2)
    return stack([head, *blocks], gap=CONTACT_GAP)


def contact_cell(view: View, variation: int | None) -> Image.Image:
    """The RGB picture of a variation at the finest resolution, else the last target, with its caption."""
    own = [p for p in view.panels if None in (variation, p.variation) or p.variation == variation]
    made = [panel for panel in own if panel.role != "condition"]
    rgb = [panel for panel in made if panel.codec in RGB]
    seen = [panel.picture for panel in rgb or made if panel.picture is not None]
    best = max(seen, key=lambda one: max(one.size), default=None) if rgb or not seen else seen[-1]
    cell = Image.new("RGB", (CONTACT, CONTACT), PAPER)
    paste(cell, best or next((p.note for p in made if p.note), "nothing made"), (0, 0), CONTACT, line=-1)
    text = view.prompt or next((panel.text for panel in own if panel.codec == CAPTION and panel.text), "")
    words = [text_block(text, CONTACT, 13, most=3)] if text.strip() else []
    name = view.key.text if variation is None else f"{view.key.text}-v{variation}"
    return stack([cell, *words, text_block(name, CONTACT, 11, FAINT, most=1)], gap=4, margin=0)


def starts(count: int, pitch: int, first: int = 0, apart: Mapping[int, int] | None = None) -> list[int]:
    """Where columns begin, every `pitch` pixels; those in `apart` leave so many pixels more before them."""
    steps = [pitch + (apart or {}).get(number, 0) for number in range(1, count)]
    return list(accumulate(steps, initial=first))


def fit(picture: Image.Image, side: int) -> Image.Image:
    """A picture within a square; small ones grow by whole pixels, so that tokens and labels stay sharp."""
    picture = picture.convert("RGB")
    longest = max(picture.size)
    if longest <= side:
        return ImageOps.scale(picture, side // longest, Image.Resampling.NEAREST)
    size = (max(1, picture.width * side // longest), max(1, picture.height * side // longest))
    return picture.resize(size, Image.Resampling.LANCZOS)


def paste(
    sheet: Image.Image, picture: Image.Image | str, place: tuple[int, int], side: int, line: int | None = None
) -> None:
    """Put a picture, or a text in its place, in the middle of a square, as large as `fit` makes it.

    line: pixels between it and a thin line around it, -1 for a line on its edge; None for no line.
    """
    if isinstance(picture, str):
        said = text_block(picture, side - 16, 14, FAINT, most=3, centred=True, paper=BLANK)
        picture = Image.new("RGB", (side, side), BLANK)
        picture.paste(said, (8, (side - said.height) // 2))
    picture = fit(picture, side)
    left, top = place[0] + (side - picture.width) // 2, place[1] + (side - picture.height) // 2
    sheet.paste(picture, (left, top))
    if line is not None:
        box = (left - 1 - line, top - 1 - line, left + picture.width + line, top + picture.height + line)
        ImageDraw.Draw(sheet).rectangle(box, outline=RULE)


def text_block(
    text: str, width: int, size: int, colour: str = INK, most: int = 4, centred: bool = False,
    paper: str = PAPER,
) -> Image.Image:  # fmt: skip
    """A text on paper of this width, wrapped, with as many lines as it takes."""
    font, lines = lines_of(text, size, width, most)
    pitch = round(1.3 * size)
    block = Image.new("RGB", (width, max(1, pitch * len(lines))), paper)
    draw = ImageDraw.Draw(block)
    x, anchor = (width / 2, "mm") if centred else (0, "lm")
    for number, line in enumerate(lines):
        draw.text((x, (number + 0.5) * pitch), line, colour, font, anchor=anchor)
    return block


def legend(labels: Sequence[tuple[str, Ink]], width: int) -> Image.Image:
    """Names beside squares of their colours, in as many lines as they take."""
    gap, pitch, x, y = 6, 24, 0, 0
    block = Image.new("RGB", (width, pitch * max(1, len(labels))), PAPER)  # enough if each takes a line
    draw = ImageDraw.Draw(block)
    for name, colour in labels:
        font, lines = lines_of(name, 13, width - _SWATCH - gap, 1)
        line = "".join(lines)  # a blank name has none
        length = int(font.getlength(line)) + 1
        if x and x + _SWATCH + gap + length > width:
            x, y = 0, y + pitch
        top, left = y + (pitch - _SWATCH) // 2, x + _SWATCH + gap
        draw.rectangle((x, top, x + _SWATCH - 1, top + _SWATCH - 1), fill=colour, outline=RULE)
        draw.text((left, y + pitch // 2), line, INK, font, anchor="lm")
        x = left + length + 3 * gap
    return block.crop((0, 0, width, y + pitch))


def stack(blocks: Sequence[Image.Image], gap: int = 12, margin: int = 16) -> Image.Image:
    """Blocks one below the other on white paper."""
    tops = list(accumulate((block.height + gap for block in blocks), initial=margin))
    width = max(block.width for block in blocks) + 2 * margin
    sheet = Image.new("RGB", (width, tops[-1] - gap + margin), PAPER)
    for block, top in zip(blocks, tops, strict=False):
        sheet.paste(block, (margin, top))
    return sheet
