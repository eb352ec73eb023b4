"""Standard streams that accept any text and whose errors do not end a run; paths are printed as bytes."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

MAX_COLUMNS_DIGITS = 4  # a terminal has at most 9,999 columns


def prepare_streams() -> None:
    """Make the standard streams robust.

    A closed stream (`<&-`) is replaced by /dev/null. Characters that the encoding does not have are escaped.
    A run does not end when progress cannot be written, nor when the reader of a pipe ends (`| head`).
    """
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and len(columns) > MAX_COLUMNS_DIGITS:
        del os.environ["COLUMNS"]  # Rich would fill lines of that width with blanks
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open until the process ends
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")
    sys.stderr = cast(TextIO, Forgiving(sys.stderr, OSError))
    sys.stdout = cast(TextIO, Forgiving(sys.stdout, BrokenPipeError))


def print_path(path: Path) -> None:
    """Print a path as one line on stdout: the bytes of the file name, whatever the stream's encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + os.linesep.encode())


class Forgiving:
    """A standard stream that ignores errors of one kind; the text that could not be written is lost."""

    def __init__(self, stream: TextIO, kind: type[OSError]) -> None:
        self._stream, self._kind = stream, kind

    def write(self, text: str) -> int:
        """Write the text, or nothing if that fails."""
        with self._ignored():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, or do nothing if that fails."""
        with self._ignored():
            self._stream.flush()

    @contextmanager
    def _ignored(self) -> Iterator[None]:
        try:
            yield
        except self._kind:
            # Python flushes the buffer at exit; without this, it would fail again there.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
