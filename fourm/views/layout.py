"""How sheets are put together: pictures in squares, blocks of text, legends, scales, one below the other."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from fourm.codecs.colours import turbo
from fourm.codecs.drawing import Ink, font_for, lines_of

SMALL, GAP, LINE = 128, 10, 16  # pixels: side of a small picture, space around it, height of a line of text
COLUMNS = 6  # side by side; more go below
INK, PAPER, RULE = "#1a1a1a", "#ffffff", "#c8c8c8"
FAINT, BLANK, ALARM = "#6e6e6e", "#eeeeee", "#a81818"
_SWATCH = 14  # pixels per side of a colour in a legend
_BAR = 8  # pixels: the height of a bar of colours


def starts(count: int, pitch: int, first: int = 0, apart: Mapping[int, int] | None = None) -> list[int]:
    """Where columns begin, every `pitch` pixels; those in `apart` leave so many pixels more before them."""
    steps = [pitch + (apart or {}).get(number, 0) for number in range(1, count)]
    return list(accumulate(steps, initial=first))


def fit(picture: Image.Image, side: int, fills: bool = False) -> Image.Image:
    """A picture within a square; small ones grow by whole pixels, so that tokens and labels stay sharp.

    fills: they become as long as the square, even if pixels are mixed for that.
    """
    picture = picture.convert("RGB")
    longest = max(picture.size)
    if longest <= side and fills and side % longest:
        picture = ImageOps.scale(picture, side // longest + 1, Image.Resampling.NEAREST)
        longest = max(picture.size)
    if longest <= side:
        return ImageOps.scale(picture, side // longest, Image.Resampling.NEAREST)
    size = (max(1, picture.width * side // longest), max(1, picture.height * side // longest))
    return picture.resize(size, Image.Resampling.LANCZOS)


def slack(pictures: Iterable[Image.Image | str], side: int) -> int:
    """Pixels above and below, in a row of squares, that none of these needs: all are wider than high."""
    heights = (side if isinstance(one, str) else -(-side * one.height // one.width) for one in pictures)
    return max(0, side - max(heights, default=side)) // 2


def paste(
    sheet: Image.Image, picture: Image.Image | str, place: tuple[int, int], side: int,
    line: int | None = None, fills: bool = False,
) -> None:  # fmt: skip
    """Put a picture, or a text in its place, in the middle of a square, as large as `fit` makes it.

    line: pixels between it and a thin line around it, -1 for a line on its edge; None for no line.
    """
    if isinstance(picture, str):
        said = text_block(picture, side - 16, 14, FAINT, most=3, centred=True, paper=BLANK)
        picture = Image.new("RGB", (side, side), BLANK)
        picture.paste(said, (8, (side - said.height) // 2))
    picture = fit(picture, side, fills)
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


def beside(blocks: Sequence[Image.Image]) -> Image.Image:
    """Blocks side by side on white paper."""
    lefts = list(accumulate((block.width for block in blocks), initial=0))
    sheet = Image.new("RGB", (lefts[-1], max(block.height for block in blocks)), PAPER)
    for block, left in zip(blocks, lefts, strict=False):
        sheet.paste(block, (left, 0))
    return sheet


def number_text(value: float) -> str:
    """Three digits of a small number, all digits of a large one before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def colour_bar(limits: tuple[float, float], width: int) -> Image.Image:
    """The Turbo colours, with the numbers that their two ends stand for below them."""
    block = Image.new("RGB", (width, _BAR + LINE), PAPER)
    low, high = limits
    bar = Image.fromarray(turbo(np.arange(width if low < high else 1)[None]))
    block.paste(bar.resize((width, _BAR), Image.Resampling.NEAREST))
    draw, font, middle = ImageDraw.Draw(block), font_for("", 12), _BAR + LINE // 2 + 1
    draw.text((0, middle), number_text(low), FAINT, font, anchor="lm")
    if low < high:
        draw.text((width - 1, middle), number_text(high), FAINT, font, anchor="rm")
    return block
