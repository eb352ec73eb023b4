"""Tars, Parquet and Arrow files as inputs: their members as paths, and what braces, patterns, folders name.

The path of a member treats its file as a folder: `00042.tar/000017.jpg`, of a text in a JSON member
`00042.tar/000017.json/caption`, and of a cell `x.parquet/17.image`: column `image` of row 17.
"""

import glob
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fourm.data.dataset import (
    COMPRESSED_SUFFIXES,
    PICTURE_SUFFIXES,
    entries_below,
    expand_pattern,
    leads_to_folder,
)
from fourm.data.layout import Key
from fourm.data.prompts import missing_file
from fourm.errors import SampleError, UsageError, printable
from fourm.files.columns import COLUMN_SUFFIXES, has_cell, read_cell
from fourm.files.opening import read_bytes, with_single_keys
from fourm.files.tars import NO_ACCESS, SHARD_SUFFIX, read_tar, read_tar_member

CONTAINER_SUFFIXES = (SHARD_SUFFIX, *COLUMN_SUFFIXES)
MAX_FILES = 1_000_000  # that braces may stand for
_MAX_JSON = 1 << 24  # bytes of a JSON member of which one text is read
_BRACES = re.compile(r"\{(?:([0-9]{1,12})\.\.([0-9]{1,12})|([^{}]*,[^{}]*))\}")
_VARIES = re.compile(rf"[*?\[]|{_BRACES.pattern}")  # a wildcard, or braces


@dataclass(frozen=True, slots=True)
class Container:
    """A file of samples; `name` is the folder of their keys: its path below all that was named, no ending."""

    path: Path
    name: str
    origin: str = ""  # of a file that is fetched when it is used: where from

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.origin.partition("#")[0] or str(self.path)

    @property
    def is_tar(self) -> bool:
        """True for a tar, False for a file of rows and columns."""
        return _is_tar(self.path)

    @property
    def has_end(self) -> bool:
        """True for a Parquet file elsewhere, whose end says what columns and how many rows it has."""
        return bool(self.origin) and self.path.name.lower().endswith(".parquet")


def split_path(path: Path) -> tuple[Path, str] | None:
    """The container in a path, and the name of the member in it; None for a path without a container."""
    for above in reversed(path.parents):
        if above.name.lower().endswith(CONTAINER_SUFFIXES) and os.path.isfile(above):
            return above, path.relative_to(above).as_posix()
    return None


