"""Pictures side by side with a line of text under each, on one sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from fourm.codecs.drawing import Font, lines_of
from fourm.data.writing import DRAWING, write_alone

CELL, GAP, LINE = 128, 10, 16  # pixels: a picture's side, the space around it, the height of a line of text
INK, PAPER, RULE = "#1a1a1a", "#ffffff", "#c8c8c8"
FAINT, BLANK, ALARM = "#6e6e6e", "#eeeeee", "#a81818"


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
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for y, row in enumerate(rows):
        top = GAP + y * (CELL + LINE + GAP)
        for x, cell in enumerate(row):
            left = GAP + x * (CELL + GAP) + (GAP if x else 0)
            thumb = fit(cell.picture, CELL)
            place = (left + (CELL - thumb.width) // 2, top + (CELL - thumb.height) // 2)
            sheet.paste(thumb, place)
            draw.rectangle((left - 1, top - 1, left + CELL, top + CELL), outline=RULE)
            text = shortened(cell.text, font, CELL)
            draw.text((left + CELL / 2, top + CELL + LINE / 2 + 1), text, INK, font, anchor="mm")
        draw.line((GAP + CELL + GAP, top, GAP + CELL + GAP, top + CELL), fill=RULE)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """A PNG, whole or not at all."""
    said = PngInfo()
    for name, value in DRAWING.items():
        said.add_text(name, value)
    write_alone(path, lambda file: sheet.save(file, format="PNG", optimize=True, pnginfo=said))


def fit(picture: Image.Image, side: int) -> Image.Image:
    """A picture within a square; small ones grow by whole pixels, so that tokens and labels stay sharp."""
    picture = picture.convert("RGB")
    longest = max(picture.size)
    if longest <= side:
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


def text_block(
    text: str, width: int, size: int, colour: str = INK, most: int = 4, centred: bool = False
) -> Image.Image:
    """A text on white paper of this width, wrapped, with as many lines as it takes."""
    font, lines = lines_of(text, size, width, most)
    pitch = round(1.3 * size)
    block = Image.new("RGB", (width, max(1, pitch * len(lines))), PAPER)
    draw = ImageDraw.Draw(block)
    x, anchor = (width / 2, "mm") if centred else (0, "lm")
    for number, line in enumerate(lines):
        draw.text((x, (number + 0.5) * pitch), line, colour, font, anchor=anchor)
    return block


def legend_block(labels: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> Image.Image:
    """Names beside squares of their colours, in as many lines as they take."""
    swatch, gap, pitch, places, x, y = 14, 6, 24, list[tuple[int, int]](), 0, 0
    drawn = [text_lines(name, 13, width - swatch - gap) for name, _ in labels]
    for _, _, length in drawn:
        if x and x + swatch + gap + length > width:
            x, y = 0, y + pitch
        places.append((x, y))
        x += swatch + gap + length + 3 * gap
    block = Image.new("RGB", (width, y + pitch), PAPER)
    draw = ImageDraw.Draw(block)
    for (left, top), (_, colour), (font, line, _) in zip(places, labels, drawn, strict=True):
        middle = top + pitch // 2
        box = (left, middle - swatch // 2, left + swatch - 1, middle + swatch // 2 - 1)
        draw.rectangle(box, fill=colour, outline=RULE)
        draw.text((left + swatch + gap, middle), line, INK, font, anchor="lm")
    return block


def text_lines(text: str, size: int, width: int) -> tuple[Font, str, int]:
    """One line of a text that fits, its font and its length in pixels."""
    font, lines = lines_of(text, size, width, 1)
    line = lines[0] if lines else ""
    return font, line, int(font.getlength(line)) + 1


def empty_cell(text: str, side: int) -> Image.Image:
    """A place without a picture, and why."""
    cell = Image.new("RGB", (side, side), BLANK)
    font, lines = lines_of(text, 14, side - 16, 3)
    draw = ImageDraw.Draw(cell)
    for number, line in enumerate(lines):
        y = side / 2 + (number - (len(lines) - 1) / 2) * 18
        draw.text((side / 2, y), line, FAINT, font, anchor="mm")
    return cell


def stack(blocks: Sequence[Image.Image], gap: int = 12, margin: int = 16) -> Image.Image:
    """Blocks one below the other on white paper."""
    width = max(block.width for block in blocks)
    height = sum(block.height for block in blocks) + gap * (len(blocks) - 1)
    sheet = Image.new("RGB", (width + 2 * margin, height + 2 * margin), PAPER)
    top = margin
    for block in blocks:
        sheet.paste(block, (margin, top))
        top += block.height + gap
    return sheet
