"""What a run is (`run.json`), what failed (`failures.jsonl`), and who may write into an output folder."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from fourm.checksums import drop_checksums, sha256_of_file, tidy_checksums
from fourm.errors import UsageError
from fourm.layout import PARTIAL, Place, Sample, ends_a_line, remove_leftovers, write_text
from fourm.opening import read_bytes

RUN, FAILURES, LOCK = "run.json", "failures.jsonl", ".lock"
SR_RUN = "run.sr.json"  # record of super-resolution that lies beside the run which it goes on from
BASE, SR = "base", "sr"  # stages of making a sample
FORMAT = 2  # of run.json
MAX_BYTES = 1 << 28  # of run.json
MAX_FAILURES_BYTES = 1 << 30  # of failures.jsonl
FREE = (
    "versions",
    "command",
    "device",
    "created",
    "options",
)  # may differ between a run and the one that resumes it
MAX_DIFFERENCES = 5  # named in the sentence that refuses to resume


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
        names = ("model", "revision", "files", "options", "samples_sha256", "num_variations", "seed", "dtype")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, slots=True)
class Launch:
    """One process that worked on a folder, from when to when and with what result."""

    rank: int
    size: int
    started: str
    finished: str | None = None
    saved: int = 0
    skipped: int = 0
    failed: int = 0
    seconds: float = 0.0


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def digest_of_samples(samples: list[Sample]) -> str:
    """sha256 over keys and typed texts, in order; a file that was mended may have another extension."""
    rows = [[s.key.folder, s.key.name, s.caption, *([dict(s.typed)] if s.typed else [])] for s in samples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@cache
def sha256_of(path: Path) -> str:
    """sha256 of a file that does not change, read once per process."""
    return sha256_of_file(path)


def check_output(
    out: Path, launch: Launch, resume: bool, overwrite: bool, record: str = RUN
) -> tuple[Path, ...]:
    """Make the output folder; refuse one that cannot be written or holds something. Nothing is loaded yet.

    record: RUN, or SR_RUN for a run that writes beside the files it reads. Returns the folders that were
    made, the innermost first.
    """
    if os.path.exists(out) and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, not a folder")
    if not _is_free(out, record):
        before = _load(out, record)
        if not resume and not overwrite and not _is_partner(before, launch):
            raise _exists(out, record)
    made = tuple(folder for folder in (out, *out.parents) if not os.path.exists(folder))
    _make(out)
    with locked(out):
        return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that were made in vain, the innermost first; one that holds something stays."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def open_output(
    out: Path, settings: RunRecord, launch: Launch, resume: bool, overwrite: bool, record: str = RUN
) -> int:
    """Join the folder: write the record, or compare with the one there. Returns this launch's number.

    Several processes may do this at once, in any order; the first of them writes the record.
    """
    _make(out)
    fresh = {"format": FORMAT, **settings.to_json(), "launches": []}
    with locked(out):
        remove_leftovers(out)
        if _is_free(out, record):
            if record == SR_RUN:
                _check_unclaimed(out, settings)
            return _add(out, record, fresh, launch)
        before = _load(out, record)
        partner = _is_partner(before, launch)
        if overwrite and not partner:
            _empty(out, record)
            return _add(out, record, fresh, launch)
        if not resume and not partner:
            raise _exists(out, record)
        _compare(out, before, settings)
        return _add(out, record, before, launch)


def close_output(
    out: Path, number: int, launch: Launch, saved: Container[tuple[str, int]], record: str = RUN
) -> None:
    """Note how a launch ended, forget failures of samples (key, variation) that it has saved, tidy up."""
    with locked(out):
        before = _load(out, record)
        before["launches"][number] = asdict(launch)
        _save(out, record, before)
        _forget_failures(out, saved, BASE if record == RUN else SR)
        tidy_checksums(out)
        remove_leftovers(out)


def add_failure(out: Path, key: str, variation: int, reason: str, record: str = RUN) -> None:
    """Append one line to failures.jsonl, whole, whoever else is writing."""
    stage = {} if record == RUN else {"stage": SR}
    failure = {"key": key, "variation": variation, **stage, "reason": reason, "time": now()}
    line = json.dumps(failure) + "\n"
    with locked(out), (out / FAILURES).open("a", encoding="utf-8") as file:
        file.write(line if file.tell() == 0 or ends_a_line(out / FAILURES) else "\n" + line)


def forget_failures(out: Path, saved: Container[tuple[str, int]]) -> None:
    """Take samples (key, variation) that are saved by now out of failures.jsonl."""
    with locked(out):
        _forget_failures(out, saved, BASE)


def read_record(out: Path, record: str = RUN) -> RunRecord:
    """The settings of the run that wrote a folder."""
    data = _load(out, record)
    try:
        values = {name: data[name] for name in RunRecord.__dataclass_fields__}
        places = tuple(Place(**place) for place in values.pop("places"))
        read = RunRecord(**values | {"places": places, "command": tuple(data["command"])})
        _check_kinds(read)
        return read
    except (KeyError, TypeError) as error:
        raise UsageError(f"{out / record}: is not a record of this program ({error})") from error


def read_launches(out: Path, record: str = RUN) -> tuple[Launch, ...]:
    """Every process that worked on a folder, in the order in which they began."""
    try:
        return tuple(Launch(**launch) for launch in _load(out, record)["launches"])
    except TypeError as error:
        raise UsageError(f"{out / record}: is not a record of this program ({error})") from error


def _check_kinds(read: RunRecord) -> None:
    """TypeError where a value is not of the kind that others count on; a file can be changed by hand."""
    for name in ("model", "options", "dtype", "stage"):
        if not isinstance(getattr(read, name), str):
            raise TypeError(f"its {name} is not a text")
    if type(read.seed) is not int:
        raise TypeError("its seed is not a whole number")
    if not type(read.samples) is type(read.num_variations) is int:
        raise TypeError("its counts of samples and variations are not whole numbers")
    steps, conditions = read.schedule["steps"], read.schedule["conditions"]
    if not all(isinstance(name, str) for name in (*conditions, *(step["target"] for step in steps))):
        raise TypeError("schedule names something that is not a modality")


def _exists(out: Path, record: str) -> UsageError:
    what = "is not empty" if record == RUN else "holds super-resolution already"
    return UsageError(f"--out {out}: {what}; --resume goes on with its run, --overwrite starts again")


def _is_partner(record: Mapping[str, Any], launch: Launch) -> bool:
    """True for a process whose own share nobody has begun yet, in a job of the same size."""
    others = [(other["rank"], other["size"]) for other in record["launches"]]
    same_size = all(size == launch.size for _, size in others)
    return launch.size > 1 and same_size and (launch.rank, launch.size) not in others


def _compare(out: Path, record: Mapping[str, Any], settings: RunRecord) -> None:
    """Refuse to go on with another configuration, and say what differs."""
    names = [name for name in RunRecord.__dataclass_fields__ if name not in FREE]
    wanted = json.loads(json.dumps(settings.to_json()))
    before, after = (dict(_flat("", {name: r.get(name) for name in names})) for r in (record, wanted))
    differences = [
        f"{path} is {before.get(path, 'absent')} there and {after.get(path, 'absent')} here"
        for path in dict.fromkeys((*before, *after))
        if before.get(path, "absent") != after.get(path, "absent")
    ]
    if differences:
        rest = len(differences) - MAX_DIFFERENCES
        more = f"; and {rest} more" if rest > 0 else ""
        shown = "; ".join(differences[:MAX_DIFFERENCES])
        raise UsageError(f"--out {out}: belongs to a run with other settings: {shown}{more}")


def _flat(path: str, value: object) -> Iterator[tuple[str, str]]:
    """Leaves of nested records with their paths; lists of plain values count as leaves."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(f"{path}.{name}" if path else str(name), item)
    elif isinstance(value, list) and any(isinstance(item, (Mapping, list)) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{path}[{number}]", item)
    else:
        yield path, json.dumps(value)


def _load(out: Path, name: str) -> dict[str, Any]:
    path = out / name
    try:
        record = json.loads(read_bytes(path, MAX_BYTES))
        if record["format"] != FORMAT:
            raise UsageError(
                f"{path}: was written by another version of this program (format {record['format']})"
            )
        if all({"rank", "size"} <= launch.keys() for launch in record["launches"]) and all(
            "\0" not in place["folder"] + place["suffix"] for place in record["places"]
        ):
            return dict(record)
    except FileNotFoundError as error:
        raise UsageError(
            f"--out {out}: is not empty and holds no {name}, so no run wrote it; left as it is"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: is not a record of this program ({error})") from error
    raise UsageError(f"{path}: is not a record of this program (launches or places are not complete)")


def _save(out: Path, name: str, record: Mapping[str, Any]) -> None:
    write_text(out, out / name, json.dumps(record, indent=1) + "\n")


def _add(out: Path, name: str, record: dict[str, Any], launch: Launch) -> int:
    record["launches"].append(asdict(launch))
    _save(out, name, record)
    return len(record["launches"]) - 1


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror})") from error


