"""Names of samples, paths of their files, and files that appear complete or not at all."""

import hashlib
import itertools
import os
import re
import secrets
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

from fourm.data.folders import make_all, make_below, make_folder, mode_of
from fourm.data.locks import try_lock, wait_for_lock
from fourm.data.opening import open_own, read_bytes, real
from fourm.errors import FourMError, UsageError

PARTIAL = ".partial"  # folder for files that are being written
FORMS = ("ids", "value", "extra")  # of a place: tokens, what they mean, files that only some samples have
SAMPLES_PER_FOLDER = 1000
# Results of one run (samples x variations): more do not fit into the memory of a small machine.
MAX_SAMPLES = 10_000_000
# Of a sample's name. File systems allow 255; the variation and the suffix are added.
MAX_NAME_BYTES = 220
ABANDONED = 24 * 3600.0  # seconds; older files of a process of unknown state are deleted
_LOCK = ".lock"
# Names of files in PARTIAL; they begin with the name of a process.
_UNFINISHED = re.compile(r"([0-9a-f]{8}-[0-9a-f]{12})(?:-[0-9]+(?:\.[^/]*)?|\.lock)", re.DOTALL)
_TRIES = 100  # to create a file in PARTIAL, which other processes remove when it is empty
_counter = itertools.count()
_claims = dict[tuple[str, str], BinaryIO]()  # lock files that are held, by process and output folder


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Name of a sample: its files are `root/modality/folder/name.ext`, in the folder of each modality.

    A name that is too long is cut and ends in a hash.
    """

    folder: str  # one or more path components, joined by "/"
    name: str  # one path component without extension

    def __post_init__(self) -> None:
        for part in (*self.folder.split("/"), self.name):
            if part in ("", ".", "..", PARTIAL) or "/" in part or "\0" in part:
                raise UsageError(
                    f"sample {self.folder!r}/{self.name!r}: {part!r} cannot be a file or folder name"
                )
        if len(name := os.fsencode(self.name)) > MAX_NAME_BYTES:
            digest = "~" + hashlib.sha256(name).hexdigest()[:16]
            start = name[: MAX_NAME_BYTES - len(digest)].decode("utf-8", errors="ignore")
            object.__setattr__(self, "name", start + digest)

    @property
    def text(self) -> str:
        """`folder/name`, which also seeds the sample's noise; names that are not UTF-8 are escaped."""
        return os.fsencode(f"{self.folder}/{self.name}").decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of the input: a caption that the user typed, or files by condition modality."""

    key: Key
    caption: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    varied: Sequence[Mapping[str, Path]] = ()  # files that differ from variation to variation
    typed: Mapping[str, str] = field(default_factory=dict)  # texts of other modalities, typed by the user
    problem: str = ""  # if set, the sample fails with this; found when the dataset was listed

    def files_of(self, variation: int) -> Mapping[str, Path]:
        """Files of one variation, by condition modality."""
        return {**self.files, **self.varied[variation]} if self.varied else self.files


@dataclass(frozen=True, slots=True)
class Place:
    """One kind of file that a run writes: its folder, suffix and contents."""

    folder: str  # "tok_rgb@64", "rgb": directly under the root
    suffix: str  # ".npy"
    shared: bool = False  # one file for all variations
    modality: str = ""  # full name: "tok_rgb@64"; "" for files that are not of one
    form: str = "value"  # one of FORMS
    is_condition: bool = False


def number_keys(count: int) -> list[Key]:
    """Keys for samples without names: `00000/000000`, with a folder for each 1000."""
    return [Key(f"{i // SAMPLES_PER_FOLDER:05d}", f"{i:06d}") for i in range(count)]


def samples_of_prompts(prompts: Sequence[str]) -> list[Sample]:
    """One sample for each prompt, named by its position."""
    return [Sample(key, prompt) for key, prompt in zip(number_keys(len(prompts)), prompts, strict=True)]


def path_of(root: Path, folder: str, key: Key, suffix: str, variation: int | None = None) -> Path:
    """`root/folder/key.folder/key.name[-vK]suffix`."""
    name = key.name if variation is None else f"{key.name}-v{variation}"
    return root / folder / key.folder / (name + suffix)


def outputs_of(root: Path, key: Key, places: Iterable[Place], variation: int | None) -> tuple[Path, ...]:
    """All files of a complete sample and variation (None: the run has only one)."""
    return tuple(
        path_of(root, place.folder, key, place.suffix, None if place.shared else variation)
        for place in places
    )


def write_atomic(root: Path, path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in `root/.partial`, then rename it to `path` under root.

    root must exist: if it was deleted during a run, it is not created again.
    """
    _check_inside(root, path)
    try:
        unfinished = _new_file(root, path.suffix)
        try:
            make_below(root, path.parent)
            write(unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        if not root.is_dir():
            raise vanished(root) from error
        raise FourMError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(root: Path, path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically.

    The data is flushed to disk before the file is renamed, so that a power failure leaves no empty record.
    """
    write_atomic(root, path, partial(_fill, text))


def create_atomic(root: Path, path: Path, write: Callable[[Path], None]) -> bool:
    """As `write_atomic`, but return False if the file exists: of several processes, one succeeds."""
    _check_inside(root, path)
    unfinished = _new_file(root, path.suffix)
    try:
        write(unfinished)
        make_below(root, path.parent)
        return _link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def create_text(root: Path, path: Path, text: str) -> bool:
    """As `write_text`, but return False if the file exists."""
    return create_atomic(root, path, partial(_fill, text))


def write_alone(path: Path, write: Callable[[Path], None]) -> None:
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
    return FourMError(
        f"{root}: was deleted or renamed while this process wrote into it, so it stops here; if the folder "
        "has another name now, --resume goes on there"
    )


def check_writable(root: Path) -> None:
    """OSError if no file can be created below root."""
    try:
        _new_file(root, "").unlink()
    finally:
        remove_leftovers(root)


def server_clock(root: Path) -> float:
    """Seconds that the clock of root's file system (perhaps a server's) is ahead of this machine's clock."""
    file = _new_file(root, "")
    try:
        return file.stat().st_mtime - time.time()
    finally:
        file.unlink(missing_ok=True)


def process_name() -> str:
    """A unique name of this process, also of a forked one; it begins with a name of the machine."""
    return _name_of(os.getpid())


def is_alive(root: Path, process: str) -> bool | None:
    """True if the process with that name is running and writes below root; None if that is unknown.

    The kernel releases the lock of a process when it ends. A released lock proves this only on the same
    machine: on some network file systems, locks are not visible to other machines.
    """
    try:
        with open_own(root / PARTIAL / f"{process}{_LOCK}", "r+") as file:
            is_free = try_lock(file)
    except OSError:
        return None
    if is_free is False:
        return True
    return False if is_free and process.startswith(_machine()) else None


def check_partial(root: Path) -> None:
    """Refuse a root in which PARTIAL is a link or a file."""
    partial = root / PARTIAL
    if (mode := mode_of(partial)) is not None and not stat.S_ISDIR(mode):
        raise UsageError(f"{partial}: is a link or a file where unfinished files would go; move it away")


def remove_leftovers(root: Path) -> None:
    """Delete temporary files of processes that have ended, and PARTIAL if it is empty then.

    Files that do not have a name of this program are kept. To be called when this process is not writing.
    """
    _end_claim(root)
    partial = root / PARTIAL
    if (mode := mode_of(partial)) is None or not stat.S_ISDIR(mode):
        return
    found, _ = _sort_partial(partial)
    alive = {process: is_alive(root, process) for process in {process for process, _ in found}}
    alive[process_name()] = False  # a signal may have come between the making of a file and its removal
    for process, path in sorted(found, key=lambda one: one[1].name.endswith(_LOCK)):
        if alive[process] is False or (alive[process] is None and _is_old(path)):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not empty
        partial.rmdir()


def strange_leftovers(root: Path) -> list[str]:
    """Names of what lies among unfinished files and is none of this program's, so that nobody removes it."""
    return sorted(_sort_partial(root / PARTIAL)[1])


def _sort_partial(partial: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """Process and path of unfinished files that this program wrote; names of all else beside them."""
    ours, strange = list[tuple[str, Path]](), list[str]()
    with suppress(FileNotFoundError), os.scandir(partial) as entries:  # another process may have removed it
        for entry in entries:
            match = _UNFINISHED.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                ours.append((match[1], Path(entry.path)))
            else:
                strange.append(entry.name)
    return ours, strange


def _check_inside(root: Path, path: Path) -> None:
    """FourMError for a path outside of root, by its name or through a link."""
    if ".." in path.parts[len(root.parts) :] or not path.is_relative_to(root):
        raise FourMError(f"{path} leads out of {root}; nothing is written there")
    if not real(path.parent).is_relative_to(real(root)):
        raise FourMError(f"{path.parent} is a link out of {root}; nothing is written there")


def _link(file: Path, path: Path) -> bool:
    """Give a complete file a second name; False if something has that name."""
    try:
        os.link(file, path)
    except FileExistsError:  # NFS may report this for a link that it has just created
        return os.path.samestat(file.lstat(), path.lstat())
    except OSError:  # no hard links: other processes may see the file before it is complete
        return _copy(file, path)
    return True


def _copy(file: Path, path: Path) -> bool:
    """Copy a file to a path where nothing is; False if something is there."""
    try:
        new = path.open("xb")  # follows no link
    except FileExistsError:
        return False
    try:
        with new, open_own(file, "r") as whole:
            shutil.copyfileobj(whole, new)
    except BaseException:  # Ctrl-C too
        path.unlink(missing_ok=True)
        raise
    return True


def _fill(text: str, file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(text.encode("utf-8", errors="surrogateescape"))
        stream.flush()
        os.fsync(stream.fileno())


def _new_file(root: Path, suffix: str) -> Path:
    """Create an empty file in `root/.partial`, a folder that other processes may remove at any moment."""
    _claim(root)
    file = root / PARTIAL / f"{process_name()}-{next(_counter)}{suffix}"
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            open_own(file, "x").close()
            return file
        make_folder(root / PARTIAL)
    raise FourMError(f"{file.parent}: is removed again and again by another process")


def _claim(root: Path) -> None:
    """Take the lock that shows other processes that this one writes below root."""
    claim = process_name(), os.path.abspath(root)
    if claim in _claims:
        return
    check_partial(root)
    path = root / PARTIAL / f"{process_name()}{_LOCK}"
    for _ in range(_TRIES):
        make_folder(root / PARTIAL)
        with suppress(FileNotFoundError):
            file = open_own(path, "a")
            wait_for_lock(file)
            if path.exists():  # no other process deleted it before it was locked
                _claims[claim] = file
                return
            file.close()
    raise FourMError(f"{path.parent}: is removed again and again by another process")


def _end_claim(root: Path) -> None:
    file = _claims.pop((process_name(), os.path.abspath(root)), None)
    if file is None:
        return
    path = root / PARTIAL / f"{process_name()}{_LOCK}"
    with suppress(OSError):  # Windows deletes no open file
        path.unlink(missing_ok=True)
    file.close()
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _is_old(file: Path) -> bool:
    try:
        return time.time() - file.lstat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False


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
