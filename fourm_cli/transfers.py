"""What `fourm download` does and shows: tables, notes, and a bar or plain lines for each file on its way."""

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

from rich.progress import BarColumn, Progress, Task, TextColumn
from rich.table import Column

from fourm.errors import VerificationError, printable
from fourm.hub.cache import KEPT, find_cached
from fourm.hub.catalogue import CATALOGUE, GROUPS, LICENCES, Entry
from fourm.hub.download import Download, check_room, fetch, plan_downloads, verify_cached
from fourm.hub.remote import Client, Transfer, Waiting
from fourm_cli import console
from fourm_cli.console import Clock, counted, note, print_json, print_path, print_table, size_text

CLIENT = Client()  # how often to try and how long to wait
SHOWN = 5  # files that are named in an error


def fetch_all(wanted: Sequence[Entry], as_json: bool, quiet: bool) -> None:
    """Fetch, and print the path of each or all as JSON."""
    state = Transfers(quiet)
    client, say = replace(CLIENT, report=state.take), state.screen.say
    jobs = plan_downloads(wanted, client)
    console.quiet_library(quiet)
    for line in _licences(jobs):
        say(line)
    state.left_later = sum(job.to_fetch for job in jobs)
    if len(jobs) > 1:
        say(f"{len(jobs)} downloads, {size_text(state.left_later)} to fetch")
    check_room(jobs)
    for job in jobs:
        say(headline(job))
        state.begin(job)
        with state.bars:
            path = fetch(job, client)
        if not as_json:
            print_path(path)
            sys.stdout.flush()
        if job.entry.sources and find_cached(job.entry) is None:
            say(f"they are pickled; `fourm convert weights {job.entry.name}` makes them safetensors")
    if as_json:
        print_json([job.to_json() | {"fetched": job.to_fetch} for job in jobs])


def print_plan(wanted: Sequence[Entry], as_json: bool, quiet: bool) -> None:
    """Print files and sizes, and fetch nothing."""
    jobs = plan_downloads(wanted, replace(CLIENT, report=Transfers(quiet).take, tries=1), is_estimate=True)
    if as_json:
        print_json([job.to_json() for job in jobs])
        return
    rows = [
        (job.entry.name, file.name, size_text(file.size),
         size_text(missing) if (missing := file.size - job.done[file.name]) else "", job.revision[:7])
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
        rows = [{"name": e.name, "hub_id": e.hub_id, "kind": e.kind, "title": e.title,
                 "bytes": e.num_bytes, "licence": e.licence} for e in entries]  # fmt: skip
        print_json({"names": rows, "groups": {group: list(names) for group, names in GROUPS.items()}})
        return
    table = [(e.name, e.title, size_text(e.num_bytes), e.licence) for e in entries]
    print_table(("name", "what", "size", "licence"), table, numbers=("size",))
    note("groups: " + ", ".join(f"{group} (all {len(names)})" for group, names in GROUPS.items()))


def verify_all(hub_ids: Sequence[str] | None, as_json: bool, quiet: bool) -> None:
    """Compare what is here with the record; VerificationError names what is not right."""
    state = Transfers(quiet)
    with state.bars:
        found = verify_cached(hub_ids, replace(CLIENT, report=state.take))
    if as_json:
        print_json([asdict(one) | {"path": str(one.path)} for one in found])
    elif found:
        rows = [(one.name, one.file, one.problem or "right") for one in found]
        print_table(("name", "file", "checksum"), rows)
    elif not quiet:
        note("nothing is on record; `fourm download` fetches, checks and records")
    if wrong := [one for one in found if one.problem]:
        told = ", ".join(
            f"{one.path} is damaged ({KEPT})" if one.problem == "damaged" and not one.removed
            else f"{one.path} is {one.problem}" for one in wrong[:SHOWN]
        )  # fmt: skip
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        names = " ".join(dict.fromkeys(one.name for one in wrong))
        raise VerificationError(f"{told}{more}; `fourm download {names}` fetches what is missing")


def _licences(jobs: Iterable[Download]) -> list[str]:
    """The terms of what is fetched for the first time, each once with the names that they are for."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        if job.licence is not None:
            names.setdefault(LICENCES[job.licence].removeprefix("weights: "), []).append(job.entry.name)
    return [f"terms of {', '.join(those)}: {sentence}" for sentence, those in names.items()]


class Transfers:
    """The files of the running download, how far they are and how fast they come: bars, or plain lines."""

    def __init__(self, quiet: bool = False, left_later: int = 0, clock: Clock = time.monotonic) -> None:
        self.screen = console.Screen(quiet, clock)
        self.left_later = left_later  # bytes of downloads that are still to come
        self.tasks = dict[str, Task]()
        texts = [
            TextColumn(f"{{task.fields[{field}]}}", markup=False, justify="right",
                       table_column=Column(no_wrap=True, min_width=width, justify="right"))
            for field, width in (("amount", 17), ("rest", 25))
        ]  # fmt: skip
        name = Column(no_wrap=True, max_width=34, overflow="ellipsis")
        self.bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=name), BarColumn(None), *texts,
            console=self.screen.console, expand=True, transient=True, refresh_per_second=console.REFRESH,
            speed_estimate_period=8.0, get_time=clock, disable=not self.screen.has_bars,
        )  # fmt: skip

    def begin(self, job: Download) -> None:
        """Go over to a download."""
        self._show([(file.name, file.size, job.done[file.name]) for file in job.files])
        self.left_later = max(0, self.left_later - job.to_fetch)

    def take(self, event: Transfer) -> None:
        """Show an event: a line for what came and for waits; progress as a bar, or as a line now and then."""
        if isinstance(event, Waiting):
            self.screen.say(f"{event.name}: {event.reason}; next try in {console.duration(event.seconds)}")
            return
        if event.name not in self.tasks:  # files are only checked: one after the other
            self._show([(event.name, event.size, 0)])
        task, size = self.tasks[event.name], size_text(event.size)
        if event.state in ("fetched", "present"):
            self.bars.update(task.id, completed=event.size, amount=size, rest="")
            if event.state == "fetched":
                self.screen.say(f"{event.name}: {size}, checksum right")
            return
        self.bars.update(task.id, completed=event.done)
        done, rest = size_text(event.done), "checking" if event.state == "checking" else ""
        if task.speed and event.done < event.size and not rest:
            missing = self.left_later + sum(one.remaining or 0 for one in self.bars.tasks)
            rest = f"{size_text(round(task.speed))}/s, {console.duration(missing / task.speed)} left"
        self.bars.update(task.id, amount=f"{done} / {size}", rest=rest)
        if not self.screen.has_bars:
            self.screen.say_progress(f"{event.name}: {done} of {size}{rest and ', '}{rest}")

    def _show(self, files: Iterable[tuple[str, int, int]]) -> None:
        """Let these files have the bars: names, sizes, and bytes that are here."""
        for task_id in self.bars.task_ids:
            self.bars.remove_task(task_id)
        self.tasks.clear()
        for name, size, done in files:
            self.bars.add_task(printable(name), total=size, completed=done, amount=size_text(size), rest="")
            self.tasks[name] = self.bars.tasks[-1]


def headline(job: Download) -> str:
    """What a job is about to do, its size first."""
    at = f" at {job.revision[:7]}" if job.revision else ""
    whole, missing = size_text(job.num_bytes), size_text(job.to_fetch)
    part = missing if job.to_fetch == job.num_bytes else f"{missing} of {whole}"
    state = f"{part} to fetch" if job.to_fetch else f"{whole}, here already"
    return f"{job.entry.name}{at}: {counted(len(job.files), 'file')}, {state}"
