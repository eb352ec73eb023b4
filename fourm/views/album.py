"""What can be seen of an output folder: the pictures, texts and films of one sample after the other.

Values are read and drawn without the tokenizers and the model of their run.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

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
from fourm.output.samples import RecordedSample, Results, Run, chain_names, open_results
from fourm.runs.inputs import CAPTION
from fourm.runs.outputs import order_place, preview_place

MAX_SIDE = 2048  # pixels of a picture that is shown: larger ones are made smaller
ROLES = {"condition": "given", "target": "made", "sr": "super-resolution"}  # in the order of display
MISSING = "missing"  # the note of a panel whose file is not there
RGB = ("rgb", "tok_rgb")  # codecs of pictures as such
T = TypeVar("T")
Label = tuple[str, Ink]  # a class of a map of labels, and its colour


@dataclass(frozen=True, slots=True)
class Reader:
    """How the values of one modality are read from files, drawn, and put into words for a search."""

    row: Modality
    read: Callable[[Path], Any]
    picture: Callable[[Any], Image.Image]
    say: Callable[[Any], str] = lambda value: ""  # what a text says; "" for pictures
    grid: GridCodec | None = None  # of values that have tokens on a grid


@dataclass(slots=True)
class Panel:
    """One value of a sample, to be looked at."""

    modality: str  # full name: "tok_rgb@64"
    title: str  # "RGB"
    role: str  # one of ROLES
    variation: int | None  # None: the same for all variations
    file: str  # its path below the folder
    codec: str  # what kind of value it is: "tok_rgb", "caption", ...; "" if the modality is unknown
    note: str = ""  # why there is no picture
    text: str = ""  # a caption, or what another text says; "" for pictures
    labels: tuple[Label, ...] = ()  # classes that a map shows
    picture: Image.Image | None = None
    problem: str = ""  # what is wrong with its file
    reader: Reader | None = None  # None: the file was not read
    value: Any = None  # what the reader found in it


@dataclass(frozen=True, slots=True)
class Frame:
    """What a target looked like after a step."""

    step: int  # of the chain, from 1
    decided: int  # tokens of the target that were decided by then
    picture: Image.Image


@dataclass(frozen=True, slots=True)
class Film:
    """How a target of one variation came to be."""

    modality: str
    title: str
    variation: int | None
    grid: tuple[int, int]  # rows, columns of tokens
    order: tuple[int, ...] | None  # the step of the chain, from 1, that decided each token, row by row
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True)
class View:
    """One sample: all variations of everything that there is."""

    key: Key
    prompt: str | None  # the caption that it was made from
    panels: tuple[Panel, ...]  # conditions, targets in the order of the chain, super-resolution
    films: tuple[Film, ...]
    problems: tuple[str, ...]  # files that are missing or broken, and what is written down of failures

    @property
    def headline(self) -> str:
        """The prompt, or the name of a sample that has none."""
        return self.prompt if self.prompt and self.prompt.strip() else self.key.text


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of file that is shown."""

    run: Run
    place: Place
    role: str
    title: str
    reader: Reader | None  # None: the modality is unknown on this machine


