"""Shows runs to users and programs: live bars, plain lines, JSON lines, tables."""

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fourm.data.opening import open_file, open_text
from fourm.errors import FourMError, ScheduleError, UsageError, one_line, printable
from fourm.runs.events import (
    Detokenized,
    Event,
    Failed,
    Finished,
    Halved,
    Loading,
    Malformed,
    Noted,
    Saved,
    Started,
    Stepped,
    event_to_json,
)
from fourm_cli.streams import print_path

PLAIN_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
REFRESH = 8.0  # updates of the live display per second
WIDE = 1000  # characters per line of a table in a file or pipe
FAILURES_SHOWN = 20  # failed samples that are printed; failures.jsonl lists all
# Of each line; other programs write logs of events too, whose names are others.
_LOG_LINE = re.compile(
    rb'\{"event": "(started|loading|step|halved|detokenized|saved|noted|malformed|failed|finished)", "'
)
_LOG_LINE_START = 64  # bytes, more than what the pattern can match


@dataclass(slots=True)
class Tally:
    """Running totals of one stream of events."""

    clock: Callable[[], float] = time.monotonic
    begun: float = 0.0  # clock at the start of decoding
    start: Started | None = None
    step: Stepped | Detokenized | None = None
    loading: str = "starting"
    saved: int = 0
    failed: int = 0
    malformed: int = 0
    noted: int = 0
    tokens: int = 0
    steps: int = 0  # events of decoding; an autoregressive target has one for each token
    decoded: float = 0.0  # results, and of those that are being decoded the share that is done
    decoding: float = 0.0  # seconds inside decoding steps
    evaluations: int = 0  # diffusion steps times the samples of each
    detokenizing: float = 0.0  # seconds inside diffusion steps

    def take(self, event: Event) -> None:
        """Add one event."""
        match event:
            case Started():
                self.start, self.begun, self.loading = event, self.clock(), ""
            case Loading(what):
                self.loading = f"loading {what}"
            case Stepped():
                self.loading, self.step = "", event
                self.begun = self.clock() - event.seconds if self.steps == 0 else self.begun
                self.steps += 1
                self.tokens += event.fixed
                self.decoding += event.seconds
                self.decoded = self.saved + self.failed + len(event.keys) * event.share
            case Detokenized():
                self.step = event
                self.evaluations += len(event.keys)
                self.detokenizing += event.seconds
            case Saved():
                self.loading = ""
                self.saved += 1
            case Failed():
                self.failed += 1
            case Malformed():
                self.malformed += 1
            case Noted():
                self.noted += 1
            case Finished():
                self.step = None

    @property
    def todo(self) -> int:
        """Results (samples times variations) that this run has to make."""
        return self.start.total - self.start.skipped if self.start else 0

    @property
    def counted(self) -> str:
        """The unit of the totals: "samples" if each has one result, else "results"."""
        return "samples" if self.start is None or self.start.variations == 1 else "results"

    @property
    def has_no_steps(self) -> bool:
        """True for a run that only turns values into tokens."""
        return self.start is not None and self.start.steps == 0

    @property
    def tokens_per_second(self) -> float:
        """Tokens fixed per second of decoding."""
        return self.tokens / self.decoding if self.decoding else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the work that is done, decoding and diffusion apart; None before the first."""
        if self.has_no_steps and (done := self.saved + self.failed):
            return (self.clock() - self.begun) * (self.todo - done) / done
        if not self.start or not self.steps:
            return None
        whole = self.todo * self.decoding / self.decoded if self.decoded else 0.0
        if self.start.evaluations:
            if not self.evaluations:
                return None
            whole += self.todo * self.start.evaluations * self.detokenizing / self.evaluations
        share = min((self.decoding + self.detokenizing) / whole, 1.0) if whole else 1.0
        return (self.clock() - self.begun) * (1 - share) / share


def show(events: Iterable[Event], quiet: bool, log: TextIO | None) -> Finished:
    """Show a run's events on stderr (live on a terminal, else as plain lines) and write them to the log."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    is_live = sys.stderr.isatty() and not console.is_dumb_terminal
    tally = Tally()

    def say(text: str) -> None:
        if not quiet:
            console.print(Text(text))

    stage = live_display(console, tally) if is_live and not quiet else nullcontext()
    last: Event | None = None
    with stage:
        for event in lines(logged(events, log), tally, say, interval=None if is_live else PLAIN_LINE_SECONDS):
            last = event
    if not isinstance(last, Finished):
        raise FourMError("the run ended without saying so; --resume goes on with it")
    say(summary(last, tally))
    return last


