"""What `fourm download` does and shows: tables, notes, and a bar or plain lines for each file on its way."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fourm.errors import VerificationError, printable
from fourm.hub.catalogue import CATALOGUE, GROUPS
from fourm.hub.download import Download, Verified, Wanted, check_room, fetch, plan_downloads, verify_cached
from fourm.hub.remote import Advanced, Client, Fetched, Transfer, Waiting
from fourm.hub.transfer import KEPT
from fourm_cli.console import (
    PLAIN_LINE_SECONDS,
    REFRESH,
    duration,
    note,
    print_json,
    print_path,
    print_table,
    quiet_library,
    size_text,
)

CLIENT = Client()  # how often to try and how long to wait
SHOWN = 5  # files that are named in an error
WINDOW = 8.0  # seconds over which the speed is taken
NAME_WIDTH = 34  # columns for the name of a file


def fetch_all(wanted: Sequence[Wanted], as_json: bool, quiet: bool) -> None:
    """Fetch, and print the path of each or all as JSON."""
    jobs = _plan(wanted, quiet)
    quiet_library(quiet)
    if not quiet:
        for line in _licences(jobs):
            note(line)
        if len(jobs) > 1:
            note(f"{len(jobs)} downloads, {size_text(sum(job.to_fetch for job in jobs))} to fetch")
    check_room(jobs)
    state = Transfers(left_later=sum(job.to_fetch for job in jobs))
    for job in jobs:
        if not quiet:
            note(headline(job))
        state.begin(job)
        with display(state, quiet) as report:
            path = fetch(job, replace(CLIENT, report=report))
        if not as_json:
            print_path(path)
            sys.stdout.flush()
    if as_json:
        print_json([job.to_json() | {"fetched": job.to_fetch} for job in jobs])


def print_plan(wanted: Sequence[Wanted], as_json: bool, quiet: bool) -> None:
    """Print files and sizes, and fetch nothing."""
    jobs = _plan(wanted, quiet, is_estimate=True)
    if as_json:
        print_json([job.to_json() for job in jobs])
        return
    rows = [
        (job.wanted.entry.name, file.remote.name, size_text(file.remote.size),
         size_text(file.to_fetch) if file.to_fetch else "", job.revision[:7])
        for job in jobs for file in job.files
    ]  # fmt: skip
    print_table(("name", "file", "size", "to fetch", "revision"), rows, numbers=("size", "to fetch"))
    for line in _licences(jobs):
        note(line)
    if reason := next((job.unconfirmed for job in jobs if job.unconfirmed), ""):
        note(f"{reason}; sizes are those on record here, or of the catalogue: of the largest file")
    complete, missing = sum(job.num_bytes for job in jobs), sum(job.to_fetch for job in jobs)
    note(f"{size_text(missing)} of {size_text(complete)} to fetch; nothing was fetched")


def print_names(as_json: bool) -> None:
    """Print all names that can be fetched."""
    entries = CATALOGUE.values()
    if as_json:
        rows = [{"name": e.name, "hub_id": e.hub_id, "kind": e.kind.value, "title": e.title,
                 "bytes": e.num_bytes, "licence": e.licence.name} for e in entries]  # fmt: skip
        print_json({"names": rows, "groups": {group: list(names) for group, names in GROUPS.items()}})
        return
    table = [(e.name, e.title, size_text(e.num_bytes), e.licence.name) for e in entries]
    print_table(("name", "what", "size", "licence"), table, numbers=("size",))
    note("groups: " + ", ".join(f"{group} (all {len(names)})" for group, names in GROUPS.items()))


def verify_all(hub_ids: Sequence[str] | None, as_json: bool, quiet: bool) -> None:
    """Compare what is here with the record; VerificationError names what is not right."""
    with display(Transfers(), quiet) as report:
        found = verify_cached(hub_ids, replace(CLIENT, report=report))
    if as_json:
        print_json([one.to_json() for one in found])
    elif found:
        rows = [(one.name, one.file, one.problem or "right") for one in found]
        print_table(("name", "file", "checksum"), rows)
    elif not quiet:
        note("nothing is on record; `fourm download` fetches, checks and records")
    if wrong := [one for one in found if one.problem]:
        shown = ", ".join(f"{one.path} is {_told(one)}" for one in wrong[:SHOWN])
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        names = " ".join(dict.fromkeys(one.name for one in wrong))
        raise VerificationError(f"{shown}{more}; `fourm download {names}` fetches what is missing")


def _plan(wanted: Sequence[Wanted], quiet: bool, is_estimate: bool = False) -> tuple[Download, ...]:
    def report(event: Transfer) -> None:
        if not quiet and isinstance(event, Waiting):
            note(waiting_line(event))

    client = replace(CLIENT, report=report, tries=1 if is_estimate else CLIENT.tries)
    return plan_downloads(wanted, client, is_estimate)


def _licences(jobs: Iterable[Download]) -> list[str]:
    """The terms of what is fetched for the first time, each once with the names that they are for."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        if job.licence is not None:
            names.setdefault(job.licence.sentence.removeprefix("weights: "), []).append(job.wanted.entry.name)
    return [f"terms of {', '.join(those)}: {sentence}" for sentence, those in names.items()]


