"""Paths as users type them: addresses of other systems are refused before they become local folders."""

import itertools
import os
import re
import shlex
import unicodedata
from pathlib import Path

from fourm.errors import UsageError

# `s3://bucket/x`. A single letter is a drive (`C:/x`); `./s3://x` and `a:b` are names of files.
_SCHEME = re.compile(r"\s*([\w+.-]{2,}:)//")
_ENDS_LINES = ("Cc", "Zl", "Zp")  # Unicode categories of control characters and line separators


def scheme_problem(text: str) -> str:
    """What is wrong with a path that is an address (`s3://bucket/x`); "" for all other text."""
    scheme = _SCHEME.match(text)
    return f"{scheme[1]}// is not supported; give a path on this machine" if scheme else ""


def local_path(text: str | os.PathLike[str]) -> Path:
    """The path that an option or argument names. UsageError for an address, and for no text at all.

    An unset variable in a script is no name of the working folder.
    """
    if not os.fspath(text):
        raise UsageError("the name of a file or folder is empty")
    return Path(local_name(os.fspath(text)))


def local_name(text: str) -> str:
    """The text of an option or argument that may name a path. UsageError for an address."""
    if problem := scheme_problem(text):
        raise UsageError(f"{text.strip()}: {problem}")
    return text


def output_path(text: str | os.PathLike[str]) -> Path:
    """The path of a folder for results, which is printed as one line for the next command of a pipe."""
    path = local_path(text)
    if str(path).isspace():
        raise UsageError("the name of an output folder is blank")
    if any(unicodedata.category(character) in _ENDS_LINES for character in str(path)):
        raise UsageError(f"{path}: the name of an output folder holds no line ends or control characters")
    return path


def free_beside(out: Path) -> str:
    """Half a sentence with a folder that is not there yet: out/001 -> out/002, cats -> cats-2."""
    if out.name in ("", ".."):
        return ""
    match = re.fullmatch(r"(.*?)([0-9]{1,9})", out.name, re.DOTALL)
    stem, digits = (match[1], match[2]) if match else (f"{out.name}-", "1")
    numbers = (out.with_name(f"{stem}{n:0{len(digits)}d}") for n in itertools.count(int(digits) + 1))
    free = next(path for path in numbers if not os.path.lexists(path))
    return f", --out {shlex.quote(str(free))} is free"
