"""Who may write into an output folder: its record is begun, compared, closed; what failed is noted."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from fourm.checksums import drop_checksums, sha256_of_file, tidy_checksums
from fourm.errors import UsageError
from fourm.layout import PARTIAL, Sample, ends_a_line, remove_leftovers, write_text
from fourm.opening import read_bytes
from fourm.runfile import (
    BASE,
    FAILURES,
    LOCK,
    RUN,
    SR,
    SR_RUN,
    Launch,
    RunFile,
    RunRecord,
    read_run,
    write_run,
)

MAX_FAILURES_BYTES = 1 << 30  # of failures.jsonl
# What may differ between a run and the one that resumes it.
FREE = ("versions", "command", "device", "created", "options")
MAX_DIFFERENCES = 5  # named in the sentence that refuses to resume


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
    with locked(out):
        remove_leftovers(out)
        if _is_free(out, record):
            if record == SR_RUN:
                _check_unclaimed(out, settings)
            return _add(out, record, settings, (), launch)
        before = _load(out, record)
        partner = _is_partner(before, launch)
        if overwrite and not partner:
            _empty(out, record)
            return _add(out, record, settings, (), launch)
        if not resume and not partner:
            raise _exists(out, record)
        _compare(out, before.run, settings)
        return _add(out, record, before.run, before.launches, launch)


def close_output(
    out: Path, number: int, launch: Launch, saved: Container[tuple[str, int]], record: str = RUN
) -> None:
    """Note how a launch ended, forget failures of samples (key, variation) that it has saved, tidy up."""
    with locked(out):
        before = _load(out, record)
        launches = [*before.launches[:number], launch, *before.launches[number + 1 :]]
        write_text(out, out / record, write_run(before.run, launches))
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
    return _load(out, record).run


def _exists(out: Path, record: str) -> UsageError:
    what = "is not empty" if record == RUN else "holds super-resolution already"
    return UsageError(f"--out {out}: {what}; --resume goes on with its run, --overwrite starts again")


def _is_partner(before: RunFile, launch: Launch) -> bool:
    """True for a process whose own share nobody has begun yet, in a job of the same size."""
    others = [(other.rank, other.size) for other in before.launches]
    same_size = all(size == launch.size for _, size in others)
    return launch.size > 1 and same_size and (launch.rank, launch.size) not in others


def _compare(out: Path, there: RunRecord, here: RunRecord) -> None:
    """Refuse to go on with another configuration, and say what differs."""
    names = [each.name for each in fields(RunRecord) if each.name not in FREE]
    before, after = (
        dict(_flat("", {name: json.loads(json.dumps(run.to_json()[name])) for name in names}))
        for run in (there, here)
    )
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


def _load(out: Path, name: str) -> RunFile:
    try:
        return read_run(out / name)
    except FileNotFoundError as error:
        raise UsageError(
            f"--out {out}: is not empty and holds no {name}, so no run wrote it; left as it is"
        ) from error


def _add(out: Path, name: str, run: RunRecord, launches: Sequence[Launch], launch: Launch) -> int:
    write_text(out, out / name, write_run(run, [*launches, launch]))
    return len(launches)


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
    places = [(each, place) for each in names for place in _load(out, each).run.places]
    for each, place in places:  # all of them before anything is deleted
        _check_own(out, each, place.folder)
    for _, place in places:
        _empty_place(out, place.folder, place.suffix)
    if SR_RUN in names:
        (out / SR_RUN).unlink()
    if name == RUN:
        (out / FAILURES).unlink(missing_ok=True)


def _check_own(out: Path, record: str, folder: str) -> None:
    """Refuse to delete below a link, wherever it leads."""
    above = out
    for part in folder.split("/"):
        above = above / part
        if above.is_symlink():
            raise UsageError(f"{out / record}: names the folder '{folder}', but {above} is a link")


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