@dataclass(slots=True)
class Album:
    """An output folder, of which one sample at a time is read."""

    root: Path
    results: Results
    keys: tuple[Key, ...]  # of all samples that left a file or a failure
    problems: tuple[str, ...]  # of the folder as a whole
    entries: tuple[Entry, ...]
    failures: Mapping[str, Sequence[Failure]]  # by key

    def view(self, key: Key) -> View:
        """All of one sample; whatever is wrong with its files is among its problems."""
        failures, problems, panels = self.failures.get(key.text, ()), list[str](), list[Panel]()
        for failure in failures:
            which = f"variation {failure.variation}, " if len(self.results.variations) > 1 else ""
            which += "super-resolution, " if failure.stage == SR else ""
            problems.append(printable(f"{which}failed: {failure.reason}"))
        for run in self.results.runs:
            sample = run.find(key) or run.describe(Sample(key))  # of a failure by hand nothing is recorded
            found = [
                self._read(entry, sample, variation)
                for entry in self.entries
                if entry.run is run
                for variation in ((None,) if entry.place.shared else run.variations)
            ]
            failed = {f.variation for f in failures if f.stage == run.record.stage}
            if not failed and all(panel.note == MISSING for panel in found):
                continue  # this run did not do this sample
            panels += found
            for panel in found:
                is_hit = len(run.variations) == 1 or panel.variation in (None, *failed)
                if panel.problem and not (failed and is_hit and panel.note == MISSING):
                    problems.append(panel.problem)
        _draw(panels, problems)
        panels.sort(key=lambda panel: [*ROLES].index(panel.role))
        films = tuple(self._films(key, problems))
        prompts = (p.text for p in panels if p.role == "condition" and p.codec == CAPTION and not p.note)
        return View(key, next(prompts, None), tuple(panels), films, tuple(dict.fromkeys(problems)))

    def _read(self, entry: Entry, sample: RecordedSample, variation: int | None) -> Panel:
        file, reader = sample.file(entry.place, variation), entry.reader
        codec, path = reader.row.codec if reader is not None else "", self.root / file
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
                legend = reader.grid.legend(panel.value) if reader.grid is not None else ()
                panel.labels = tuple((one.name, one.colour) for one in legend)
        except SampleError as error:
            panel.note, panel.problem = "cannot be read", self._short(error)
        return panel

    def _films(self, key: Key, problems: list[str]) -> Iterator[Film]:
        for entry in self.entries:
            if entry.reader is None or entry.role == "condition":
                continue
            row, target, record = entry.reader.row, entry.place.modality, entry.run.record
            if row.kind is not Kind.GRID or row.grid is None:
                continue
            read_order = partial(_read_order, count=row.max_tokens)
            for variation in entry.run.variations if record.preview else ():
                order = self._read_kept(order_place(target), key, variation, read_order, problems)
                frames, decided = list[Frame](), 0
                for step in (step for step in record.schedule["steps"] if step["target"] == target):
                    number, decided = step["index"] + 1, decided + step["num_tokens"]
                    place = preview_place(target, number)
                    picture = self._read_kept(place, key, variation, read_picture, problems)
                    if picture is not None:
                        frames.append(Frame(number, decided, _limited(picture.convert("RGB"))))
                if order or frames:
                    yield Film(target, entry.title, variation, row.grid, order, tuple(frames))

    def _read_kept(
        self, place: Place, key: Key, variation: int | None, read: Callable[[Path], T], problems: list[str]
    ) -> T | None:
        """What a file that a run may have kept holds; None if it is not there, or broken: a problem."""
        path = path_of(self.root, place.folder, key, place.suffix, variation)
        try:
            return read(path) if path.is_file() else None
        except SampleError as error:
            problems.append(self._short(error))
            return None

    def _short(self, error: Exception) -> str:
        """An error with the file's path below the folder."""
        return printable(str(error).replace(f"{self.root}/", "", 1))


def open_album(root: Path, model: str | None = None, results: Results | None = None) -> Album:
    """The album of an output folder. UsageError where no run wrote it.

    model: whose modalities they are, where the one that the record names is not on this machine any more;
    without it, the released modalities stand in. results: of the same folder, if they were read already.
    """
    results = open_results(root) if results is None else results
    named = None if model is None else find_model(model).registry
    entries, problems = list[Entry](), list[str]()
    for run in results.runs:
        conditions, targets = chain_names(run.record.schedule)
        registry = rows_of(run.record.model) if named is None else named
        made = "sr" if run.record.stage == SR else "target"
        for name, role in (*((n, "condition") for n in conditions), *((n, made) for n in targets)):
            # Its values, or else its tokens; neither where the run that it goes on from has put it.
            places = [p for p in run.places if p.modality == name and p.is_condition == (role == "condition")]
            if not places:
                continue
            place = min(places, key=lambda place: place.form != "value")
            row, reader = find_row(name, registry, run.count_tokens(place)), None
            try:
                if row is None:
                    raise UsageError("neither its model nor the released ones have it")
                reader = reader_for(row)
            except UsageError as error:
                problem = f"{name}: cannot be shown, for {error}; --model NAME says whose modality it is"
                problems.append(printable(problem))
            entries.append(Entry(run, place, role, row.title if row is not None else name, reader))
    entries.sort(key=lambda entry: [*ROLES].index(entry.role))
    samples = results.keys()
    failures, keys = dict[str, list[Failure]](), {key.text: key for key in samples}
    for failure in read_failures(root):
        failures.setdefault(failure.key, []).append(failure)
        folder, _, name = failure.key.rpartition("/")
        with suppress(UsageError):  # no name of a sample: somebody else wrote that line
            keys.setdefault(failure.key, Key(folder, name))
    titled = tuple(replace(entry, title=_full_title(entry, entries)) for entry in entries)
    return Album(root, results, tuple(sorted(keys.values())), tuple(problems), titled, failures)


