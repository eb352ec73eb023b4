"""How the progress of a run is shown: bars or plain lines on stderr, and a log of its events."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from fourm.errors import FourMError, UsageError, printable
from fourm.files.opening import open_file, open_text
from fourm.output.record import FEATURES
from fourm.results.events import (
    Detokenized,
    Event,
    Failed,
    Finished,
    Halved,
    Loading,
    Lost,
    Malformed,
    Noted,
    Saved,
    Started,
    Stepped,
)
from fourm_cli.console import PLAIN_LINE_SECONDS, REFRESH, Clock, Screen, counted, duration

FAILURES_SHOWN = 20  # failed samples that are printed; failures.jsonl lists all
NOT_STARTED = Started(total=0, skipped=0, batch_size=1, model="", device="", steps=1)
_LOG_LINE = re.compile(  # how each line of a log begins; logs of other programs have other events
    rb'\{"event": "(started|loading|step|halved|detokenized|saved|noted|malformed|failed|lost|finished)", "'
)


@contextmanager
def open_log(path: Path) -> Iterator[TextIO]:
    """Open an empty log. An existing file is replaced only if it is a log."""
    try:
        file = open_text(path)
        if path.is_file():
            with open_file(path) as before:
                start = before.read(64)  # more than what the pattern can match
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


def show(events: Iterable[Event], quiet: bool, log: TextIO | None) -> Finished:
    """Show a run's events on stderr (live on a terminal, else as plain lines) and write them to the log."""
    screen, tally, last = Screen(quiet), Tally(), None
    bars = Live(
        get_renderable=lambda: live_display(tally), console=screen.console, refresh_per_second=REFRESH,
        transient=True,
    )  # fmt: skip
    try:
        with bars if screen.has_bars else nullcontext():
            interval = None if screen.has_bars else PLAIN_LINE_SECONDS
            for last in print_lines(events, tally, screen.say, interval):
                if log is not None:
                    _write(log, last)
    except BaseException as stop:
        if not isinstance(stop, Exception):  # a signal; its message ends with this note
            stop.add_note(tally.saved_text)
        raise
    if not isinstance(last, Finished):
        raise FourMError("the run ended without saying so; --resume goes on with it")
    screen.say(summary(last, tally))
    return last


def _write(log: TextIO, event: Event) -> None:
    try:
        print(json.dumps(event.to_json()), file=log, flush=True)
    except OSError as error:
        raise FourMError(f"--log-json {log.name}: cannot be written ({error.strerror})") from error


