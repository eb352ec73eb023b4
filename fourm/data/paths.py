"""Paths that users type: URLs such as `s3://` are refused, they would be created as local folders."""

import itertools
import os
import re
import shlex
import unicodedata
from pathlib import Path

from fourm.data.opening import open_file
from fourm.errors import UsageError, printable

# Matches `s3://bucket/x`, but not a drive (`C:/x`), nor the file names `./s3://x` and `a:b`.
_SCHEME = re.compile(r"\s*([\w+.-]{2,}:)//")
# A text chunk of PNG that each drawing holds. Results hold none of this name, so none is taken for a drawing.
DRAWING = {"drawing": "fourm"}
_DRAWING = b"tEXtdrawing\0fourm"
_DRAWING_WITHIN = 1 << 12  # bytes at the beginning of a file; before the pixels stand a few small chunks
_ENDS_LINES = ("Cc", "Zl", "Zp")  # Unicode categories of control characters and line separators


def scheme_problem(text: str) -> str:
    """An error message for a path that is a URL (`s3://bucket/x`); "" for other text."""
    scheme = _SCHEME.match(text)
    return f"{scheme[1]}// is not supported; give a path on this machine" if scheme else ""


def local_path(text: str | os.PathLike[str]) -> Path:
    """The path in an option or argument. UsageError for a URL, and for an empty text.

    An empty text is often an unset variable of a script, and must not stand for the working folder.
    """
    if not os.fspath(text):
        raise UsageError("the name of a file or folder is empty")
    return Path(local_name(os.fspath(text)))


def local_name(text: str) -> str:
    """The text of an option or argument that may be a path. UsageError for a URL."""
    if problem := scheme_problem(text):
        raise UsageError(f"{text.strip()}: {problem}")
    return text


def output_path(text: str | os.PathLike[str]) -> Path:
    """The path of an output folder; it must fit on one line, because commands print it for a pipe."""
    path = local_path(text)
    if str(path).isspace():
        raise UsageError("the name of an output folder is blank")
    if any(unicodedata.category(character) in _ENDS_LINES for character in str(path)):
        raise UsageError(f"{path}: the name of an output folder holds no line ends or control characters")
    return path


def check_drawing(option: str, path: Path) -> None:
    """UsageError for a name under which no picture can be written, and for a picture that is no drawing.

    The same command may draw anew, but a result or a photograph that has the name would be lost.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{option} {printable(str(path))}: must end in .png")
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {printable(str(path))}: something that is no file is there")
    if path.exists() and not _is_drawing(path):
        raise UsageError(
            f"{option} {printable(str(path))}: holds something else than a drawing; name another file"
        )


def _is_drawing(path: Path) -> bool:
    """Whether a file is empty or says that this program has drawn it."""
    try:
        with open_file(path) as file:
            start = file.read(_DRAWING_WITHIN)
    except OSError:
        return False
    return not start or _DRAWING in start


def free_beside(out: Path) -> str:
    """The end of a message, with a folder that does not exist yet: out/001 -> out/002, cats -> cats-2."""
    if out.name in ("", ".."):
        return ""
    match = re.fullmatch(r"(.*?)([0-9]{1,9})", out.name, re.DOTALL)
    stem, digits = (match[1], match[2]) if match else (f"{out.name}-", "1")
    numbers = (out.with_name(f"{stem}{n:0{len(digits)}d}") for n in itertools.count(int(digits) + 1))
    free = next(path for path in numbers if not os.path.lexists(path))
    return f", --out {shlex.quote(str(free))} is free"
