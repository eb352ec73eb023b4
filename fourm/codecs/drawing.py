"""Draws values that are not pictures: cards of text, boxes, colour palettes, tables of metadata."""

import unicodedata
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from fourm.modalities.facts import Box, Colour, Fact

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Ink = tuple[int, int, int]  # red, green, blue
Rectangle = tuple[int, int, int, int]  # left, upper, right, lower, in pixels; right and lower are outside

CARD = 224  # pixels per side of a card
CANVAS = (256, 256)  # width, height of the white picture that boxes are drawn on
STRIPE = 25  # pixels
_WHITE, _BLACK, _GREY, _PALE = (255, 255, 255), (0, 0, 0), (128, 128, 128), (240, 240, 240)
# Twelve colours, from red to pink, that are told apart on light and dark pictures.
_CLASS_COLOURS: tuple[Ink, ...] = (
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (67, 99, 216), (245, 130, 49), (145, 30, 180),
    (66, 212, 244), (240, 50, 230), (191, 239, 69), (70, 153, 144), (154, 99, 36), (250, 190, 212),
)  # fmt: skip
# Pillow's own font has little beyond ASCII; of these, what a machine has is tried for other text.
_SYSTEM_FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "Arial.ttf",
    "segoeui.ttf",
)  # fmt: skip
_LINE = 1.25  # height of a line in font sizes


