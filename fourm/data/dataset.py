"""Datasets on disk: folders and tar shards listed, samples matched by name, a part of them chosen.

A member of a tar shard has a path as if the shard were a folder: `rgb/shard-00000.tar/000017.png`. Nothing is
unpacked: a shard's index is made once per process, and a member is read in place.
"""

import itertools
import os
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any

from fourm.data.layout import MAX_SAMPLES, Key, Sample
from fourm.data.opening import open_file
from fourm.errors import SampleError, UsageError, printable

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif",
    ".tiff", ".webp", ".jp2", ".j2k", ".jpx", ".jpeg2000", ".gif",
)  # fmt: skip
EXTENSIONS = frozenset((*PICTURE_SUFFIXES, ".json.gz", ".npy", ".npz", ".json", ".txt"))
TOKENIZER = "tokenizer.json"  # in a modality's folder, no sample: what made its tokens
UNKNOWN = "*"  # name of what is in a folder or shard that cannot be listed
SUFFIX = ".tar"
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
MAX_NAME, MAX_PART = 1024, 255  # bytes of a member's name, folders included, and of each part of it
_MAX_HEADER = 1 << 20  # bytes that a header may take, long names included
_BLOCK = 512
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Input:
    """What samples were read from, as `run.json` says it. Paths are not part of it: data may move."""

    kind: str = ""  # "texts", "folder", "run" (results of another run), "none"; "" if it is not known
    folders: tuple[str, ...] = ()  # of a data set, one for each condition
    num_samples: int | None = None  # of a data set: how many samples were asked for; None: all
    subset_seed: int | None = None  # they were drawn with this seed; None: the first ones
    sha256: str = ""  # of typed texts, with the names of their samples


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples, and what is missing of those that do not have a file in every condition's folder.

    A sample with a problem is among the samples: it fails when its turn comes, and the others go on.
    """

    samples: tuple[Sample, ...]
    incomplete: tuple[str, ...] = ()  # one sentence for each sample that lacks a file
    notes: tuple[str, ...] = ()  # sentences about files that are no samples
    input: Input = Input()


@dataclass(slots=True)
class Listing:
    """What lies in one modality's folder, or in tar shards there."""

    files: dict[Key, Path] = field(default_factory=dict)
    # Why no file can be read for a sample; under the name UNKNOWN, why there may be more in a folder.
    problems: dict[Key, str] = field(default_factory=dict)
    top: Path = Path()  # the modality's folder
    flat: list[str] = field(default_factory=list)  # names of files directly in it, which are not read
    unread: Counter[str] = field(default_factory=Counter)  # extension -> number of files that have it

    @property
    def notes(self) -> list[str]:
        """Sentences about files that are passed over."""
        notes = list[str]()
        if self.flat:
            name, others = self.flat[0], len(self.flat) - 1
            lies = f"and {others:,} more lie" if others else "lies"
            advice = f"it belongs in a folder there, such as {self.top / 'all' / name}"
            notes.append(f"{name} {lies} in {self.top} itself, where no file is read; {advice}")
        if count := self.unread.total():
            kinds = sorted(self.unread)
            more = f" and {len(kinds) - 6} more" if len(kinds) > 6 else ""
            have = "files have extensions that are" if count > 1 else "file has an extension that is"
            notes.append(f"{self.top}: {count:,} {have} not read: {', '.join(kinds[:6])}{more}")
        return notes

    def add(self, folder: str, name: str, path: Path) -> Key | None:
        """Note a file in a folder of keys; its key, or None for a file that is not read.

        Two files for one sample are a problem, because either may be meant.
        """
        if not (suffix := suffix_of(name)):
            kind = os.path.splitext(name)[1].lower()
            self.unread[printable(kind) if len(kind) > 1 else "none"] += 1
            return None
        if len(self.files) + len(self.problems) >= MAX_SAMPLES:
            raise UsageError(f"{path}: a dataset has at most {MAX_SAMPLES:,} samples")
        key = Key(folder, name[: -len(suffix)])
        if other := self.files.get(key):
            both = f"{other} and {path.name if path.parent == other.parent else path}"
            self.problems.setdefault(key, f"two files for one sample: {both}; keep one of them")
        self.files.setdefault(key, path)
        return key

    def cause_of(self, key: Key) -> Key | None:
        """The entry of `problems` that makes a key's file unknown: its own, or that of a folder above."""
        if not self.problems or (key in self.files and key not in self.problems):
            return None
        above = (Key(folder, UNKNOWN) for folder in _folder_and_above(key.folder))
        return next((one for one in (key, *above) if one in self.problems), None)


