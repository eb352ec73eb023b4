"""Pictures that a user names by paths: files, folders of any depth, wildcards; and the keys of samples."""

import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourm.data.dataset import PICTURE_SUFFIXES, entries_below, expand_pattern
from fourm.data.layout import Key
from fourm.data.prompts import missing_file
from fourm.errors import UsageError, printable
from fourm.files.opening import local_path

UNREAD_PICTURES = (".heic", ".heif", ".avif", ".exr", ".svg", ".jxl", ".psd", ".dng")
_PROMPT_ADVICE = "; if these are words, `prompt` takes them as such"
_SHOWN = 6  # endings that a note names

IsDataset = Callable[[str, Sequence[str]], bool]  # whether a folder is one: its path, the names in it
# Some pictures in a folder: from where to where in its sorted names, and how many it has.
PictureRange = tuple[str, int, int, int]


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures in the order in which they were named, those of a folder in the order of datasets."""

    paths: tuple[Path, ...]
    keys: tuple[Key, ...]  # the path of each below the common root, without its ending
    notes: tuple[str, ...]  # sentences about what was passed over


def is_path(text: str) -> bool:
    """Whether an argument is a path: it has a picture's ending, or contains a separator."""
    separators = {"/", os.sep, os.altsep or "/"}
    return text.lower().endswith((*PICTURE_SUFFIXES, *UNREAD_PICTURES)) or any(s in text for s in separators)


def has_wildcards(text: str) -> bool:
    """Whether a path stands for several files, being itself the name of none."""
    return glob.has_magic(text) and not os.path.lexists(text)