@dataclass(slots=True)
class Tally:
    """Running totals of one stream of events."""

    clock: Clock = time.monotonic
    begun: float = 0.0  # clock at the start of decoding
    start: Started = NOT_STARTED  # with no steps: a run that decodes nothing
    step: Stepped | Detokenized | None = None
    loading: str = "starting"
    counts: Counter[type[Event]] = field(default_factory=Counter)
    tokens: int = 0
    decoded: float = 0.0  # results; one that is being decoded counts as the fraction that is done
    ended: float = 0.0  # results whose last step is done
    decoding_seconds: float = 0.0  # inside decoding steps
    evaluations: int = 0  # diffusion steps times the samples of each
    detokenizing_seconds: float = 0.0  # inside diffusion steps

    def take(self, event: Event) -> None:
        """Add one event."""
        self.counts[type(event)] += 1
        match event:
            case Started():
                self.start, self.begun, self.loading = event, self.clock(), ""
            case Loading(what):
                self.loading = f"loading {what}"
            case Stepped():
                self.loading, self.step = "", event
                if self.counts[Stepped] == 1:
                    self.begun = self.clock() - event.seconds
                self.tokens += event.fixed
                self.decoding_seconds += event.seconds
                # A text has an event for each token. A batch may be saved during the next one.
                count = len(event.keys) / (self.start.best_of / self.start.variations or 1)
                self.decoded = max(self.done, self.ended) + count * event.share
                is_over = event.fixed == 0 or event.scheme != "autoregressive"
                self.ended += count if is_over and event.step + 1 == event.steps else 0
            case Detokenized():
                self.step = event
                self.evaluations += len(event.keys)
                self.detokenizing_seconds += event.seconds
            case Saved():
                self.loading = ""
            case Lost():
                self.counts.subtract({Saved: event.saved, Failed: event.failed})

    @property
    def done(self) -> int:
        """Results that were saved or have failed."""
        return self.counts[Saved] + self.counts[Failed]

    @property
    def todo(self) -> int:
        """Results (samples times variations) that this run has to make."""
        return max(self.start.total - self.start.skipped, 0)

    @property
    def made_text(self) -> str:
        """`3/20 samples`; `3 samples` where it is not known how many there are."""
        made = self.counts[Saved]
        return f"{made}/{self.todo} {self.unit}s" if self.start.total else counted(made, self.unit)

    @property
    def by_result(self) -> bool:
        """Whether progress is told by results: of many workers, and where nothing is decoded."""
        return not self.start.steps or self.start.workers > 1

    @property
    def unit(self) -> str:
        """What is counted: "sample" if each has one result, else "result"."""
        return "sample" if self.start.variations == 1 else "result"

    @property
    def saved_text(self) -> str:
        """How many results are there, of how many: `3 of 20 samples are saved`; of shards, what stays."""
        if not (self.start.total or self.counts[Saved]):
            return "it had not begun to make anything"
        if self.start.shards:
            return "whole shards are saved, begun ones are made again"
        which = " of super-resolution" if self.start.stage == "sr" else ""
        there = self.start.skipped + self.counts[Saved]
        of = f" of {self.start.total}" if self.start.total else ""
        return f"{there}{of} {self.unit}s{which} are saved"

    @property
    def rate_text(self) -> str:
        """`1200 tokens/s`: tokens fixed per second of decoding."""
        return f"{self.tokens / self.decoding_seconds if self.decoding_seconds else 0.0:.0f} tokens/s"

    @property
    def seconds_left(self) -> float | None:
        """An estimate from the work that is done, decoding and diffusion apart; None before the first."""
        if self.by_result and self.done and self.start.total:
            return (self.clock() - self.begun) * (self.todo - self.done) / self.done
        if (
            not self.start.total
            or not self.counts[Stepped]
            or (self.start.evaluations and not self.evaluations)
        ):
            return None
        whole = self.todo * self.decoding_seconds / self.decoded if self.decoded else 0.0
        if self.evaluations:
            whole += self.todo * self.start.evaluations * self.detokenizing_seconds / self.evaluations
        share = min((self.decoding_seconds + self.detokenizing_seconds) / whole, 1.0) if whole else 1.0
        return (self.clock() - self.begun) * (1 - share) / share


def print_lines(
    events: Iterable[Event], tally: Tally, say: Callable[[str], None], interval: float | None
) -> Iterator[Event]:
    """Pass events on; print failures at once and, unless None, progress every `interval` seconds."""
    printed = -float("inf")  # clock at the last line of progress
    for event in events:
        tally.take(event)
        if isinstance(event, Failed | Malformed | Noted):
            if (count := tally.counts[type(event)]) <= FAILURES_SHOWN:
                is_last = isinstance(event, Failed) and count == FAILURES_SHOWN
                say(_problem(event) + ("; more failures are only counted here" if is_last else ""))
        elif isinstance(event, Lost):
            say(f"shard {event.shard} is made again: {event.reason}")
        elif isinstance(event, Halved):
            rows = f"{event.rows} samples are" if event.rows > 1 else "one sample is"
            say(f"note: memory ran out on {event.device}; from here on {rows} worked on together")
        elif isinstance(event, Started):
            for sentence in event.damaged:
                say(f"note: {sentence}")
            say(headline(event))
        elif interval is None or isinstance(event, Finished):
            pass
        elif isinstance(event, Loading):
            say(tally.loading)
        elif (not isinstance(event, Saved) or tally.by_result) and tally.clock() - printed >= interval:
            printed = tally.clock()
            say(progress_line(tally, event))
        yield event


def headline(start: Started) -> str:
    """The line at the start of a run: samples, model, device, dtype, batch size."""
    unit = f"results, {start.variations} variations each"
    what = f"{start.total} {unit}" if start.variations > 1 else counted(start.total, "sample")
    what += f", the best of {start.best_of}" if start.best_of else ""
    done = f"{start.skipped}"
    if start.shards and not start.total:
        what, done = counted(start.shards, "shard"), counted(start.skipped, "sample")
    what = f"super-resolution of {what}" if start.stage == "sr" else what
    skipped = f", {done} already complete" if start.skipped else ""
    steps = f"{counted(start.steps, 'decoding step')}, " if start.steps else ""
    where = f"{start.device} in {start.dtype}" if start.dtype else start.device
    workers = f", {start.workers} workers" if start.workers > 1 else ""
    return f"{what}{skipped}; model {start.model} on {where}, {steps}batches of {start.batch_size}{workers}"


