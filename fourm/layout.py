"""Dataset and output folders: keys of samples, their paths, whole-or-nothing files, what is left to do."""

import contextlib
import hashlib
import itertools
import os
import random
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourm.errors import FourMError, UsageError

EXTENSIONS = (
    ".json.gz", ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".jpx",
    ".gif", ".npy", ".npz", ".json", ".txt",
)  # fmt: skip
PARTIAL = ".partial"  # folder for files that are being written
SAMPLES_PER_FOLDER = 1000
# Of one run, variations included: more do not fit into the memory of a small machine.
MAX_SAMPLES = 10_000_000
MAX_NAME_BYTES = 255  # of one path component, on every common file system
ABANDONED = 24 * 3600.0  # seconds after which a leftover of another machine counts as dead
_counter = itertools.count()


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Name of a sample: `root/modality/folder/name.ext` in every modality's folder."""

    folder: str  # one or more path components, joined by "/"
    name: str  # one path component without extension

    def __post_init__(self) -> None:
        for part in (*self.folder.split("/"), self.name):
            if part in ("", ".", "..", PARTIAL) or "/" in part or "\0" in part:
                raise UsageError(
                    f"sample {self.folder!r}/{self.name!r}: {part!r} cannot be a file or folder name"
                )

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run puts one kind of file."""

    folder: str  # "tok_rgb@64", "rgb": directly under the root
    suffix: str  # ".npy"
    shared: bool = False  # one file for all variations (conditions)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples that have a file in every condition's folder, and what is missing of the others."""

    samples: tuple[Sample, ...]
    incomplete: tuple[str, ...]  # one sentence for each sample that lacks a file


def number_keys(count: int) -> list[Key]:
    """Keys of the samples without names of their own: `00000/000000`, a folder for each 1000."""
    return [Key(f"{i // SAMPLES_PER_FOLDER:05d}", f"{i:06d}") for i in range(count)]


def samples_of_prompts(prompts: Sequence[str]) -> list[Sample]:
    """One sample for each prompt, named by its position."""
    return [Sample(key, prompt) for key, prompt in zip(number_keys(len(prompts)), prompts, strict=True)]


def take(samples: Sequence[Sample], count: int | None, seed: int | None) -> list[Sample]:
    """The first `count` samples in their order, or a random choice drawn by `seed`; keys stay the same."""
    if count is None or count >= len(samples):
        return list(samples)
    if seed is None:
        return list(samples[:count])
    return [samples[i] for i in sorted(random.Random(seed).sample(range(len(samples)), count))]


def list_dataset(root: Path, folders: Mapping[str, str]) -> Dataset:
    """Samples of `root/<folder>/<any folder>/<name>.<ext>`, matched by name, sorted by key.

    folders: modality -> folder of the dataset. Hidden files and folders are left out.
    """
    listed = {modality: list_folder(root, folder) for modality, folder in folders.items()}
    samples, incomplete = [], []
    for key in sorted(set().union(*listed.values())):
        missing = [folders[modality] for modality, files in listed.items() if key not in files]
        if missing:
            incomplete.append(f"{key.text} has no file in {', '.join(missing)}")
        else:
            samples.append(Sample(key, files={modality: files[key] for modality, files in listed.items()}))
    if not samples:
        reason = f": {incomplete[0]}" if incomplete else ""
        raise UsageError(f"{root}: no sample has a file in each of {', '.join(folders.values())}{reason}")
    return Dataset(tuple(samples), tuple(incomplete))


def path_of(root: Path, folder: str, key: Key, suffix: str, variation: int | None = None) -> Path:
    """`root/folder/key.folder/key.name[-vK]suffix`; a name too long for a file system ends in a hash."""
    name = key.name if variation is None else f"{key.name}-v{variation}"
    room = MAX_NAME_BYTES - len(os.fsencode(suffix))
    if len(os.fsencode(name)) > room:
        digest = "~" + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
        name = os.fsencode(name)[: room - len(digest)].decode("utf-8", errors="ignore") + digest
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


def list_folder(root: Path, folder: str) -> dict[Key, Path]:
    """The files of one modality by the keys of their samples; names are cut at the extension alone."""
    top = root / folder
    if not top.is_dir():
        present = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        raise UsageError(f"{root}: no folder '{folder}'; there is {', '.join(present) or 'no folder at all'}")
    files: dict[Key, Path] = {}
    seen: set[str] = set()
    for where, subfolders, names in os.walk(top, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link to a folder that was read already
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        if Path(where) == top:  # files directly under a modality have no folder, so no key
            continue
        for name in sorted(names):
            suffix = next((e for e in EXTENSIONS if name.lower().endswith(e) and len(name) > len(e)), None)
            if suffix is None or name.startswith("."):
                continue
            key, path = Key(Path(where).relative_to(top).as_posix(), name[: -len(suffix)]), Path(where, name)
            if key in files:
                raise UsageError(f"two files for one sample: {files[key]} and {path.name}; keep one of them")
            files[key] = path
    return files


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
