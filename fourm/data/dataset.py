"""Lists datasets on disk: folders and tar shards, samples matched by name, and the choice of some of them.

The path of a tar shard's member treats the shard as a folder: `rgb/shard-00000.tar/000017.png`.
"""

import glob
import itertools
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourm.data.layout import MAX_SAMPLES, Key, Sample
from fourm.errors import UsageError, printable
from fourm.files.tars import NO_ACCESS, SHARD_SUFFIX, TarIndex, read_tar

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif",
    ".tiff", ".webp", ".jp2", ".j2k", ".jpx", ".jpeg2000", ".gif",
)  # fmt: skip
EXTENSIONS = frozenset((*PICTURE_SUFFIXES, ".json.gz", ".npy", ".npz", ".json", ".txt"))
TOKENIZER = "tokenizer.json"  # file in a modality's folder that names the tokenizer of its tokens
UNKNOWN = "*"  # stands for the names of all files in a folder or shard that cannot be listed
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")


# Of a folder's path, its sorted entries, and whether it is the outermost: the entries that count.
Select = Callable[[str, list[os.DirEntry[str]], bool], list[os.DirEntry[str]]]


@dataclass(frozen=True, slots=True)
class Input:
    """Where the samples of a run come from, as recorded in `run.json`: without paths, as data may move."""

    kind: str = ""  # "texts", "pictures", "folder", "run" (results of another run), "none"; "": not known
    folders: tuple[str, ...] = ()  # of a dataset, one for each condition
    num_samples: int | None = None  # how many samples of a dataset were asked for; None: all
    subset_seed: int | None = None  # seed of the random choice of samples; None: the first ones
    sha256: str = ""  # of typed texts, with the names of their samples
    upright: bool = False  # pictures are turned as their EXIF tag says


@dataclass(frozen=True, slots=True)
class Dataset:
    """The samples of a dataset that have a file for every condition, and a list of those that do not."""

    samples: tuple[Sample, ...]  # also those with a problem, each of which fails when it is read
    incomplete: tuple[str, ...] = ()  # one sentence for each sample that lacks a file
    notes: tuple[str, ...] = ()  # sentences about files that are no samples
    input: Input = Input()


@dataclass(slots=True)
class Listing:
    """The files in one modality's folder, and in tar shards there."""

    files: dict[Key, Path] = field(default_factory=dict)
    # Why a sample's file cannot be read; under the name UNKNOWN, why a folder may hold more files.
    problems: dict[Key, str] = field(default_factory=dict)
    top: Path = Path()  # the modality's folder
    unread: Counter[str] = field(default_factory=Counter)  # extension -> number of files that have it

    @property
    def notes(self) -> list[str]:
        """Sentences about files that are not read."""
        notes = list[str]()
        if count := self.unread.total():
            kinds = sorted(self.unread)
            more = f" and {len(kinds) - 6} more" if len(kinds) > 6 else ""
            have = "files have extensions that are" if count > 1 else "file has an extension that is"
            notes.append(f"{self.top}: {count:,} {have} not read: {', '.join(kinds[:6])}{more}")
        return notes

    def add(self, folder: str, name: str, path: Path) -> Key | None:
        """Add the file `name` of the sample folder `folder`; returns its key, or None if it is not read.

        Two files for one sample are a problem, because either may be meant. UsageError for too many files.
        """
        suffix = suffix_of(name)
        if not suffix:
            kind = os.path.splitext(name)[1].lower()
            self.unread[printable(kind) if len(kind) > 1 else "none"] += 1
            return None
        key = Key(folder, name[: -len(suffix)])
        self.put(key, path)
        return key

    def put(self, key: Key, path: Path) -> None:
        """Add the file of a sample; two files are a problem. UsageError for too many samples."""
        if len(self.files) + len(self.problems) >= MAX_SAMPLES:
            raise UsageError(f"{path}: a dataset has at most {MAX_SAMPLES:,} samples")
        if other := self.files.get(key):
            both = f"{other} and {path.name if path.parent == other.parent else path}"
            self.problems.setdefault(key, f"two files for one sample: {both}; keep one of them")
        self.files.setdefault(key, path)

    def cause_of(self, key: Key) -> Key | None:
        """The key in `problems` that makes a sample's file unknown: its own, or that of a folder above."""
        if not self.problems or (key in self.files and key not in self.problems):
            return None
        above = (Key(folder, UNKNOWN) for folder in folder_and_above(key.folder))
        return next((one for one in (key, *above) if one in self.problems), None)


