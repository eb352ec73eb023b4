"""What is shown of one sample: its values with their pictures, and films of its decoding."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from fourm.codecs.colours import UNKNOWN
from fourm.codecs.drawing import CANVAS, Ink, draw_boxes
from fourm.codecs.files import read_picture, read_text
from fourm.codecs.images import GridCodec
from fourm.codecs.keeping import Mask
from fourm.codecs.table import build_codec
from fourm.codecs.texts import STRUCTURED, CaptionCodec, read_structured
from fourm.data.layout import Key
from fourm.errors import FourMError, printable
from fourm.modalities.registry import Modality
from fourm.modalities.text import Structured
from fourm.sources.datasets import CAPTION

MAX_SIDE = 2048  # pixels; larger pictures are reduced to this side
ROLES = {"condition": "given", "target": "made", "sr": "super-resolution"}  # role -> words
RGB = ("rgb", "tok_rgb")  # codecs whose values are colour pictures
# Codec name -> text for searches, where the model's own words are numbers.
SAID: Mapping[str, Callable[[Any], str]] = {
    "det": lambda boxes: ", ".join(box.name for box in boxes),
    "metadata": lambda facts: ", ".join(f"{f.field.name.replace('_', ' ')} {f.value:g}" for f in facts),
    "color_palette": lambda colours: " ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours),
}
Label = tuple[str, Ink]  # name and colour of a class in a map of labels


@dataclass(frozen=True, slots=True)
class Reader:
    """Functions that read a value of one modality from its file, draw it, and give its text."""

    row: Modality
    read: Callable[[Path], Any]
    picture: Callable[[Any], Image.Image]
    say: Callable[[Any], str] = lambda value: ""  # the text of a value, for searches; "" for pictures
    grid: GridCodec | None = None  # codec, if the tokens of a value form a grid


@dataclass(slots=True)
class Panel:
    """One value of a sample. Its picture is set after all values of the sample are read."""

    modality: str  # full name: "tok_rgb@64"
    title: str  # "RGB"
    role: str  # one of ROLES
    variation: int | None  # None: the value is the same for all variations
    file: str  # path below the output folder
    codec: str  # codec name of the modality: "tok_rgb", "caption", ...; "" if it is unknown
    note: str = ""  # why there is no picture
    text: str = ""  # a caption, or another value in words; "" for pictures
    labels: tuple[Label, ...] = ()  # classes in a map of labels
    limits: tuple[float, float] | None = None  # numbers of the colours' two ends, where they are numbers
    picture: Image.Image | None = None
    problem: str = ""  # why the file is missing or cannot be read
    reader: Reader | None = None  # None: the file was not read
    value: Any = None  # what the reader returned
    # (h, w) over the whole picture, of a part that was given of a target: True for what stays.
    mask: Mask | None = None

    def set_value(self, value: Any, reader: Reader) -> None:
        """Take a value, and its text and classes."""
        self.reader, self.value, self.text = reader, value, reader.say(value)
        if reader.grid is not None:
            self.labels = tuple((one.name, one.colour) for one in reader.grid.legend(value))


@dataclass(frozen=True, slots=True)
class Frame:
    """The picture of a target after a step."""

    step: int  # of the chain, from 1
    decided: int  # number of tokens of the target that are decided after it
    picture: Image.Image


@dataclass(frozen=True, slots=True)
class Film:
    """The steps by which a target of one variation was decoded."""

    modality: str
    title: str
    variation: int | None
    grid: tuple[int, int]  # rows, columns of tokens
    order: tuple[int, ...] | None  # step, from 1, that decided each token, row by row; None: not kept
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class View:
    """One sample: all variations of all its values."""

    key: Key
    prompt: str | None  # the caption that it was generated from
    panels: tuple[Panel, ...]  # conditions, targets in the order of the chain, super-resolution
    films: tuple[Film, ...] = ()
    problems: tuple[str, ...] = ()  # missing and broken files, and recorded failures
    made_by: str = ""  # models and seeds: "demo, seed 7"

    @property
    def headline(self) -> str:
        """The prompt, or the key if the prompt is empty or there is none."""
        return self.prompt if self.prompt and self.prompt.strip() else self.key.text


def reader_for(row: Modality) -> Reader:
    """The reader of a row of the registry; UsageError if there is no codec for it."""
    if row.codec == CAPTION:
        return text_reader(row)
    if row.codec in STRUCTURED:
        form = STRUCTURED[row.codec]
        said = SAID.get(row.codec, form.grammar.to_text)
        return Reader(row, partial(read_structured, grammar=form.grammar), form.draw, said)
    codec = build_codec(row)
    if not isinstance(codec, GridCodec):
        return Reader(row, codec.read, codec.picture)
    return Reader(row, partial(_read_shown, codec.read), codec.picture, grid=codec)


def text_reader(row: Modality) -> Reader:
    """The reader of a text as a model reads it, whatever the row's own files hold."""
    return Reader(row, read_text, CaptionCodec.picture, str)


def panel_of(row: Modality, value: Any, role: str = "target", variation: int | None = None) -> Panel:
    """A value in memory, as its codec decodes or reads it, for `make_view`. role: one of ROLES."""
    reader = reader_for(row)
    panel = Panel(row.name, row.title, role, variation, "", row.codec)
    panel.set_value(value.value if isinstance(value, Structured) else value, reader)
    return panel


