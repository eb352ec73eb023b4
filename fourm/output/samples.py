"""`samples/NNNNN.jsonl`: what a run made each sample of, and which files it has; a folder's runs read back.

A line for each sample, a file for each thousand of them in their order. A process records a thousand before
it writes the first file of one of its samples. The text is the same whoever writes it.
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

from fourm.data.dataset import list_folder, suffix_of
from fourm.data.layout import CROP_SETTINGS, SAMPLES_PER_FOLDER, Key, Place, Sample, file_name
from fourm.data.opening import open_file, read_bytes
from fourm.data.writing import create_text, write_text
from fourm.errors import UsageError, printable
from fourm.modalities.typed import fit
from fourm.output.record import RUN, SAMPLES, SR_RUN, RunRecord, load_run

CROP = "crop"  # how a sample's pictures fit the square that a model reads: the recorded crop, or the centre
MAX_BYTES = 1 << 28  # of a thousand samples
_SHOWN = 200  # characters of a sample in the message that refuses to resume


@dataclass(frozen=True, slots=True)
class RecordedSample:
    """One sample of a run. Paths of files are below the folder of the run, of sources below the data set."""

    key: Key
    variations: tuple[int, ...]
    files: Mapping[str, tuple[str, ...]]  # by folder; one for each variation, or one for all of them
    prompt: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)  # other typed texts, by condition
    sources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # files of conditions, likewise
    fit: str = ""  # CROP where a part of a picture was read

    def file(self, place: Place, variation: int | None) -> str:
        """The file of one kind and variation; of any variation where all share it."""
        files = self.files[place.folder]
        return files[0] if len(files) == 1 or variation is None else files[self.variations.index(variation)]

    def to_line(self) -> str:
        """The sample as a line of its file; what is empty is left out."""
        row = {
            "key": f"{self.key.folder}/{self.key.name}", "prompt": self.prompt, "texts": self.texts,
            "sources": self.sources, "fit": self.fit, "variations": self.variations, "files": self.files,
        }  # fmt: skip
        return json.dumps({name: fact for name, fact in row.items() if fact}) + "\n"

    def input_facts(self) -> dict[str, object]:
        """What must be the same on resume. A file may be replaced by another one, as a.jpg by a.png."""
        facts = {"key": self.key.text, "prompt": self.prompt, "texts": dict(self.texts), "fit": self.fit,
                 "crop": self.sources.get(CROP_SETTINGS), "variations": self.variations}  # fmt: skip
        return {name: fact for name, fact in facts.items() if fact}


@dataclass(frozen=True, slots=True)
class Run:
    """One of the runs that wrote into a folder."""

    root: Path
    file: str  # its record: RUN or SR_RUN
    record: RunRecord

    @property
    def is_older(self) -> bool:
        """True if an older version made the folder, which recorded no samples."""
        return self.record.input is None

    @property
    def places(self) -> tuple[Place, ...]:
        """Where every sample has a file."""
        return tuple(place for place in self.record.places if place.form != "extra")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the variations that were made."""
        only = self.record.variation
        return tuple(range(self.record.num_variations)) if only is None else (only,)

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Variations as file names show them: (None,) where there is but one."""
        return (None,) if self.record.num_variations == 1 else self.numbers

    def count_tokens(self, place: Place) -> int | None:
        """Tokens in each file of a target of the run; None where its record does not tell."""
        steps = [step for step in self.record.schedule["steps"] if step["target"] == place.modality]
        return sum(step["num_tokens"] for step in steps) if steps and not place.is_condition else None

    def thousands(self) -> list[Path]:
        """The files that samples are recorded in, in order."""
        folder = self.root / SAMPLES[self.file].folder
        return sorted(path for path in folder.glob("*.jsonl") if re.fullmatch("[0-9]{5,}", path.stem))

    def samples(self) -> Iterator[RecordedSample]:
        """All samples that are recorded, in order; a thousand is in memory at a time."""
        keys = set[Key]()  # in a folder that an older version made: from the names of its files
        for place in self.places if self.is_older else ():
            ends = [f"-v{v}" for v in self.variations if v is not None and not place.shared]
            there = (self.root / place.folder).is_dir()
            for key, path in (list_folder(self.root, place.folder).files if there else {}).items():
                stem = path.name[: -len(suffix_of(path.name))]
                end = next((end for end in ends if stem.endswith(end)), "")
                keys.add(Key(key.folder, stem.removesuffix(end)) if end else key)
        yield from (self.describe(Sample(key)) for key in sorted(keys))
        for path in self.thousands():
            yield from read_samples_file(path, self)

    def find(self, key: Key) -> RecordedSample | None:
        """The sample of a name."""
        if self.is_older:
            return self.describe(Sample(key))
        paths = self.thousands()
        after = bisect_right(paths, key, key=lambda path: _first_key(path, self))
        found = read_samples_file(paths[after - 1], self) if after else ()
        return next((sample for sample in found if sample.key == key), None)

    def describe(self, sample: Sample, is_cropped: bool = False) -> RecordedSample:
        """What is recorded of a sample: the files that it has or will have."""
        files = {
            place.folder: tuple(
                file_name(place.folder, sample.key, place.suffix, variation)
                for variation in ((None,) if place.shared else self.variations)
            )
            for place in self.places
        }
        length = sample.key.folder.count("/") + 3  # of modality/folder/name.ext, in parts
        given = [sample.files_of(variation) for variation in (self.numbers if sample.varied else (0,))]
        sources = {
            name: tuple(dict.fromkeys("/".join(paths[name].parts[-length:]) for paths in given))
            for name in given[0]
        }
        how = CROP if is_cropped else ""
        return RecordedSample(sample.key, self.numbers, files, sample.caption, sample.typed, sources, how)


@dataclass(frozen=True, slots=True)
class Results:
    """An output folder."""

    root: Path
    runs: tuple[Run, ...]  # the one that made it, then super-resolution; at least one

    def keys(self) -> list[Key]:
        """Names of all samples that have a file, in order."""
        found = set[Key]()
        for sample in chain.from_iterable(run.samples() for run in self.runs):
            if any(os.path.lexists(self.root / name) for name in chain(*sample.files.values())):
                found.add(sample.key)
        return sorted(found)

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Variations of the run that has most of them."""
        return max((run.variations for run in self.runs), key=len)