def list_dataset(root: Path, folders: Mapping[str, str], beside: Sequence[str] = ()) -> Dataset:
    """Samples of `root/<folder>/<any folder>/<name>.<ext>`, matched by name, in the reference's order.

    folders: modality -> folder of the dataset. `root/<folder>/<any folder>.tar` is read as a folder. Files
    directly in `root/<folder>` are samples too, which the reference does not read; they come first.
    Links are followed. Hidden files and folders are left out. The folders `beside` are optional: their files
    are added to the samples that have them, under the folder's name. A problem with such a file is a problem
    of its sample, because the sample would be read differently without the file. UsageError if a folder is
    missing, or if no sample is complete or none can be read.
    """
    found = {modality: list_folder(root, folder) for modality, folder in folders.items()}
    more = {name: list_folder(root, name) for name in beside if os.path.lexists(root / name)}
    dataset = match_listings(found, more, {name: f"a file in {folder}" for name, folder in folders.items()})
    check_readable(root, dataset, f"a file in each of {', '.join(folders.values())}")
    return dataset


def match_listings(
    found: Mapping[str, Listing], more: Mapping[str, Listing], labels: Mapping[str, str]
) -> Dataset:
    """The samples that have a file in each listing of `found`, matched by name, in the reference's order.

    more: files of some samples only; labels: what a sample without a file lacks, by modality.
    """
    everything = {**found, **more}
    match_spellings([*everything.values()])
    samples, incomplete, reported = list[Sample](), list[str](), set[tuple[str, Key]]()
    names = dict[Key, str]()  # of files, with extensions: samples of a folder are in the order of these
    for listing in found.values():
        for key in listing.problems:
            if key.name != UNKNOWN:
                names.setdefault(key, key.name)
        for key, path in listing.files.items():
            names.setdefault(key, path.name)
    for key in sorted(names, key=lambda key: (key.folder.partition("/")[0], key.folder, names[key])):
        causes = [(name, cause) for name, listing in everything.items() if (cause := listing.cause_of(key))]
        lacking = [labels[modality] for modality, listing in found.items() if key not in listing.files]
        if lacking and not any(name in found for name, _ in causes):
            incomplete.append(f"{key.text} lacks {', '.join(lacking)}")
            continue
        reported.update(causes)
        files = {name: listing.files[key] for name, listing in everything.items() if key in listing.files}
        problems = dict.fromkeys(everything[name].problems[cause] for name, cause in causes)
        samples.append(Sample(key, files=files, problem="; ".join(problems)))
    for modality, listing in found.items():
        for key, problem in sorted(listing.problems.items()):
            if key.name == UNKNOWN and (modality, key) not in reported:
                samples.append(Sample(key, problem=problem))
    notes = [note for listing in found.values() for note in listing.notes]
    return Dataset(tuple(samples), tuple(incomplete), tuple(dict.fromkeys(notes)))


def lacked(sentence: str) -> str:
    """What a sample lacks, of its sentence in `Dataset.incomplete`."""
    return sentence.rpartition(" lacks ")[2]


def check_readable(where: Path | str, dataset: Dataset, wanted: str) -> None:
    """UsageError: no sample is complete, or none can be read. wanted: what a complete one has."""
    samples = dataset.samples
    if not samples:
        reasons = [f": {text}" for text in (*dataset.notes, *dataset.incomplete)]
        reason = next(iter(reasons), "; names that begin with a dot are passed over")
        raise UsageError(f"{where}: no sample has {wanted}{reason}")
    if all(sample.problem for sample in samples):
        none = f"none of the {len(samples)} samples" if len(samples) > 1 else "nothing"
        raise UsageError(f"{where}: {none} can be read: {printable(samples[0].problem)}")


def choose_samples(samples: Sequence[Sample], count: int | None, seed: int | None) -> list[Sample]:
    """The first `count` samples (None: all), or with a seed the reference's random choice, in their order."""
    if count is None or count >= len(samples) or seed is None:
        return list(samples[:count])
    return [samples[i] for i in sorted(permutation(len(samples), seed)[:count])]


