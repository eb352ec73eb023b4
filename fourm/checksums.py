"""`checksums.sha256` of an output folder: every file as it was written; `sha256sum -c` reads it."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from fourm.layout import ends_a_line, write_atomic
from fourm.opening import open_file, read_bytes

CHECKSUMS = "checksums.sha256"
_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  (.+)", re.DOTALL)
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}  # of names, as sha256sum writes them
_ESCAPED = re.compile(r"\\[\\nr]")


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_checksums(out: Path, digests: Mapping[str, str]) -> None:
    """Append checksums by path below `out`; the caller holds the folder's lock."""
    path = out / CHECKSUMS
    with path.open("ab") as file:
        cut_off = file.tell() > 0 and not ends_a_line(path)  # its writer was killed
        file.write((b"\n" if cut_off else b"") + _lines(digests))


def read_checksums(out: Path) -> dict[str, str]:
    """Checksums by path below `out`, the last one of a path; lines that are none are passed over."""
    return scan_checksums(out)[0]


def scan_checksums(out: Path) -> tuple[dict[str, str], list[int]]:
    """Checksums by path below `out`, the last one of a path; and numbers (from 1) of lines that are none."""
    found, damaged = dict[str, str](), list[int]()
    try:
        file = open_file(out / CHECKSUMS)
    except FileNotFoundError:
        return found, damaged
    with file:
        for number, line in enumerate(file, 1):
            if match := _LINE.fullmatch(line.removesuffix(b"\n")):
                name = os.fsdecode(match[3])
                found[_unescaped(name) if match[1] else name] = match[2].decode()
            if match is None or not line.endswith(b"\n"):
                damaged.append(number)
    return found, damaged


def tidy_checksums(out: Path) -> None:
    """One line for each file, in the order of their paths, however many processes wrote; under the lock."""
    if (out / CHECKSUMS).exists():
        _replace(out, read_checksums(out))


def drop_checksums(out: Path, folder: str, suffix: str) -> None:
    """Forget the files of one folder; under the lock."""
    if (out / CHECKSUMS).exists():
        digests = read_checksums(out)
        kept = {p: d for p, d in digests.items() if not (p.startswith(f"{folder}/") and p.endswith(suffix))}
        _replace(out, kept)


def _replace(out: Path, digests: Mapping[str, str]) -> None:
    path, data = out / CHECKSUMS, _lines(dict(sorted(digests.items())))
    if not data:
        path.unlink()
    elif path.stat().st_size != len(data) or read_bytes(path, len(data)) != data:
        write_atomic(out, path, partial(_fill, data))


def _fill(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _lines(digests: Mapping[str, str]) -> bytes:
    return b"".join(os.fsencode(line) for line in map(_line, digests.items()))


def _line(item: tuple[str, str]) -> str:
    name, digest = item
    escaped = "".join(_ESCAPES.get(letter, letter) for letter in name)
    return f"{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _unescaped(name: str) -> str:
    return _ESCAPED.sub(lambda match: {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}[match[0]], name)


def digests_of(out: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Checksums of files below `out`, by their paths there."""
    return {path.relative_to(out).as_posix(): sha256_of_file(path) for path in paths}
