"""Temporary copies of files of an object store: where this process has them, what messages call them.

A file that is only listed is a placeholder: it has a size and a time, and no bytes before it is opened.
"""

import atexit
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from fourm.errors import UsageError, addresses, printable

_listed = dict[str, Callable[[Path], None]]()  # by folder of listed files: fetches one of them


@contextmanager
def temporary_copies() -> Iterator[None]:
    """Delete all that is fetched within; what was here before stays."""
    before = _fetched()
    try:
        yield
    finally:
        for path in _fetched() - before:
            path.unlink(missing_ok=True)


def copy_of(address: str, folder: str = "read") -> Path:
    """Where a file is put in this process: the same place for the same address."""
    scheme, _, name = address.partition("://")
    if {".", ".."} & {*name.split("/")}:
        raise UsageError(f"{printable(address)}: leads out of its bucket")
    top = _home(os.getpid()) / folder / scheme
    addresses[f"{top}{os.sep}"] = f"{scheme}://"
    return top / name.lstrip("/")


def delete_copies(folder: str) -> None:
    """Delete what was fetched into a folder of `copy_of`."""
    for path in [*_files_below(_home(os.getpid()) / folder)]:
        path.unlink(missing_ok=True)


def made_folder(address: str) -> Path:
    """The folder in which files for a folder of a store are made."""
    path = _home(os.getpid()) / "made" / hashlib.sha256(address.encode()).hexdigest()[:16]
    path.mkdir(parents=True, exist_ok=True)
    addresses[str(path)] = address
    return path


def delete_home() -> None:
    """Delete all copies of this process, which is about to end without its exit handlers."""
    if _home.cache_info().currsize:
        shutil.rmtree(_home(os.getpid()), ignore_errors=True)


def _fetched() -> set[Path]:
    """The files that are fetched to be read. A process that fetches nothing makes no folder for them."""
    return {*_files_below(_home(os.getpid()) / "read")} if _home.cache_info().currsize else set()


def add_listed(root: Path, fetch: Callable[[Path], None]) -> None:
    """Let `fetch` replace each placeholder below a folder by its file when it is opened."""
    _listed[str(root)] = fetch


def is_listed(root: Path) -> bool:
    """Whether the files of a folder are listed already."""
    return str(root) in _listed


def write_placeholder(path: Path, size: int, changed: int) -> None:
    """Replace a file by one without bytes. changed: in nanoseconds since 1970."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    os.truncate(path, size)
    os.utime(path, ns=(changed, changed))
    path.chmod(0)  # marks it; so whoever opens it in another way reads no zeros


def is_placeholder(path: Path) -> bool:
    """Whether a file is only listed."""
    try:
        mode = os.lstat(path).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) and not stat.S_IMODE(mode)


def ensure_fetched(path: Path) -> None:
    """Fetch the file at a path if it is only listed. MissingError: it cannot be fetched."""
    for root, fetch in tuple(_listed.items()):
        if str(path).startswith(f"{root}{os.sep}") and is_placeholder(path):
            fetch(path)


@lru_cache
def _home(process: int) -> Path:
    """The temporary folder of this process."""
    path = Path(os.path.realpath(tempfile.mkdtemp(prefix="fourm-remote-")))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
