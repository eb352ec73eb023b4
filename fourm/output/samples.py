"""Reads the records of runs, and reads and writes `samples/NNNNN.jsonl`, which record their samples.

Each line is a sample, each file a thousand of them in order. A process writes the file of a thousand samples
before it writes any result of one of them. All processes write the same text.
"""

import json
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from fourm.data.containers import read_member, split_path
from fourm.data.dataset import list_folder, suffix_of
from fourm.data.layout import (
    CROP_SETTINGS,
    FRAME,
    PICTURES,
    SAMPLES_PER_FOLDER,
    Key,
    Place,
    Sample,
    file_name,
    path_of,
)
from fourm.data.shards import shard_name
from fourm.errors import SampleError, UsageError, printable
from fourm.files.opening import no_folder, open_file, read_bytes
from fourm.files.writing import create_text, free_beside, write_text
from fourm.modalities.typed import to_type
from fourm.output.markers import Marker, marker_files, marker_path, read_marker, read_markers
from fourm.output.members import ShardMembers
from fourm.output.processes import Failure
from fourm.output.record import BASE, FRAMES, RUN, SAMPLES, SR, SR_RUN, RunRecord, parse_run
from fourm.schedule.keeps import Keep

MAX_BYTES = 1 << 28  # of a record, and of a file of a thousand samples
CAPTION = "caption"  # the modality of typed prompts
_SHOWN = 200  # characters of a sample in the message that refuses to resume


@dataclass(frozen=True, slots=True)
class RecordedSample:
    """One sample of a run. `files` are relative to the folder of the run, `sources` to the dataset."""

    key: Key
    variations: tuple[int, ...]
    files: Mapping[str, tuple[str, ...]]  # by folder: one for each variation, or one for all of them
    prompt: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)  # other typed texts, by condition
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # files of conditions, by condition
    fit: str = ""  # one of FITS if pictures were read; "crop" is the recorded crop or the centre

    def file(self, place: Place, variation: int | None) -> str:
        """The file of a place and a variation; if all variations share one file, that file."""
        files = self.files[place.folder]
        if len(files) == 1 or variation is None:
            return files[0]
        return files[self.variations.index(variation)]

    def to_line(self) -> str:
        """The sample as a line of its file; empty values are left out."""
        row = {
            "key": self.key.path, "prompt": self.prompt, "texts": self.texts,
            "sources": self.sources, "fit": self.fit, "variations": self.variations, "files": self.files,
        }  # fmt: skip
        return json.dumps({name: fact for name, fact in row.items() if fact}) + "\n"

    def input_facts(self) -> dict[str, object]:
        """What must be the same on resume. Other sources may be renamed, for example a.jpg to a.png."""
        facts = {"key": self.key.text, "prompt": self.prompt, "texts": dict(self.texts), "fit": self.fit,
                 "crop": self.sources.get(CROP_SETTINGS), "variations": self.variations}  # fmt: skip
        return {name: fact for name, fact in facts.items() if fact}