def permutation(count: int, seed: int) -> list[int]:
    """A permutation of 0..count - 1 from NumPy's legacy generator, by which the reference chooses samples."""
    import numpy as np  # takes 0.1 s, which only this function needs

    words = [(seed >> shift) & 0xFFFFFFFF for shift in range(0, seed.bit_length(), 32)]
    # A seed above 32 bits is a list of words; a list of one word would give other numbers than the word.
    return np.random.RandomState(seed if len(words) < 2 else words).permutation(count).tolist()


def match_spellings(listings: Sequence[Listing]) -> None:
    """Replace keys that differ only in Unicode normal form by one key, the composed form (NFC).

    File systems differ in the form that they use. Listings are changed in place. Names that have one form
    everywhere stay as they are, and so do names of which one listing has two forms.
    """
    spellings = dict[Key, set[Key]]()
    for listing in listings:
        for key in (*listing.files, *listing.problems):
            if not (key.folder.isascii() and key.name.isascii()):
                composed = Key(*(unicodedata.normalize("NFC", part) for part in (key.folder, key.name)))
                spellings.setdefault(composed, set()).add(key)
    for composed, keys in spellings.items():
        most = max(sum(key in one.files or key in one.problems for key in keys) for one in listings)
        if len(keys) == 1 or most > 1:
            continue
        tables: list[dict[Key, Any]] = [table for one in listings for table in (one.files, one.problems)]
        for table in tables:
            for key in keys & table.keys():
                table[composed] = table.pop(key)


def list_folder(root: Path, folder: str) -> Listing:
    """All files below `root/folder`; UsageError if it is not a folder or cannot be read."""
    found = Listing(top=find_folder(root, folder))
    walk(found.top, found)
    return found


def find_folder(root: Path, folder: str) -> Path:
    """The path of a modality's folder; UsageError if it is none."""
    top = root / folder
    if not os.path.isdir(top):
        what = f"'{folder}' is a file, not a folder" if os.path.exists(top) else f"no folder '{folder}'"
        listed = ", ".join(folders_in(root)) or "no folder at all"
        advice = f"; give {root.parent}" if root.name == folder else flat_advice(root, folder)
        raise UsageError(f"{root}: {what}; there is {listed}{advice}")
    return top