def text_card(text: str, side: int = CARD) -> Image.Image:
    """Draw a text centred on a framed white square, as large as it fits; "..." marks what is left out."""
    image = Image.new("RGB", (side, side), _WHITE)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, side - 1, side - 1), outline=_GREY)
    room = side - 2 * (side // 14)
    for size in (20, 18, 16, 14, 12, 11, 10, 9):
        pixels = max(size * side // CARD, 6)
        most = max(int(room / (_LINE * pixels)), 1)
        font, lines = lines_of(text, pixels, room, most + 1)
        if len(lines) <= most:
            break
    else:
        font, lines = lines_of(text, pixels, room, most)
    top = side / 2 - (len(lines) - 1) * _LINE * pixels / 2
    for number, line in enumerate(lines):
        draw.text((side / 2, top + number * _LINE * pixels), line, _BLACK, font, anchor="mm")
    return image


def lines_of(text: str, size: int, width: int, most: int) -> tuple[Font, list[str]]:
    """A font, and a text broken into at most `most` lines of `width` pixels; "..." marks what is left out."""
    font, shown, _ = _readable(text, size)
    lines, line = list[str](), ""
    for word in shown.split():
        longer = f"{line} {word}" if line else word
        if _length(longer, font) <= width:
            line = longer
            continue
        lines += [line] if line else []
        # A word that is wider alone is cut; every part has a character.
        while len(word) > (count := max(_fitting(word[:width], font, width), 1)):
            lines.append(word[:count])
            word = word[count:]
        line = word
    lines += [line] if line else []
    if len(lines) > most:
        lines = [*lines[: most - 1], _shortened(lines[most - 1] + " ...", font, width)]
    return font, lines


def undrawable(text: str) -> set[str]:
    """The characters of a text that are drawn as question marks."""
    return _readable(text, 16)[2]


def corners_of(box: Box, width: int, height: int) -> Rectangle:
    """The pixels of a box in a picture, rounded down; its corners are put in order and inside."""
    left, right = sorted(min(int(x * width), width - 1) for x in (box.xmin, box.xmax))
    upper, lower = sorted(min(int(y * height), height - 1) for y in (box.ymin, box.ymax))
    return left, upper, right, lower


def draw_boxes(boxes: Sequence[Box], on: Image.Image | None = None) -> Image.Image:
    """Draw boxes with their names on a copy of a picture, or on white; each class has its own colour.

    Without boxes the picture is unchanged; without a picture, too, a card says "no boxes".
    """
    if on is None and not boxes:
        return text_card("no boxes", CANVAS[0])
    image = Image.new("RGB", CANVAS, _WHITE) if on is None else on.convert("RGB")
    draw, colours = ImageDraw.Draw(image), class_colours(box.name for box in boxes)
    thickness = max(1, round(min(image.size) / 128))
    for box in sorted(boxes, key=lambda box: -abs((box.xmax - box.xmin) * (box.ymax - box.ymin))):
        colour, (x0, y0, x1, y1) = colours[box.name], corners_of(box, *image.size)
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_ink_on(colour), width=thickness + 2)
        draw.rectangle((x0, y0, x1, y1), outline=colour, width=thickness)
    size, taken = image.size, list[Rectangle]()
    pixels = min(max(min(size) // 16, 10), 28)
    pad = max(pixels // 6, 1)
    for box in boxes[:100]:  # names of more would hide everything
        font, name, _ = _readable(box.name, pixels)
        name = _shortened(name, font, size[0] - 2 * pad)
        width, height = _length(name, font) + 2 * pad, round(_LINE * pixels) + 1
        if not name or width > size[0] or height > size[1]:
            continue
        x0, y0, _, y1 = corners_of(box, *size)
        left = min(x0, size[0] - width)
        # On a bar at the box's upper or lower edge; within it only where that leaves something of it visible.
        beside = (y0, y1 + 2) if y1 - y0 > 2 * height else (y1 + 2, y0)
        tops = [top for top in (y0 - height, *beside, y1 - height) if 0 <= top <= size[1] - height]
        places = [(left, top, left + width, top + height) for top in tops or [min(y0, size[1] - height)]]
        free = (place for place in places if not any(_overlap(place, other) for other in taken))
        place = next(free, places[0])
        taken.append(place)
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colours[box.name])
        draw.text((left + pad, place[1] + height / 2), name, _ink_on(colours[box.name]), font, anchor="lm")
    return image


def class_colours(names: Iterable[str]) -> dict[str, Ink]:
    """A colour for each class: the same in most pictures, different ones for up to twelve classes."""
    colours, taken, count = dict[str, Ink](), set[Ink](), len(_CLASS_COLOURS)
    for name in sorted(set(names)):
        first = zlib.crc32(name.encode("utf-8", "replace"))
        ranked = [_CLASS_COLOURS[(first + step) % count] for step in range(count)]
        colours[name] = next((colour for colour in ranked if colour not in taken), ranked[0])
        taken.add(colours[name])
    return colours


def draw_palette(colours: Sequence[Colour]) -> Image.Image:
    """Draw a square of vertical stripes, one for each colour; a card that says "no colours" for none."""
    if not colours:
        return text_card("no colours")
    image, side = Image.new("RGB", (len(colours), 1)), STRIPE * len(colours)
    image.putdata(colours)
    return image.resize((side, side), Image.Resampling.NEAREST)


def draw_metadata(facts: Sequence[Fact]) -> Image.Image:
    """Draw a table of names and values, at least as wide as a card."""
    if not facts:
        return text_card("no metadata")
    rows = list[tuple[str, str]]()
    for fact in facts:
        form = ".3g" if abs(fact.value) >= 1e12 else "d" if isinstance(fact.value, int) else ".2f"
        rows.append((fact.field.name.replace("_", " "), format(fact.value, form)))
    font, height, margin = font_for("", 13), 20, 13  # pixels
    widths = (max(_length(row[column], font) for row in rows) for column in (0, 1))
    width = max(sum(widths) + 4 * margin, CARD)
    image = Image.new("RGB", (width, height * len(rows) + 2), _WHITE)
    draw = ImageDraw.Draw(image)
    for number, (name, value) in enumerate(rows):
        top = 1 + number * height
        if number % 2 == 0:
            draw.rectangle((0, top, width, top + height - 1), fill=_PALE)
        draw.text((margin, top + height / 2), name, _BLACK, font, anchor="lm")
        draw.text((width - margin, top + height / 2), value, _BLACK, font, anchor="rm")
    draw.rectangle((0, 0, width - 1, image.height - 1), outline=_GREY)
    return image


def font_for(text: str, size: int) -> Font:
    """Pillow's own font, unless a text needs more and this machine has a font that shows more of it."""
    return min(_fonts(size), key=lambda font: len(_missing(text, font)))


@lru_cache(maxsize=64)
def _fonts(size: int) -> tuple[Font, ...]:
    """Fonts of a size, the preferred one first."""
    found: list[Font] = [ImageFont.load_default(size)]
    for name in _SYSTEM_FONTS:
        with suppress(OSError):  # not on this machine
            found.append(ImageFont.truetype(name, size))
    return tuple(found)


def _missing(text: str, font: Font) -> set[str]:
    # Every font draws what it lacks as it draws this code point, which is no character at all.
    none = _drawn(font, "\uffff")
    return {c for c in set(text) if not c.isspace() and _drawn(font, c) == none}


@lru_cache(maxsize=1 << 14)
def _drawn(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _readable(text: str, size: int) -> tuple[Font, str, set[str]]:
    """A font, the beginning of a text as it shows it, and the characters for which it has question marks.

    Control characters become blanks, and letters that the font lacks their plain forms: e for é.
    """
    whole = text[:4000].encode("utf-8", "replace").decode()  # more fits on no card
    whole = "".join(c if c.isprintable() else " " for c in whole)
    font, plain = font_for(whole, size), dict[str, str]()
    for c in _missing(whole, font):
        form = "".join(p for p in unicodedata.normalize("NFKD", c) if not unicodedata.combining(p))
        plain[c] = form if form and not _missing(form, font) else "?"
    return font, "".join(plain.get(c, c) for c in whole), {c for c, form in plain.items() if form == "?"}


def _shortened(text: str, font: Font, width: int) -> str:
    """The text, or as much of it as fits in front of "..."; "" if not even a letter fits."""
    if _length(text, font) <= width:
        return text
    text = text.removesuffix(" ...")
    count = _fitting(text, font, width, "...")
    return text[:count].rstrip() + "..." if count > 0 else ""


def _fitting(text: str, font: Font, width: int, end: str = "") -> int:
    """How many of a text's first characters fit with `end` behind them."""
    lengths = range(len(text) + 1)
    return bisect_right(lengths, width, key=lambda n: _length(text[:n].rstrip() + end, font)) - 1


def _length(text: str, font: Font) -> int:
    return int(font.getlength(text)) + 1


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink_on(colour: Ink) -> Ink:
    """Black or white, whichever is read better on a colour (ITU-R 601 luminance)."""
    return _BLACK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140 else _WHITE