@dataclass(slots=True)
class Shard:
    """What is in a tar file, by the members' names without a leading `./`."""

    # First byte and number of bytes, or why a member cannot be read.
    members: dict[str, tuple[int, int] | str] = field(default_factory=dict)
    problem: str = ""  # why there may be more members than are listed here


class _Guarded(BufferedReader):
    """A file for tarfile: no header makes it read more than a header can need."""

    def read(self, size: int) -> bytes:  # type: ignore[override]
        if not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return super().read(size)


def list_dataset(root: Path, folders: Mapping[str, str], beside: Sequence[str] = ()) -> Dataset:
    """Samples of `root/<folder>/<any folder>/<name>.<ext>`, matched by name, in the reference's order.

    folders: modality -> folder of the dataset. `root/<folder>/<any folder>.tar` is read as a folder.
    Links are followed. Hidden files and folders are left out. Files of the folders `beside`, which need not
    be there, come with the samples that have them, under the folder's name; what is wrong with one of them is
    a problem of its sample, which would be read in another way without it.
    """
    found = {modality: list_folder(root, folder) for modality, folder in folders.items()}
    everything = found | {name: list_folder(root, name) for name in beside if os.path.lexists(root / name)}
    match_spellings([*everything.values()])
    samples, incomplete, told = list[Sample](), list[str](), set[tuple[str, Key]]()
    names = dict[Key, str]()  # of files, with their extensions: they decide the order within a folder
    for one in found.values():
        here = {key: path.name for key, path in one.files.items()}
        names = here | {key: key.name for key in one.problems if key.name != UNKNOWN} | names
    for key in sorted(names, key=lambda key: (key.folder.partition("/")[0], key.folder, names[key])):
        causes = [(name, cause) for name, one in everything.items() if (cause := one.cause_of(key))]
        lacking = [folders[modality] for modality, one in found.items() if key not in one.files]
        if lacking and not any(name in found for name, _ in causes):
            incomplete.append(f"{key.text} has no file in {', '.join(lacking)}")
            continue
        told.update(causes)
        files = {name: one.files[key] for name, one in everything.items() if key in one.files}
        problems = dict.fromkeys(everything[name].problems[cause] for name, cause in causes)
        samples.append(Sample(key, files=files, problem="; ".join(problems)))
    for modality, one in found.items():
        untold = sorted(k for k in one.problems if k.name == UNKNOWN and (modality, k) not in told)
        samples += [Sample(key, problem=one.problems[key]) for key in untold]
    notes = [note for one in found.values() for note in one.notes]
    if not samples:
        reasons = [f": {text}" for text in (*notes, *incomplete)]
        reason = next(iter(reasons), "; names that begin with a dot are passed over")
        raise UsageError(f"{root}: no sample has a file in each of {', '.join(folders.values())}{reason}")
    if all(sample.problem for sample in samples):
        none = f"none of the {len(samples)} samples" if len(samples) > 1 else "nothing"
        raise UsageError(f"{root}: {none} can be read: {printable(samples[0].problem)}")
    return Dataset(tuple(samples), tuple(incomplete), tuple(dict.fromkeys(notes)))


def choose_samples(samples: Sequence[Sample], count: int | None, seed: int | None) -> list[Sample]:
    """The first `count` samples in their order, or the reference's random choice by a seed; keys stay."""
    if count is None or count >= len(samples) or seed is None:
        return list(samples[:count])
    return [samples[i] for i in sorted(permutation(len(samples), seed)[:count])]


def permutation(count: int, seed: int) -> list[int]:
    """0..count - 1 in the order of NumPy's legacy generator, by which the reference chooses samples."""
    import numpy as np  # a tenth of a second that only this choice takes

    words = [seed >> shift & 0xFFFFFFFF for shift in range(0, seed.bit_length(), 32)]  # one, for small seeds
    return np.random.RandomState(seed if len(words) < 2 else words).permutation(count).tolist()


def match_spellings(listings: Sequence[Listing]) -> None:
    """Give names that differ in Unicode normal form only, as on other systems, one key: the composed form.

    Names that are spelled in one way throughout stay as they are, and so do two spellings in one listing.
    """
    spellings = dict[Key, set[Key]]()
    for listing in listings:
        for key in (*listing.files, *listing.problems):
            if not (key.folder.isascii() and key.name.isascii()):
                composed = Key(*(unicodedata.normalize("NFC", part) for part in (key.folder, key.name)))
                spellings.setdefault(composed, set()).add(key)
    for composed, keys in spellings.items():
        most = max(sum(key in one.files or key in one.problems for key in keys) for one in listings)
        tables: list[dict[Key, Any]] = [table for one in listings for table in (one.files, one.problems)]
        for table in tables if most == 1 < len(keys) else ():
            for key in keys & table.keys():
                table[composed] = table.pop(key)


