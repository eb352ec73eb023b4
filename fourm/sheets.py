"""Pictures side by side with a line of text under each, on one sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fourm.layout import remove_leftovers, write_atomic

CELL, GAP, LINE = 128, 10, 16  # pixels: a picture's side, the space around it, the height of a line of text
_INK, _PAPER, _RULE = "#1a1a1a", "#ffffff", "#c8c8c8"


@dataclass(frozen=True, slots=True)
class Cell:
    """A picture and what stands under it."""

    picture: Image.Image
    text: str


def draw_sheet(rows: Sequence[Sequence[Cell]]) -> Image.Image:
    """Rows of cells on white paper; the first cell of a row stands apart, as what the others belong to."""
    columns = max((len(row) for row in rows), default=0)
    if not columns:
        raise ValueError("a sheet without a picture")
    width, height = GAP + columns * (CELL + GAP) + GAP, GAP + len(rows) * (CELL + LINE + GAP)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for y, row in enumerate(rows):
        top = GAP + y * (CELL + LINE + GAP)
        for x, cell in enumerate(row):
            left = GAP + x * (CELL + GAP) + (GAP if x else 0)
            thumb = fit(cell.picture, CELL)
            place = (left + (CELL - thumb.width) // 2, top + (CELL - thumb.height) // 2)
            sheet.paste(thumb, place)
            draw.rectangle((left - 1, top - 1, left + CELL, top + CELL), outline=_RULE)
            text = shortened(cell.text, font, CELL)
            draw.text((left + CELL / 2, top + CELL + LINE / 2 + 1), text, _INK, font, anchor="mm")
        draw.line((GAP + CELL + GAP, top, GAP + CELL + GAP, top + CELL), fill=_RULE)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """A PNG, whole or not at all."""
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder, path, lambda file: sheet.save(file, format="PNG", optimize=True))
    remove_leftovers(folder)


def fit(picture: Image.Image, side: int) -> Image.Image:
    """A picture within a square; small ones grow by whole pixels, so that tokens and labels stay sharp."""
    picture = picture.convert("RGB")
    longest = max(picture.size)
    if longest * 2 <= side:
        factor = side // longest
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = (max(1, picture.width * side // longest), max(1, picture.height * side // longest))
    return picture.resize(size, Image.Resampling.LANCZOS)


def shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """As much of one line of text as fits, its end marked where something is missing."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