@dataclass(frozen=True, slots=True)
class Run:
    """A run that wrote, or will write, into a folder."""

    root: Path
    file: str  # its record: RUN or SR_RUN
    record: RunRecord
    identity: str = ""  # part of the file names of its processes; "" in older formats, and before it begins
    is_as_written: bool = True  # False: the record is valid, but was changed after it was written

    @property
    def stage(self) -> str:
        """The stage that its failures name: that of super-resolution only beside the run that it reads."""
        return SR if self.file == SR_RUN else BASE

    @property
    def is_older(self) -> bool:
        """True if the folder was made by an older version, which recorded no samples."""
        return self.record.input is None

    @property
    def places(self) -> tuple[Place, ...]:
        """The places in which every sample has a file."""
        return tuple(place for place in self.record.places if place.form != "extra")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the variations that the run generates."""
        only = self.record.variation
        return tuple(range(self.record.num_variations)) if only is None else (only,)

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Variations as in file names: (None,) if there is only one."""
        return (None,) if self.record.num_variations == 1 else self.numbers

    def count_tokens(self, place: Place) -> int | None:
        """Number of tokens in each file of a target; None if the record does not contain it."""
        steps = self.record.schedule["steps"]
        counts = [step["num_tokens"] for step in steps if step["target"] == place.modality]
        return sum(counts) if counts and not place.is_condition else None

    def sample_files(self) -> list[Path]:
        """The files in which samples are recorded, a thousand in each, in order."""
        folder = self.root / SAMPLES[self.file].folder
        return sorted(path for path in folder.glob("*.jsonl") if re.fullmatch("[0-9]{5,}", path.stem))

    def samples(self) -> Iterator[RecordedSample]:
        """All samples in order, at most a thousand in memory at a time; UsageError: a file is damaged."""
        if self.record.is_sharded:
            yield from chain.from_iterable(map(self.samples_of, read_markers(self.root, self.file)))
            return
        if self.is_older:
            yield from (self.describe(Sample(key)) for key in sorted(self._keys_of_files()))
        for path in self.sample_files():
            yield from read_samples_file(path, self)

    def find(self, key: Key) -> RecordedSample | None:
        """The sample with this key; None if it is not recorded."""
        if self.record.is_sharded:
            shard = self.shard_of(key)
            return None if shard is None else self._sample_in(shard, key)
        if self.is_older:
            return self.describe(Sample(key))
        paths = self.sample_files()
        after = bisect_right(paths, key, key=lambda path: _first_key(path, self))
        found = read_samples_file(paths[after - 1], self) if after else ()
        return next((sample for sample in found if sample.key == key), None)

    def shard_of(self, key: Key) -> ShardMembers | None:
        """The shard of a sharded run that has a sample, or in which it failed; None if none has.

        UsageError: none has it among those that can be read, and another one is damaged.
        """
        problems = list[UsageError]()
        for path in self._markers_of(key):
            now = path.stat()
            status = now.st_size, now.st_mtime_ns, now.st_ino
            shard = _open_shard(self.root, self.file, path, self.variations, *status)
            try:
                if self.own is not None and key in shard.keys(self.own):
                    return shard
            except UsageError as error:
                problems.append(error)
        if problems:
            raise problems[0]
        return None

    def path(self, place: Place, key: Key, variation: int | None) -> Path:
        """Where a file of a place lies that only some samples have, whether it is there or not."""
        if (shard := self.shard_of(key) if self.record.is_sharded else None) is None:
            return path_of(self.root, place.folder, key, place.suffix, variation)
        paths = shard.paths(key, place)
        return self.root / paths[0 if len(paths) == 1 or variation is None else self.numbers.index(variation)]

    def failures(self) -> Iterator[Failure]:
        """The results of a sharded run that failed; those of others are in `failures.jsonl`."""
        for marker in read_markers(self.root, self.file) if self.record.is_sharded else ():
            for one in marker.failures:
                yield Failure(one.key, one.variation, one.reason, self.stage)

    def describe(self, sample: Sample, fit: str = "") -> RecordedSample:
        """The record of a sample, with the files that it has or will have, and those that the run reads."""
        files = {
            place.folder: tuple(
                file_name(place.folder, sample.key, place.suffix, variation)
                for variation in ((None,) if place.shared else self.variations)
            )
            for place in self.places
        }
        num_parts = sample.key.path.count("/") + 2  # of the path modality/folder/name.ext
        given = [sample.files_of(variation) for variation in (self.numbers if sample.varied else (0,))]
        kept = [Keep(one["target"], one["where"]) for one in self.record.schedule.get("kept", ())]
        read = {*self.record.schedule["conditions"], *([PICTURES, CROP_SETTINGS] if fit else [])}
        read |= {name for keep in kept for name in keep.names}
        sources = {
            name: tuple(dict.fromkeys("/".join(paths[name].parts[-num_parts:]) for paths in given))
            for name in sorted(given[0])
            if name in read  # of the frame, the run has a file of its own
        }
        return RecordedSample(sample.key, self.numbers, files, sample.caption, sample.typed, sources, fit)

    def samples_of(self, marker: Marker) -> Iterator[RecordedSample]:
        """The samples of one shard, in order."""
        shard = ShardMembers(self.root, marker, self.variations, self.file)
        for key in shard.keys(self.own) if self.own is not None else ():
            yield self._sample_in(shard, key)

    def keys(self) -> Iterator[Key]:
        """The samples of which a file is there."""
        if not self.record.is_sharded:
            for sample in self.samples():
                if any(os.path.lexists(self.root / name) for name in chain(*sample.files.values())):
                    yield sample.key
        elif self.own is not None:
            for marker in read_markers(self.root, self.file):
                yield from ShardMembers(self.root, marker, self.variations, self.file).made(self.own)

    @property
    def own(self) -> Place | None:
        """A place in which each result of a shard has a file, if it was made."""
        return next((place for place in self.places if not place.shared), None)

    def _sample_in(self, shard: ShardMembers, key: Key) -> RecordedSample:
        files = {place.folder: shard.paths(key, place) for place in self.places}
        files |= {FRAME: shard.paths(key, FRAMES)} if shard.has(FRAMES) else {}
        fit = self.record.fit if FRAME in files else ""
        return RecordedSample(key, self.numbers, files, self._prompt_of(files), fit=fit)

    def _prompt_of(self, files: Mapping[str, tuple[str, ...]]) -> str | None:
        """The text that a user typed for a sample of a sharded run."""
        is_typed = self.record.input is not None and self.record.input.kind in ("texts", "pictures")
        captions = [p for p in self.places if p.modality == CAPTION and p.is_condition and p.form == "value"]
        if not is_typed or not captions or not files[captions[0].folder]:
            return None
        try:
            place = split_path(self.root / files[captions[0].folder][0])
            return read_member(*place, MAX_BYTES).decode("utf-8-sig") if place else None
        except (OSError, SampleError, UnicodeDecodeError):
            return None

    def _markers_of(self, key: Key) -> Iterator[Path]:
        """The markers of the shards that may have a sample, the likely ones first."""
        likely = [marker_path(self.root, key.folder, self.file)]
        if re.fullmatch("[0-9]{6,}", key.name) and key.folder == f"{int(key.name) // SAMPLES_PER_FOLDER:05d}":
            number = int(key.name) // (self.record.shard_size or SAMPLES_PER_FOLDER)
            likely.insert(0, marker_path(self.root, shard_name(number), self.file))
        there = [path for path in dict.fromkeys(likely) if os.path.lexists(path)]
        yield from there
        yield from (path for path in marker_files(self.root, self.file) if path not in there)

    def _keys_of_files(self) -> set[Key]:
        """Keys of samples, from the names of files: an older version recorded nothing else."""
        keys = set[Key]()
        for place in self.places:
            if not (self.root / place.folder).is_dir():
                continue
            ends = [f"-v{v}" for v in self.variations if v is not None and not place.shared]
            for key, path in list_folder(self.root, place.folder).files.items():
                stem = path.name[: -len(suffix_of(path.name))]
                end = next((end for end in ends if stem.endswith(end)), "")
                keys.add(Key(key.folder, stem.removesuffix(end)) if end else key)
        return keys