def list_folder(root: Path, folder: str) -> Listing:
    """Everything in `root/folder`, which must be there."""
    top, found = root / folder, Listing(top=root / folder)
    if not os.path.isdir(top):
        what = f"'{folder}' is a file, not a folder" if os.path.exists(top) else f"no folder '{folder}'"
        listed = ", ".join(folders_in(root)) or "no folder at all"
        advice = f"; give {root.parent}" if root.name == folder else flat_advice(root, folder)
        raise UsageError(f"{root}: {what}; there is {listed}{advice}")
    _walk(top, found)
    return found


def folders_in(root: Path) -> tuple[str, ...]:
    """Names of the folders of a dataset, sorted; hidden ones are left out."""
    try:
        return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    except OSError as error:
        raise UsageError(f"{root}: cannot be read ({error.strerror})") from error


def flat_advice(root: Path, folder: str) -> str:
    """Half a sentence for a folder of pictures that is no dataset: where they would lie in one."""
    name = next((n for n in sorted(os.listdir(root)) if n.lower().endswith(PICTURE_SUFFIXES)), "")
    place = root / ("rgb" if folder == "caption" else folder) / "all" / name
    return f"; pictures that lie in it belong in {place} and so on" if name else ""


def suffix_of(name: str) -> str:
    """The extension in EXTENSIONS that a file name ends with, in any case; "" if none, or nothing else."""
    lower = name.lower()
    suffix = ".json.gz" if lower.endswith(".json.gz") else os.path.splitext(lower)[1]
    return suffix if suffix in EXTENSIONS and suffix != lower else ""


def split_path(path: Path) -> tuple[Path, str] | None:
    """The shard and the name of the member that a path leads to; None for a path without a shard."""
    for above in reversed(path.parents):
        if above.name.lower().endswith(SUFFIX) and os.path.isfile(above):
            return above, path.relative_to(above).as_posix()
    return None


def read_member(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a member, `limit + 1` of them at most."""
    place = read_shard(path).members.get(name, "is not in this shard")
    if isinstance(place, str):
        raise SampleError(f"{path}/{name}: {place}")
    with open_file(path) as file:
        file.seek(place[0])
        return file.read(min(place[1], limit + 1))


def read_shard(path: Path) -> Shard:
    """The index of a shard, made anew only if the file has changed."""
    with open_file(path) as file:
        now = os.fstat(file.fileno())
    return _index(path, now.st_size, now.st_mtime_ns)


def _walk(top: Path, found: Listing) -> None:
    """Note all files below a modality's folder."""
    # Folders still to be read: path, name in keys ("" for the modality's own), devices and inodes around it.
    todo, like_files = [(str(top), "", frozenset[tuple[int, int]]())], dict[Key, str]()
    for _ in range(MAX_SAMPLES):
        if not todo:
            break
        path, folder, around = todo.pop()
        try:
            status = os.stat(path)
            with os.scandir(path) as listed:
                seen = [entry for entry in listed if not entry.name.startswith(".")]
        except OSError as error:
            why = f"{path}: cannot be read ({error.strerror})"
            if not folder:
                raise UsageError(why) from error
            found.problems[Key(folder, UNKNOWN)] = why
            continue
        inode = (status.st_dev, status.st_ino)
        if inode in around:  # links may lead in a circle
            continue
        for entry in sorted(seen, key=lambda entry: entry.name):
            # The type in the listing saves a system call for each file; links may lead to themselves.
            if entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry)):
                todo.append((entry.path, f"{folder}/{entry.name}".lstrip("/"), around | {inode}))
                if folder and (suffix := suffix_of(entry.name)):
                    like_files[Key(folder, entry.name[: -len(suffix)])] = entry.path
            else:
                _add_file(found, entry, folder)
    else:
        raise UsageError(f"{top}: more than {MAX_SAMPLES:,} folders; links may lead to them in many ways")
    # A folder `name.png` that holds no sample stands where a file should be.
    folders = {key.folder for key in (*found.files, *found.problems)} if like_files else ()
    occupied = {above for folder in folders for above in _folder_and_above(folder)}
    for key, path in like_files.items():
        if f"{key.folder}/{os.path.basename(path)}" not in occupied and key not in found.files:
            found.problems[key] = f"{path}: a folder, where a file should be"


