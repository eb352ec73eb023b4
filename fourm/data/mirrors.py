"""A folder of an object store as a folder here: files are listed at once, and fetched when they are opened.

So whatever reads the folder of a run reads a remote one, too.
"""

import os
import shutil
import tempfile
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from fourm.data.storage import AT_ONCE, RemoteFolder, check_address, is_remote
from fourm.errors import UsageError, as_addresses, printable
from fourm.files.copies import add_listed, copy_of, is_listed, is_placeholder, write_placeholder
from fourm.files.opening import local_path

_SMALL = 1 << 20  # bytes of a JSON file that is fetched together with those after it
_KEPT = 4  # shards whose files stay here; those that were fetched before them are dropped


def local_folder(text: str | os.PathLike[str], again: bool = True) -> Path:
    """The path of a folder; of an address, that of a folder here with the files of the one in the store.

    again: list it again, if this process has listed it before. UsageError: there is no file below the
    address; MissingError: the store cannot be asked.
    """
    if not (isinstance(text, str) and is_remote(text)):
        return local_path(text)
    address = check_address(text)
    root = copy_of(address, "listed")
    if again or not is_listed(root):
        _Mirror(RemoteFolder(address, root)).list_files()
    return root


def upload_made(below: Path) -> None:
    """Upload the files that were made in a folder, if it lies in one of `local_folder` for an address."""
    for root in filter(is_listed, below.parents):
        folder = RemoteFolder(as_addresses(str(root)), root)
        for path in sorted(below.rglob("*")):
            if path.is_file() and not is_placeholder(path):
                folder.upload(path.relative_to(root).as_posix())


@dataclass(slots=True)
class _Mirror:
    """What a process has of a remote folder."""

    folder: RemoteFolder
    small: list[str] = field(default_factory=list)  # names of files that are fetched many at a time, sorted
    here: dict[str, list[Path]] = field(default_factory=dict)  # large files that are here, by shard
    lock: Lock = field(default_factory=Lock)

    @property
    def root(self) -> Path:
        """The folder here."""
        return self.folder.local()

    def list_files(self) -> None:
        """Put a placeholder in the place of each file."""
        address = printable(self.folder.address)
        if not (found := self.folder.files()):
            raise UsageError(f"{address}: no such folder")
        shutil.rmtree(self.root, ignore_errors=True)
        for name, (size, changed) in found.items():
            try:
                if {"", ".", ".."} & {*name.split("/")}:
                    raise ValueError("no file here can have this name")
                write_placeholder(self.root / name, size, changed)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                what = f"cannot be listed in {tempfile.gettempdir()} ({why})"
                raise UsageError(f"{address}/{printable(name)}: {what}") from error
        self.small = sorted(name for name, (size, _) in found.items() if _is_small(name, size))
        add_listed(self.root, self.fetch)

    def fetch(self, path: Path) -> None:
        """Put a file in the place of its placeholder."""
        with self.lock:
            if not is_placeholder(path):
                return  # another thread has done so
            name = path.relative_to(self.root).as_posix()
            if _is_small(name, path.stat().st_size):
                first = bisect_left(self.small, name)
                self._fetch_small(self.small[first : first + AT_ONCE])
            else:
                self._fetch_large(path, name)

    def _fetch_small(self, names: list[str]) -> None:
        listed = {name: self.root / name for name in names if is_placeholder(self.root / name)}
        times = {path: path.stat().st_mtime_ns for path in listed.values()}
        self.folder.fetch_small([*listed])
        for path, changed in times.items():
            if path.exists():
                os.utime(path, ns=(changed, changed))

    def _fetch_large(self, path: Path, name: str) -> None:
        told = path.stat()
        self.folder.fetch(name, told.st_size)
        os.utime(path, ns=(told.st_mtime_ns, told.st_mtime_ns))
        self.here[path.stem] = [*self.here.pop(path.stem, ()), path]
        for shard in [*self.here][:-_KEPT]:
            for old in self.here.pop(shard):
                there = old.stat()
                write_placeholder(old, there.st_size, there.st_mtime_ns)


def _is_small(name: str, size: int) -> bool:
    return name.endswith(".json") and size <= _SMALL