@dataclass(slots=True)
class SampleWriter:
    """Records the samples that this process works on."""

    run: Run
    samples: Sequence[Sample]  # of all processes, in order
    fit: str  # of the pictures that are read; "" where none is
    recorded: set[Path] = field(default_factory=set)  # files that exist and agree with the samples

    def check(self) -> None:
        """Compare the recorded samples with the input; UsageError if they differ."""
        for path in self.run.sample_files():
            self._is_recorded(path)

    def record(self, key: Key) -> Path | None:
        """Write the file of a sample's thousand unless it exists; its path if this process wrote it."""
        number = bisect_left(self.samples, key, key=lambda sample: sample.key) // SAMPLES_PER_FOLDER
        path = self.run.root / SAMPLES[self.run.file].folder / f"{number:05d}.jsonl"
        if path in self.recorded:
            return None
        text = "".join(map(RecordedSample.to_line, self._describe(path)))
        if not create_text(self.run.root, path, text):
            if self._is_recorded(path):
                return None
            write_text(self.run.root, path, text)  # replaces a damaged file
        self.recorded.add(path)
        return path

    def _describe(self, path: Path) -> list[RecordedSample]:
        """The samples that a file of a thousand has to record."""
        first = int(path.stem) * SAMPLES_PER_FOLDER
        thousand = self.samples[first : first + SAMPLES_PER_FOLDER]
        return [self.run.describe(sample, self.fit) for sample in thousand]

    def _is_recorded(self, path: Path) -> bool:
        """False if a file is missing or damaged; UsageError if it records other samples."""
        here = self._describe(path)
        try:
            is_same = read_bytes(path, MAX_BYTES) == "".join(map(RecordedSample.to_line, here)).encode()
            there = here if is_same else read_samples_file(path, self.run)
        except (FileNotFoundError, UsageError):
            return False
        for line, samples in enumerate(zip_longest(there, here), start=1):
            before, after = (sample.input_facts() if sample else {} for sample in samples)
            if before != after:
                was, now = (json.dumps(facts)[:_SHOWN] if facts else "absent" for facts in (before, after))
                raise UsageError(
                    f"`out={self.run.root}`: belongs to a run with other samples: line {line} of "
                    f"{path.relative_to(self.run.root)} is {was} there and {now} here"
                )
        self.recorded.add(path)
        return True