def read_member(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a member, at most `limit + 1` of them. SampleError if it cannot be read."""
    if not _is_tar(path):
        return read_cell(path, name, limit)[1]
    file = _json_member(path, name)
    if file is None:
        return read_tar_member(path, name, limit)
    return _text_in(path, file, name[len(file) + 1 :])[: limit + 1]


def is_there(path: Path) -> bool:
    """Whether there is a file at a path, or a member of a container; False for an empty cell."""
    if (place := split_path(path)) is None:
        return path.is_file()
    file, name = place
    try:
        if not _is_tar(file):
            return has_cell(file, name)
        return isinstance(read_tar(file).members.get(_json_member(file, name) or name), tuple)
    except (OSError, UsageError, SampleError):
        return False


def ending_of(path: Path) -> str:
    """The extension of a file or member in lower case; of a cell, and of a text in JSON, by what it holds.

    SampleError, OSError: a cell cannot be read.
    """
    if (place := split_path(path)) is None:
        return path.suffix.lower()
    if not _is_tar(place[0]):
        return read_cell(*place, _MAX_JSON)[0]
    return path.suffix.lower() if _json_member(*place) is None else ".txt"


def is_container(text: str) -> bool:
    """Whether a text names containers by its ending, as a path or a pattern. UsageError: compressed ones."""
    lower = text.lower()
    if lower.endswith(COMPRESSED_SUFFIXES):
        raise UsageError(f"{printable(text)}: a compressed tar {NO_ACCESS}")
    return lower.endswith(CONTAINER_SUFFIXES) and not os.path.isdir(text)


def find_containers(text: str) -> tuple[Container, ...]:
    """The containers that a path, braces or a pattern name; UsageError: one of them is not there."""
    if os.path.lexists(text):
        return name_containers([Path(text)], Path(text).parent)
    names = expand_braces(text)
    listed = [expand_pattern(name) if glob.has_magic(name) else [name] for name in names]
    found = [Path(name) for each in listed for name in each]
    if not found:
        raise UsageError(f"{printable(text)}: matches nothing")
    missing = [path for path in found if not os.path.isfile(path)]
    if missing and len(found) == 1:
        raise missing_file(missing[0])
    if missing:
        few = ", ".join(path.name for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        what = f"{len(missing):,} of {len(found):,} files are not there: {few}"
        raise UsageError(f"{printable(text)}: {what}")
    fixed = os.path.dirname(_VARIES.split(text, maxsplit=1)[0])  # the folder that all of them are below
    return name_containers(found, Path(fixed))


def containers_in(folder: Path) -> tuple[Container, ...]:
    """All containers below a folder of them, in order; () for a folder of another kind.

    It is one if containers lie directly in it or one folder deeper, and no picture does.
    """
    names = list(_names_near(folder))
    if not any(name.endswith(CONTAINER_SUFFIXES) for name in names):
        return ()
    if any(name.endswith(PICTURE_SUFFIXES) for name in names):
        return ()
    problems, found = dict[Key, str](), dict[Path, list[str]]()
    for _, entry, is_folder in entries_below(folder, problems):
        if not is_folder and entry.name.lower().endswith(CONTAINER_SUFFIXES):
            found.setdefault(Path(entry.path).parent, []).append(entry.name)
    if problems:
        raise UsageError(next(iter(problems.values())))
    return name_containers(
        sorted(top / name for top, names in found.items() for name in _saved(top, names)), folder
    )


def expand_braces(text: str) -> list[str]:
    """`a{0..2}{x,y}` -> `a0x`, `a0y`, `a1x` ...; numbers have as many digits as the first.

    UsageError: more than `MAX_FILES`.
    """
    parts, at, count = list[Sequence[str]](), 0, 1
    for match in _BRACES.finditer(text):
        first, last, names = match.groups()
        if names is None and abs(int(first) - int(last)) >= MAX_FILES:
            count = MAX_FILES + 1
        choices: Sequence[str] = names.split(",") if names is not None else ()
        if names is None and count <= MAX_FILES:
            step = 1 if int(first) <= int(last) else -1
            choices = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + step, step)]
        parts += [(text[at : match.start()],), choices]
        at, count = match.end(), count * max(1, len(choices))
        if count > MAX_FILES:
            raise UsageError(f"{printable(text)}: its braces stand for more than {MAX_FILES:,} files")
    return ["".join(one) for one in itertools.product(*parts, (text[at:],))]


def name_containers(
    paths: Sequence[Path], root: Path, origins: Mapping[Path, str] | None = None
) -> tuple[Container, ...]:
    """Containers of one kind with names below `root`; UsageError: two have one name, or kinds differ.

    A table beside a tar of the same name is left out: img2dataset's list of what is in it.
    origins: of those that are fetched.
    """
    found, tars = dict[str, Container](), {path.with_suffix("") for path in paths if _is_tar(path)}
    paths = [path for path in paths if _is_tar(path) or path.with_suffix("") not in tars]
    for path in paths:
        below = Path(os.path.abspath(path)).relative_to(os.path.abspath(root))
        one = Container(path, below.with_suffix("").as_posix(), (origins or {}).get(path, ""))
        if (other := found.setdefault(one.name, one)) is not one:
            if other.path == path:
                raise UsageError(f"{printable(str(path))}: is given twice")
            raise UsageError(f"{other.path} and {path}: both would be '{one.name}'; rename one")
        if one.is_tar != _is_tar(paths[0]):
            kinds = f"both tars and files of columns ({paths[0].name}, {path.name})"
            raise UsageError(f"{root}: holds {kinds}; a pattern in quotation marks names those of one kind")
    return tuple(found.values())


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(SHARD_SUFFIX)


def _names_near(folder: Path) -> Iterator[str]:
    """The names, in lower case, of all files in a folder and one folder deeper."""
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read ({error.strerror})") from error
    for entry in listed:
        if not leads_to_folder(entry):
            yield entry.name.lower()
            continue
        try:
            yield from (name.lower() for name in os.listdir(entry))
        except OSError:  # whoever reads the folder tells of it
            continue


def _saved(folder: Path, names: Sequence[str]) -> Sequence[str]:
    """Of the files in a folder, those that `save_to_disk` of `datasets` lists there; all if it lists none.

    Others are what its `map` and `filter` have cached. UsageError: the data set is a choice of rows, which
    these files do not say, or a file is missing.
    """
    path = folder / "state.json"
    try:
        state = json.loads(read_bytes(path, _MAX_JSON)) if path.is_file() else None
        files = [str(one["filename"]) for one in state["_data_files"]] if state else []
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return names
    if isinstance(state, dict) and state.get("_indices_data_files"):
        advice = "flatten_indices() before save_to_disk() writes the rows themselves"
        raise UsageError(f"{folder}: is a choice of rows of a data set; {advice}")
    if missing := [name for name in files if name not in names]:
        raise UsageError(f"{folder}: its state.json names {printable(missing[0])}, which is not there")
    return files or names


def _json_member(path: Path, name: str) -> str | None:
    """The JSON member of a tar in which `name` is a text; None if `name` is no such path."""
    if ".json/" not in name.lower():
        return None
    members = read_tar(path).members
    ends = (match.end() - 1 for match in re.finditer(r"\.json/", name, re.IGNORECASE))
    return None if name in members else next((name[:end] for end in ends if name[:end] in members), None)


def _text_in(path: Path, file: str, field: str) -> bytes:
    """The text under a name of a JSON member."""
    data = read_tar_member(path, file, _MAX_JSON)
    if len(data) > _MAX_JSON:
        raise SampleError(f"{path}/{file}: more than {_MAX_JSON >> 20} MiB")
    try:
        value = json.loads(data, object_pairs_hook=with_single_keys)
    except (ValueError, RecursionError) as error:
        raise SampleError(f"{path}/{file}: not valid JSON") from error
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise SampleError(f"{path}/{file}: has no text under '{field}'")
    return text.encode("utf-8", "surrogatepass")
