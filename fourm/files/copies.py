"""Temporary copies of files of an object store: where this process has them, what messages call them."""

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from fourm.errors import UsageError, printable

_addresses = dict[str, str]()  # of temporary files and folders, for messages


def as_addresses(text: str) -> str:
    """A message in which temporary files are called what they are copies of."""
    for path, address in _addresses.items() if tempfile.gettempdir() in text else ():
        text = text.replace(path, address)
    return text


@contextmanager
def temporary_copies() -> Iterator[None]:
    """Delete all that is fetched within; what was here before stays."""
    before = set(_files_below(_home(os.getpid()) / "read"))
    try:
        yield
    finally:
        for path in set(_files_below(_home(os.getpid()) / "read")) - before:
            path.unlink(missing_ok=True)


def copy_of(address: str, folder: str = "read") -> Path:
    """Where a file is put in this process: the same place for the same address."""
    scheme, _, name = address.partition("://")
    if {".", ".."} & {*name.split("/")}:
        raise UsageError(f"{printable(address)}: leads out of its bucket")
    top = _home(os.getpid()) / folder / scheme
    _addresses[f"{top}{os.sep}"] = f"{scheme}://"
    return top / name.lstrip("/")


def made_folder(address: str) -> Path:
    """The folder in which files for a folder of a store are made."""
    path = _home(os.getpid()) / "made" / hashlib.sha256(address.encode()).hexdigest()[:16]
    path.mkdir(parents=True, exist_ok=True)
    _addresses[str(path)] = address
    return path


def delete_home() -> None:
    """Delete all copies of this process, which is about to end without its exit handlers."""
    shutil.rmtree(_home(os.getpid()), ignore_errors=True)


@lru_cache
def _home(process: int) -> Path:
    """The temporary folder of this process."""
    path = Path(tempfile.mkdtemp(prefix="fourm-remote-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())
