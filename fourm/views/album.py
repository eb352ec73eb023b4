"""What can be seen of an output folder: the pictures, texts and films of one sample after the other."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image, ImageOps

from fourm.codecs.drawing import CANVAS, Ink, draw_boxes
from fourm.codecs.files import read_array, read_picture
from fourm.codecs.images import GridCodec
from fourm.data.layout import Key, Place, Sample, path_of
from fourm.errors import FourMError, SampleError, UsageError, printable
from fourm.hub.files import find_model
from fourm.modalities.registry import Kind, Modality
from fourm.output.processes import Failure, read_failures
from fourm.output.record import SR
from fourm.output.samples import RecordedSample, Results, Run, chain_names, open_results
from fourm.runs.inputs import CAPTION
from fourm.runs.outputs import order_place, preview_place
from fourm.views.reading import Reader, find_row, reader_for, rows_of

MAX_SIDE = 2048  # pixels of a picture that is shown: larger ones are made smaller
ROLES = {"condition": "given", "target": "made", "sr": "super-resolution"}  # in the order of display
T = TypeVar("T")
Label = tuple[str, Ink]  # a class of a map of labels, and its colour


@dataclass(frozen=True, slots=True)
class Panel:
    """One value of a sample, to be looked at."""

    modality: str  # full name: "tok_rgb@64"
    title: str  # "RGB"
    role: str  # one of ROLES
    variation: int | None  # None: the same for all variations
    picture: Image.Image | None
    text: str  # a caption, or what another text says; "" for pictures
    file: str  # its path below the folder
    codec: str = ""  # that of its Entry
    note: str = ""  # why there is no picture


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
    legends: Mapping[str, tuple[Label, ...]]  # by modality: classes that its maps show

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

    @property
    def row(self) -> Modality | None:
        """What is known of the modality."""
        return self.reader.row if self.reader is not None else None

    @property
    def codec(self) -> str:
        """What kind of value it is: "tok_rgb", "caption", ...; "" if the modality is unknown."""
        return self.reader.row.codec if self.reader is not None else ""

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Variations as file names show them."""
        return (None,) if self.place.shared else self.run.variations


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
        failures, problems, values = self.failures.get(key.text, ()), list[str](), list[_Value]()
        for failure in failures:
            which = f"variation {failure.variation}, " if len(self.results.variations) > 1 else ""
            which += "super-resolution, " if failure.stage == SR else ""
            problems.append(printable(f"{which}failed: {failure.reason}"))
        for run in self.results.runs:
            sample = run.find(key) or run.describe(Sample(key))  # of a failure by hand nothing is recorded
            entries = (entry for entry in self.entries if entry.run is run)
            found = [self._read(entry, sample, v) for entry in entries for v in entry.variations]
            failed = {f.variation for f in failures if f.stage == run.record.stage}
            if failed or any(value.exists for value in found):  # else this run did not do this sample
                problems += [v.problem for v in found if v.problem and not v.is_explained_by(failed)]
                values += found
        panels = _panels(values, problems)
        films = tuple(self._films(key, problems))
        prompts = (p.text for p in panels if p.role == "condition" and p.codec == CAPTION and not p.note)
        told = tuple(dict.fromkeys(problems))
        return View(key, next(prompts, None), panels, films, told, _legends_of(values))

    def _read(self, entry: Entry, sample: RecordedSample, variation: int | None) -> "_Value":
        file = sample.file(entry.place, variation)
        path, value = self.root / file, _Value(entry, variation, file)
        if not path.is_file():
            return replace(value, problem=f"{printable(file)}: missing", note="missing")
        value = replace(value, exists=True)
        if entry.reader is None:
            return replace(value, note="unknown modality")
        try:
            if entry.place.form == "ids":
                read_array(path)
                return replace(value, note="tokens only")
            return replace(value, value=entry.reader.read(path))
        except SampleError as error:
            return replace(value, problem=self._short(error), note="cannot be read")

    def _films(self, key: Key, problems: list[str]) -> Iterator[Film]:
        for entry in self.entries:
            row, target, record = entry.row, entry.place.modality, entry.run.record
            if row is None or row.kind is not Kind.GRID or row.grid is None or entry.role == "condition":
                continue
            steps = [step for step in record.schedule["steps"] if step["target"] == target]
            counts = list(itertools.accumulate(step["num_tokens"] for step in steps))
            read_order = partial(_read_order, count=row.max_tokens)
            for variation in entry.run.variations if record.preview else ():
                order = self._read_kept(order_place(target), key, variation, read_order, problems)
                frames = list[Frame]()
                for number, decided in zip((step["index"] + 1 for step in steps), counts, strict=True):
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
            row = find_row(name, registry, run.count_tokens(place))
            reader, problem = None, "neither its model nor the released ones have it"
            try:
                reader = reader_for(row) if row is not None else None
            except UsageError as error:
                problem = str(error)
            if reader is None:
                problem = f"{name}: cannot be shown, for {problem}; --model NAME says whose modality it is"
                problems.append(printable(problem))
            entries.append(Entry(run, place, role, row.title if row is not None else name, reader))
    entries.sort(key=lambda entry: list(ROLES).index(entry.role))
    failures = dict[str, list[Failure]]()
    for failure in read_failures(root):
        failures.setdefault(failure.key, []).append(failure)
    keys = _with_failed(results.keys(), failures)
    return Album(root, results, keys, tuple(problems), tuple(_titled(entries)), failures)


