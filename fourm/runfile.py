"""`run.json`: what it says of a run. All that is read from it is checked here."""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from fourm.errors import UsageError, printable
from fourm.layout import FORMS, MAX_SAMPLES, PARTIAL, Place
from fourm.opening import read_bytes
from fourm.processes import FAILURES, PROCESSES, RUN_IDENTITY
from fourm.settings import MAX_SEED
from fourm.typed import fit

RUN = "run.json"
SR_RUN = "run.sr.json"  # record of super-resolution that lies beside the run which it goes on from
PLOTS = "plots"  # pictures of a run, made from it at any time
# What --overwrite puts in the place of a record; it is there from before anything is deleted until all is.
NEXT = {RUN: "run.next.json", SR_RUN: "run.sr.next.json"}
# Names that no folder of results has.
OURS = (RUN, SR_RUN, *NEXT.values(), PROCESSES, FAILURES, PLOTS, PARTIAL)
BASE, SR = "base", "sr"  # stages of making a sample
FORMAT = 3  # of run.json
MAX_BYTES = 1 << 28  # of run.json
_IDENTITY, _DIGEST = "identity", "sha256"  # the latter of all that the record says of its run
# What a run that goes on from another one depends on: fields of the other's record.
_ORIGIN = ("model", "revision", "files", "options", "samples_sha256", "num_variations", "seed", "dtype")
# What is read from a step of a recorded schedule.
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
    device_type: str  # "cpu", "cuda", "mps": other kernels, other rounding
    attention: str  # which kernel: the same
    decode: bool
    detokenizer_steps: int
    preview: int
    places: tuple[Place, ...]
    stage: str = BASE
    variation: int | None = None  # the only one that was made
    origin: Mapping[str, Any] = field(default_factory=dict)  # what this run went on from: see `as_origin`
    options: str = ""  # the schedule as options of the command line
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    created: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in `run.json`."""
        return asdict(self)

    def as_origin(self) -> dict[str, Any]:
        """What the results of this run depend on, for the record of a run that goes on from them."""
        return {name: getattr(self, name) for name in _ORIGIN}


@dataclass(frozen=True, slots=True)
class RunFile:
    """A record that was read and found to be one."""

    run: RunRecord
    identity: str  # which the names of files of its processes hold
    is_as_written: bool  # False: it can be read, but something in it was changed


def write_run(run: RunRecord, identity: str) -> str:
    """The text of a record."""
    facts = {_IDENTITY: identity, **run.to_json()}
    return _text({"format": FORMAT, **facts, _DIGEST: _digest(facts)})


def read_run(path: Path) -> RunFile:
    """Read a record and check all of it; UsageError says what is wrong; FileNotFoundError stays."""
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
    """ValueError for values of the right kind that no run has."""
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
    """ValueError for a place that is not below the output folder, or where other things lie."""
    parts = place.folder.split("/")
    if {"", ".", ".."} & set(parts) or parts[0] in OURS or os.path.isabs(place.folder):
        raise ValueError(f"no run has results in the folder {place.folder!r}")
    if not place.suffix.isprintable() or place.suffix.strip(".") == "" or "/" in place.suffix:
        raise ValueError(f"no run writes files that end in {place.suffix!r}")
    if place.form not in FORMS:
        raise ValueError(f"no run writes files of the form {place.form!r}")
