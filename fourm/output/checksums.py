"""Lists of checksums as `sha256sum --check` reads them, with the size of each file in a comment before it."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from fourm.data.opening import open_file

_LINE = re.compile(rb"(\\?)([0-9a-f]{64})  (.+)", re.DOTALL)
_SIZE = re.compile(rb"# ([0-9]{1,18}) bytes")
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r"}  # of names, as sha256sum writes them
_ESCAPED = re.compile(r"\\[\\nr]")


class Listed(NamedTuple):
    """What a list says of a file."""

    sha256: str
    size: int | None = None  # bytes, where it is told


class Scan(NamedTuple):
    """A list that was read."""

    listed: dict[str, Listed]  # by path, as its last line says
    damaged: list[int]  # numbers, from 1, of lines that are none
    cut: list[int]  # of a last line without an end


def sha256_of_file(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(out: Path, paths: Iterable[Path]) -> dict[str, Listed]:
    """Checksums and sizes of files below `out`, by their paths there."""
    return {
        path.relative_to(out).as_posix(): Listed(sha256_of_file(path), path.stat().st_size) for path in paths
    }


def format_checksums(listed: Mapping[str, Listed]) -> bytes:
    """Files as lines of a list."""
    return b"".join(os.fsencode(line) for line in map(_line, listed.items()))


def scan_lines(lines: Iterable[bytes]) -> Scan:
    """Read a list. A last line without an end was cut off when its writer was killed, and says nothing."""
    scan, size = Scan({}, [], []), None
    for number, line in enumerate(lines, 1):
        text, is_whole = line.removesuffix(b"\n"), line.endswith(b"\n")
        told, match = _SIZE.fullmatch(text), _LINE.fullmatch(text)
        if not is_whole:
            scan.cut.append(number)
        elif match:
            name = os.fsdecode(match[3])
            scan.listed[_unescaped(name) if match[1] else name] = Listed(match[2].decode(), size)
        elif not told:
            scan.damaged.append(number)
        size = int(told[1]) if told else None
    return scan


def _line(item: tuple[str, Listed]) -> str:
    name, (digest, size) = item
    escaped = "".join(_ESCAPES.get(letter, letter) for letter in name)
    comment = "" if size is None else f"# {size} bytes\n"
    return f"{comment}{'' if escaped == name else chr(92)}{digest}  {escaped}\n"


def _unescaped(name: str) -> str:
    return _ESCAPED.sub(lambda match: {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}[match[0]], name)