def _told(one: Verified) -> str:
    return f"damaged ({KEPT})" if one.problem == "damaged" and not one.removed else one.problem


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

    def begin(self, job: Download) -> None:
        """Go over to a job."""
        self.waiting, self.checking = "", {}
        self.sizes = {file.remote.name: file.remote.size for file in job.files}
        self.done = {file.remote.name: file.done for file in job.files}
        self.left_later = max(0, self.left_later - job.to_fetch)

    def take(self, event: Transfer) -> None:
        """Add one event."""
        self.waiting = waiting_line(event) if isinstance(event, Waiting) else ""
        if isinstance(event, Waiting):
            return
        if event.name not in self.sizes:  # outside a job, where files are only checked: one after the other
            self.sizes = {event.name: event.size}
        if isinstance(event, Advanced) and event.is_check:
            self.checking[event.name] = event.done
        else:
            done = event.size if isinstance(event, Fetched) else event.done
            if isinstance(event, Advanced):
                self.arrived += max(0, done - self.done.get(event.name, 0))
            self.checking.pop(event.name, None)
            self.done[event.name] = done
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
    has_bars = not quiet and sys.stderr.isatty() and not console.is_dumb_terminal
    spoken = state.clock()

    def show(event: Transfer) -> None:
        nonlocal spoken
        state.take(event)
        line = ""
        if isinstance(event, Fetched):
            line = f"{event.name}: {size_text(event.size)}, checksum right" if event.is_new else ""
        elif isinstance(event, Waiting):
            line = "" if has_bars else waiting_line(event)
        elif not has_bars and state.clock() - spoken >= PLAIN_LINE_SECONDS:
            line = progress_line(state, event)
        if line and not quiet:
            console.print(Text(printable(line)))
            spoken = state.clock()

    live = Live(
        get_renderable=lambda: picture(state), console=console, refresh_per_second=REFRESH, transient=True
    )
    with live if has_bars else nullcontext():
        yield show


def picture(state: Transfers) -> RenderableType:
    """A bar for each file of the running job, then speed and time left."""
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, max_width=NAME_WIDTH, overflow="ellipsis")
    grid.add_column(ratio=1)
    for width in (17, 10, 14):
        grid.add_column(no_wrap=True, justify="right", min_width=width)
    speed, left = state.speed, state.seconds_left
    for name, size in state.sizes.items():
        done, checked = state.done.get(name, 0), state.checking.get(name)
        is_running = 0 < done < size
        amount = f"{size_text(done)} / {size_text(size)}" if is_running else size_text(size)
        grid.add_row(
            printable(name),
            ProgressBar(total=max(size, 1), completed=done if checked is None else checked),
            "checking" if checked is not None else amount,
            f"{size_text(round(speed))}/s" if is_running and speed else "",
            f"{duration(left)} left" if is_running and left is not None else "",
        )
    return Group(grid, Text(state.waiting, style="dim", no_wrap=True, overflow="ellipsis"))


def headline(job: Download) -> str:
    """What a job is about to do, its size first."""
    count = f"{len(job.files)} files" if len(job.files) > 1 else "1 file"
    at = f" at {job.revision[:7]}" if job.revision else ""
    if not job.to_fetch:
        return f"{job.wanted.entry.name}{at}: {count}, {size_text(job.num_bytes)}, here already"
    rest = "" if job.to_fetch == job.num_bytes else f" of {size_text(job.num_bytes)}"
    return f"{job.wanted.entry.name}{at}: {count}, {size_text(job.to_fetch)}{rest} to fetch"


def progress_line(state: Transfers, event: Advanced) -> str:
    """One plain line about a file that is on its way."""
    amount = f"{event.name}: {size_text(event.done)} of {size_text(event.size)}"
    if event.is_check:
        return f"{amount} checked"
    speed = f", {size_text(round(state.speed))}/s" if state.speed else ""
    left = "" if state.seconds_left is None else f", {duration(state.seconds_left)} left"
    return amount + speed + left


def waiting_line(event: Waiting) -> str:
    """One plain line about something that is tried again."""
    return f"{printable(event.name)}: {printable(event.reason)}; next try in {duration(event.seconds)}"