def _add_file(found: Listing, entry: os.DirEntry[str], folder: str) -> None:
    """Note what is no folder; files directly under a modality have no folder, so no key, but shards do."""
    name, lower, within = entry.name, entry.name.lower(), f"{folder}/" if folder else ""
    if not folder and suffix_of(name):
        found.flat += [name] if name != TOKENIZER else []
    elif lower.endswith(SUFFIX):
        _add_shard(found, Path(entry.path), within + name[: -len(SUFFIX)])
    elif end := next(filter(lower.endswith, COMPRESSED), ""):
        why = f"a compressed shard gives no access to single members; unpack it to {SUFFIX}"
        found.problems[Key(within + name[: -len(end)], UNKNOWN)] = f"{entry.path}: {why}"
    elif "." not in name and entry.is_symlink() and not os.path.exists(entry.path):
        with suppress(OSError):  # it is gone by now
            why = f"a link to {os.readlink(entry.path)}, which is not there"
            found.problems[Key(within + name, UNKNOWN)] = f"{entry.path}: {why}"
    else:
        found.add(folder, name, Path(entry.path))


def _add_shard(found: Listing, path: Path, folder: str) -> None:
    """Note the members of a tar file as the files of a folder."""
    try:
        shard = read_shard(path)
    except OSError as error:
        shard = Shard(problem=f"cannot be read ({error.strerror})")
    for name, place in shard.members.items():
        *above, last = name.split("/")
        if any(part.startswith(".") for part in (*above, last)):
            continue
        key = found.add("/".join((folder, *above)), last, path / name)
        if key is not None and isinstance(place, str):
            found.problems[key] = f"{path / name}: {place}"
    if shard.problem:
        found.problems[Key(folder, UNKNOWN)] = f"{path}: {shard.problem}"


def _folder_and_above(folder: str) -> list[str]:
    """`a/b/c` -> `a`, `a/b`, `a/b/c`."""
    return list(itertools.accumulate(folder.split("/"), "{}/{}".format))


@lru_cache(maxsize=4096)
def _index(path: Path, size: int, changed: int) -> Shard:
    shard, before, problem = Shard(), -1, ""
    with _Guarded(open_file(path).detach()) as file:
        start = file.peek(_BLOCK)
        try:
            with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    if member.offset <= before or member.size < 0:
                        raise tarfile.ReadError("a header leads backwards")
                    before = member.offset
                    _add_member(shard, member, size)
                file.seek(tar.offset)
            end, block = file.tell(), file.read(_BLOCK)
            if len(block) < _BLOCK or any(block):  # an archive ends with empty blocks
                problem = f"is damaged at byte {end}" if len(block) == _BLOCK else "is cut off"
        except Exception as error:  # tarfile raises errors of many kinds for malformed headers
            form = next((_MAGIC[head] for head in _MAGIC if before < 0 and start.startswith(head)), "")
            why = f"is compressed ({form}), which gives no access to single members; unpack it to .tar"
            problem = why if form else f"is cut off or damaged ({str(error)[:100]})"
    if problem:
        count = sum(isinstance(place, tuple) for place in shard.members.values())
        known = f"{count:,} of its members are" if count else "nothing in it is"
        shard.problem = "; ".join(filter(None, (shard.problem, problem, f"{known} known")))
    return shard


def _add_member(shard: Shard, member: tarfile.TarInfo, end: int) -> None:
    """Note one member, under the name that it has without `./` and doubled slashes."""
    if member.isdir():
        return
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    name = "/".join(parts)
    if member.name.startswith("/") or not parts or ".." in parts or "\0" in name:
        shard.problem = shard.problem or f"holds {member.name[:100]!r}, a name that leads out of it"
    elif max(len(os.fsencode(part)) for part in parts) > MAX_PART or len(os.fsencode(name)) > MAX_NAME:
        shard.problem = shard.problem or f"holds the name {name[:100]!r}..., which is too long for a file"
    elif name in shard.members:
        shard.members[name] = "stands in its shard more than once"
    elif not member.isreg() or member.issparse():
        shard.members[name] = "is a link, a device or a file with holes; only plain members are read"
    elif member.offset_data + member.size > end:
        shard.members[name] = "is cut off with the end of its shard"
    else:
        shard.members[name] = (member.offset_data, member.size)
