"""Standard streams that take anything and end no run; paths on stdout as the bytes that they have on disk."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast


def prepare_streams() -> None:
    """Streams that take anything: empty ones for a process without (`<&-`), and no character that stops them.

    What an encoding lacks is escaped; paths are the bytes that they have on disk (`print_path`). Progress
    that cannot be written does not end a run, nor does a reader that went away (`| head`).
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it lives as long as the process
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    if isinstance(sys.stdout, io.TextIOWrapper):
        is_utf8 = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        sys.stdout.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")
    sys.stderr = cast(TextIO, Forgiving(sys.stderr, OSError))
    sys.stdout = cast(TextIO, Forgiving(sys.stdout, BrokenPipeError))


def print_path(path: Path) -> None:
    """A path on stdout, in a line of its own, as the bytes that it has on disk in any encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(path) + os.linesep.encode())


class Forgiving:
    """A standard stream on which an error of one kind is ignored, and what was to be written lost."""

    def __init__(self, stream: TextIO, kind: type[OSError]) -> None:
        self._stream, self._kind = stream, kind

    def write(self, text: str) -> int:
        """The text, or nothing."""
        with self._ignored():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """What was written so far, or nothing."""
        with self._ignored():
            self._stream.flush()

    @contextmanager
    def _ignored(self) -> Iterator[None]:
        try:
            yield
        except self._kind:
            # What is left in the buffer goes nowhere, or Python itself would fail at its end.
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