def names_in(folder: Path | str) -> list[str]:
    """The names in a folder; none of one that cannot be read, of which whoever reads it tells."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def find_pictures(texts: Sequence[str], is_dataset: IsDataset) -> Pictures:
    """The pictures that paths name: files, folders, and patterns with `*`, `?`, `[...]` or `**`.

    Below a folder, folders that are datasets are passed over, as the results of an earlier run are.
    UsageError: a path that is not there, a file that is no picture, a folder or pattern without one, or two
    pictures of one key.
    """
    found, passed = list[tuple[Path, list[Path]]](), _PassedOver(is_dataset)
    for text in texts:
        path = local_path(text)
        if os.path.isdir(path):
            found.append((path, _in_folder(path, passed)))
        elif os.path.lexists(path):
            found.append((path.parent, [_checked(path)]))
        elif glob.has_magic(text):
            found.append(_matching(text, passed))
        else:
            raise UsageError(f"{missing_file(path)}{_PROMPT_ADVICE if ' ' in text else ''}")
    paths = [path for _, listed in found for path in listed]
    return Pictures(tuple(paths), keys_below([root for root, _ in found], paths), passed.notes())


@dataclass(frozen=True, slots=True)
class PictureFolders:
    """A folder of pictures, counted by folders below it: `""` for itself, in the order of datasets."""

    counts: Mapping[str, int]
    sha256: str  # of all names
    notes: tuple[str, ...]

    def ranges(self, size: int) -> Iterator[list[PictureRange]]:
        """For `size` pictures at a time, the folders in which they are, and from where to where in each."""
        taken, room = list[PictureRange](), size
        for folder, count in self.counts.items():
            begin = 0
            while begin < count:
                end = min(count, begin + room)
                taken.append((folder, begin, end, count))
                begin, room = end, room - (end - begin)
                if not room:
                    yield taken
                    taken, room = [], size
        if taken:
            yield taken


def count_pictures(root: Path, is_dataset: IsDataset) -> PictureFolders:
    """The pictures below a folder, as `find_pictures` finds them, of which only those of one folder are held.

    UsageError: there is no picture, or two have one key.
    """
    passed, counts, digests = _PassedOver(is_dataset), dict[str, int](), dict[str, str]()
    entries = entries_below(root, passed.problems, passed.select)
    for folder, group in itertools.groupby(entries, key=lambda one: one[0]):
        names = [entry.name for _, entry, is_folder in group if not is_folder and passed.takes(entry.name)]
        if len({os.path.splitext(name)[0] for name in names}) < len(names):
            keys_below([root], [root / folder / name for name in names])  # says which two have one key
        if names:
            counts[folder] = len(names)
            digests[folder] = hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()
    if not counts:
        raise _no_picture(root, passed)
    order = sorted(counts, key=lambda folder: (folder.partition("/")[0], folder))
    whole = hashlib.sha256(json.dumps([(folder, digests[folder]) for folder in order]).encode())
    return PictureFolders({folder: counts[folder] for folder in order}, whole.hexdigest(), passed.notes())


def pictures_in(root: Path, ranges: Iterable[PictureRange]) -> Pictures:
    """The pictures in ranges of folders below a folder, as `PictureFolders.ranges` has them.

    UsageError: a folder does not have as many pictures as it had.
    """
    paths = list[Path]()
    for folder, begin, end, count in ranges:
        names = _picture_names(root / folder)
        if len(names) != count:
            what = f"has {len(names):,} pictures, not {count:,} as when they were counted"
            raise UsageError(f"{root / folder}: {what}; start again")
        paths += [root / folder / name for name in names[begin:end]]
    return Pictures(tuple(paths), keys_below([root], paths), ())


def _picture_names(folder: Path) -> list[str]:
    """The pictures directly in a folder, sorted. A large one is listed without a look at each file."""
    try:
        with os.scandir(folder) as entries:
            seen = [one for one in entries if one.name.lower().endswith(PICTURE_SUFFIXES)]
            return sorted(one.name for one in seen if not (one.name.startswith(".") or _is_folder(one)))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # `isdir` does not fail for a link to itself.
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def keys_below(roots: Sequence[Path], paths: Sequence[Path]) -> tuple[Key, ...]:
    """A key for each file: its path below the common root of all, without its ending.

    roots: the folders below which the files were found. UsageError for two files of one key.
    """
    top, keys = Path(os.path.commonpath([os.path.abspath(root) for root in roots])), dict[Key, Path]()
    for path in paths:
        below = Path(os.path.abspath(path)).relative_to(top)
        folder = below.parent.as_posix()
        key = Key("" if folder == "." else folder, below.stem)
        if (other := keys.setdefault(key, path)) is not path:
            if other == path:
                raise UsageError(f"{printable(str(path))}: is given twice")
            both = f"{printable(str(other))} and {printable(str(path))}"
            raise UsageError(f"{both}: both would be sample '{key.text}'; give one, or rename one")
    return tuple(keys)


@dataclass(slots=True)
class _PassedOver:
    """Decides what a search for pictures passes over, and counts it for `notes`."""

    is_dataset: IsDataset
    endings: Counter[str] = field(default_factory=Counter)
    num_hidden: int = 0
    num_sets: int = 0  # folders of datasets
    problems: dict[Key, str] = field(default_factory=dict)  # folders that cannot be read

    def select(self, path: str, listed: list[os.DirEntry[str]], is_top: bool) -> list[os.DirEntry[str]]:
        """The entries of a folder to go on with."""
        if not is_top and self.leaves_out(path, [entry.name for entry in listed]):
            return []
        seen = [entry for entry in listed if not entry.name.startswith(".")]
        self.num_hidden += len(listed) - len(seen)
        return seen

    def leaves_out(self, path: str, names: Sequence[str]) -> bool:
        """Whether a folder is passed over because it is a dataset; counts it."""
        is_left_out = self.is_dataset(path, names)
        self.num_sets += is_left_out
        return is_left_out

    def takes(self, name: str) -> bool:
        """Whether a file is a picture that is read; counts the others."""
        ending = os.path.splitext(name)[1].lower()
        if ending in PICTURE_SUFFIXES:
            return True
        self.endings[printable(ending) if len(ending) > 1 else "without an ending"] += 1
        return False

    def notes(self) -> tuple[str, ...]:
        """A sentence that counts what was passed over, and one for each folder that cannot be read."""
        named = [f"{count:,} {end}" for end, count in sorted(self.endings.items())]
        if len(named) > _SHOWN:
            rest = sum(count for _, count in sorted(self.endings.items())[_SHOWN:])
            named[_SHOWN:] = [f"{rest:,} with other endings"]
        named += [f"{self.num_hidden:,} hidden"] if self.num_hidden else []
        named += ["1 folder of a dataset"] if self.num_sets == 1 else []
        named += [f"{self.num_sets:,} folders of datasets"] if self.num_sets > 1 else []
        if unread := sorted(end for end in self.endings if end in UNREAD_PICTURES):
            named[-1] += f"; of {', '.join(unread)} no format is read, convert such pictures to PNG"
        told = (f"passed over: {', '.join(named)}",) if named else ()
        return (*told, *self.problems.values())


def _checked(path: Path) -> Path:
    """A file that was named as a picture; UsageError if it is none that is read."""
    name = path.name.lower()
    if name.endswith(UNREAD_PICTURES):
        raise UsageError(f"{path}: is a picture in a format that is not read; convert it to PNG")
    if not name.endswith(PICTURE_SUFFIXES):
        ways = f"`data={path}` reads prompts, `cond=NAME={path}` a file of another modality"
        raise UsageError(f"{path}: is no picture, by its ending; {ways}")
    return path


def _in_folder(folder: Path, passed: _PassedOver) -> list[Path]:
    """The pictures below a folder, in the order of datasets; UsageError if there is none."""
    found = list(_below(folder, passed))
    if not found:
        raise _no_picture(folder, passed)
    return found


def _no_picture(folder: Path, passed: _PassedOver) -> UsageError:
    passed_over = "".join(f"; {note}" for note in passed.notes())
    return UsageError(f"{folder}: holds no picture, and no folder named as a modality{passed_over}")


def _below(folder: Path, passed: _PassedOver) -> Iterator[Path]:
    entries = entries_below(folder, passed.problems, passed.select)
    files = [(within, entry) for within, entry, is_folder in entries if not is_folder]
    for _, entry in sorted(files, key=lambda one: (one[0].partition("/")[0], one[0], one[1].name)):
        if passed.takes(entry.name):
            yield Path(entry.path)


def _matching(pattern: str, passed: _PassedOver) -> tuple[Path, list[Path]]:
    """The folder before the first wildcard, and the pictures that match, or lie in folders that do."""
    parts = Path(pattern).parts
    root = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    matches = expand_pattern(pattern)
    if not matches:
        raise UsageError(f"{pattern}: matches nothing")
    found = dict[Path, None]()
    for match in map(Path, matches):
        if match.is_dir():
            is_left_out = "**" in parts or passed.leaves_out(str(match), names_in(match))
            found |= {} if is_left_out else dict.fromkeys(_below(match, passed))
        elif passed.takes(match.name):
            found[match] = None
    if not found:
        raise UsageError("; ".join((f"{pattern}: matches no picture", *passed.notes())))
    return root, list(found)
