"""Reads an output folder for display, one sample at a time, without the model and tokenizers of its run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from fourm.codecs.files import read_array, read_frame, read_picture
from fourm.codecs.keeping import read_keep_mask
from fourm.codecs.texts import STRUCTURED, in_square, read_whole
from fourm.data.containers import is_there
from fourm.data.layout import Key, Place, Sample, parse_key
from fourm.errors import SampleError, UsageError, as_addresses, printable
from fourm.evaluation.pairs import find_row, rows_of
from fourm.hub.files import find_model
from fourm.modalities.registry import Kind, Modality
from fourm.output.processes import Failure, read_failures
from fourm.output.record import FEATURES, FRAMES, SR
from fourm.output.samples import RecordedSample, Run, chain_names, keys_of, open_runs
from fourm.results.job import order_place, preview_place
from fourm.views.panels import (
    Film,
    Frame,
    Panel,
    Reader,
    View,
    draw_panels,
    full_title,
    limited,
    part_title,
    prompt_of,
    reader_for,
    text_reader,
)

MISSING = "missing"  # the note of a panel whose file is not there


@dataclass(frozen=True, slots=True)
class Entry:
    """One modality of a run, as a condition or a target."""

    run: Run
    place: Place
    role: str
    title: str
    reader: Reader | None  # None: the modality is unknown on this machine
    mask: Place | None = None  # of what was given of a target: which part of it that is

    @property
    def is_cut(self) -> bool:
        """True for values of whole pictures that are drawn in the square that the model saw."""
        codec = self.reader.row.codec if self.reader is not None else ""
        return self.run.record.restore and codec in STRUCTURED and STRUCTURED[codec].grammar.cut is not None

    @property
    def names(self) -> tuple[str, str, str]:
        """Title, modality and role, as `full_title` reads them."""
        return self.title, self.place.modality, self.role


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
            failed = {f.variation for f in failures if f.stage == run.stage}
            if not failed and all(panel.note == MISSING for panel in found):
                continue  # this sample is not of this run
            panels += found
            for panel in found:
                # A failure explains why a file of its variation is missing.
                is_failed = len(run.variations) == 1 or panel.variation in (None, *failed)
                is_explained = failed and is_failed and panel.note == MISSING
                if panel.problem and not is_explained:
                    problems.append(panel.problem)
        draw_panels(panels, problems)
        films = tuple(self._films(key, problems))
        made_by = "  ·  ".join(f"{run.record.model}, seed {run.record.seed}" for run in self.runs)
        said = tuple(dict.fromkeys(problems))
        return View(key, prompt_of(panels), tuple(panels), films, said, made_by)

    def _read(self, entry: Entry, sample: RecordedSample, variation: int | None) -> Panel:
        file, reader = sample.file(entry.place, variation), entry.reader
        path, codec = self.root / file, reader.row.codec if reader is not None else ""
        panel = Panel(entry.place.modality, entry.title, entry.role, variation, file, codec)
        try:
            if not is_there(path):
                panel.note, panel.problem = MISSING, f"{printable(file)}: missing"
            elif reader is None:
                panel.note = "unknown modality"
            elif entry.place.form in ("ids", "kept_ids"):
                read_array(path)
                panel.note = "tokens only" if entry.mask is None else ""
            elif entry.is_cut:
                value = read_whole(path, STRUCTURED[codec].grammar)
                panel.set_value(self.in_square(reader.row, sample.key, value), reader)
            else:
                panel.set_value(reader.read(path), reader)
            if entry.mask is not None and not panel.note:
                panel.mask = read_keep_mask(self.root / sample.file(entry.mask, variation))
        except SampleError as error:
            panel.note, panel.problem = "cannot be read", self._short(error)
        return panel

    def in_square(self, row: Modality, key: Key, value: Any) -> Any:
        """A value of the whole picture of a sample as it is drawn."""
        return in_square(row, read_frame(self.runs[0].path(FRAMES, key, None)).crop, value)

    def _films(self, key: Key, problems: list[str]) -> Iterator[Film]:
        """The films of a sample. Their files are optional; broken ones are added to `problems`."""

        def read_kept(run: Run, place: Place, variation: int | None, read: Callable[[Path], Any]) -> Any:
            path = run.path(place, key, variation)
            try:
                return read(path) if is_there(path) else None
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
                order = read_kept(entry.run, order_place(target), variation, read_order)
                frames, decided = list[Frame](), 0
                for step in steps:
                    number = step["index"] + 1
                    # Where a part was given, there are fewer tokens to decide than the record says.
                    decided += step["num_tokens"]
                    decided = sum(0 <= one <= number for one in order) if order else decided
                    place = preview_place(target, number)
                    picture = read_kept(entry.run, place, variation, read_picture)
                    if picture is not None:
                        frames.append(Frame(number, decided, limited(picture.convert("RGB"))))
                if order or frames:
                    yield Film(target, entry.title, variation, row.grid, order, tuple(frames))

    def _short(self, error: Exception) -> str:
        """The message of an error, with paths below the output folder."""
        return printable(str(error).replace(as_addresses(f"{self.root}/"), "", 1))


def open_album(root: Path, model: str | None = None) -> Album:
    """The album of an output folder. UsageError if no run wrote it.

    model: whose modalities to use; None: the recorded one's, or the released ones if it is not here.
    """
    runs, named = open_runs(root), None if model is None else find_model(model).registry
    if all(run.record.stage == FEATURES for run in runs):
        ways = "`by=embed` of `fourm retrieve` finds neighbours among them, `numpy.load` reads one"
        raise UsageError(f"{root}: holds features of the encoder, which are no pictures; {ways}")
    entries, problems = list[Entry](), list[str]()
    for run in runs:
        given = len(entries)
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
                problem = f"{name}: cannot be shown, for {error}; `model=NAME` says whose modality it is"
                problems.append(printable(problem))
            entries.append(Entry(run, place, role, title, reader))
        entries[given:given] = _kept_entries(run, [e for e in entries[given:] if e.role != "condition"])
    failures = dict[str, list[Failure]]()
    keys = {key.text: key for key in keys_of(runs)}
    for failure in (*read_failures(root), *(one for run in runs for one in run.failures())):
        failures.setdefault(failure.key, []).append(failure)
        with suppress(UsageError):  # the line was edited: its key is not the key of a sample
            keys.setdefault(failure.key, parse_key(failure.key))
    names = [entry.names for entry in entries]
    entries = [replace(entry, title=full_title(*entry.names, names)) for entry in entries]
    return Album(root, runs, tuple(sorted(keys.values())), tuple(problems), tuple(entries), failures)


def _kept_entries(run: Run, targets: Sequence[Entry]) -> list[Entry]:
    """What was given of targets of a run, as it was used: hidden pixels are grey, texts have marks."""
    found = list[Entry]()
    for place in run.places:
        target = next((entry for entry in targets if entry.place.modality == place.modality), None)
        if place.form not in ("kept", "kept_ids") or target is None:
            continue
        reader = target.reader
        if reader is not None and reader.grid is None:
            reader = text_reader(reader.row)
        masks = (one for one in run.places if (one.modality, one.form) == (place.modality, "mask"))
        title = part_title(target.title, place.form == "kept_ids")
        found.append(Entry(run, place, "condition", title, reader, next(masks, None)))
    return found


def _read_order(path: Path, count: int) -> tuple[int, ...]:
    """The step that decided each of `count` tokens, from 1; SampleError for another array."""
    steps = read_array(path)
    if steps.dtype.kind not in "iu" or steps.size != count:
        raise SampleError(f"{path}: {steps.dtype} of shape {steps.shape}, not a step for each token")
    return tuple(steps.ravel().tolist())
