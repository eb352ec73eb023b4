"""Files in object stores (`s3://bucket/x`, `gs://`, `memory://`), through fsspec: listed, fetched, uploaded.

Who may read a store is said by its own variables and files (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ~/.aws,
...), never by an address.
"""

import glob
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from fourm.data.containers import CONTAINER_SUFFIXES, Container, expand_braces, name_containers
from fourm.errors import MissingError, UsageError, near_match, printable, shown
from fourm.files.copies import copy_of, delete_copies, made_folder
from fourm.files.opening import read_bytes

T = TypeVar("T")
AT_ONCE = 256  # small files that are fetched together
MAX_SMALL = 1 << 28  # bytes of one
_ROWS = "rows"  # the folder of copies of files of which shards are ranges of rows
SCHEMES = {"s3://": "pip install 'fourm[remote]'", "gs://": "pip install gcsfs", "memory://": ""}
_BUCKET = re.compile(r"(\w+://)([^/@]+)(?:/([^\0]*))?")
_SECRET = re.compile(r"//[^/@\s]+@")  # a password in the address of a server


def is_remote(text: str) -> bool:
    """Whether a text is an address in an object store."""
    return text.startswith(tuple(SCHEMES))


def check_address(text: str) -> str:
    """An address without a slash at its end. UsageError: it is none, or holds credentials."""
    scheme = next((scheme for scheme in SCHEMES if text.startswith(scheme)), "")
    if not scheme:
        raise UsageError(f"{printable(text)}: begins with none of {', '.join(SCHEMES)}")
    match = _BUCKET.fullmatch(text)
    if "@" in text[len(scheme) :].partition("/")[0]:
        what = "an address holds no credentials; they are read from variables and files of the store's client"
        raise UsageError(f"{scheme}...: {what}")
    if match is None or any(part in (".", "..") for part in text[len(scheme) :].split("/")):
        raise UsageError(f"{printable(text)}: is not {scheme}BUCKET/PATH")
    return text.rstrip("/")


def find_remote_containers(text: str) -> tuple[Container, ...]:
    """The tars, Parquet and Arrow files that an address means: a file, braces, a pattern, a folder.

    They are listed, and none of them is read. UsageError: there is none, or one of them is missing.
    """
    address = check_address(text)
    if address.lower().endswith(CONTAINER_SUFFIXES) or glob.has_magic(address) or "{" in address:
        sizes = _matches(address)
        fixed = re.split(r"[*?\[{]", address, maxsplit=1)[0].rpartition("/")[0]
    else:
        found = RemoteFolder(address).sizes()
        chosen = [name for name in sorted(found) if name.lower().endswith(CONTAINER_SUFFIXES)]
        sizes, fixed = {f"{address}/{name}": found[name] for name in chosen}, address
    if not sizes:
        raise UsageError(f"{printable(text)}: there is no tar, Parquet or Arrow file")
    origins = {copy_of(one): f"{one}#{size}" for one, size in sizes.items()}
    return name_containers([*origins], copy_of(fixed), origins)


def remote_container(origin: str, name: str) -> Container:
    """The container that a process elsewhere has found."""
    address = origin.rpartition("#")[0]
    # Ranges of its rows are several shards, so it stays here until another such file is fetched.
    folder = _ROWS if address.lower().endswith(".parquet") else "read"
    return Container(copy_of(address, folder), name, origin)


def fetch_remote(container: Container) -> None:
    """Fetch the file of a container of an object store, if it is not here. MissingError: it cannot be."""
    address, _, size = container.origin.rpartition("#")
    if not container.path.exists():
        if container.path == copy_of(address, _ROWS):
            delete_copies(_ROWS)
        _fetch(address, container.path, int(size))


def read_remote_end(origin: str, count: int) -> bytes:
    """The last bytes of a file, which is not fetched. MissingError: they cannot be read."""
    address, _, size = origin.rpartition("#")
    first, end = max(0, int(size) - count), int(size)
    data = _ask(address, lambda fs, path: fs.cat_file(path, start=first, end=end))
    return bytes(data)


