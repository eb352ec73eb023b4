"""What people see of a download: a bar for each file, or plain lines; with `console` alone in using Rich."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fourm.errors import printable
from fourm.hub.download import Job
from fourm.hub.remote import Advanced, Fetched, Transfer, Waiting
from fourm_cli.console import PLAIN_LINE_SECONDS, REFRESH, duration, size_text

WINDOW = 8.0  # seconds over which the speed is taken
NAME_WIDTH = 34  # columns for the name of a file


@dataclass(slots=True)
class Transfers:
    """Where a download stands: the running job, how far its files are, how fast it goes."""

    clock: Callable[[], float] = time.monotonic
    sizes: dict[str, int] = field(default_factory=dict)  # bytes by file of the running job
    done: dict[str, int] = field(default_factory=dict)  # bytes on disk
    checking: dict[str, int] = field(default_factory=dict)  # bytes read again
    waiting: str = ""
    arrived: int = 0  # bytes since the beginning
    recent: deque[tuple[float, int]] = field(default_factory=deque)  # clock, arrived
    left_later: int = 0  # bytes of jobs that are still to come

    def begin(self, job: Job) -> None:
        """Go over to a job."""
        self.waiting = ""
        self.sizes = {file.remote.name: file.remote.size for file in job.files}
        self.done = {file.remote.name: file.done for file in job.files}
        self.checking = {}
        self.left_later = max(0, self.left_later - job.to_fetch)

    def take(self, event: Transfer) -> None:
        """Add one event."""
        if isinstance(event, Waiting):
            self.waiting = waiting_line(event)
            return
        self.waiting = ""
        if event.name not in self.sizes:  # outside a job, where files are only checked: one after the other
            self.sizes = {event.name: event.size}
        if isinstance(event, Fetched):
            self.checking.pop(event.name, None)
            self.done[event.name] = event.size
        elif event.is_check:
            self.checking[event.name] = event.done
        else:
            self.checking.pop(event.name, None)
            self.arrived += max(0, event.done - self.done.get(event.name, 0))
            self.done[event.name] = event.done
        now = self.clock()
        self.recent.append((now, self.arrived))
        while self.recent[0][0] < now - WINDOW:
            self.recent.popleft()

    @property
    def speed(self) -> float:
        """Bytes per second of the last seconds; 0 while it is not known."""
        if len(self.recent) < 2 or self.recent[-1][0] == self.recent[0][0]:
            return 0.0
        return (self.recent[-1][1] - self.recent[0][1]) / (self.recent[-1][0] - self.recent[0][0])

    @property
    def seconds_left(self) -> float | None:
        """Until all jobs are done, at this speed."""
        missing = self.left_later + sum(size - self.done.get(name, 0) for name, size in self.sizes.items())
        return missing / self.speed if self.speed and missing else None


@contextmanager
def display(state: Transfers, quiet: bool) -> Iterator[Callable[[Transfer], None]]:
    """A function that shows the events of a job: bars on a terminal, else a plain line every few seconds."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if quiet:
        yield state.take
    elif sys.stderr.isatty() and not console.is_dumb_terminal:
        with Live(
            get_renderable=lambda: picture(state), console=console, refresh_per_second=REFRESH, transient=True
        ):

            def show(event: Transfer) -> None:
                state.take(event)
                if isinstance(event, Fetched) and event.is_new:
                    console.print(Text(done_line(event)))

            yield show
    else:
        spoken = state.clock()

        def say(event: Transfer) -> None:
            nonlocal spoken
            state.take(event)
            if isinstance(event, Fetched) and event.is_new:
                console.print(Text(done_line(event)))
            elif isinstance(event, Waiting):
                console.print(Text(waiting_line(event)))
            elif isinstance(event, Advanced) and state.clock() - spoken >= PLAIN_LINE_SECONDS:
                console.print(Text(progress_line(state, event)))
            else:
                return
            spoken = state.clock()

        yield say


def picture(state: Transfers) -> RenderableType:
    """A bar for each file of the running job, then speed and time left."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, max_width=NAME_WIDTH, overflow="ellipsis")
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True, justify="right", min_width=17)
    grid.add_column(no_wrap=True, justify="right", min_width=10)
    grid.add_column(no_wrap=True, justify="right", min_width=14)
    for name, size in state.sizes.items():
        done, checked = state.done.get(name, 0), state.checking.get(name)
        is_running = 0 < done < size
        amount = size_text(size) if done in (0, size) else f"{size_text(done)} / {size_text(size)}"
        left = state.seconds_left
        grid.add_row(
            printable(name),
            ProgressBar(total=max(size, 1), completed=done if checked is None else checked),
            "checking" if checked is not None else amount,
            f"{size_text(round(state.speed))}/s" if is_running and state.speed else "",
            f"{duration(left)} left" if is_running and left is not None else "",
        )
    return Group(grid, Text(state.waiting, style="dim", no_wrap=True, overflow="ellipsis"))


def headline(job: Job) -> str:
    """What a job is about to do, its size first."""
    count = f"{len(job.files)} files" if len(job.files) > 1 else "1 file"
    at = f" at {job.revision[:7]}" if job.revision else ""
    if not job.to_fetch:
        return f"{job.wanted.name}{at}: {count}, {size_text(job.num_bytes)}, here already"
    rest = "" if job.to_fetch == job.num_bytes else f" of {size_text(job.num_bytes)}"
    return f"{job.wanted.name}{at}: {count}, {size_text(job.to_fetch)}{rest} to fetch"


def progress_line(state: Transfers, event: Advanced) -> str:
    """One plain line about a file that is on its way."""
    amount = f"{event.name}: {size_text(event.done)} of {size_text(event.size)}"
    if event.is_check:
        return f"{printable(amount)} checked"
    speed = f", {size_text(round(state.speed))}/s" if state.speed else ""
    left = "" if state.seconds_left is None else f", {duration(state.seconds_left)} left"
    return printable(amount) + speed + left


def done_line(event: Fetched) -> str:
    """One plain line about a file that has come."""
    return f"{printable(event.name)}: {size_text(event.size)}, checksum right"


def waiting_line(event: Waiting) -> str:
    """One plain line about something that is tried again."""
    return f"{printable(event.name)}: {printable(event.reason)}; next try in {duration(event.seconds)}"