def open_results(root: Path) -> Results:
    """Read the records of a folder; UsageError where no run wrote it."""
    if not root.is_dir():
        raise UsageError(f"{printable(str(root))}: no such folder")
    there = [file for file in (RUN, SR_RUN) if os.path.lexists(root / file)]
    if not there:
        raise UsageError(f"{root}: holds no {RUN}, so no run of this program wrote it")
    return Results(root, tuple(Run(root, file, load_run(root, file).run) for file in there))


def samples_for(
    run: Run, samples: Iterable[RecordedSample], conditions: Sequence[str], ids: Mapping[str, bool]
) -> list[Sample]:
    """Samples of a run as conditions of another one: the files that are or will be there.

    ids: for each condition (full name) whether its tokens are read, not its values.
    """
    forms = {name: "ids" if ids[name] else "value" for name in conditions}
    places = {place.modality: place for place in run.places if forms.get(place.modality) == place.form}
    if lacking := [name for name in conditions if name not in places]:
        has = sorted({place.modality for place in run.places})
        raise UsageError(f"{run.root}: its run left no {lacking[0]}; it has {', '.join(has)}")
    shared = {name: p for name, p in places.items() if p.shared or run.variations == (None,)}
    varied = {name: p for name, p in places.items() if name not in shared}
    found = list[Sample]()
    for sample in samples:
        files = {name: run.root / sample.file(place, None) for name, place in shared.items()}
        by_variation = [
            {name: run.root / sample.file(p, v) for name, p in varied.items() if v in run.numbers}
            for v in range(run.record.num_variations if varied else 0)
        ]
        found.append(Sample(sample.key, files=files, varied=by_variation))
    return found