def panel_of_part(row: Modality, value: Any, mask: Mask | None) -> Panel:
    """What was given of a target: a part of its value by a mask, a text with marks, or, None, tokens."""
    reader = reader_for(row)
    if reader.grid is None:
        reader = text_reader(row)
    panel = Panel(row.name, part_title(row.title, value is None), "condition", None, "", row.codec, mask=mask)
    if value is not None:
        panel.set_value(value, reader)
    return panel


def part_title(title: str, is_ids: bool) -> str:
    """The title of what was given of a target with this title: values, or token ids."""
    return f"{title}, kept{' tokens' if is_ids else ''}"


def make_view(key: Key, panels: Sequence[Panel], made_by: str = "") -> View:
    """A sample whose values are in memory, with their pictures; panels in the order of `View.panels`."""
    names = [(panel.title, panel.modality, panel.role) for panel in panels]
    for panel in panels:
        panel.title = full_title(panel.title, panel.modality, panel.role, names)
    problems = list[str]()
    draw_panels(panels, problems)
    return View(key, prompt_of(panels), tuple(panels), (), tuple(problems), made_by)


def prompt_of(panels: Iterable[Panel]) -> str | None:
    """The caption that a sample was generated from."""
    captions = (p.text for p in panels if p.role == "condition" and p.codec == CAPTION and not p.note)
    return next(captions, None)


def full_title(title: str, modality: str, role: str, others: Iterable[tuple[str, str, str]]) -> str:
    """A title, with its role if another modality in another role has the same one.

    others: title, modality and role of all that is shown.
    """
    roles = {other[2] for other in others if other[0] == title and other[1] != modality}
    return f"{title}, {ROLES[role]}" if role == "sr" or roles - {"sr", role} else title


def draw_panels(panels: Sequence[Panel], problems: list[str]) -> None:
    """Set the pictures of panels; a value that cannot be drawn is added to `problems`."""
    maps = [(panel, panel.reader.grid) for panel in panels if panel.reader and panel.reader.grid]
    for panel, grid in maps:
        # Depth and features of one modality are drawn together, so that their colours agree; what is given
        # may have other units than what is made.
        if panel.picture is None and (grid.form.is_measured or grid.form.resample is None):
            is_given = panel.role == "condition"
            same = [one for one, other in maps if other.row.key == grid.row.key
                    and (grid.form.resample is None or (one.role == "condition") is is_given)]  # fmt: skip
            values = [one.value for one in same]
            with suppress(ValueError):  # each is drawn alone below, where errors are reported
                for one, picture in zip(same, grid.pictures(values), strict=True):
                    one.picture, one.limits = limited(picture), grid.limits(values)
    for panel in sorted(panels, key=lambda panel: panel.codec == "det"):  # boxes last, as they need a picture
        if panel.reader is None or panel.picture is not None:
            continue
        try:
            if panel.codec == "det":
                panel.picture = limited(draw_boxes(panel.value, _backdrop(panel, panels)))
            else:
                panel.picture = limited(panel.reader.picture(panel.value))
        except (FourMError, ValueError, OSError) as error:  # the reader did not check everything
            panel.note = "cannot be drawn"
            problems.append(printable(f"{panel.file}: cannot be drawn ({error})"))
    for panel in panels:
        if panel.mask is not None and not panel.note:
            panel.picture = _part_of(panel.picture, panel.mask)


def _part_of(picture: Image.Image | None, mask: Mask) -> Image.Image:
    """What stays of a picture, the rest light grey; without a picture the mask, white for what stays."""
    stays = Image.fromarray(mask.astype(np.uint8) * 255)
    if picture is None:
        return stays.convert("RGB")
    hidden = Image.new("RGB", picture.size, (UNKNOWN, UNKNOWN, UNKNOWN))
    return Image.composite(
        picture.convert("RGB"), hidden, stays.resize(picture.size, Image.Resampling.NEAREST)
    )


def picture_alone(panel: Panel) -> Image.Image | None:
    """A drawn panel with the colours of its own value alone, as films have them, not those of variations."""
    if panel.picture is None or panel.reader is None or panel.reader.grid is None:
        return panel.picture
    return limited(panel.reader.picture(panel.value))


def limited(picture: Image.Image) -> Image.Image:
    """A copy of a picture, reduced to MAX_SIDE if it is larger."""
    picture = picture.copy()
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def _backdrop(boxes: Panel, panels: Sequence[Panel]) -> Image.Image | None:
    """The RGB picture to draw boxes on, enlarged so that names are readable; None if there is none."""
    for panel in panels:
        fits = panel.variation is None or boxes.variation in (None, panel.variation)
        is_rgb = panel.reader is not None and panel.reader.row.is_rgb and panel.role != "sr"
        if panel.picture and is_rgb and fits:
            factor = max(1, CANVAS[0] // max(panel.picture.size))
            return ImageOps.scale(panel.picture, factor, Image.Resampling.NEAREST)
    return None


def _read_shown(read: Callable[[Path], Any], path: Path) -> Any:
    """A value as a codec reads it, but with the alpha channel of a picture, which says what is unknown."""
    if path.suffix.lower() == ".png" and (picture := read_picture(path)).mode in ("LA", "RGBA"):
        return np.asarray(picture)
    return read(path)