def load_run(out: Path, file: str = RUN) -> Run:
    """Read the record of a folder and check all fields; UsageError if one is wrong, or if there is none."""
    try:
        return Run(out, file, *parse_run(read_bytes(out / file, MAX_BYTES).decode()))
    except FileNotFoundError as error:
        what = f"is not empty and holds no {file}, so no run wrote it; left as it is{free_beside(out)}"
        raise UsageError(f"`out={out}`: {what}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        what = f"{out / file}: is not a record of this program, or was damaged ({why})"
        raise UsageError(printable(what)) from error


def open_runs(root: Path) -> tuple[Run, ...]:
    """The runs of a folder, super-resolution last; UsageError if no run wrote it or a record is damaged."""
    if not root.is_dir():
        raise no_folder(root)
    there = [file for file in (RUN, SR_RUN) if os.path.lexists(root / file)]
    if not there:
        raise UsageError(f"{root}: holds no {RUN}, so no run of this program wrote it")
    return tuple(load_run(root, file) for file in there)


def keys_of(runs: Iterable[Run]) -> set[Key]:
    """Keys of all samples of which a file is there; UsageError if a record is damaged."""
    return set(chain.from_iterable(run.keys() for run in runs))


def samples_for(
    run: Run, samples: Iterable[RecordedSample], forms: Mapping[str, tuple[str, str]]
) -> list[Sample]:
    """Samples of a run as conditions of another run, with files that exist or will exist.

    forms: by the name that a file has in a sample, the modality (full name) and the form of its place.
    UsageError: the run does not write one of them.
    """
    there = {(place.modality, place.form): place for place in run.places}
    if lacking := [modality for modality, form in forms.values() if (modality, form) not in there]:
        has = sorted({place.modality for place in run.places})
        raise UsageError(f"{run.root}: its run left no {lacking[0]}; it has {', '.join(has)}")
    places = {name: there[form] for name, form in forms.items()}
    shared = {name: p for name, p in places.items() if p.shared or run.variations == (None,)}
    varied = {name: p for name, p in places.items() if name not in shared}
    found = list[Sample]()
    for sample in samples:
        files = {name: run.root / sample.file(place, None) for name, place in shared.items()}
        recorded = sample.files.get(FRAME)
        frame = path_of(run.root, FRAME, sample.key, FRAMES.suffix)  # if there is one
        files[FRAME] = run.root / recorded[0] if recorded else frame
        by_variation = [
            {name: run.root / sample.file(p, v) for name, p in varied.items() if v in run.numbers}
            for v in range(run.record.num_variations if varied else 0)
        ]
        found.append(Sample(sample.key, files=files, varied=by_variation))
    return found


def chain_names(schedule: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Conditions and targets (full names, in order) of the schedule in a record."""
    return list(schedule["conditions"]), list(dict.fromkeys(step["target"] for step in schedule["steps"]))


def read_samples_file(path: Path, run: Run) -> Sequence[RecordedSample]:
    """The samples of one file, from a cache if the file is unchanged; UsageError if it is damaged."""
    try:
        status = path.stat()
        return _read(path, run.places, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise UsageError(f"{printable(str(path))}: cannot be read ({error.strerror})") from error


@lru_cache(maxsize=4)
def _open_shard(
    root: Path, file: str, path: Path, numbers: tuple[int | None, ...], *status: int
) -> ShardMembers:
    """A shard by its marker; status is in the cache's key, as below."""
    return ShardMembers(root, read_marker(path), numbers, file)


@lru_cache(maxsize=4)
def _read(path: Path, places: tuple[Place, ...], *status: int) -> Sequence[RecordedSample]:
    """Read a file; status (size, time, inode) is in the cache's key, so a changed file is read again."""
    lines = read_bytes(path, MAX_BYTES).splitlines(keepends=True)
    if not lines:
        raise UsageError(f"{printable(str(path))}: is empty, but a run records at least one sample in a file")
    return [_parse(line, places, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]


def _first_key(path: Path, run: Run) -> Key:
    with open_file(path) as file:
        return _parse(file.readline(MAX_BYTES), run.places, f"{path}: line 1").key


def _parse(line: bytes, places: Sequence[Place], where: str) -> RecordedSample:
    """The sample of a line; UsageError if the line is damaged."""
    try:
        if not line.endswith(b"\n"):
            raise ValueError("its end is missing")
        row = json.loads(line)
        folder, slash, name = row["key"].rpartition("/")
        key = {"folder": folder or slash, "name": name}
        sample: RecordedSample = to_type(RecordedSample, {**row, "key": key}, "it", strict=False)
        for path in chain(*sample.files.values(), *sample.sources.values()):
            if not {"", ".", ".."}.isdisjoint(path.split("/")):
                raise ValueError(f"it has a file {path!r}")
        for place in places:
            files = sample.files[place.folder]
            if len(files) not in (1, len(sample.variations)) or not files[0].startswith(f"{place.folder}/"):
                raise ValueError(f"its files in {place.folder} are {files}")
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError, UsageError) as error:
        raise UsageError(printable(f"{where} is no sample of a run, or was damaged ({error})")) from error
    return sample