def _is_free(out: Path, record: str) -> bool:
    """True if no run is here: nothing but what one leaves that was killed before it began.

    A run that writes beside others only minds its own record.
    """
    try:
        if record != RUN:
            return not os.path.lexists(out / record)
        return not os.path.exists(out) or all(path.name in (PARTIAL, LOCK) for path in out.iterdir())
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be read ({error.strerror})") from error


def _check_unclaimed(out: Path, settings: RunRecord) -> None:
    """Refuse folders for results that hold files already, which no record here tells of."""
    for place in settings.places:
        folder = out / place.folder
        if (
            place.form != "extra"
            and os.path.lexists(folder)
            and (not folder.is_dir() or any(folder.iterdir()))
        ):
            raise UsageError(f"{folder}: holds files that no run of super-resolution wrote; move them away")


def _empty(out: Path, name: str) -> None:
    """Delete the files of a run, and of one that went on from it; nothing else. RUN stays until replaced."""
    names = [each for each in ((SR_RUN, RUN) if name == RUN else (name,)) if os.path.lexists(out / each)]
    places = [(each, place) for each in names for place in _load(out, each)["places"]]
    for each, place in places:  # all of them before anything is deleted
        folder = out / place["folder"]
        if folder == out or not folder.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"{out / each}: names the folder '{place['folder']}', which is not inside {out}")
    for _, place in places:
        _empty_place(out, place["folder"], place["suffix"])
    if SR_RUN in names:
        (out / SR_RUN).unlink()
    if name == RUN:
        (out / FAILURES).unlink(missing_ok=True)