def folders_in(root: Path) -> tuple[str, ...]:
    """Names of the folders of a dataset, sorted; hidden ones are left out."""
    try:
        return tuple(sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")))
    except OSError as error:
        raise UsageError(f"{root}: cannot be read ({error.strerror})") from error


def flat_advice(root: Path, folder: str) -> str:
    """The end of a message: where pictures directly in `root` belong in a dataset; empty without pictures."""
    name = min((one for one in os.listdir(root) if one.lower().endswith(PICTURE_SUFFIXES)), default="")
    place = root / ("rgb" if folder == "caption" else folder) / name
    return f"; pictures that lie in it belong in {place} and so on" if name else ""


def suffix_of(name: str) -> str:
    """The extension of a file name in lower case if it is in EXTENSIONS; else "", as for `.png` alone."""
    lower = name.lower()
    suffix = ".json.gz" if lower.endswith(".json.gz") else os.path.splitext(lower)[1]
    return suffix if suffix in EXTENSIONS and suffix != lower else ""


def without_hidden(path: str, listed: list[os.DirEntry[str]], is_top: bool) -> list[os.DirEntry[str]]:
    """The entries of a folder whose names do not begin with a dot."""
    return [entry for entry in listed if not entry.name.startswith(".")]


def leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; False, not an error, for a link to itself."""
    # `is_dir` without links makes no system call; `os.path.isdir` does not fail for a link to itself.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def entries_below(
    top: Path, problems: dict[Key, str], select: Select = without_hidden
) -> Iterator[tuple[str, os.DirEntry[str], bool]]:
    """Everything below a folder: the folder of each entry ("" for `top`), itself, and whether it is a folder.

    Links are followed, and a circle of links ends. Why a folder cannot be read is added to `problems`, under
    the name UNKNOWN. select: which entries of a folder count. UsageError if `top` cannot be read.
    """
    # Folders still to be read: path, folder of keys ("" for `top`), devices and inodes of it and those above.
    todo = [(str(top), "", frozenset[tuple[int, int]]())]
    num_folders = 0
    while todo:
        num_folders += 1
        if num_folders > MAX_SAMPLES:
            raise UsageError(f"{top}: more than {MAX_SAMPLES:,} folders; links may lead to them in many ways")
        path, folder, around = todo.pop()
        try:
            status = os.stat(path)
            with os.scandir(path) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            why = f"{path}: cannot be read ({error.strerror})"
            if not folder:
                raise UsageError(why) from error
            problems[Key(folder, UNKNOWN)] = why
            continue
        inode = (status.st_dev, status.st_ino)
        if inode in around:  # a link to a folder above would be followed without end
            continue
        for entry in select(path, listed, not folder):
            is_folder = leads_to_folder(entry)
            if is_folder:
                todo.append((entry.path, f"{folder}/{entry.name}".lstrip("/"), around | {inode}))
            yield folder, entry, is_folder


def expand_pattern(pattern: str) -> list[str]:
    """The paths that a pattern with `*`, `?`, `[...]` and `**` names, sorted.

    As `glob.glob` finds them, but a circle of links below `**` ends.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        return sorted(glob.glob(pattern))
    at, found = parts.index("**"), set[str]()
    head, tail = os.path.join("", *parts[:at]), parts[at + 1 :] or ("*",)
    for top in expand_pattern(head) if glob.has_magic(head) else [head]:
        entries = entries_below(Path(top or "."), {}) if os.path.isdir(top or ".") else ()
        for folder in {"", *(folder for folder, _, _ in entries)}:
            found.update(expand_pattern(os.path.join(glob.escape(os.path.join(top, folder)), *tail)))
    return sorted(found)


def walk(top: Path, found: Listing) -> None:
    """Add all files below a folder, and members of tars there."""
    like_files = dict[Key, str]()  # paths of folders that are named like a sample's file
    for folder, entry, is_folder in entries_below(top, found.problems):
        if not is_folder:
            add_file(found, entry, folder)
        elif folder and (suffix := suffix_of(entry.name)):
            like_files[Key(folder, entry.name[: -len(suffix)])] = entry.path
    # A folder `name.png` that holds samples is a folder of samples; without samples it is a mistake.
    folders = {key.folder for key in (*found.files, *found.problems)} if like_files else ()
    occupied = {above for folder in folders for above in folder_and_above(folder)}
    for key, path in like_files.items():
        if f"{key.folder}/{os.path.basename(path)}" not in occupied and key not in found.files:
            found.problems[key] = f"{path}: a folder, where a file should be"


def add_file(found: Listing, entry: os.DirEntry[str], folder: str) -> None:
    """Add a file, shard or broken link."""
    name, lower = entry.name, entry.name.lower()
    within = f"{folder}/" if folder else ""
    if not folder and name == TOKENIZER:
        return
    if lower.endswith(SHARD_SUFFIX):
        add_shard(found, Path(entry.path), within + name[: -len(SHARD_SUFFIX)])
    elif end := next(filter(lower.endswith, COMPRESSED_SUFFIXES), ""):
        why = f"a compressed shard {NO_ACCESS}"
        found.problems[Key(within + name[: -len(end)], UNKNOWN)] = f"{entry.path}: {why}"
    elif "." not in name and entry.is_symlink() and not os.path.exists(entry.path):
        with suppress(OSError):  # the link was deleted meanwhile
            why = f"a link to {os.readlink(entry.path)}, which is not there"
            found.problems[Key(within + name, UNKNOWN)] = f"{entry.path}: {why}"
    else:
        found.add(folder, name, Path(entry.path))


def add_shard(found: Listing, path: Path, folder: str) -> set[Key]:
    """Add the members of a tar, as files of the sample folder `folder` unless their names are whole keys."""
    try:
        shard = read_tar(path)
    except OSError as error:
        shard = TarIndex(problem=f"cannot be read ({error.strerror})")
    keys, within = set[Key](), [] if shard.is_whole else [folder]
    for name, place in shard.members.items():
        *above, last = name.split("/")
        if any(part.startswith(".") for part in (*above, last)):
            continue
        key = found.add("/".join((*within, *above)), last, path / name)
        keys |= {key} if key is not None else set()
        if key is not None and isinstance(place, str):
            found.problems[key] = f"{path / name}: {place}"
    if shard.problem:
        found.problems[Key(folder, UNKNOWN)] = f"{path}: {shard.problem}"
    return keys


def folder_and_above(folder: str) -> list[str]:
    """`a/b/c` -> `a`, `a/b`, `a/b/c`."""
    return list(itertools.accumulate(folder.split("/"), "{}/{}".format))
