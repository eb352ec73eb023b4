"""What users and programs see: results on stdout, notes and lines of progress on stderr."""

import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fourm.errors import as_addresses, printable

Clock = Callable[[], float]  # seconds
PLAIN_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
REFRESH = 8.0  # updates of a live display per second
WIDE = 1000  # characters per line of a table in a file or pipe
_SETTING = re.compile(r"`([a-z][a-z_]*)(?:=([^`]*))?`")  # in a message of the library


def print_path(path: str | Path) -> None:
    """Print a path, or what it is a copy of, as one line on stdout: its bytes, whatever the encoding."""
    sys.stdout.flush()
    sys.stdout.buffer.write(os.fsencode(as_addresses(str(path))) + os.linesep.encode())


def print_json(value: object) -> None:
    """Print data for a program to stdout."""
    print(as_addresses(json.dumps(value, indent=2)))


def print_stages(said: Sequence[Mapping[str, object]], **more: object) -> None:
    """Print data of a run to stdout, with that of super-resolution, where there is one, under `sr`."""
    print_json({**more, **said[0], **({"sr": said[1]} if said[1:] else {})})


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table to stdout, columns in `numbers` right-aligned. Lines in a file or pipe never wrap."""
    table, is_terminal = Table(box=None, pad_edge=False, header_style="bold"), sys.stdout.isatty()
    for index, column in enumerate(columns):
        # On a narrow terminal all columns but the first, which names the row, are wrapped.
        table.add_column(column, no_wrap=index == 0 or not is_terminal, overflow="fold")
        table.columns[-1].justify = "right" if column in numbers else "left"
    for row in rows:
        table.add_row(*(Text(printable(as_addresses(cell))) for cell in row))
    Console(highlight=False, width=None if is_terminal else WIDE).print(table)


def as_typed(text: str) -> str:
    """A message of the library with its settings as options: `batch_size=4` becomes --batch-size 4."""
    return _SETTING.sub(_as_option, as_addresses(text))


def _as_option(setting: re.Match[str]) -> str:
    flag, value = setting[1].replace("_", "-"), setting[2]
    if value in (None, "True", "False"):
        return f"--no-{flag}" if value == "False" else f"--{flag}"
    return f"--{flag} {shlex.quote(value)}"


def note(text: str) -> None:
    """Print a note to stderr."""
    print(printable(as_typed(text)), file=sys.stderr)


def counted(number: int, thing: str) -> str:
    """`1 sample`, `1,200 samples`."""
    return f"{number:,} {thing if number == 1 else f'{thing}s'}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3:07 min`, `2:03:07 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def size_text(num_bytes: int) -> str:
    """`1.15 GB`, in units of 1000."""
    size, units = float(num_bytes), ["TB", "GB", "MB", "kB", "B"]
    while size >= 999.5 and len(units) > 1:
        size, _ = size / 1000, units.pop()
    return f"{size:.3g} {units[-1]}"


class Screen:
    """What a command says on stderr while it works: with bars on a terminal, else a line now and then."""

    def __init__(self, quiet: bool = False, clock: Clock = time.monotonic) -> None:
        # Lines of a terminal are broken between words; those of a file or pipe are not.
        self.console = Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())
        self.has_bars = not quiet and sys.stderr.isatty() and not self.console.is_dumb_terminal
        self.is_quiet, self.clock, self.last_line = quiet, clock, clock()

    def say(self, text: str) -> None:
        """Print a line, above the bars if there are some."""
        self.last_line = self.clock()
        if not self.is_quiet:
            self.console.print(Text(printable(as_typed(text))))

    def say_progress(self, text: str) -> None:
        """Print a line, unless the last one was a moment ago."""
        if self.clock() - self.last_line >= PLAIN_LINE_SECONDS:
            self.say(text)


def quiet_library(is_quiet: bool) -> None:
    """Turn the library's own warnings on stderr (no file locks) off, or on."""
    logging.getLogger("fourm").setLevel(logging.CRITICAL if is_quiet else logging.WARNING)
