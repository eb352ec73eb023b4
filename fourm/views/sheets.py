"""The layout of sheets: blocks of text, framed pictures in columns, blocks one below the other; PNG files."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps
from PIL.PngImagePlugin import PngInfo

from fourm.codecs.drawing import Font, Ink, lines_of
from fourm.data.writing import DRAWING, write_alone

SMALL, GAP, LINE = 128, 10, 16  # pixels: side of a small picture, space around it, height of a line of text
INK, PAPER, RULE = "#1a1a1a", "#ffffff", "#c8c8c8"
FAINT, BLANK, ALARM = "#6e6e6e", "#eeeeee", "#a81818"
_SWATCH = 14  # pixels per side of a colour in a legend

Cell = tuple[Image.Image, str]  # a picture and what stands under it


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
    placed = list[tuple[int, int, Ink, str, Font]]()
    for name, colour in labels:
        font, lines = lines_of(name, 13, width - _SWATCH - gap, 1)
        length = int(font.getlength("".join(lines))) + 1
        if x and x + _SWATCH + gap + length > width:
            x, y = 0, y + pitch
        placed.append((x, y + pitch // 2, colour, "".join(lines), font))
        x += _SWATCH + gap + length + 3 * gap
    block = Image.new("RGB", (width, y + pitch), PAPER)
    draw = ImageDraw.Draw(block)
    for left, middle, colour, name, font in placed:
        top = middle - _SWATCH // 2
        draw.rectangle((left, top, left + _SWATCH - 1, top + _SWATCH - 1), fill=colour, outline=RULE)
        draw.text((left + _SWATCH + gap, middle), name, INK, font, anchor="lm")
    return block


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