def reader_for(row: Modality) -> Reader:
    """The reader of a row; UsageError where nothing here knows its kind of value."""
    if row.codec == CAPTION:
        return Reader(row, read_text, CaptionCodec.picture, str)
    if row.codec in STRUCTURED:
        form = STRUCTURED[row.codec]
        said = _SAID.get(row.codec, form.grammar.to_text)
        return Reader(row, partial(read_structured, grammar=form.grammar), form.draw, said)
    codec = build_codec(row)
    return Reader(row, codec.read, codec.picture, grid=codec if isinstance(codec, GridCodec) else None)


def rows_of(model: str) -> Registry | None:
    """The modalities of a model as a record names it; None where it is not on this machine."""
    with suppress(FourMError):
        return find_model(model).registry
    with suppress(FourMError):
        return find_sr(find_model(model.removesuffix("/sr"))).registry if model.endswith("/sr") else None
    return None


def find_row(name: str, registry: Registry | None, count: int | None = None) -> Modality | None:
    """The row of a full name, as the model or else the released models have it; None if neither does.

    Another resolution of a released modality has files of the same kind, except that class numbers
    may mean anything; its tokens are a square of `count`.
    """
    for known in (registry, RELEASED):
        if known is not None and name in known.rows:
            return known.rows[name]
    for row in RELEASED.rows.values():
        if row.key == name.partition("@")[0] and not (row.codec in FORMS and FORMS[row.codec].is_labels):
            side = math.isqrt(count or 0)
            is_square = row.kind is Kind.GRID and side > 0 and side * side == count
            return replace(row, grid=(side, side), max_tokens=side * side) if is_square else row
    return None


# What people would search for, where a model's own words are numbers. By the codec name of a row.
_SAID: Mapping[str, Callable[[Any], str]] = {
    "det": lambda boxes: ", ".join(box.name for box in boxes),
    "metadata": lambda facts: ", ".join(f"{f.field.name.replace('_', ' ')} {f.value:g}" for f in facts),
    "color_palette": lambda colours: " ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours),
}


def _full_title(entry: Entry, entries: Sequence[Entry]) -> str:
    """The title of an entry, with its role where another one has the same."""
    same = [e for e in entries if e.title == entry.title and e.place.modality != entry.place.modality]
    is_unclear = entry.role == "sr" or {one.role for one in same} - {"sr", entry.role}
    return f"{entry.title}, {ROLES[entry.role]}" if is_unclear else entry.title


def _draw(panels: Sequence[Panel], problems: list[str]) -> None:
    """Put pictures to panels; what cannot be drawn is a problem."""
    maps = [(panel, panel.reader.grid) for panel in panels if panel.reader and panel.reader.grid]
    for panel, grid in maps:
        if grid.form.resample is None and panel.picture is None:  # features share their colours
            same = [one for one, other in maps if other.row.key == grid.row.key]
            with suppress(ValueError):  # they are tried one by one, and told
                for one, picture in zip(same, grid.pictures([one.value for one in same]), strict=True):
                    one.picture = picture
    for panel in sorted(panels, key=lambda panel: panel.codec == "det"):  # boxes are drawn on pictures
        if panel.reader is None or panel.picture is not None:
            continue
        try:
            if panel.codec == "det":
                panel.picture = _limited(draw_boxes(panel.value, _backdrop(panel, panels)))
            else:
                panel.picture = _limited(panel.reader.picture(panel.value))
        except (FourMError, ValueError, OSError) as error:  # a value that its reader should have refused
            panel.note = "cannot be drawn"
            problems.append(printable(f"{panel.file}: cannot be drawn ({error})"))


def _backdrop(boxes: Panel, panels: Sequence[Panel]) -> Image.Image | None:
    """The picture that boxes belong to, large enough for names: that of their own variation, or the given."""
    for panel in panels:
        fits = panel.variation is None or boxes.variation in (None, panel.variation)
        is_rgb = panel.reader is not None and panel.reader.row.is_rgb and panel.role != "sr"
        if panel.picture and is_rgb and fits:
            factor = max(1, CANVAS[0] // max(panel.picture.size))
            return ImageOps.scale(panel.picture, factor, Image.Resampling.NEAREST)
    return None


def _read_order(path: Path, count: int) -> tuple[int, ...]:
    steps = read_array(path)
    if steps.dtype.kind not in "iu" or steps.size != count:
        raise SampleError(f"{path}: {steps.dtype} of shape {steps.shape}, not a step for each token")
    return tuple(steps.ravel().tolist())


def _limited(picture: Image.Image) -> Image.Image:
    """A picture that is not too large to be shown."""
    picture = picture.copy()
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture
