"""What can be seen of an output folder: the pictures, texts and films of one sample after the other."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from fourm.codecs.drawing import CANVAS, Ink, draw_boxes
from fourm.codecs.files import read_array, read_picture
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
ROLES = ("condition", "target", "sr")
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
    codec: str = ""  # what kind of value it is: "tok_rgb", "caption", ...; as in the registry
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
class Stage:
    """What is to be said of one of the runs."""

    stage: str  # "base" or "sr"
    model: str
    seed: int
    options: str  # the schedule as options of the command line
    conditions: tuple[str, ...]
    targets: tuple[str, ...]  # in the order of the chain
    num_variations: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of file that is shown."""

    run: Run
    place: Place
    role: str
    title: str
    reader: Reader | None  # None: the modality is unknown on this machine

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Variations as file names show them."""
        return (None,) if self.place.shared else self.run.variations


@dataclass(slots=True)
class Album:
    """An output folder, of which one sample at a time is read."""

    root: Path
    results: Results
    stages: tuple[Stage, ...]
    keys: tuple[Key, ...]  # of all samples that left a file or a failure
    problems: tuple[str, ...]  # of the folder as a whole
    entries: tuple[Entry, ...]
    failures: Mapping[str, Sequence[Failure]]  # by key
    _legends: dict[str, dict[Label, None]] = field(default_factory=dict)

    @property
    def legends(self) -> Mapping[str, tuple[Label, ...]]:
        """By modality, the classes that the views read so far show, each once."""
        return {name: tuple(labels) for name, labels in self._legends.items()}

    def view(self, key: Key) -> View:
        """All of one sample; whatever is wrong with its files is among its problems."""
        failures = self.failures.get(key.text, ())
        problems = [_said(failure, self.results.variations) for failure in failures]
        values = list[_Value]()
        for run in self.results.runs:
            sample = run.find(key) or run.describe(Sample(key))  # of a failure by hand nothing is recorded
            entries = (entry for entry in self.entries if entry.run is run)
            found = [self._read(entry, sample, v) for entry in entries for v in entry.variations]
            failed = {f.variation for f in failures if f.stage == run.record.stage}
            if failed or any(value.exists for value in found):  # else this run did not do this sample
                problems += [v.problem for v in found if v.problem and not v.is_explained_by(failed)]
                values += found
        legends = _legends_of(values)
        for name, labels in legends.items():
            self._legends.setdefault(name, {}).update(dict.fromkeys(labels))
        panels = _panels(values, problems)
        films = tuple(self._films(key, problems))
        prompts = (p.text for p in panels if p.role == "condition" and p.codec == CAPTION and not p.note)
        return View(key, next(prompts, None), panels, films, tuple(dict.fromkeys(problems)), legends)

    def _read(self, entry: Entry, sample: RecordedSample, variation: int | None) -> "_Value":
        file = sample.file(entry.place, variation)
        path, value, reader = self.root / file, _Value(entry, variation, file), entry.reader
        if not path.is_file():
            return replace(value, problem=f"{printable(value.file)}: missing", note="missing")
        value = replace(value, exists=True)
        if reader is None:
            return replace(value, note="unknown modality")
        try:
            if entry.place.form == "ids":
                read_array(path)
                return replace(value, note="tokens only")
            return replace(value, value=reader.read(path))
        except SampleError as error:
            return replace(value, problem=self._short(error), note="cannot be read")

    def _films(self, key: Key, problems: list[str]) -> Iterator[Film]:
        for entry in self.entries:
            row = entry.reader.row if entry.reader is not None else None
            if row is None or row.grid is None or entry.role == "condition" or not entry.run.record.preview:
                continue
            for variation in entry.run.variations if row.kind is Kind.GRID else ():
                order = self._order(entry.place.modality, row, key, variation, problems)
                frames = tuple(self._frames(entry, key, variation, problems))
                if order or frames:
                    yield Film(entry.place.modality, entry.title, variation, row.grid, order, frames)

    def _order(
        self, target: str, row: Modality, key: Key, variation: int | None, problems: list[str]
    ) -> tuple[int, ...] | None:
        place = order_place(target)
        path = path_of(self.root, place.folder, key, place.suffix, variation)
        if not path.is_file():
            return None
        try:
            steps = read_array(path)
            if steps.dtype.kind not in "iu" or steps.size != row.max_tokens:
                raise SampleError(f"{path}: {steps.dtype} of shape {steps.shape}, not a step for each token")
        except SampleError as error:
            problems.append(self._short(error))
            return None
        return tuple(steps.ravel().tolist())

    def _frames(self, entry: Entry, key: Key, variation: int | None, problems: list[str]) -> Iterator[Frame]:
        target, decided = entry.place.modality, 0
        for step in entry.run.record.schedule["steps"]:
            if step["target"] != target:
                continue
            decided += step["num_tokens"]
            place = preview_place(target, step["index"] + 1)
            path = path_of(self.root, place.folder, key, place.suffix, variation)
            if not path.is_file():
                continue
            try:
                yield Frame(step["index"] + 1, decided, _limited(read_picture(path).convert("RGB")))
            except SampleError as error:
                problems.append(self._short(error))

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
    entries, problems, stages = list[Entry](), list[str](), list[Stage]()
    for run in results.runs:
        record = run.record
        conditions, targets = map(tuple, chain_names(record.schedule))
        stages.append(
            Stage(record.stage, record.model, record.seed, record.options, conditions, targets,
                  record.num_variations)
        )  # fmt: skip
        registry = rows_of(record.model) if named is None else named
        for name, is_condition in (*((n, True) for n in conditions), *((n, False) for n in targets)):
            place = _place(run, name, is_condition)
            if place is None:  # it lies where the run that it goes on from has put it
                continue
            row = find_row(name, registry, run.count_tokens(place))
            role = "condition" if is_condition else "sr" if record.stage == SR else "target"
            reader = None
            try:
                reader = reader_for(row) if row is not None else None
                problem = "" if row is not None else "neither its model nor the released ones have it"
            except UsageError as error:
                problem = str(error)
            if problem:
                problems.append(
                    f"{name}: cannot be shown, for {problem}; --model NAME says whose modality it is"
                )
            entries.append(Entry(run, place, role, row.title if row is not None else name, reader))
    entries.sort(key=lambda entry: ROLES.index(entry.role))
    failures = dict[str, list[Failure]]()
    for failure in read_failures(root):
        failures.setdefault(failure.key, []).append(failure)
    return Album(
        root, results, tuple(stages), _with_failed(results.keys(), failures),
        tuple(map(printable, problems)), tuple(_titled(entries)), failures,
    )  # fmt: skip


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

    def is_explained_by(self, failed: set[int]) -> bool:
        """True for a file that is missing because its variation failed."""
        everyone = len(self.entry.run.variations) == 1 or self.variation is None
        return not self.exists and bool(failed) and (everyone or self.variation in failed)


def _panels(values: Sequence[_Value], problems: list[str]) -> tuple[Panel, ...]:
    """Panels in the order of roles; what cannot be drawn is a problem."""
    pictures = _pictures_of_features(values)
    for late in (False, True):  # boxes are drawn on pictures
        for index, value in enumerate(values):
            reader = value.entry.reader
            if reader is None or value.value is None or index in pictures or _is_boxes(value) != late:
                continue
            try:
                picture = (
                    draw_boxes(value.value, _backdrop(value, values, pictures))
                    if late
                    else reader.picture(value.value)
                )
            except (FourMError, ValueError, OSError) as error:  # a value that its reader should have refused
                problems.append(printable(f"{value.file}: cannot be drawn ({error})"))
                continue
            pictures[index] = _limited(picture)
    panels = [_panel(value, pictures.get(index)) for index, value in enumerate(values)]
    return tuple(sorted(panels, key=lambda panel: ROLES.index(panel.role)))


def _panel(value: _Value, picture: Image.Image | None) -> Panel:
    entry, reader = value.entry, value.entry.reader
    text = reader.say(value.value) if reader is not None and value.value is not None else ""
    note = value.note or ("" if picture is not None else "cannot be drawn")
    codec = reader.row.codec if reader is not None else ""
    return Panel(
        entry.place.modality, entry.title, entry.role, value.variation, picture, text, value.file, codec, note
    )


def _pictures_of_features(values: Sequence[_Value]) -> dict[int, Image.Image]:
    """Pictures of all maps of features; those of one kind are in the same colours."""
    kinds, pictures = dict[str, list[int]](), dict[int, Image.Image]()
    for index, value in enumerate(values):
        grid = value.entry.reader.grid if value.entry.reader is not None else None
        if value.value is not None and grid is not None and grid.form.resample is None:
            kinds.setdefault(grid.row.key, []).append(index)
    for indices in kinds.values():
        reader = values[indices[0]].entry.reader
        if reader is not None and reader.grid is not None:
            with suppress(ValueError):  # they are tried one by one, and told
                drawn = reader.grid.pictures([values[index].value for index in indices])
                pictures.update(zip(indices, drawn, strict=True))
    return pictures


def _is_boxes(value: _Value) -> bool:
    return value.entry.reader is not None and value.entry.reader.row.codec == "det"


def _backdrop(
    boxes: _Value, values: Sequence[_Value], pictures: Mapping[int, Image.Image]
) -> Image.Image | None:
    """The picture that boxes belong to, large enough for names: that of their own variation, or the given."""
    for index, value in enumerate(values):
        reader = value.entry.reader
        fits = value.variation is None or boxes.variation in (None, value.variation)
        if (
            index in pictures
            and reader is not None
            and reader.row.is_rgb
            and fits
            and value.entry.role != "sr"
        ):
            picture = pictures[index]
            factor = max(1, CANVAS[0] // max(picture.size))
            size = (picture.width * factor, picture.height * factor)
            return picture.resize(size, Image.Resampling.NEAREST)
    return None


def _legends_of(values: Sequence[_Value]) -> dict[str, tuple[Label, ...]]:
    """Classes of maps of labels by modality, those of the first map first."""
    found = dict[str, dict[Label, None]]()
    for value in values:
        grid = value.entry.reader.grid if value.entry.reader is not None else None
        if value.value is not None and grid is not None and grid.form.is_labels:
            labels = found.setdefault(value.entry.place.modality, {})
            labels.update(((one.name, one.colour), None) for one in grid.legend(value.value))
    return {name: tuple(labels) for name, labels in found.items()}


def _said(failure: Failure, variations: Sequence[int | None]) -> str:
    which = [f"variation {failure.variation}"] if len(variations) > 1 else []
    which += ["super-resolution"] if failure.stage == SR else []
    return printable(f"{', '.join((*which, 'failed'))}: {failure.reason}")


def _titled(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Entries whose titles say what tells them apart."""
    for entry in entries:
        same = [e for e in entries if e.title == entry.title and e.place.modality != entry.place.modality]
        if entry.role == "sr":
            yield replace(entry, title=f"{entry.title}, super-resolution")
        elif any(other.role != "sr" and other.role != entry.role for other in same):
            yield replace(entry, title=f"{entry.title}, {'given' if entry.role == 'condition' else 'made'}")
        else:
            yield entry


def _place(run: Run, name: str, is_condition: bool) -> Place | None:
    """Where a modality can be seen: its values, or else its tokens."""
    places = [p for p in run.places if p.modality == name and p.is_condition == is_condition]
    return min(places, key=lambda place: place.form != "value", default=None)


def _limited(picture: Image.Image) -> Image.Image:
    """A picture that is not too large to be shown."""
    if max(picture.size) > MAX_SIDE:
        picture = picture.copy()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def _with_failed(keys: Sequence[Key], failures: Mapping[str, object]) -> tuple[Key, ...]:
    """All keys, those included that left nothing but a failure."""
    known = {key.text for key in keys}
    added = list[Key]()
    for text in failures:
        folder, _, name = text.rpartition("/")
        try:
            added += [Key(folder, name)] if text not in known else []
        except UsageError:  # no name of a sample: somebody else wrote that line
            continue
    return tuple(sorted((*keys, *added)))