@dataclass(frozen=True, slots=True)
class _Value:
    """One file of a sample: what it holds, or what is wrong with it."""

    entry: Entry
    variation: int | None
    file: str
    value: Any = None
    exists: bool = False
    problem: str = ""
    note: str = ""

    @property
    def grid(self) -> GridCodec | None:
        """What draws the value, if it was read and is a map."""
        return self.entry.reader.grid if self.entry.reader is not None and self.value is not None else None

    def is_explained_by(self, failed: set[int]) -> bool:
        """True for a file that is missing because its variation failed."""
        everyone = len(self.entry.run.variations) == 1 or self.variation is None
        return not self.exists and bool(failed) and (everyone or self.variation in failed)


def _panels(values: Sequence[_Value], problems: list[str]) -> tuple[Panel, ...]:
    """Panels in the order of roles; what cannot be drawn is a problem."""
    pictures = _pictures_of_features(values)
    for boxes in (False, True):  # boxes are drawn on pictures
        for index, value in enumerate(values):
            reader = value.entry.reader
            is_drawn = index in pictures or (value.entry.codec == "det") != boxes
            if reader is None or value.value is None or is_drawn:
                continue
            try:
                backdrop = _backdrop(value, values, pictures) if boxes else None
                picture = draw_boxes(value.value, backdrop) if boxes else reader.picture(value.value)
            except (FourMError, ValueError, OSError) as error:  # a value that its reader should have refused
                problems.append(printable(f"{value.file}: cannot be drawn ({error})"))
                continue
            pictures[index] = _limited(picture)
    panels = list[Panel]()
    for index, value in enumerate(values):
        entry, drawn, place = value.entry, pictures.get(index), value.entry.place
        text = entry.reader.say(value.value) if entry.reader is not None and value.value is not None else ""
        note = value.note or ("" if drawn is not None else "cannot be drawn")
        facts = (drawn, text, value.file, entry.codec, note)
        panels.append(Panel(place.modality, entry.title, entry.role, value.variation, *facts))
    return tuple(sorted(panels, key=lambda panel: list(ROLES).index(panel.role)))


def _pictures_of_features(values: Sequence[_Value]) -> dict[int, Image.Image]:
    """Pictures of all maps of features; those of one kind are in the same colours."""
    kinds, pictures = dict[str, tuple[GridCodec, list[int]]](), dict[int, Image.Image]()
    for index, value in enumerate(values):
        if (grid := value.grid) is not None and grid.form.resample is None:
            kinds.setdefault(grid.row.key, (grid, []))[1].append(index)
    for grid, indices in kinds.values():
        with suppress(ValueError):  # they are tried one by one, and told
            drawn = grid.pictures([values[index].value for index in indices])
            pictures.update(zip(indices, drawn, strict=True))
    return pictures


def _backdrop(
    boxes: _Value, values: Sequence[_Value], pictures: Mapping[int, Image.Image]
) -> Image.Image | None:
    """The picture that boxes belong to, large enough for names: that of their own variation, or the given."""
    for index in sorted(pictures):
        value, picture = values[index], pictures[index]
        row, fits = value.entry.row, value.variation is None or boxes.variation in (None, value.variation)
        if row is not None and row.is_rgb and fits and value.entry.role != "sr":
            factor = max(1, CANVAS[0] // max(picture.size))
            return ImageOps.scale(picture, factor, Image.Resampling.NEAREST)
    return None


def _legends_of(values: Sequence[_Value]) -> dict[str, tuple[Label, ...]]:
    """Classes of maps of labels by modality, those of the first map first."""
    found = dict[str, dict[Label, None]]()
    for value in values:
        if (grid := value.grid) is not None and grid.form.is_labels:
            labels = found.setdefault(value.entry.place.modality, {})
            labels.update(((one.name, one.colour), None) for one in grid.legend(value.value))
    return {name: tuple(labels) for name, labels in found.items()}


def _titled(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Entries whose titles say what tells them apart."""
    for entry in entries:
        same = [e for e in entries if e.title == entry.title and e.place.modality != entry.place.modality]
        is_unclear = entry.role == "sr" or {one.role for one in same} - {"sr", entry.role}
        yield replace(entry, title=f"{entry.title}, {ROLES[entry.role]}") if is_unclear else entry


def _read_order(path: Path, count: int) -> tuple[int, ...]:
    steps = read_array(path)
    if steps.dtype.kind not in "iu" or steps.size != count:
        raise SampleError(f"{path}: {steps.dtype} of shape {steps.shape}, not a step for each token")
    return tuple(steps.ravel().tolist())


def _limited(picture: Image.Image) -> Image.Image:
    """A picture that is not too large to be shown."""
    if max(picture.size) > MAX_SIDE:
        picture = picture.copy()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def _with_failed(keys: Sequence[Key], failures: Mapping[str, object]) -> tuple[Key, ...]:
    """All keys, those included that left nothing but a failure."""
    known, found = {key.text for key in keys}, list(keys)
    for text in failures.keys() - known:
        folder, _, name = text.rpartition("/")
        with suppress(UsageError):  # no name of a sample: somebody else wrote that line
            found.append(Key(folder, name))
    return tuple(sorted(found))