def _empty_place(out: Path, place: str, suffix: str) -> None:
    folder = out / place
    drop_checksums(out, place, suffix)
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            if name.endswith(suffix):
                Path(where, name).unlink()
        remove_empty([Path(where)])
    remove_empty(above for above in folder.parents if above != out and above.is_relative_to(out))


def _forget_failures(out: Path, saved: Container[tuple[str, int]], stage: str) -> None:
    path = out / FAILURES
    if not path.exists():
        return
    latest: dict[tuple[str, str, int], str] = {}
    for line in read_bytes(path, MAX_FAILURES_BYTES).decode("utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # cut off by a kill
            failure = json.loads(line)
            latest[failure.get("stage", BASE), failure["key"], failure["variation"]] = line + "\n"
    kept = [line for (where, *pair), line in latest.items() if where != stage or tuple(pair) not in saved]
    if kept:
        write_text(out, path, "".join(kept))
    else:
        path.unlink()


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """One process at a time; the kernel frees the lock of one that is killed. Nothing is left behind."""
    path = out / LOCK
    try:
        file = path.open("a")
        while not _acquire(file.fileno(), path):
            file.close()
            file = path.open("a")
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror})") from error
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _acquire(descriptor: int, path: Path) -> bool:
    """Wait for the lock; False if its last holder has deleted the file, so that it locks nothing any more."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