def lines(
    events: Iterable[Event], tally: Tally, say: Callable[[str], None], interval: float | None
) -> Iterator[Event]:
    """Pass events on; print failures at once and, unless None, progress every `interval` seconds."""
    printed = -float("inf")  # clock at the last line of progress
    for event in events:
        tally.take(event)
        if isinstance(event, Failed) and tally.failed <= FAILURES_SHOWN:
            more = "; more failures are only counted here" if tally.failed == FAILURES_SHOWN else ""
            say(f"failed: {printable(event.key)}{variation(event)}: {printable(event.reason)}{more}")
        elif isinstance(event, Malformed) and tally.malformed <= FAILURES_SHOWN:
            say(f"malformed: {printable(event.key)}{variation(event)}: {event.target}: {event.problems[0]}")
        elif isinstance(event, Noted) and tally.noted <= FAILURES_SHOWN:
            notes = printable("; ".join(event.notes))
            say(f"note: {printable(event.key)}: {event.condition}: {notes}")
        elif isinstance(event, Halved):
            rows = f"{event.rows} samples are" if event.rows > 1 else "one sample is"
            say(f"note: memory ran out on {event.device}; from here on {rows} worked on together")
        elif interval is not None and isinstance(event, Started):
            say(headline(event))
        elif interval is not None and isinstance(event, Loading):
            say(tally.loading)
        elif (
            interval is not None
            and (
                isinstance(event, Stepped | Detokenized) or (isinstance(event, Saved) and tally.has_no_steps)
            )
            and tally.clock() - printed >= interval
        ):
            printed = tally.clock()
            say(progress_line(tally, event))
        yield event


def logged(events: Iterable[Event], log: TextIO | None) -> Iterator[Event]:
    """Pass events on, writing each as one line of JSON."""
    for event in events:
        if log is not None:
            try:
                log.write(json.dumps(event_to_json(event)) + "\n")
                log.flush()
            except OSError as error:
                raise FourMError(f"--log-json {log.name}: cannot be written ({error.strerror})") from error
        yield event


@contextmanager
def open_log(path: Path | None) -> Iterator[TextIO | None]:
    """Open an empty log, or None without a path. An existing file is replaced only if it is a log."""
    if path is None:
        yield None
        return
    try:
        file = open_text(path)
        if path.is_file():
            with open_file(path) as before:
                start = before.read(_LOG_LINE_START)
                if start and not _LOG_LINE.match(start):
                    file.close()
                    raise UsageError(f"--log-json {path}: holds something else than a log; name another file")
            file.truncate(0)
    except OSError as error:
        raise UsageError(f"--log-json {path}: cannot be written ({error.strerror})") from error
    try:
        yield file
    finally:
        with suppress(OSError):  # the failed write was already reported
            file.close()


@contextmanager
def live_display(console: Console, tally: Tally) -> Iterator[None]:
    """Bars that follow the tally until the block ends."""
    with Live(
        get_renderable=lambda: picture(tally), console=console, refresh_per_second=REFRESH, transient=True
    ):
        yield


