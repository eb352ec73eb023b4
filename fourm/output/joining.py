"""How a process starts to write into an output folder: what is refused, and what `--overwrite` deletes."""

import json
import os
import secrets
import stat
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from fourm.data.dataset import PICTURE_SUFFIXES
from fourm.data.shards import SHARDS
from fourm.errors import UsageError, as_addresses
from fourm.files.writing import (
    PARTIAL,
    check_folder,
    check_partial,
    check_root,
    check_writable,
    create_text,
    free_beside,
    is_alive,
    is_written,
    make_all,
    mode_of,
    process_name,
    remove_leftovers,
    server_clock,
    vanished,
    write_text,
)
from fourm.output import processes
from fourm.output.markers import remove_shards, settings_digest
from fourm.output.processes import FAILURES, LAUNCH, PROCESSES, Launch, Process, of_kind, remove_empty
from fourm.output.record import (
    DONE,
    EVAL,
    EVAL_CSV,
    EVAL_DRAWINGS,
    EVAL_JSON,
    EVAL_SHARES,
    FRAMES,
    NEXT,
    NOT_COMPARED,
    RUN,
    SAMPLES,
    SR_RUN,
    RunRecord,
    format_run,
)
from fourm.output.samples import Run, load_run

# Seconds that other processes wait until process 0 begins to overwrite a folder, and until it has done so.
FIRST_WAIT, EMPTYING_WAIT = 600.0, 3600.0
MAX_DIFFERENCES = 5  # named in the message that refuses to resume
_LONG = ("schedule.steps", "files", "places")  # fields of many parts, which mostly follow from others


def check_output(out: Path, launch: Launch, resume: bool, overwrite: bool, record: str = RUN) -> list[Path]:
    """Create the output folder; refuse one that is not writable or not empty. Loads nothing.

    record: RUN, or SR_RUN for a run that writes into the folder it reads from. Returns the folders that were
    created, the innermost first.
    """
    check_free(out, launch, resume, overwrite, record)
    made = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    try:
        with _as_usage_error(out):
            make_all(out)
            check_writable(out)
    except BaseException:  # Ctrl-C too
        remove_empty(made)
        raise
    return made


def check_free(out: Path, launch: Launch, resume: bool, overwrite: bool, record: str = RUN) -> None:
    """Refuse an output folder that is not empty, unless its run is resumed or overwritten. Writes nothing."""
    with _as_usage_error(out):
        check_root(out)
    if not os.path.lexists(out) and out.name.lower().endswith(PICTURE_SUFFIXES):
        folder = out.with_suffix("")
        what = f"ends like a picture, but is the folder of all results; `out={folder}` puts pictures into"
        raise UsageError(f"`out={out}`: {what} {folder / 'rgb'}")
    if not _is_free(out, record):
        before = load_run(out, record)
        if not overwrite:
            _check_joins(before, launch, resume)


@dataclass(frozen=True, slots=True)
class Joining:
    """A process that is about to write into an output folder."""

    out: Path
    settings: RunRecord
    launch: Launch
    resume: bool = False
    overwrite: bool = False
    record: str = RUN
    since: float = 0.0  # start of the job, in seconds since 1970; `overwrite` keeps a record written later

    def check(self) -> None:
        """Refuse what `enter` would. Writes nothing, but `resume` completes an interrupted overwrite."""
        out, following = self.out, self.out / NEXT[self.record]
        if self.resume and os.path.lexists(following):
            with _as_usage_error(out):
                check_names(out)
                if self.launch.rank == 0:
                    after = load_run(out, following.name)
                    _check_settings(after, self.settings)
                    _overwrite(out, self.record, after.identity)
                else:
                    self._wait(lambda: not os.path.lexists(following))
        if self._is_first():
            return
        before = load_run(out, self.record)
        if not self.overwrite:
            self._check_same_run(before)
        for place in (*self.settings.places, SAMPLES[self.record], FRAMES):
            check_folder(out, out / place.folder)

    def enter(self) -> Process:
        """Register this process. The first of any number writes the record, others compare theirs to it."""
        out, run = self.out, secrets.token_hex(4)
        text = format_run(self.settings, run)
        try:
            with _as_usage_error(out):
                make_all(out)
                remove_leftovers(out)
                if self._is_first() and create_text(out, out / self.record, text):
                    if self.record == RUN:  # there may be processes of a run whose record was deleted
                        processes.remove_processes(out, [run])
                    return self._begin(run)
                if self.overwrite and not self._is_of_job(out / self.record):
                    if self.launch.rank == 0:
                        return self._begin(run, text)
                    self._wait(lambda: self._is_of_job(out / self.record))
                before = load_run(out, self.record)
                self._check_same_run(before)
                return self._begin(before.identity)
        except BaseException:  # Ctrl-C too: nothing of this process stays
            with suppress(OSError, UsageError):
                if load_run(out, self.record).identity == run and not of_kind(out, LAUNCH, run):
                    (out / self.record).unlink()  # no other process has joined it
            remove_empty([out / PROCESSES])
            remove_leftovers(out)
            raise

    def _begin(self, run: str, text: str = "") -> Process:
        """Start, unless another process with this rank does. text: the record that replaces the one there."""
        process = Process(self.out, run, self.launch).begin()
        try:
            if text:
                _overwrite(self.out, self.record, run, text)
            elif not (self.resume or self.overwrite):
                is_begun = _is_begun(self.out, run, self.launch, process.path(LAUNCH))
                if is_begun or load_run(self.out, self.record).identity != run:
                    raise _exists(self.out, self.record)
        except BaseException:  # Ctrl-C too: other processes of the job must not wait for this one
            process.path(LAUNCH).unlink(missing_ok=True)
            raise
        return process

    def _wait(self, is_done: Callable[[], bool]) -> None:
        """Wait until process 0 of this job, which alone empties a folder, has done so."""
        start, limit, size = time.monotonic(), FIRST_WAIT, self.launch.size
        while not is_done():
            first = [f.path for f in of_kind(self.out, LAUNCH) if (f.rank, f.size) == (0, size)]
            if self.overwrite and any(map(self._is_of_job, first)):  # it has begun
                limit = FIRST_WAIT + EMPTYING_WAIT
            if time.monotonic() - start > limit:
                raise UsageError(
                    f"`out={self.out}`: process 0 of {size}, which alone overwrites a folder, has not done "
                    f"so for {limit:.0f} seconds; start all processes of a job together"
                )
            time.sleep(0.1)

    def _is_of_job(self, file: Path) -> bool:
        """True if the job of this process wrote a file, which then is newer than the start of the job."""
        with suppress(FileNotFoundError):
            return self.launch.size > 1 and file.lstat().st_mtime >= self.since + server_clock(self.out)
        return False

    def _check_same_run(self, before: Run) -> None:
        """Refuse to continue a run without being asked to, or with other settings."""
        _check_joins(before, self.launch, self.resume or self.overwrite)
        _check_settings(before, self.settings)

    def _is_first(self) -> bool:
        """True if no run is there. Refuses folders for super-resolution that hold files of no record."""
        is_first = _is_free(self.out, self.record)
        for place in self.settings.places if is_first and self.record == SR_RUN else ():
            folder = self.out / place.folder
            check_folder(self.out, folder)
            if place.form != "extra" and folder.is_dir() and any(folder.iterdir()):
                what = "holds files that no run of super-resolution wrote; move them away"
                raise UsageError(f"{folder}: {what}")
        return is_first


def open_shards(
    out: Path, settings: RunRecord, size: int, resume: bool, overwrite: bool, record: str = RUN
) -> Run:
    """Open the folder of a sharded run: the first process writes its record, others compare theirs with it.

    No process waits for another one. One of several (`size`) joins a run with the same settings unasked, also
    when its share is made again. UsageError: the folder may not be opened so, or not be written to.
    """
    try:
        with _as_usage_error(out):
            make_all(out)
            remove_leftovers(out)
            folders = [place.folder for place in settings.places if settings.layout == SHARDS]
            for folder in (DONE[record], *folders):
                check_folder(out, out / folder)
            is_first = _is_free(out, record)
            if overwrite and not is_first:
                load_run(out, record)  # refuses what no run wrote
                if is_written(out):
                    what = "another process writes there now; `overwrite=True` would delete its work"
                    raise UsageError(f"`out={out}`: {what}")
                _empty(out, record, "")
                (out / record).unlink()
                is_first = True
            text = format_run(settings, secrets.token_hex(4))
            is_first = is_first and create_text(out, out / record, text)
            run = load_run(out, record)
            if not is_first and size == 1 and not resume:
                raise _exists(out, record)
            _check_settings(run, settings)
            return run
    finally:
        remove_leftovers(out)


def check_joined(run: Run) -> None:
    """FourMError if the folder is gone, or another run has taken it since this process joined its own."""
    with suppress(UsageError):
        if settings_digest(load_run(run.root, run.file).record) == settings_digest(run.record):
            return
    raise vanished(run.root)


def withdraw_output(process: Process, record: str) -> bool:
    """Delete a run that only this process has started and that has no results yet; False if it is another."""
    out, launches = process.out, of_kind(process.out, LAUNCH, process.run)
    is_alone = process.launch.size == 1 and [file.path for file in launches] == [process.path(LAUNCH)]
    if not is_alone or not (out / record).is_file():
        return False
    _empty(out, record, "")
    (out / record).unlink()
    remove_leftovers(out)
    return True


def remove_measures(out: Path, below: Sequence[str] = (*EVAL_SHARES, *EVAL_DRAWINGS)) -> None:
    """Delete what `fourm eval` found. below: patterns of files in its folder."""
    found = [out / EVAL_JSON, out / EVAL_CSV]  # in this order: without the first the others are no result
    if not (out / EVAL).is_symlink():
        found += [path for pattern in below for path in (out / EVAL).glob(pattern)]
    for path in found:
        if path.is_file() or path.is_symlink():
            path.unlink(missing_ok=True)
    remove_empty([out / EVAL])


def check_names(out: Path) -> None:
    """Refuse a link, or a folder in the place of a file, under the names of this program's own files."""
    check_partial(out)
    for name in (RUN, SR_RUN, *NEXT.values(), FAILURES, PROCESSES):
        kind, is_kind = ("folder", stat.S_ISDIR) if name == PROCESSES else ("file", stat.S_ISREG)
        if (mode := mode_of(out / name)) is not None and not is_kind(mode):
            raise UsageError(f"{out / name}: is not a {kind} of this program; move it away")


def _exists(out: Path, record: str) -> UsageError:
    what = "is not empty" if record == RUN else "holds super-resolution already"
    ways = "`resume=True` goes on with its run"
    if as_addresses(str(out)) == str(out):  # in an object store nothing is deleted
        ways += f", `overwrite=True` starts again{free_beside(out)}"
    return UsageError(f"`out={out}`: {what}; {ways}")


def _check_joins(before: Run, launch: Launch, is_asked: bool) -> None:
    """Refuse a run that is there, unless this process is asked to continue it, or takes part in its job."""
    out = before.root
    is_emptied = any(os.path.lexists(out / name) for name in NEXT.values())
    if not is_asked and (launch.size == 1 or is_emptied or _is_begun(out, before.identity, launch)):
        raise _exists(out, before.file)
    if before.is_older:
        ways = f"its runs cannot be resumed; `overwrite=True` starts again{free_beside(out)}"
        raise UsageError(f"`out={out}`: an older version of this program wrote {before.file}, and {ways}")


def _is_begun(out: Path, run: str, launch: Launch, own: Path | None = None) -> bool:
    """True if a launch other than `own` has the same rank, or is of a job of another size."""
    others = [file for file in of_kind(out, LAUNCH, run) if file.path != own]
    return any(file.size != launch.size or file.rank == launch.rank for file in others)


def _check_settings(run: Run, here: RunRecord) -> None:
    """Refuse to continue a run with other settings; the message names what differs."""
    before, after = (dict(_flat("", record.to_json())) for record in (run.record, here))
    differing = [
        path
        for path in dict.fromkeys((*before, *after))
        if before.get(path, "null") != after.get(path, "null") and path.partition(".")[0] not in NOT_COMPARED
    ]
    differing.sort(key=lambda path: path.startswith(_LONG))
    differences = [
        f"{path} is {before.get(path, 'absent')} there and {after.get(path, 'absent')} here"
        for path in differing
    ]
    if (rest := len(differences) - MAX_DIFFERENCES) > 0:
        differences[MAX_DIFFERENCES:] = [f"and {rest} more"]
    if differences:
        found = "; ".join(differences)
        raise UsageError(f"`out={run.root}`: belongs to a run with other settings: {found}")


def _flat(path: str, value: object) -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings and lists, with their paths; a list of plain values is a leaf."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _flat(f"{path}.{name}" if path else str(name), item)
    elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        for number, item in enumerate(value):
            yield from _flat(f"{path}[{number}]", item)
    else:
        yield path, json.dumps(value)


@contextmanager
def _as_usage_error(out: Path, what: str = "written") -> Iterator[None]:
    """Turn an OSError about the output folder into a UsageError."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"`out={out}`: cannot be {what} ({error.strerror or error})") from error


def _is_free(out: Path, record: str) -> bool:
    """True if the folder contains no run, at most the leftovers of one that was killed while it started."""
    with _as_usage_error(out, "read"):
        check_names(out)
        if record != RUN:  # the folder contains the files that super-resolution reads
            return not os.path.lexists(out / record)
        names = {path.name for path in out.iterdir()} if os.path.exists(out) else set[str]()
        return names <= {PARTIAL, PROCESSES} and not processes.list_processes(out)[1]


def _overwrite(out: Path, name: str, run: str, text: str = "") -> None:
    """Replace a run by the next record, `text` or the one that is there, unless a process writes there."""
    for file in of_kind(out, LAUNCH):
        if file.process != process_name() and is_alive(out, file.process):
            who = f"process {file.rank} of {file.size} of a run"
            raise UsageError(f"`out={out}`: {who} writes there now; `overwrite=True` would delete its work")
    _empty(out, name, run, text)
    os.replace(out / NEXT[name], out / name)


def _empty(out: Path, name: str, run: str, following: str = "") -> None:
    """Write the next record; delete a run and its super-resolution, except its record and files of `run`."""
    names = (SR_RUN, RUN) if name == RUN else (name,)
    runs = [load_run(out, each) for each in names if os.path.lexists(out / each)]
    plain = [each for each in runs if not each.record.is_sharded]
    places = [(each.file, place) for each in plain for place in (*each.record.places, SAMPLES[each.file])]
    places += [(name, FRAMES)] if name == RUN and plain else []
    for file, place in places:
        for path in accumulate(place.folder.split("/"), Path, initial=out):
            if path != out and path.is_symlink():
                raise UsageError(f"{out / file}: names the folder '{place.folder}', but {path} is a link")
    listed: Container[str] | None = None  # of the files that were written; a process was killed: not all are
    with suppress(OSError, UsageError):
        launches = [processes.read_launches(out, each.identity) for each in runs]
        listed = processes.read_checksums(out) if all(map(processes.is_closed, launches)) else None
    kept = [run] if name == RUN or not os.path.lexists(out / RUN) else [run, load_run(out, RUN).identity]
    if following:  # before anything is deleted, so that --resume can go on with it
        write_text(out, out / NEXT[name], following)
    remove_measures(out)  # they are of what is deleted now
    for sharded in runs:
        if sharded.record.is_sharded:
            remove_shards(out, sharded.file)
    for _, place in places:
        folder = out / place.folder
        for where, _, found in os.walk(folder, topdown=False):
            for path in (Path(where, each) for each in found if each.endswith(place.suffix)):
                if not listed or path.relative_to(out).as_posix() in listed:
                    path.unlink()
            remove_empty([Path(where)])
        remove_empty(above for above in folder.parents if above != out and above.is_relative_to(out))
    processes.remove_processes(out, kept)
    for each in (SR_RUN, NEXT[SR_RUN], FAILURES, processes.OLDER_CHECKSUMS) if name == RUN else ():
        (out / each).unlink(missing_ok=True)
