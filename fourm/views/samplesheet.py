"""The sheet of one sample: what was given and what was made of it, a row for each variation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from fourm.codecs.drawing import text_card
from fourm.runs.inputs import CAPTION
from fourm.views.album import Album, Label, Panel, View
from fourm.views.sheets import (
    ALARM,
    FAINT,
    INK,
    PAPER,
    RULE,
    empty_cell,
    fit,
    legend_block,
    stack,
    text_block,
)

CELL, LARGE = 256, 448  # pixels per side of a place for a picture; where super-resolution needs more
GAP = 10
COLUMNS = 6  # side by side; more go below
MAX_VARIATIONS = 32  # rows of a sheet
_MIN_WIDTH = 400
_ROW_LABEL = 34  # pixels for the name of a variation
_MAX_PROBLEMS = 6
_HEADINGS = {"condition": "given", "target": "made", "sr": "super-resolution"}  # by role


@dataclass(frozen=True, slots=True)
class Column:
    """One modality of a sample."""

    title: str
    role: str
    panels: Mapping[int | None, Panel]  # by variation


def draw_sample(album: Album, view: View) -> Image.Image:
    """Everything of one sample on one sheet."""
    columns, rows = columns_of(view), variations_of(view)
    more = len(rows) - MAX_VARIATIONS
    rows = rows[:MAX_VARIATIONS]
    side = LARGE if any(_is_large(panel) for panel in view.panels) else CELL
    bands = [_band(part, rows, side) for part in _parts(columns)]
    width = max([_MIN_WIDTH, *(band.width for band in bands)])
    blocks = [_head(album, view, width), *bands]
    if labels := legend_of(view):
        blocks.append(legend_block(labels, width))
    notes = [*view.problems[:_MAX_PROBLEMS]]
    if (rest := len(view.problems) - len(notes)) > 0:
        notes.append(f"and {rest} more")
    blocks += [text_block(note, width, 12, ALARM) for note in notes]
    if more > 0:
        blocks.append(text_block(f"and {more} more variations", width, 13, FAINT))
    return stack(blocks)


def columns_of(view: View) -> list[Column]:
    """Panels by modality; the caption that is the headline is left out, if there is something else."""
    found = dict[tuple[str, str], dict[int | None, Panel]]()
    for panel in view.panels:
        found.setdefault((panel.role, panel.modality), {})[panel.variation] = panel
    columns = [Column(next(iter(panels.values())).title, role, panels) for (role, _), panels in found.items()]
    others = [column for column in columns if not _is_headline(column, view)]
    return others or columns


def variations_of(view: View) -> list[int | None]:
    """Rows of a sheet: the variations that there are, or (None,)."""
    found = sorted({p.variation for p in view.panels if p.variation is not None})
    return [*found] or [None]


def legend_of(view: View) -> list[Label]:
    """The classes of all maps of a sample, each once, "no class" last."""
    labels = list(dict.fromkeys(label for found in view.legends.values() for label in found))
    return sorted(labels, key=lambda label: label[0] == "no class")


def _is_headline(column: Column, view: View) -> bool:
    panel = next(iter(column.panels.values()))
    return column.role == "condition" and panel.codec == CAPTION and panel.text == view.prompt


def _is_large(panel: Panel) -> bool:
    return panel.role == "sr" and panel.picture is not None and max(panel.picture.size) > CELL


def _parts(columns: Sequence[Column]) -> list[Sequence[Column]]:
    """Columns in bands of about equal width."""
    count = -(-len(columns) // COLUMNS)
    size = -(-len(columns) // max(count, 1))
    return [columns[at : at + size] for at in range(0, len(columns), max(size, 1))]


def _head(album: Album, view: View, width: int) -> Image.Image:
    facts = [view.key.text if view.headline != view.key.text else ""]
    facts += [f"{stage.model}, seed {stage.seed}" for stage in album.stages]
    title = text_block(view.headline, width, 22, INK, most=6)
    return stack([title, text_block("  ·  ".join(filter(None, facts)), width, 13, FAINT)], gap=4, margin=0)


def _band(columns: Sequence[Column], rows: Sequence[int | None], side: int) -> Image.Image:
    """Some columns below their titles."""
    left = _ROW_LABEL if len(rows) > 1 else 0
    titles = [text_block(column.title, side, 15, INK, most=2, centred=True) for column in columns]
    top = 20 + max(title.height for title in titles) + 4
    lefts, x = list[int](), left + 1  # a pixel for the line around the first
    for number, column in enumerate(columns):
        x += 2 * GAP if number and column.role != columns[number - 1].role else 0
        lefts.append(x)
        x += side + GAP
    band = Image.new("RGB", (x - GAP + 1, top + len(rows) * (side + GAP) - GAP + 1), PAPER)
    draw = ImageDraw.Draw(band)
    for number, (column, title, place) in enumerate(zip(columns, titles, lefts, strict=True)):
        if number == 0 or column.role != columns[number - 1].role:
            band.paste(text_block(_HEADINGS[column.role], side, 12, FAINT), (place, 0))
            if number:
                draw.line((place - 3 * GAP // 2, 0, place - 3 * GAP // 2, band.height), fill=RULE)
        band.paste(title, (place, top - 4 - title.height))
    for number, variation in enumerate(rows):
        y = top + number * (side + GAP)
        if left:
            band.paste(text_block(f"v{variation}", left, 14, FAINT, most=1), (0, y + side // 2 - 9))
        for column, place in zip(columns, lefts, strict=True):
            panel = column.panels.get(variation, column.panels.get(None) if number == 0 else None)
            if panel is not None:
                _paste(band, _shown(panel, side), (place, y), side)
    return band


def _shown(panel: Panel, side: int) -> Image.Image:
    if panel.picture is None:
        return empty_cell(panel.note, side)
    if panel.codec == CAPTION and panel.text.strip():
        return text_card(panel.text, side)
    return fit(panel.picture, side)


def _paste(band: Image.Image, picture: Image.Image, place: tuple[int, int], side: int) -> None:
    """A picture in the middle of its place, with a thin line around it where there is paper between."""
    left, top = place[0] + (side - picture.width) // 2, place[1] + (side - picture.height) // 2
    band.paste(picture, (left, top))
    box = (left - 1, top - 1, left + picture.width, top + picture.height)
    ImageDraw.Draw(band).rectangle(box, outline=RULE)
