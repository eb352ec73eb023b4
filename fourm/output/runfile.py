"""`run.json`, the record of a run: its fields, and how it is written, read and checked."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from fourm.data.layout import FORMS, MAX_SAMPLES, Place
from fourm.data.opening import read_bytes
from fourm.data.writing import PARTIAL
from fourm.errors import UsageError, printable
from fourm.modalities.typed import fit
from fourm.output.processes import FAILURES, PROCESSES, RUN_IDENTITY
from fourm.schedule.settings import MAX_SEED

RUN = "run.json"
SR_RUN = "run.sr.json"  # record of super-resolution in the folder of the run that it reads
PLOTS = "plots"  # folder of the pictures that `fourm plot` draws
# The new record while --overwrite deletes the old run; then it is renamed to replace the old record.
NEXT = {RUN: "run.next.json", SR_RUN: "run.sr.next.json"}
# No folder of results may have these names.
RESERVED_NAMES = (RUN, SR_RUN, *NEXT.values(), PROCESSES, FAILURES, PLOTS, PARTIAL)
BASE, SR = "base", "sr"  # stages of making a sample
FORMAT = 3  # of run.json
MAX_BYTES = 1 << 28  # of run.json
MAX_FOLDER_BYTES, MAX_SUFFIX_BYTES = 255, 24  # of a place; with the longest name a file system takes both
_IDENTITY, _DIGEST = "identity", "sha256"  # keys; the digest covers all other fields but the format
# Fields of a run's record that the super-resolution of its results depends on.
_ORIGIN = ("model", "revision", "files", "options", "samples_sha256", "num_variations", "seed", "dtype")
# The fields of a recorded step that are read.
_STEP: dict[str, type] = {"index": int, "target": str, "num_tokens": int}


@dataclass(frozen=True, slots=True)
class RunRecord:
    """All that the files of a run depend on, and how to repeat it."""

    schedule: Mapping[str, Any]  # Chain.to_json()
    model: str
    revision: str
    files: Mapping[str, str]  # weights, tokenizers, text tokenizer -> sha256
    samples: int  # of all processes together
    samples_sha256: str
    num_variations: int
    seed: int
    dtype: str
    device_type: str  # "cpu", "cuda", "mps"; they round differently
    attention: str  # the kernel; they round differently
    decode: bool
    detokenizer_steps: int
    preview: int
    places: tuple[Place, ...]
    stage: str = BASE
    variation: int | None = None  # if only this one was made
    origin: Mapping[str, Any] = field(default_factory=dict)  # `as_origin` of the run that this reads
    options: str = ""  # the schedule as command line options
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    created: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as `run.json` contains them."""
        return asdict(self)

    def as_origin(self) -> dict[str, Any]:
        """What the results of this run depend on, for the record of their super-resolution."""
        return {name: getattr(self, name) for name in _ORIGIN}


@dataclass(frozen=True, slots=True)
class RunFile:
    """A valid record, as it was read."""

    run: RunRecord
    identity: str  # part of the file names of its processes
    is_as_written: bool  # False: valid, but changed after it was written


def format_run(run: RunRecord, identity: str) -> str:
    """The text of a record."""
    facts = {_IDENTITY: identity, **run.to_json()}
    return _text({"format": FORMAT, **facts, _DIGEST: _digest(facts)})


def read_run(path: Path) -> RunFile:
    """Read a record and check all fields; UsageError if one is wrong, FileNotFoundError if there is none."""
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8")
        said = json.loads(text)
        facts = {name: value for name, value in said.items() if name not in ("format", _DIGEST)}
        if said["format"] != FORMAT:
            raise ValueError(f"another version of this program wrote format {said['format']!r}")
        identity = fit(str, said[_IDENTITY], _IDENTITY)
        run = fit(RunRecord, {name: value for name, value in facts.items() if name != _IDENTITY}, "run")
        if not RUN_IDENTITY.fullmatch(identity):
            raise ValueError(f"its identity is {identity!r}")
        _check(run)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else printable(str(error))
        raise UsageError(
            f"{printable(str(path))}: is not a record of this program, or was damaged ({why})"
        ) from error
    return RunFile(run, identity, text == _text(said) and said.get(_DIGEST) == _digest(facts))


def _text(said: Mapping[str, Any]) -> str:
    return json.dumps(said, indent=1) + "\n"


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _check(run: RunRecord) -> None:
    """ValueError for values that have the right type but that no run can have."""
    counts = (run.samples, run.num_variations)
    if not all(0 < count <= MAX_SAMPLES for count in (*counts, math.prod(counts))):
        raise ValueError(f"its counts are {run.samples} samples and {run.num_variations} variations")
    if run.variation is not None and not 0 <= run.variation < run.num_variations:
        raise ValueError(f"there is no variation {run.variation}")
    if not 0 <= run.seed <= MAX_SEED:
        raise ValueError(f"{run.seed} is no seed")
    if run.stage not in (BASE, SR):
        raise ValueError(f"its stage is {run.stage!r}")
    if run.detokenizer_steps < 1 or run.preview < 0:
        raise ValueError(f"it has {run.detokenizer_steps} detokenizer steps and previews of {run.preview}")
    fit(tuple[str, ...], run.schedule.get("conditions"), "schedule.conditions")
    for step in fit(tuple[Mapping[str, Any], ...], run.schedule.get("steps"), "schedule.steps"):
        for name, kind in _STEP.items():
            fit(kind, step.get(name), f"{name} of a step")
    hints = get_type_hints(RunRecord)
    for name in _ORIGIN if run.origin else ():
        fit(hints[name], run.origin.get(name), f"origin.{name}")
    for place in run.places:
        _check_place(place)


def _check_place(place: Place) -> None:
    """ValueError for a place outside of the output folder, or one that has a reserved name."""
    parts = place.folder.split("/")
    if {"", ".", ".."} & set(parts) or parts[0] in RESERVED_NAMES or os.path.isabs(place.folder):
        raise ValueError(f"no run has results in the folder {place.folder!r}")
    if len(os.fsencode(place.folder)) > MAX_FOLDER_BYTES or len(os.fsencode(place.suffix)) > MAX_SUFFIX_BYTES:
        raise ValueError(
            f"no run has a folder or suffix as long as {place.folder[:20]!r}, {place.suffix[:20]!r}"
        )
    if not place.suffix.isprintable() or place.suffix.strip(".") == "" or "/" in place.suffix:
        raise ValueError(f"no run writes files that end in {place.suffix!r}")
    if place.form not in FORMS:
        raise ValueError(f"no run writes files of the form {place.form!r}")