def chain_names(schedule: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Conditions and targets (full names, in order) of the schedule in a record."""
    return list(schedule["conditions"]), list(dict.fromkeys(step["target"] for step in schedule["steps"]))


@dataclass(slots=True)
class SampleWriter:
    """Records the samples of a run that this process works on."""

    run: Run
    samples: Sequence[Sample]  # of all processes, in order
    is_cropped: bool
    recorded: set[Path] = field(default_factory=set)  # files that are there, as they should be

    def check(self) -> None:
        """Compare what is recorded with the input; UsageError where it has other samples now."""
        for path in self.run.thousands():
            self._is_recorded(path)

    def record(self, key: Key) -> Path | None:
        """Write the file of a sample's thousand unless it is there; its path if this process wrote it."""
        number = bisect_left(self.samples, key, key=lambda sample: sample.key) // SAMPLES_PER_FOLDER
        path = self.run.root / SAMPLES[self.run.file].folder / f"{number:05d}.jsonl"
        if path in self.recorded:
            return None
        text = "".join(map(RecordedSample.to_line, self._describe(path)))
        if not create_text(self.run.root, path, text):
            if self._is_recorded(path):
                return None
            write_text(self.run.root, path, text)  # in the place of a damaged file
        self.recorded.add(path)
        return path

    def _describe(self, path: Path) -> list[RecordedSample]:
        """What its file records of a thousand samples."""
        first = int(path.stem) * SAMPLES_PER_FOLDER
        thousand = self.samples[first : first + SAMPLES_PER_FOLDER]
        return [self.run.describe(sample, self.is_cropped) for sample in thousand]

    def _is_recorded(self, path: Path) -> bool:
        """False if a thousand's file is missing or damaged; UsageError if it has other samples."""
        here = self._describe(path)
        try:
            is_same = read_bytes(path, MAX_BYTES) == "".join(map(RecordedSample.to_line, here)).encode()
            there = here if is_same else read_samples_file(path, self.run)
        except (FileNotFoundError, UsageError):
            return False
        pairs = () if is_same else zip_longest(*([one.input_facts() for one in run] for run in (there, here)))
        for line, (before, after) in enumerate(pairs, start=1):
            if before != after:
                was, now = (json.dumps(facts)[:_SHOWN] if facts else "absent" for facts in (before, after))
                raise UsageError(
                    f"--out {self.run.root}: belongs to a run with other samples: line {line} of "
                    f"{path.relative_to(self.run.root)} is {was} there and {now} here"
                )
        self.recorded.add(path)
        return True


def read_samples_file(path: Path, run: Run) -> Sequence[RecordedSample]:
    """The samples of one file; UsageError if it is damaged. The last few files are kept in memory."""
    try:
        status = path.stat()
        return _read(path, run.places, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise UsageError(f"{printable(str(path))}: cannot be read ({error.strerror})") from error


@lru_cache(maxsize=4)
def _read(path: Path, places: tuple[Place, ...], *status: int) -> Sequence[RecordedSample]:
    lines = read_bytes(path, MAX_BYTES).splitlines(keepends=True)
    if not lines:
        raise UsageError(f"{printable(str(path))}: is empty, and no run leaves such")
    return [_parse(line, places, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]


def _first_key(path: Path, run: Run) -> Key:
    with open_file(path) as file:
        return _parse(file.readline(MAX_BYTES), run.places, f"{path}: line 1").key


def _parse(line: bytes, places: Sequence[Place], where: str) -> RecordedSample:
    """A line as a sample; UsageError if it is not one that a run writes."""
    try:
        if not line.endswith(b"\n"):
            raise ValueError("its end is missing")
        said = json.loads(line)
        folder, _, name = said["key"].rpartition("/")
        sample = RecordedSample(
            Key(folder, name),
            fit(tuple[int, ...], said["variations"], "variations"),
            _paths(said["files"]),
            fit(str | None, said.get("prompt"), "prompt"),
            fit(Mapping[str, str], said.get("texts", {}), "texts"),
            _paths(said.get("sources", {})),
            fit(str, said.get("fit", ""), "fit"),
        )
        for place in places:
            files = sample.files[place.folder]
            if len(files) not in (1, len(sample.variations)) or not files[0].startswith(f"{place.folder}/"):
                raise ValueError(f"its files in {place.folder} are {files}")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, UsageError) as error:
        raise UsageError(printable(f"{where} is no sample of a run, or was damaged ({error})")) from error
    return sample


def _paths(said: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Paths by name. ValueError, TypeError or AttributeError for others than paths below a folder."""
    for path in chain.from_iterable(said.values()):
        if b"\0" in os.fsencode(path) or {"", ".", ".."} & set(path.split("/")):
            raise ValueError(f"it has a file {path!r}")
    return {name: tuple(paths) for name, paths in said.items()}
