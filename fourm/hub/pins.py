"""What was downloaded: the commit of each repository, and size and sha256 of its files (`pins.json`)."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fourm.data.opening import open_own, read_bytes
from fourm.data.writing import lock_file
from fourm.errors import FourMError, UsageError

FORMAT = 1  # of pins.json
LOOK_AGAIN = 0.2  # seconds after which a pin is looked for that was written without a lock
MAX_BYTES = 1 << 26  # of it
REPO_TYPES = ("model", "dataset")
_TEXT_TOKENIZER = "text_tokenizer_4m_wordpiece_30k.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file of a repository, as it was when its checksum agreed with the Hub's."""

    name: str  # relative to the repository, parts separated by "/"
    size: int  # bytes
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.name).parts
        if not parts or any(part.startswith("/") or part == ".." for part in parts):
            raise ValueError(f"no file of a repository: {self.name!r}")
        if type(self.size) is not int or self.size < 0 or not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"no record of a file: {self.name!r}")


@dataclass(frozen=True, slots=True)
class Pin:
    """The commit of a repository that is used from its download on."""

    hub_id: str
    revision: str  # 40 hexadecimal digits
    files: tuple[PinnedFile, ...]
    repo_type: str = "model"  # or "dataset"

    def __post_init__(self) -> None:
        if not _COMMIT.fullmatch(self.revision) or self.repo_type not in REPO_TYPES:
            raise ValueError(f"no commit of a repository: {self.repo_type} {self.revision!r}")


def fourm_home() -> Path:
    """`$HF_HOME/fourm`, found as the Hub's client finds its own folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    home = os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    return Path(os.path.expandvars(os.path.expanduser(home))) / "fourm"


def pins_path() -> Path:
    """The file with all pins; it need not exist."""
    return fourm_home() / "pins.json"


def text_tokenizer_path() -> Path:
    """Where the released text tokenizer lies once it is downloaded; it need not exist."""
    return fourm_home() / _TEXT_TOKENIZER


def load_pins() -> dict[str, Pin]:
    """All pins by Hub id; none where nothing was ever downloaded. A damaged file is a `UsageError`."""
    path = pins_path()
    try:
        record = json.loads(read_bytes(path, MAX_BYTES))
        if record["format"] != FORMAT:
            raise UsageError(
                f"{path}: was written by another version of this program (format {record['format']})"
            )
        return {hub_id: _parse(hub_id, row) for hub_id, row in record["pins"].items()}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path}: is damaged ({type(error).__name__}: {error}); delete it, and the next `fourm download` "
            "writes it anew"
        ) from None


def find_pin(hub_id: str) -> Pin | None:
    """The pin of a repository, None if it was never downloaded by this program."""
    return load_pins().get(hub_id)


def pinned_revision(hub_id: str) -> str | None:
    """The commit of a repository that was downloaded, None if it never was by this program."""
    pin = find_pin(hub_id)
    return pin.revision if pin else None


def write_pin(pin: Pin) -> None:
    """Add a pin, or replace the one of its repository. Others may do the same at the same time.

    Where there are no locks, another process may have replaced the file by one without this pin: it is looked
    for again a moment later.
    """
    with _locked() as has_locks:
        _add(pin)
        if has_locks:
            return
        time.sleep(LOOK_AGAIN)
        while find_pin(pin.hub_id) != pin:
            _add(pin)
            time.sleep(LOOK_AGAIN)


def _add(pin: Pin) -> None:
    pins = load_pins() | {pin.hub_id: pin}
    rows = {hub_id: _to_json(pins[hub_id]) for hub_id in sorted(pins)}
    text = json.dumps({"format": FORMAT, "pins": rows}, indent=1) + "\n"
    try:
        replace_text(pins_path(), text)
    except OSError as error:
        raise FourMError(f"{pins_path()}: cannot be written ({error.strerror})") from error


def replace_text(path: Path, text: str) -> None:
    """Write a small file of the cache whole or not at all; a link of its name is replaced, not followed."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    unfinished.unlink(missing_ok=True)
    try:
        with unfinished.open("x", encoding="utf-8") as file:
            file.write(text)
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def _parse(hub_id: str, row: Mapping[str, Any]) -> Pin:
    files = tuple(PinnedFile(name, file["size"], file["sha256"]) for name, file in row["files"].items())
    return Pin(hub_id, row["revision"], files, row["repo_type"])


def _to_json(pin: Pin) -> dict[str, Any]:
    files = {file.name: {"size": file.size, "sha256": file.sha256} for file in pin.files}
    return {"repo_type": pin.repo_type, "revision": pin.revision, "files": files}


@contextmanager
def _locked() -> Iterator[bool]:
    """One writer at a time, where there are locks. The file for it stays."""
    path = fourm_home() / "pins.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open_own(path, "a")
        has_locks = bool(lock_file(file, wait=True))
    except OSError as error:
        raise FourMError(f"{path}: cannot be written ({error.strerror})") from error
    with file:
        yield has_locks
