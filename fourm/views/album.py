"""Reads an output folder for display, one sample at a time, without the model and tokenizers of its run."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from fourm.codecs.drawing import CANVAS, Ink, draw_boxes
from fourm.codecs.files import read_array, read_picture, read_text
from fourm.codecs.images import GridCodec
from fourm.codecs.maps import FORMS
from fourm.codecs.table import build_codec
from fourm.codecs.texts import STRUCTURED, CaptionCodec, read_structured
from fourm.data.layout import Key, Place, Sample, path_of
from fourm.errors import FourMError, SampleError, UsageError, printable
from fourm.hub.files import find_model, find_sr
from fourm.modalities.registry import RELEASED, Kind, Modality, Registry
from fourm.output.processes import Failure, read_failures
from fourm.output.record import SR
from fourm.output.samples import RecordedSample, Run, chain_names, keys_of, open_runs
from fourm.runs.inputs import CAPTION
from fourm.runs.job import order_place, preview_place

MAX_SIDE = 2048  # pixels; larger pictures are reduced to this side
ROLES = {"condition": "given", "target": "made", "sr": "super-resolution"}  # role -> words
MISSING = "missing"  # the note of a panel whose file is not there
RGB = ("rgb", "tok_rgb")  # codecs whose values are colour pictures
# Codec name -> text for searches, where the model's own words are numbers.
_SAID: Mapping[str, Callable[[Any], str]] = {
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
    picture: Image.Image | None = None
    problem: str = ""  # why the file is missing or cannot be read
    reader: Reader | None = None  # None: the file was not read
    value: Any = None  # what the reader returned


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
    films: tuple[Film, ...]
    problems: tuple[str, ...]  # missing and broken files, and recorded failures

    @property
    def headline(self) -> str:
        """The prompt, or the key if the prompt is empty or there is none."""
        return self.prompt if self.prompt and self.prompt.strip() else self.key.text


@dataclass(frozen=True, slots=True)
class Entry:
    """One modality of a run, as a condition or a target."""

    run: Run
    place: Place
    role: str
    title: str
    reader: Reader | None  # None: the modality is unknown on this machine


@dataclass(slots=True)
class Album:
    """An output folder; `view` reads one of its samples."""

    root: Path
    runs: tuple[Run, ...]
    keys: tuple[Key, ...]  # of all samples that left a file or a failure
    problems: tuple[str, ...]  # of the folder as a whole
    entries: tuple[Entry, ...]
    failures: Mapping[str, Sequence[Failure]]  # by key

    @property
    def variations(self) -> tuple[int | None, ...]:
        """The variations of the run with the most of them."""
        return max((run.variations for run in self.runs), key=len)

    def view(self, key: Key) -> View:
        """Read and draw one sample. Files that are missing or broken are listed in its `problems`."""
        failures = self.failures.get(key.text, ())
        problems, panels = list[str](), list[Panel]()
        for failure in failures:
            which = f"variation {failure.variation}, " if len(self.variations) > 1 else ""
            which += "super-resolution, " if failure.stage == SR else ""
            problems.append(printable(f"{which}failed: {failure.reason}"))
        for run in self.runs:
            sample = run.find(key) or run.describe(Sample(key))  # a sample that failed may have no record
            found = [
                self._read(entry, sample, variation)
                for entry in self.entries
                if entry.run is run
                for variation in ((None,) if entry.place.shared else run.variations)
            ]
            failed = {f.variation for f in failures if f.stage == run.record.stage}
            if not failed and all(panel.note == MISSING for panel in found):
                continue  # this sample is not of this run
            panels += found
            for panel in found:
                # A failure explains why a file of its variation is missing.
                is_failed = len(run.variations) == 1 or panel.variation in (None, *failed)
                is_explained = failed and is_failed and panel.note == MISSING
                if panel.problem and not is_explained:
                    problems.append(panel.problem)
        _draw(panels, problems)
        films = tuple(self._films(key, problems))
        captions = (p.text for p in panels if p.role == "condition" and p.codec == CAPTION and not p.note)
        return View(key, next(captions, None), tuple(panels), films, tuple(dict.fromkeys(problems)))

    def _read(self, entry: Entry, sample: RecordedSample, variation: int | None) -> Panel:
        file, reader = sample.file(entry.place, variation), entry.reader
        path, codec = self.root / file, reader.row.codec if reader is not None else ""
        panel = Panel(entry.place.modality, entry.title, entry.role, variation, file, codec)
        try:
            if not path.is_file():
                panel.note, panel.problem = MISSING, f"{printable(file)}: missing"
            elif reader is None:
                panel.note = "unknown modality"
            elif entry.place.form == "ids":
                read_array(path)
                panel.note = "tokens only"
            else:
                panel.reader, panel.value = reader, reader.read(path)
                panel.text = reader.say(panel.value)
                if reader.grid is not None:
                    panel.labels = tuple((one.name, one.colour) for one in reader.grid.legend(panel.value))
        except SampleError as error:
            panel.note, panel.problem = "cannot be read", self._short(error)
        return panel

    def _films(self, key: Key, problems: list[str]) -> Iterator[Film]:
        """The films of a sample. Their files are optional; broken ones are added to `problems`."""

        def read_kept(place: Place, variation: int | None, read: Callable[[Path], Any]) -> Any:
            path = path_of(self.root, place.folder, key, place.suffix, variation)
            try:
                return read(path) if path.is_file() else None
            except SampleError as error:
                problems.append(self._short(error))
                return None

        for entry in self.entries:
            record, target = entry.run.record, entry.place.modality
            row = entry.reader.row if entry.reader is not None else None
            is_filmed = record.preview and entry.role != "condition"
            if not is_filmed or row is None or row.kind is not Kind.GRID or row.grid is None:
                continue
            read_order = partial(_read_order, count=row.max_tokens)
            steps = [step for step in record.schedule["steps"] if step["target"] == target]
            for variation in entry.run.variations:
                order = read_kept(order_place(target), variation, read_order)
                frames, decided = list[Frame](), 0
                for step in steps:
                    number = step["index"] + 1
                    decided += step["num_tokens"]
                    picture = read_kept(preview_place(target, number), variation, read_picture)
                    if picture is not None:
                        frames.append(Frame(number, decided, _limited(picture.convert("RGB"))))
                if order or frames:
                    yield Film(target, entry.title, variation, row.grid, order, tuple(frames))

    def _short(self, error: Exception) -> str:
        """The message of an error, with paths below the output folder."""
        return printable(str(error).replace(f"{self.root}/", "", 1))


def open_album(root: Path, model: str | None = None) -> Album:
    """The album of an output folder. UsageError if no run wrote it.

    model: whose modalities to use; None: the recorded one's, or the released ones if it is not here.
    """
    runs, named = open_runs(root), None if model is None else find_model(model).registry
    entries, problems = list[Entry](), list[str]()
    for run in runs:
        conditions, targets = chain_names(run.record.schedule)
        registry = rows_of(run.record.model) if named is None else named
        made = "sr" if run.record.stage == SR else "target"
        for name, role in (*((n, "condition") for n in conditions), *((n, made) for n in targets)):
            # Values if the run wrote them, else token ids; nothing if a condition is a file of its base run.
            places = [p for p in run.places if p.modality == name and p.is_condition == (role == "condition")]
            if not places:
                continue
            place = min(places, key=lambda place: place.form != "value")
            title, reader = name, None
            try:
                row = find_row(name, registry, run.count_tokens(place))
                title = row.title
                reader = reader_for(row)
            except UsageError as error:
                problem = f"{name}: cannot be shown, for {error}; --model NAME says whose modality it is"
                problems.append(printable(problem))
            entries.append(Entry(run, place, role, title, reader))
    failures = dict[str, list[Failure]]()
    keys = {key.text: key for key in keys_of(runs)}
    for failure in read_failures(root):
        failures.setdefault(failure.key, []).append(failure)
        folder, _, name = failure.key.rpartition("/")
        with suppress(UsageError):  # the line was edited: its key is not the key of a sample
            keys.setdefault(failure.key, Key(folder, name))
    entries = [replace(entry, title=_full_title(entry, entries)) for entry in entries]
    return Album(root, runs, tuple(sorted(keys.values())), tuple(problems), tuple(entries), failures)


def reader_for(row: Modality) -> Reader:
    """The reader of a row of the registry; UsageError if there is no codec for it."""
    if row.codec == CAPTION:
        return Reader(row, read_text, CaptionCodec.picture, str)
    if row.codec in STRUCTURED:
        form = STRUCTURED[row.codec]
        said = _SAID.get(row.codec, form.grammar.to_text)
        return Reader(row, partial(read_structured, grammar=form.grammar), form.draw, said)
    codec = build_codec(row)
    return Reader(row, codec.read, codec.picture, grid=codec if isinstance(codec, GridCodec) else None)


def rows_of(model: str) -> Registry:
    """The modalities of a model, or of its super-resolution (`MODEL/sr`); RELEASED if it is not here."""
    with suppress(FourMError):
        return find_model(model).registry
    if model.endswith("/sr"):
        with suppress(FourMError):
            return find_sr(find_model(model.removesuffix("/sr"))).registry
    return RELEASED


def find_row(name: str, registry: Registry, count: int | None = None) -> Modality:
    """The row of a full name in `registry`, else in the released registry; UsageError if it is in neither.

    Another resolution of a released modality is read like the released one, with a square grid of `count`
    tokens. That excludes maps of labels, whose class numbers may have another meaning.
    """
    if row := registry.rows.get(name) or RELEASED.rows.get(name):
        return row
    for row in RELEASED.rows.values():
        if row.key == name.partition("@")[0] and not (row.codec in FORMS and FORMS[row.codec].is_labels):
            side = math.isqrt(count or 0)
            is_square = row.kind is Kind.GRID and side > 0 and side * side == count
            return replace(row, grid=(side, side), max_tokens=side * side) if is_square else row
    raise UsageError("neither its model nor the released ones have it")


def _full_title(entry: Entry, entries: Sequence[Entry]) -> str:
    """The title of an entry, with its role if another modality in another role has the same title."""
    same = [e for e in entries if e.title == entry.title and e.place.modality != entry.place.modality]
    is_unclear = entry.role == "sr" or {one.role for one in same} - {"sr", entry.role}
    return f"{entry.title}, {ROLES[entry.role]}" if is_unclear else entry.title


def _draw(panels: Sequence[Panel], problems: list[str]) -> None:
    """Set the pictures of panels; a value that cannot be drawn is added to `problems`."""
    maps = [(panel, panel.reader.grid) for panel in panels if panel.reader and panel.reader.grid]
    for panel, grid in maps:
        # Feature maps of one modality are drawn together, so that their colours agree.
        if grid.form.resample is None and panel.picture is None:
            same = [one for one, other in maps if other.row.key == grid.row.key]
            with suppress(ValueError):  # each is drawn alone below, where errors are reported
                for one, picture in zip(same, grid.pictures([one.value for one in same]), strict=True):
                    one.picture = picture
    for panel in sorted(panels, key=lambda panel: panel.codec == "det"):  # boxes last, as they need a picture
        if panel.reader is None or panel.picture is not None:
            continue
        try:
            if panel.codec == "det":
                panel.picture = _limited(draw_boxes(panel.value, _backdrop(panel, panels)))
            else:
                panel.picture = _limited(panel.reader.picture(panel.value))
        except (FourMError, ValueError, OSError) as error:  # the reader did not check everything
            panel.note = "cannot be drawn"
            problems.append(printable(f"{panel.file}: cannot be drawn ({error})"))


def _backdrop(boxes: Panel, panels: Sequence[Panel]) -> Image.Image | None:
    """The RGB picture to draw boxes on, enlarged so that names are readable; None if there is none."""
    for panel in panels:
        fits = panel.variation is None or boxes.variation in (None, panel.variation)
        is_rgb = panel.reader is not None and panel.reader.row.is_rgb and panel.role != "sr"
        if panel.picture and is_rgb and fits:
            factor = max(1, CANVAS[0] // max(panel.picture.size))
            return ImageOps.scale(panel.picture, factor, Image.Resampling.NEAREST)
    return None


def _read_order(path: Path, count: int) -> tuple[int, ...]:
    """The step that decided each of `count` tokens, from 1; SampleError for another array."""
    steps = read_array(path)
    if steps.dtype.kind not in "iu" or steps.size != count:
        raise SampleError(f"{path}: {steps.dtype} of shape {steps.shape}, not a step for each token")
    return tuple(steps.ravel().tolist())


def _limited(picture: Image.Image) -> Image.Image:
    """A copy of a picture, reduced to MAX_SIDE if it is larger."""
    picture = picture.copy()
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture
