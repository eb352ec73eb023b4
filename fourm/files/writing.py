"""Files that appear complete or not at all, the locks behind them, and the folders that they may go to."""

import errno
import hashlib
import itertools
import logging
import os
import re
import secrets
import socket
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from threading import Lock, get_ident
from typing import BinaryIO

from fourm.errors import FourMError, UsageError, as_addresses, printable
from fourm.files.opening import open_file, open_own, read_bytes, real

PARTIAL = ".partial"  # folder for files that are being written
ABANDONED = 24 * 3600.0  # seconds; older files of a process of unknown state are deleted
_LOCK = ".lock"
# A file in PARTIAL: the name of its process, and what distinguishes it.
_UNFINISHED = re.compile(r"([0-9a-f]{8}-[0-9a-f]{12})(?:-[0-9]+(?:\.[^/]*)?|\.lock)", re.DOTALL)
_counter = itertools.count()
_claiming = Lock()
_claims = dict[tuple[str, str], BinaryIO]()  # lock files that are held, by process and output folder
_folders = set[tuple[Path, Path]]()  # a root and a folder below it that this process has made or found
_makers = dict[str, int]()  # unfinished files of this process, and the thread that makes each
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
# A text chunk of PNG that each drawing holds. Results hold none of this name, so none is taken for a drawing.
DRAWING = {"drawing": "fourm"}
DRAWN_BY = "fourm drawing"  # the creator of a drawing as PDF or SVG
DRAWINGS = (".png", ".pdf", ".svg")  # endings


def write_atomic(root: Path, path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file in `root/.partial`, then rename it to `path` under root.

    root must exist: if it was deleted during a run, it is not created again.
    """
    with _unfinished(root, path) as file:
        _make_once(root, path.parent)
        write(file)
        try:
            os.replace(file, path)
        except FileNotFoundError:  # another process removed the folder again
            make_below(root, path.parent)
            os.replace(file, path)


def write_data(root: Path, path: Path, data: bytes) -> None:
    """Write bytes as a file, atomically."""
    write_atomic(root, path, partial(Path.write_bytes, data=data))


def create_atomic(root: Path, path: Path, write: Callable[[Path], None]) -> bool:
    """As `write_atomic`, but return False if the file exists: of several processes, one succeeds."""
    with _unfinished(root, path) as file:
        make_below(root, path.parent)
        write(file)
        try:
            os.link(file, path)
        except FileExistsError:  # NFS may report this for a link that it has just created
            return os.path.samestat(file.lstat(), path.lstat())
        except OSError:  # no hard links: for a moment, other processes see an empty file
            try:
                path.open("xb").close()  # follows no link
            except FileExistsError:
                return False
            try:
                os.replace(file, path)
            except BaseException:  # Ctrl-C too: no empty file stays
                path.unlink()
                raise
    return True


def write_text(root: Path, path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    write_atomic(root, path, partial(_fill, text))


def create_text(root: Path, path: Path, text: str) -> bool:
    """As `write_text`, but return False if the file exists."""
    return create_atomic(root, path, partial(_fill, text))


def write_alone(path: Path, write: Callable[[Path], object]) -> None:
    """Write one file outside of any run's folder, atomically; create its folder if needed."""
    try:
        make_all(path.parent)
    except OSError as error:
        raise FourMError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        write_atomic(path.parent, path, write)
    finally:
        remove_leftovers(path.parent)


def vanished(root: Path) -> FourMError:
    """The error for an output folder that disappeared during a run."""
    what = "was deleted or renamed while this process wrote into it, so it stops here"
    return FourMError(f"{root}: {what}; if the folder has another name now, `resume=True` goes on there")


def check_writable(root: Path) -> None:
    """OSError if no file can be created below root."""
    try:
        remove_unfinished(new_unfinished(root))
    finally:
        remove_leftovers(root)


def server_clock(root: Path) -> float:
    """Seconds that the clock of root's file system (perhaps a server's) is ahead of this machine's clock."""
    file = new_unfinished(root)
    ahead = file.stat().st_mtime - time.time()
    remove_unfinished(file)
    return ahead


def process_name() -> str:
    """A unique name of this process, also of a forked one; it begins with a name of the machine."""
    return _name_of(os.getpid())


def is_alive(root: Path, process: str) -> bool | None:
    """True if the process with that name is running and writes below root; None if that is unknown.

    A released lock proves the end of a process on its own machine only: some network file systems hide locks.
    """
    try:
        with open_own(root / PARTIAL / f"{process}{_LOCK}", "r+") as file:
            is_free = lock_file(file)
    except OSError:
        return None
    if is_free is False:
        return True
    return False if is_free and process.startswith(_machine()) else None


def is_written(root: Path) -> bool:
    """Whether a process other than this one is running and has begun to write below root."""
    others = {process for process, _ in _list_partial(root)} - {"", process_name()}
    return any(is_alive(root, process) for process in others)


def lock_file(file: BinaryIO, wait: bool = False) -> bool | None:
    """Lock an open file: True if locked, False if another process holds it, None without locks."""
    from filelock import lock_descriptor  # here: it takes 10 ms, which `fourm --help` can save

    try:
        return lock_descriptor(file.fileno(), blocking=wait)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_of_no_locks()
        return None


def check_partial(root: Path) -> None:
    """Refuse a root in which PARTIAL is a link or a file."""
    partial = root / PARTIAL
    if (mode := mode_of(partial)) is not None and not stat.S_ISDIR(mode):
        raise UsageError(f"{partial}: is a link or a file where unfinished files would go; move it away")


def remove_leftovers(root: Path) -> None:
    """Delete temporary files of processes that have ended, and PARTIAL if it is empty then.

    Files that do not have a name of this program are kept, and those that other threads are making. To be
    called when this thread is not writing.
    """
    _folders.difference_update([known for known in _folders if known[0] == root])
    is_busy = _is_busy(root)
    if not is_busy and (file := _claims.pop((process_name(), os.path.abspath(root)), None)):
        file.close()  # first, because Windows deletes no open file
        with suppress(OSError):
            (root / PARTIAL / f"{process_name()}{_LOCK}").unlink(missing_ok=True)
    if not stat.S_ISDIR(mode_of(root / PARTIAL) or 0):
        return
    found = [(process, path) for process, path in _list_partial(root) if process]
    alive = {process: is_alive(root, process) for process, _ in found}
    alive[process_name()] = is_busy  # a signal may have come between the making of a file and its removal
    for process, path in sorted(found, key=lambda one: one[1].name.endswith(_LOCK)):
        with suppress(FileNotFoundError):  # another process deleted it
            is_old = time.time() - path.lstat().st_mtime > ABANDONED
            if alive[process] is False or (alive[process] is None and is_old):
                path.unlink()
    with suppress(OSError):  # it is not empty
        (root / PARTIAL).rmdir()


def foreign_leftovers(root: Path) -> list[str]:
    """Names of what lies among unfinished files and was not written by this program; nothing removes it."""
    return sorted(path.name for process, path in _list_partial(root) if not process)


def make_below(root: Path, folder: Path) -> None:
    """Make a folder below root; FileNotFoundError where root is missing, FourMError for a link out of it."""
    if not real(folder).is_relative_to(real(root)):
        raise FourMError(f"{folder} is a link out of {root}; nothing is written there")
    for part in folder.relative_to(root).parts:
        root = root / part
        with suppress(FileExistsError):  # `exist_ok` fails if another process removes it at the same moment
            root.mkdir()


def _make_once(root: Path, folder: Path) -> None:
    """As `make_below`, without a call of the file system where this process did it before."""
    if (root, folder) not in _folders:
        make_below(root, folder)
        _folders.add((root, folder))


def make_all(folder: Path) -> None:
    """Make a folder and those above it; `parents=True` is a recursion, for which a thousand are too many."""
    above = itertools.takewhile(lambda path: not os.path.lexists(path), folder.parents)
    for path in (*reversed(tuple(above)), folder):
        path.mkdir(exist_ok=True)


def mode_of(path: Path) -> int | None:
    """`st_mode` of what is at a path, of a link itself, by a single call; None if nothing is there."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_root(out: Path, *folders: str) -> None:
    """Refuse an output folder where something else has taken its name, one above it or one of these in it."""
    there = next((folder for folder in (out, *out.parents) if os.path.lexists(folder)), None)
    if there is not None and not there.is_dir():
        what = "a file" if there.exists() else "a link to nowhere"
        raise UsageError(f"`out={out}`: {'' if there == out else f'{there} '}is {what}, not a folder")
    check_partial(out)
    for folder in folders:
        check_folder(out, out / folder)


def check_folder(root: Path, folder: Path) -> None:
    """UsageError where a folder below root is due, and something else has taken its name."""
    if os.path.lexists(folder) and not (folder.is_dir() and real(folder).is_relative_to(real(root))):
        raise UsageError(f"{folder}: is a file or a link out of {root}, not a folder; move it away")


def refuse_inside(out: Path, top: Path) -> None:
    """UsageError where an output folder is a modality's folder that is read, or lies in it."""
    there, around = real(out), real(top)
    below = there.parts[len(around.parts) :]
    if there.is_relative_to(around) and not any(part.startswith(".") for part in below):  # hidden: no sample
        raise UsageError(
            f"`out={out}`: lies in {top}, which this command reads, so results would be taken for samples; "
            "name a folder elsewhere"
        )


def check_drawing(setting: str, path: Path) -> None:
    """UsageError unless a drawing can be written to path; a result or photograph there must not be lost."""
    problem = ""
    if path.suffix.lower() not in DRAWINGS:
        problem = f"must end in {', '.join(DRAWINGS[:-1])} or {DRAWINGS[-1]}"
    elif path.exists() and not path.is_file():
        problem = "something that is no file is there"
    elif path.exists():
        problem = "holds something else than a drawing; name another file"
        with suppress(OSError), open_file(path) as file:
            start = file.read(1 << 12)  # before the pixels stand a few small chunks
            file.seek(-min(1 << 12, path.stat().st_size), os.SEEK_END)
            both = start + file.read()  # a PDF says at its end what it is
            is_drawing = b"tEXtdrawing\0fourm" in both or DRAWN_BY.encode() in both
            problem = "" if not start or is_drawing else problem
    if problem:
        raise UsageError(f"`{setting}={printable(str(path))}`: {problem}")


def free_beside(out: Path) -> str:
    """The end of a message, with a folder that does not exist yet: out/001 -> out/002, cats -> cats-2."""
    if out.name in ("", "..") or as_addresses(str(out)) != str(out):  # or it is in an object store
        return ""
    match = re.fullmatch(r"(.*?)([0-9]{1,9})", out.name, re.DOTALL)
    stem, digits = (match[1], match[2]) if match else (f"{out.name}-", "1")
    numbers = (out.with_name(f"{stem}{n:0{len(digits)}d}") for n in itertools.count(int(digits) + 1))
    free = next(path for path in numbers if not os.path.lexists(path))
    return f", `out={free}` is free"


@cache
def _warn_of_no_locks() -> None:
    """Log it once. Without a logging configuration, Python prints warnings to stderr."""
    logging.getLogger("fourm").warning(
        "note: this file system has no file locks; temporary files of a killed process stay for a day, and "
        "two downloads of one file do not wait for each other"
    )


def _list_partial(root: Path) -> Iterator[tuple[str, Path]]:
    """The process and the path of each unfinished file; "" for what this program did not write."""
    with suppress(FileNotFoundError), os.scandir(root / PARTIAL) as entries:
        for entry in entries:
            match = _UNFINISHED.fullmatch(entry.name)
            yield match[1] if match and entry.is_file(follow_symlinks=False) else "", Path(entry.path)


@contextmanager
def _unfinished(root: Path, path: Path) -> Iterator[Path]:
    """A temporary file for what is to become `path`."""
    if ".." in path.parts[len(root.parts) :] or not path.is_relative_to(root):
        raise FourMError(f"{path} leads out of {root}; nothing is written there")
    try:
        file = new_unfinished(root, path.suffix)
        try:
            yield file
        finally:
            remove_unfinished(file)
    except OSError as error:
        if not root.is_dir():
            raise vanished(root) from error
        raise FourMError(f"cannot write {path}: {error.strerror or error}") from error


def new_unfinished(root: Path, suffix: str = "") -> Path:
    """Create an empty file in `root/.partial`, a folder that other processes may remove at any moment."""
    file = root / PARTIAL / f"{process_name()}-{next(_counter)}{suffix}"
    for _ in range(100):
        with suppress(FileNotFoundError):
            _claim(root)
            _makers[os.path.abspath(file)] = get_ident()
            open_own(file, "x").close()
            return file
        with suppress(FileExistsError):
            file.parent.mkdir()
    raise FourMError(f"{file.parent}: is removed again and again by another process")


def remove_unfinished(file: Path) -> None:
    """Delete a file of `new_unfinished`, if it has not been renamed."""
    file.unlink(missing_ok=True)
    _makers.pop(os.path.abspath(file), None)


def _is_busy(root: Path) -> bool:
    """Whether another thread of this process is making a file for a folder below root."""
    others = {one.ident for one in threading.enumerate()} - {get_ident()}
    partial = os.path.abspath(root / PARTIAL)
    return any(os.path.dirname(path) == partial and one in others for path, one in [*_makers.items()])


def _claim(root: Path) -> None:
    """Take the lock that shows other processes that this one writes below root."""
    claim = process_name(), os.path.abspath(root)
    with _claiming:  # a thread would wait for ever for the lock of another one
        if claim in _claims:
            return
        check_partial(root)
        path = root / PARTIAL / f"{process_name()}{_LOCK}"
        file = open_own(path, "a")
        lock_file(file, wait=True)
        if not path.exists():  # another process deleted it before it was locked
            file.close()
            raise FileNotFoundError(path)
        _claims[claim] = file


def _fill(text: str, file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(text.encode("utf-8", errors="surrogateescape"))
        stream.flush()
        os.fsync(stream.fileno())  # before it is renamed, so that a power failure leaves no empty record


@cache
def _name_of(pid: int) -> str:
    """A random name for each process id: a forked process inherits the cache, but has another id."""
    return f"{_machine()}-{secrets.token_hex(6)}"


@cache
def _machine() -> str:
    """A short name of the running kernel; all containers on a machine have the same."""
    try:
        name = read_bytes(Path("/proc/sys/kernel/random/boot_id"), 1 << 10)
    except OSError:
        name = f"{socket.gethostname()} {uuid.getnode()}".encode()
    return hashlib.sha256(name).hexdigest()[:8]
