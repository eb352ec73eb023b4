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

from fourm.errors import UsageError
from fourm.layout import PARTIAL, Place, Sample, remove_leftovers, write_text

RUN, FAILURES, LOCK = "run.json", "failures.jsonl", ".lock"
FORMAT = 1  # of run.json
FREE = ("versions", "command", "device", "created")  # may differ between a run and the one that resumes it
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
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    created: str = ""

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in `run.json`."""
        return asdict(self)


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
    """sha256 of a file, read once per process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(out: Path, launch: Launch, resume: bool, overwrite: bool) -> tuple[Path, ...]:
    """Make the output folder; refuse one that cannot be written or holds something. Nothing is loaded yet.

    Returns the folders that were made, the innermost first.
    """
    if os.path.exists(out) and not out.is_dir():
        raise UsageError(f"--out {out}: is a file, not a folder")
    if not _is_empty(out) and not resume and not overwrite and not _is_partner(_load(out), launch):
        raise _exists(out)
    if not _is_empty(out):
        _load(out)
    made = tuple(folder for folder in (out, *out.parents) if not os.path.exists(folder))
    _make(out)
    with locked(out):
        return made


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders that were made in vain, the innermost first; one that holds something stays."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def open_output(out: Path, settings: RunRecord, launch: Launch, resume: bool, overwrite: bool) -> int:
    """Join the folder: write run.json, or compare with the one that is there. Returns this launch's number.

    Several processes may do this at once, in any order; the first of them writes the record.
    """
    _make(out)
    with locked(out):
        remove_leftovers(out)
        if _is_empty(out):
            return _add(out, {"format": FORMAT, **settings.to_json(), "launches": []}, launch)
        record = _load(out)
        partner = _is_partner(record, launch)
        if overwrite and not partner:
            _empty(out, record)
            return _add(out, {"format": FORMAT, **settings.to_json(), "launches": []}, launch)
        if not resume and not partner:
            raise _exists(out)
        _compare(out, record, settings)
        return _add(out, record, launch)


def close_output(out: Path, number: int, launch: Launch, saved: Container[tuple[str, int]]) -> None:
    """Note how a launch ended, forget failures of samples (key, variation) that it has saved, tidy up."""
    with locked(out):
        record = _load(out)
        record["launches"][number] = asdict(launch)
        _save(out, record)
        _forget_failures(out, saved)
        remove_leftovers(out)


def add_failure(out: Path, key: str, variation: int, reason: str) -> None:
    """Append one line to failures.jsonl, whole, whoever else is writing."""
    line = json.dumps({"key": key, "variation": variation, "reason": reason, "time": now()}) + "\n"
    with locked(out), (out / FAILURES).open("a", encoding="utf-8") as file:
        file.write(line if file.tell() == 0 or _ends_a_line(out / FAILURES) else "\n" + line)


def forget_failures(out: Path, saved: Container[tuple[str, int]]) -> None:
    """Take samples (key, variation) that are saved by now out of failures.jsonl."""
    with locked(out):
        _forget_failures(out, saved)


def read_record(out: Path) -> RunRecord:
    """The settings of the run that wrote a folder."""
    record = _load(out)
    try:
        values = {name: record[name] for name in RunRecord.__dataclass_fields__}
        places = tuple(Place(**place) for place in values.pop("places"))
        return RunRecord(**values | {"places": places, "command": tuple(record["command"])})
    except (KeyError, TypeError) as error:
        raise UsageError(f"{out / RUN}: is not a record of this program ({error})") from error


def _exists(out: Path) -> UsageError:
    return UsageError(f"--out {out}: is not empty; --resume goes on with its run, --overwrite starts again")


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


def _load(out: Path) -> dict[str, Any]:
    path = out / RUN
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
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
            f"--out {out}: is not empty and holds no {RUN}, so no run wrote it; left as it is"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: is not a record of this program ({error})") from error
    raise UsageError(f"{path}: is not a record of this program (launches or places are not complete)")


def _save(out: Path, record: Mapping[str, Any]) -> None:
    write_text(out, out / RUN, json.dumps(record, indent=1) + "\n")


def _add(out: Path, record: dict[str, Any], launch: Launch) -> int:
    record["launches"].append(asdict(launch))
    _save(out, record)
    return len(record["launches"]) - 1


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be written ({error.strerror})") from error


def _is_empty(out: Path) -> bool:
    """True if there is nothing but what a run leaves that was killed before it began."""
    try:
        return not os.path.exists(out) or all(path.name in (PARTIAL, LOCK) for path in out.iterdir())
    except OSError as error:
        raise UsageError(f"--out {out}: cannot be read ({error.strerror})") from error


def _empty(out: Path, record: Mapping[str, Any]) -> None:
    """Delete the files of the run that wrote `record`, nothing else; the record stays until replaced."""
    for place in record["places"]:
        folder = out / place["folder"]
        if folder == out or not folder.resolve().is_relative_to(out.resolve()):
            raise UsageError(f"{out / RUN}: names the folder '{place['folder']}', which is not inside {out}")
        for where, _, names in os.walk(folder, topdown=False):
            for name in names:
                if name.endswith(place["suffix"]):
                    Path(where, name).unlink()
            with contextlib.suppress(OSError):  # it holds something else
                Path(where).rmdir()
    (out / FAILURES).unlink(missing_ok=True)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _forget_failures(out: Path, saved: Container[tuple[str, int]]) -> None:
    path = out / FAILURES
    if not path.exists():
        return
    latest: dict[tuple[str, int], str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # cut off when its process was killed
            failure = json.loads(line)
            latest[failure["key"], failure["variation"]] = line + "\n"
    kept = [line for pair, line in latest.items() if pair not in saved]
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
