"""Parts of a modality's folder in a dataset, each of which can be listed without the others.

A part is a folder of files, or a tar together with what lies in the folder of the same name.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fourm.data.dataset import (
    TOKENIZER,
    UNKNOWN,
    Listing,
    add_file,
    add_shard,
    entries_below,
    find_folder,
    folder_and_above,
    leads_to_folder,
    suffix_of,
    walk,
)
from fourm.data.layout import Key
from fourm.files.tars import SHARD_SUFFIX


@dataclass(frozen=True, slots=True)
class DatasetPart:
    """A folder of keys, and how many samples have a file in it; None: a tar, with all folders below it."""

    folder: str
    count: int | None = None

    def holds(self, folder: str) -> bool:
        """Whether a folder of keys belongs to it."""
        return folder == self.folder or (self.count is None and folder.startswith(f"{self.folder}/"))


def list_parts(root: Path, folder: str) -> tuple[list[DatasetPart], Listing]:
    """The parts of `root/folder`, sorted, and a listing of what belongs to none: problems and unread files.

    At most the names in one folder are in memory. UsageError: there is no such folder.
    """
    other, tars, folders = Listing(top=find_folder(root, folder)), list[str](), dict[str, int]()
    for within, entries in _by_folder(other):
        files = Listing()
        for entry in entries:
            if entry.name.lower().endswith(SHARD_SUFFIX):
                tars.append(f"{within}/{entry.name[: -len(SHARD_SUFFIX)]}".lstrip("/"))
            elif suffix_of(entry.name):
                add_file(files, entry, within)
            else:
                add_file(other, entry, within)
        if files.files:
            folders[within] = len(files.files)
    known = {*tars}
    alone = {one: count for one, count in folders.items() if not known.intersection(folder_and_above(one))}
    nested = {one for one in known if known.intersection(folder_and_above(one)[:-1])}
    parts = [
        *(DatasetPart(one) for one in known - nested),
        *(DatasetPart(one, count) for one, count in alone.items()),
    ]
    return sorted(parts, key=lambda part: (part.folder.partition("/")[0], part.folder)), other


def list_part(top: Path, part: DatasetPart) -> Listing:
    """The files of a part in a modality's folder, which may have it in another form: a folder or a tar."""
    found, inside, own = Listing(top=top), part.folder, set[Key]()
    for above in folder_and_above(inside) if inside else ():
        if os.path.isfile(path := top / f"{above}{SHARD_SUFFIX}"):
            keys = add_shard(found, path, above)
            own |= keys if above == inside and part.count is None else set()  # also whole keys, of any folder
    path = top / inside
    if part.count is None:
        below = Listing()
        with suppress(FileNotFoundError, NotADirectoryError):
            if os.path.isdir(path):
                walk(path, below)
        for key, file in below.files.items():
            found.put(Key(f"{inside}/{key.folder}".rstrip("/"), key.name), file)
        for key, problem in below.problems.items():
            found.problems[Key(f"{inside}/{key.folder}".rstrip("/"), key.name)] = problem
    elif os.path.isdir(path):
        try:
            with os.scandir(path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    is_tar = entry.name.lower().endswith(SHARD_SUFFIX)
                    if not entry.name.startswith(".") and not is_tar and not leads_to_folder(entry):
                        add_file(found, entry, inside)
        except OSError as error:
            found.problems[Key(inside, UNKNOWN)] = f"{path}: cannot be read ({error.strerror})"
    found.files = {key: file for key, file in found.files.items() if key in own or part.holds(key.folder)}
    outer = {*folder_and_above(inside)}
    found.problems = {
        key: problem for key, problem in found.problems.items()
        if key in own or part.holds(key.folder) or (key.name == UNKNOWN and key.folder in outer)
    }  # fmt: skip
    return found


def tops_in(top: Path) -> set[str]:
    """Names of the folders and tars that lie directly in a modality's folder, without endings."""
    found = set[str]()
    with suppress(OSError), os.scandir(top) as entries:  # whoever reads its parts tells of it
        for entry in entries:
            if entry.name.lower().endswith(SHARD_SUFFIX):
                found.add(entry.name[: -len(SHARD_SUFFIX)])
            elif not entry.name.startswith(".") and entry.is_dir():
                found.add(entry.name)
    return {name for name in found if name and not name.startswith(".")}


def _by_folder(found: Listing) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """The files in each folder below the top of a listing, which gets the problems."""
    current, entries = "", list[os.DirEntry[str]]()
    for folder, entry, is_folder in entries_below(found.top, found.problems):
        if folder != current:
            yield current, entries
            current, entries = folder, []
        if not is_folder and not (not folder and entry.name == TOKENIZER):
            entries.append(entry)
    yield current, entries