def picture(tally: Tally) -> RenderableType:
    """The live display: bars for the samples and the steps of the current batch, and a line of details."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, min_width=12)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right", min_width=13)
    grid.add_column(no_wrap=True, justify="right", min_width=14)
    done, left = tally.saved + tally.failed, tally.seconds_left
    time_left = "" if left is None else f"{duration(left)} left"
    grid.add_row(tally.counted, _bar(done, tally.todo), f"{done}/{tally.todo}", time_left)
    if isinstance(step := tally.step, Stepped):
        grid.add_row(
            printable(step.target),
            _bar(step.step + 1, step.steps),
            f"step {step.step + 1}/{step.steps}",
            f"{step.done}/{step.total} tokens",
        )
    elif step is not None:
        grid.add_row(
            printable(step.target),
            _bar(step.done, step.total),
            f"step {step.done}/{step.total}",
            "tokens to values",
        )
    return Group(grid, Text(_now(tally), style="dim", no_wrap=True, overflow="ellipsis"))


def headline(start: Started) -> str:
    """The line at the start of a run."""
    skipped = f", {start.skipped} already complete" if start.skipped else ""
    steps = f"{start.steps} decoding step{'' if start.steps == 1 else 's'}, " if start.steps else ""
    what = "super-resolution of " if start.stage == "sr" else ""
    return (
        f"{what}{_counted(start)}{skipped}; model {start.model} on {start.device}, "
        f"{steps}batches of {start.batch_size}"
    )


def _counted(start: Started) -> str:
    if start.variations > 1:
        return f"{start.total} results, {start.variations} variations of each sample"
    return f"{start.total} sample{'' if start.total == 1 else 's'}"


def progress_line(tally: Tally, event: Stepped | Detokenized | Saved) -> str:
    """A line of progress after an event."""
    what, left = "", tally.seconds_left
    if isinstance(event, Stepped):
        what = (
            f"; {event.target} step {event.step + 1}/{event.steps}, {event.done}/{event.total} tokens, "
            f"{tally.tokens_per_second:.0f} tokens/s"
        )
    elif isinstance(event, Detokenized):
        what = f"; {event.target} to values, step {event.done}/{event.total}"
    time_left = "" if left is None else f", {duration(left)} left"
    return f"{tally.saved}/{tally.todo} {tally.counted}{what}{time_left}"


def summary(end: Finished, tally: Tally) -> str:
    """The line at the end of a run."""
    unit = tally.counted.removesuffix("s") if end.saved == 1 else tally.counted
    parts = [f"{end.saved} {unit} {'tokenized' if tally.has_no_steps else 'generated'}"]
    parts += [f"{end.skipped} already complete"] if end.skipped else []
    parts += [f"{end.failed} failed (see failures.jsonl)"] if end.failed else []
    parts += (
        [f"{tally.malformed} malformed text{'' if tally.malformed == 1 else 's'} kept (see malformed/)"]
        if tally.malformed
        else []
    )
    parts += [f"{tally.noted} condition{'' if tally.noted == 1 else 's'} read in part"] if tally.noted else []
    rate = f", {tally.tokens_per_second:.0f} tokens/s" if tally.tokens else ""
    return f"{', '.join(parts)} in {duration(end.seconds)}{rate}"


def duration(seconds: float) -> str:
    """`4.2 s`, `3:07 min`, `2:03:07 h`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def variation(event: Failed | Malformed) -> str:
    """` variation 2`, or nothing for the first."""
    return f" variation {event.variation}" if event.variation else ""


def explain(error: FourMError) -> None:
    """Print an error to stderr, with one line for each problem."""
    problems = error.problems if isinstance(error, ScheduleError) else (str(error),)
    for problem in problems:
        print(f"fourm: {one_line(problem)}", file=sys.stderr)


def quiet_library(is_quiet: bool) -> None:
    """Turn the library's own warnings on stderr (no file locks) off, or on."""
    logging.getLogger("fourm").setLevel(logging.CRITICAL if is_quiet else logging.WARNING)


def note(text: str) -> None:
    """Print a note to stderr."""
    print(printable(text), file=sys.stderr)


def result(out: Path, ends: Sequence[Finished], as_json: bool) -> None:
    """Print the result of a run to stdout: its folder, or a record with --json."""
    if not as_json:
        print_path(out)
        return
    first, *others = ends
    print_json({"out": str(out), **_counts(first), **{end.stage: _counts(end) for end in others}})


def _counts(end: Finished) -> dict[str, object]:
    counts = {"saved": end.saved, "skipped": end.skipped, "failed": end.failed}
    return {**counts, "seconds": round(end.seconds, 3)}


def size_text(num_bytes: int) -> str:
    """`1.15 GB`, in units of 1000."""
    size, units = float(num_bytes), iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 999.5 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"


def print_json(value: object) -> None:
    """Print data for a program to stdout."""
    print(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table to stdout, columns in `numbers` right-aligned. Lines in a file or pipe never wrap."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        # On a narrow terminal all columns but the first, which names the row, are wrapped.
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            no_wrap=index == 0 or not sys.stdout.isatty(),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(table)


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(total, 1), completed=done, pulse=total == 0)


def _now(tally: Tally) -> str:
    """A line about the current activity."""
    failed = [f"{tally.failed} failed"] if tally.failed else []
    if tally.has_no_steps and not tally.loading:
        passed = tally.clock() - tally.begun
        return ", ".join([f"{tally.saved / passed:.0f} samples/s" if passed > 0 else "begins", *failed])
    if tally.loading or not (step := tally.step):
        return ", ".join([tally.loading or "writing files", *failed])
    if isinstance(step, Detokenized):
        return ", ".join(["diffusion", f"{step.seconds:.2f} s per step", *failed])
    guidance = [f"guidance {step.guidance:g}"] if step.guidance != 1 else []
    facts = [step.scheme, f"temperature {step.temperature:.2f}", *guidance]
    return ", ".join([*facts, f"{tally.tokens_per_second:.0f} tokens/s", *failed])