def progress_line(tally: Tally, event: Stepped | Detokenized | Saved) -> str:
    """A line of progress after an event."""
    what, left = "", tally.seconds_left
    if isinstance(event, Stepped):
        tokens = f"{event.done}/{event.total} tokens, {tally.rate_text}"
        what = f"; {event.target} step {event.step + 1}/{event.steps}, {tokens}"
    elif isinstance(event, Detokenized):
        what = f"; {event.target} to values, step {event.done}/{event.total}"
    time_left = "" if left is None else f", {duration(left)} left"
    return f"{tally.made_text}{what}{time_left}"


def summary(end: Finished, tally: Tally) -> str:
    """The line at the end of a run."""
    malformed, noted = tally.counts[Malformed], tally.counts[Noted]
    where = "done/" if tally.start.shards else "failures.jsonl"
    verb = "generated" if tally.start.steps else "tokenized"
    verb = "embedded" if tally.start.stage == FEATURES else verb
    parts = (
        f"{counted(end.saved, tally.unit)} {verb}",
        f"{end.skipped} already complete" if end.skipped else "",
        f"{end.failed} failed (see {where})" if end.failed else "",
        f"{counted(end.incomplete, 'sample')} left out (see {where})" if end.incomplete else "",
        f"{counted(malformed, 'malformed text')} kept (see malformed/)" if malformed else "",
        f"{counted(noted, 'condition')} read in part" if noted else "",
    )
    rate = f", {tally.rate_text}" if tally.tokens else ""
    return f"{', '.join(filter(None, parts))} in {duration(end.seconds)}{rate}"


def live_display(tally: Tally) -> RenderableType:
    """The live display: bars for the samples and the steps of the current batch, and a line of details."""
    right = [Column(no_wrap=True, justify="right", min_width=width) for width in (13, 14)]
    columns = (Column(no_wrap=True, min_width=12), Column(ratio=1), *right)
    grid = Table.grid(*columns, padding=(0, 2, 0, 0), expand=True)
    left, step, facts = tally.seconds_left, tally.step, ["writing files"]
    rows = [(f"{tally.unit}s", tally.done, tally.todo, "", "" if left is None else f"{duration(left)} left")]
    if isinstance(step, Stepped):
        rows.append((step.target, step.step + 1, step.steps, "step ", f"{step.done}/{step.total} tokens"))
        guidance = [f"guidance {step.guidance:g}"] if step.guidance != 1 else []
        facts = [step.scheme, f"temperature {step.temperature:.2f}", *guidance, tally.rate_text]
    elif step is not None:
        rows.append((step.target, step.done, step.total, "step ", "tokens to values"))
        facts = ["diffusion", f"{step.seconds:.2f} s per step"]
    elif tally.by_result:
        passed = tally.clock() - tally.begun
        facts = [f"{tally.counts[Saved] / passed:.0f} samples/s" if passed > 0 else "begins"]
    for name, done, total, what, more in rows:
        bar = ProgressBar(total=max(total, 1), completed=done, pulse=total == 0)
        grid.add_row(printable(name), bar, f"{what}{done}/{total}" if total else f"{done}", more)
    facts = [tally.loading] if tally.loading else facts
    facts += [f"{tally.counts[Failed]} failed"] if tally.counts[Failed] else []
    return Group(grid, Text(", ".join(facts), style="dim", no_wrap=True, overflow="ellipsis"))


def _problem(event: Failed | Malformed | Noted) -> str:
    key = printable(event.key)
    if isinstance(event, Noted):
        return f"note: {key}: {event.condition}: {printable('; '.join(event.notes))}"
    key += f" variation {event.variation}" if event.variation else ""
    if isinstance(event, Failed):
        return f"failed: {key}: {printable(event.reason)}"
    return f"malformed: {key}: {event.target}: {event.problems[0]}"
