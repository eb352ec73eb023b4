"""Film strips: what a target looked like after its steps, and which step decided which token."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from fourm.codecs.drawing import font_for
from fourm.codecs.maps import GREY, turbo
from fourm.views.album import Film, Frame, View
from fourm.views.sheets import FAINT, INK, PAPER, RULE, empty_cell, fit, stack, text_block

CELL, GAP = 128, 10
LABEL = 130  # pixels for the name of a target
MAX_FRAMES = 8  # of one film on a sheet, evenly chosen
MAX_FILMS = 64  # rows of a sheet
_TEXT = 34  # pixels for what stands under a picture


def draw_films(view: View) -> Image.Image:
    """A row for each target and variation: kept steps, the result, the order of decoding."""
    rows = [(film, chosen(film.frames)) for film in view.films[:MAX_FILMS]]
    frames = max(len(shown) for _, shown in rows)
    width = LABEL + (frames + 2) * (CELL + GAP) + GAP
    blocks = [text_block(view.headline, width, 20, INK), _titles(frames, width)]
    blocks += [_row(film, shown, frames, width, view) for film, shown in rows]
    if (more := len(view.films) - MAX_FILMS) > 0:
        blocks.append(text_block(f"and {more} more", width, 13, FAINT))
    return stack(blocks, gap=8)


def chosen(frames: Sequence[Frame]) -> list[Frame]:
    """Not too many frames, evenly chosen, the last one among them."""
    if len(frames) <= MAX_FRAMES:
        return list(frames)
    places = np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int)
    return [frames[place] for place in places.tolist()]


def order_map(film: Film) -> Image.Image:
    """A pixel for each token: the first decided dark blue, the last dark red, undecided ones grey."""
    order = np.array(film.order, dtype=np.int64).reshape(film.grid)
    decided = order >= 0
    low = order[decided].min() if decided.any() else 0
    colours = turbo(np.where(decided, order, low))
    return Image.fromarray(np.where(decided[..., None], colours, np.uint8(GREY)))


def _titles(frames: int, width: int) -> Image.Image:
    block = Image.new("RGB", (width, 36), PAPER)
    names = [(0, "while it was decoded"), (frames, "result"), (frames + 1, "which step decided which token")]
    for column, name in names[0 if frames else 1 :]:
        title = text_block(name, CELL if column else max(CELL, frames * (CELL + GAP)), 13, FAINT, most=2)
        block.paste(title, (_left(column, frames), block.height - title.height))
    return block


def _left(column: int, frames: int) -> int:
    """Where a column begins; the result and the order stand a little apart."""
    return LABEL + column * (CELL + GAP) + (GAP if column >= frames and frames else 0)


def _row(film: Film, shown: Sequence[Frame], frames: int, width: int, view: View) -> Image.Image:
    row = Image.new("RGB", (width, CELL + _TEXT), PAPER)
    name = text_block(film.title, LABEL - GAP, 14, INK, most=4)
    which = "" if film.variation is None else f"v{film.variation}"
    label = stack([name, text_block(which, LABEL - GAP, 14, FAINT)], gap=0, margin=0)
    row.paste(label, (0, max(0, (CELL - label.height) // 2)))
    total = film.grid[0] * film.grid[1]
    for column, frame in enumerate(shown):
        text = f"step {frame.step}\n{frame.decided} of {total} tokens"
        _place(row, fit(frame.picture, CELL), _left(column, frames), text)
    results = (p for p in view.panels if (p.modality, p.variation) == (film.modality, film.variation))
    panel = next((p for p in results if p.role != "condition"), None)
    if panel is not None:
        picture = panel.picture
        cell = empty_cell(panel.note, CELL) if picture is None else fit(picture, CELL)
        _place(row, cell, _left(frames, frames), "")
    if film.order is not None:
        _place(row, fit(order_map(film), CELL), _left(frames + 1, frames), "")
        row.paste(_scale(film.order), (_left(frames + 1, frames), CELL + 5))
    return row


def _place(row: Image.Image, picture: Image.Image, left: int, text: str) -> None:
    """A picture and the lines under it."""
    x, y = left + (CELL - picture.width) // 2, (CELL - picture.height) // 2
    row.paste(picture, (x, y))
    ImageDraw.Draw(row).rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=RULE)
    for number, line in enumerate(text.splitlines()):
        row.paste(text_block(line, CELL, 12, FAINT, most=1, centred=True), (left, CELL + 3 + 15 * number))


def _scale(order: Sequence[int]) -> Image.Image:
    """The colours of the first and last step and all between, with their numbers."""
    steps = [step for step in order if step >= 0] or [0]
    first, last = min(steps), max(steps)
    block = Image.new("RGB", (CELL, _TEXT - 5), PAPER)
    bar = turbo(np.arange(CELL if last > first else 1)[None])
    block.paste(Image.fromarray(bar).resize((CELL, 8), Image.Resampling.NEAREST), (0, 0))
    font, pitch = font_for("", 12), round(1.3 * 12)
    draw = ImageDraw.Draw(block)
    draw.text((0, 11 + pitch / 2), f"step {first}", FAINT, font, anchor="lm")
    if last > first:
        draw.text((CELL - 1, 11 + pitch / 2), str(last), FAINT, font, anchor="rm")
    return block