def local_file(text: str) -> Path:
    """The path of a file, which is fetched first if it is an address."""
    if not is_remote(text):
        return Path(text)
    path = copy_of(check_address(text), "kept")  # its ranges of lines are many shards
    if not path.exists():
        _fetch(text, path, None)
    return path


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder in an object store. Names are paths below it."""

    address: str
    copy: Path | None = None  # where its files are here; None: in a temporary folder of what is made for it

    def local(self) -> Path:
        """The temporary folder of its files, of this process."""
        return self.copy or made_folder(self.address)

    def files(self) -> dict[str, tuple[int, int]]:
        """All files in it, with their sizes and times (nanoseconds since 1970), by one listing."""
        found = _ask(self.address, lambda fs, path: fs.find(path, detail=True), {})
        start = len(_plain(self.address)) + 1
        named = ((_plain(name)[start:], one) for name, one in found.items() if one["type"] == "file")
        # Clients of stores make empty objects whose names end like those of folders.
        return {
            name: (int(one["size"]), _time_of(one)) for name, one in named if name and not name.endswith("/")
        }

    def sizes(self) -> dict[str, int]:
        """All files in it, with their sizes, by one listing."""
        return {name: size for name, (size, _) in self.files().items()}

    def size(self, name: str) -> int | None:
        """The size of one file, None if it is not there."""
        return _ask(f"{self.address}/{name}", lambda fs, path: int(fs.info(path)["size"]), None)

    def create(self, name: str) -> bool:
        """Write a small file of the temporary folder to its place; False if there is one already."""
        data = read_bytes(self.local() / name, MAX_SMALL)
        try:
            _ask(f"{self.address}/{name}", lambda fs, path: fs.pipe_file(path, data, mode="create"))
        except FileExistsError:
            return False
        return True

    def empty(self, name: str) -> None:
        """Replace a file by one without bytes."""
        _ask(f"{self.address}/{name}", lambda fs, path: fs.pipe_file(path, b""))

    def upload(self, name: str) -> None:
        """Write a file of the temporary folder to its place."""
        _ask(f"{self.address}/{name}", lambda fs, path: fs.put_file(str(self.local() / name), path))

    def fetch(self, name: str, size: int | None = None) -> None:
        """Copy a file into the temporary folder, in place of one that is there. size: as it was listed."""
        _fetch(f"{self.address}/{name}", self.local() / name, size)

    def fetch_small(self, names: Sequence[str]) -> None:
        """Copy small files into the temporary folder, many at a time; what is not there is left out."""
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            for name, data in zip(some, self._read(some), strict=True):
                if not isinstance(data, bytes | FileNotFoundError):
                    raise _failed(f"{self.address}/{name}", data)
                (path := self.local() / name).unlink(missing_ok=True)
                if isinstance(data, bytes):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(data)

    def _read(self, names: Sequence[str]) -> list[Any]:
        """The bytes of files, or why they cannot be read."""
        return _ask(self.address, lambda fs, path: fs.cat_ranges(
            [f"{path}/{name}" for name in names], [None] * len(names), [None] * len(names), on_error="return"
        ))  # fmt: skip


def _matches(text: str) -> dict[str, int]:
    """The files that braces and patterns name, with their sizes; each folder is listed once."""
    names, found, listed = expand_braces(text), dict[str, int](), dict[str, dict[str, Any]]()
    missing = list[str]()
    for name in names:
        if glob.has_magic(name):
            at_name: dict[str, Any] = _ask(name, lambda fs, path: fs.glob(path, detail=True), {})
        else:
            above = name.rpartition("/")[0]
            if above not in listed:
                rows = _ask(above, lambda fs, path: fs.ls(path, detail=True), [])
                listed[above] = {_plain(one["name"]): one for one in rows}
            one = listed[above].get(_plain(name))
            at_name = {} if one is None else {name: one}
            missing += [name] if one is None else []
        start = name[: name.index("://") + 3]
        files = {start + _plain(path): one for path, one in sorted(at_name.items()) if one["type"] == "file"}
        found |= {path: int(one["size"]) for path, one in files.items()}
    if missing and len(names) == 1:
        near = near_match(_plain(text), listed[text.rpartition("/")[0]])
        raise UsageError(f"{printable(text)}: no such file{near}")
    if missing:
        few = ", ".join(name.rpartition("/")[2] for name in missing[:3]) + (", ..." if missing[3:] else "")
        raise UsageError(f"{printable(text)}: {len(missing):,} of {len(names):,} files are not there: {few}")
    return found


def _fetch(address: str, path: Path, size: int | None) -> None:
    """Copy a file to a path, whole or not at all. size: as it was listed; None: not known."""
    if size is None:
        size = _ask(address, lambda fs, place: int(fs.info(place)["size"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(path.parent).free):
        fit = f"{free:,} fit into {tempfile.gettempdir()}; TMPDIR names a folder with more space"
        raise MissingError(f"{address}: has {size:,} bytes, of which {fit}")
    part = path.with_name(f"{path.name}.part")
    try:
        _ask(address, lambda fs, place: fs.get_file(place, str(part)))
        if part.stat().st_size != size:
            raise MissingError(f"{address}: has changed while it was read; start again")
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _time_of(file: Mapping[str, Any]) -> int:
    """When a file was written, in nanoseconds since 1970; stores differ in how they say it."""
    times = (file[name] for name in ("LastModified", "mtime", "created") if name in file)
    when = next(times, time.time())  # not known: an index of an older file at the same path is not used
    when = datetime.fromisoformat(when) if isinstance(when, str) else when
    return int((when.timestamp() if isinstance(when, datetime) else when) * 1e9)


def _plain(address: str) -> str:
    """An address, or what fsspec calls it, without its scheme."""
    return address.partition("://")[2].lstrip("/") if "://" in address else address.lstrip("/")


_NOTHING = object()


def _ask(address: str, question: Callable[[Any, str], T], otherwise: Any = _NOTHING) -> T:
    """The answer of a store; `otherwise` if nothing is there. MissingError in one sentence, without secrets.

    FileExistsError: what was to be created is there.
    """
    scheme = address[: address.index("://") + 3]
    try:
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(address, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{scheme} needs a package that is missing; `{SCHEMES[scheme]}`") from error
    try:
        return question(fs, path)
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if otherwise is not _NOTHING:
            return otherwise
        raise MissingError(f"{printable(address)}: there is no such file or bucket") from error
    except Exception as error:  # clients raise errors of many kinds
        with suppress(AttributeError):
            fs.invalidate_cache()
        raise _failed(address, error) from error


def _failed(address: str, error: object) -> MissingError:
    reason = _SECRET.sub("//", shown(" ".join(str(error).split()) or type(error).__name__, 200))
    return MissingError(f"{printable(address)}: the store cannot be used ({type(error).__name__}: {reason})")
