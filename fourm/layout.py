"""Samples and output folders: keys of samples, their paths, whole-or-nothing files, what is left to do."""

import contextlib
import hashlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourm.errors import FourMError, UsageError
from fourm.opening import open_file

PARTIAL = ".partial"  # folder for files that are being written
FORMS = ("ids", "value", "extra")  # of a place: tokens, what they mean, files that only some samples have
SAMPLES_PER_FOLDER = 1000
# Of one run, variations included: more do not fit into the memory of a small machine.
MAX_SAMPLES = 10_000_000
# Of a sample's name. File systems take 255; a variation and a suffix are added to this.
MAX_NAME_BYTES = 220
ABANDONED = 24 * 3600.0  # seconds after which a leftover of another machine counts as dead
_counter = itertools.count()


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Name of a sample: `root/modality/folder/name.ext` in every modality's folder.

    A name that is too long with all that is added to it is cut, and ends in a hash.
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
        """`folder/name`, which also seeds the sample's noise; printable even where a name is not UTF-8."""
        return os.fsencode(f"{self.folder}/{self.name}").decode("utf-8", errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class Sample:
    """One unit of work: a caption typed by somebody, or files by condition modality."""

    key: Key
    caption: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    varied: Sequence[Mapping[str, Path]] = ()  # files of each variation, where they are not the same for all
    typed: Mapping[str, str] = field(default_factory=dict)  # texts of other modalities, typed like captions
    problem: str = ""  # why this one can only fail; found when its dataset was listed

    def files_of(self, variation: int) -> Mapping[str, Path]:
        """Files of one variation, by condition modality."""
        return {**self.files, **self.varied[variation]} if self.varied else self.files


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run puts one kind of file, and what it is."""

    folder: str  # "tok_rgb@64", "rgb": directly under the root
    suffix: str  # ".npy"
    shared: bool = False  # one file for all variations
    modality: str = ""  # full name: "tok_rgb@64"; "" for files that are not of one
    form: str = "value"  # one of FORMS
    is_condition: bool = False


def number_keys(count: int) -> list[Key]:
    """Keys of the samples without names of their own: `00000/000000`, a folder for each 1000."""
    return [Key(f"{i // SAMPLES_PER_FOLDER:05d}", f"{i:06d}") for i in range(count)]


def samples_of_prompts(prompts: Sequence[str]) -> list[Sample]:
    """One sample for each prompt, named by its position."""
    return [Sample(key, prompt) for key, prompt in zip(number_keys(len(prompts)), prompts, strict=True)]


def path_of(root: Path, folder: str, key: Key, suffix: str, variation: int | None = None) -> Path:
    """`root/folder/key.folder/key.name[-vK]suffix`."""
    name = key.name if variation is None else f"{key.name}-v{variation}"
    return root / folder / key.folder / (name + suffix)


def outputs_of(root: Path, key: Key, places: Iterable[Place], variation: int | None) -> tuple[Path, ...]:
    """Files that a finished sample and variation (None: the run has only one) has."""
    return tuple(
        path_of(root, place.folder, key, place.suffix, None if place.shared else variation)
        for place in places
    )


def is_done(root: Path, key: Key, places: Iterable[Place], variation: int | None) -> bool:
    """True when every file of this sample and variation is there; files appear whole, so it is finished."""
    return all(path.is_file() for path in outputs_of(root, key, places, variation))


def write_atomic(root: Path, path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file in `root/.partial`, then rename it to `path` under root."""
    if ".." in path.parts[len(root.parts) :] or not path.is_relative_to(root):
        raise FourMError(f"{path} leads out of {root}; nothing is written there")
    unfinished = root / PARTIAL / f"{_host()}-{os.getpid()}-{next(_counter)}{path.suffix}"
    try:
        if not path.parent.resolve().is_relative_to(root.resolve()):
            raise FourMError(f"{path.parent} is a link that leads out of {root}; nothing is written there")
        path.parent.mkdir(parents=True, exist_ok=True)
        _touch(unfinished)
        write(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise FourMError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if os.path.lexists(unfinished):
            unfinished.unlink()


def write_text(root: Path, path: Path, text: str) -> None:
    """A whole text file in UTF-8, or none."""
    data = text.encode("utf-8", errors="surrogateescape")

    def write(file: Path) -> None:
        file.write_bytes(data)

    write_atomic(root, path, write)


def ends_a_line(path: Path) -> bool:
    """Whether the last line of a file that is not empty is whole: its writer was not killed in it."""
    with open_file(path) as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def remove_leftovers(root: Path) -> None:
    """Delete unfinished files of processes that are gone, and the folder for them when it is empty."""
    partial = root / PARTIAL
    if not partial.is_dir():
        return
    for file in partial.iterdir():
        if _is_abandoned(file):
            file.unlink(missing_ok=True)
    if not any(partial.iterdir()):
        with contextlib.suppress(OSError):  # another process has just put something there
            partial.rmdir()


def _touch(file: Path) -> None:
    """Create the file; until then another process that tidies up may remove its folder at any moment."""
    for _ in range(10):
        file.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            file.touch()
            return


def _is_abandoned(file: Path) -> bool:
    """True if the process that the file is named for has ended; of other machines only the age is known."""
    host, _, rest = file.name.partition("-")
    pid = rest.partition("-")[0]
    if host == _host() and pid.isdigit():
        return int(pid) == os.getpid() or not _is_alive(int(pid))
    try:
        return time.time() - file.stat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
