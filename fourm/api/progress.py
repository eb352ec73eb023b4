"""A progress bar for notebooks and terminals; elsewhere nothing is shown."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fourm.runs.events import Detokenized, Event, Stepped

DELAY = 0.5  # seconds that work may take without a bar


class Bar:
    """Shows the events of a call, from `DELAY` after its start on; used as a context."""

    def __init__(self, is_wanted: bool, results: int) -> None:
        console = Console(stderr=True)
        is_seen = is_wanted and (console.is_jupyter or (console.is_terminal and not console.is_dumb_terminal))
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}")
        self._progress = (
            Progress(*columns, TimeElapsedColumn(), console=console, transient=True) if is_seen else None
        )
        self._began, self._results, self._done = time.monotonic(), results, 0.0

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None and self._progress.tasks:
            self._progress.stop()

    def show(self, event: Event) -> None:
        """Move the bar by an event."""
        if self._progress is None or not isinstance(event, Stepped | Detokenized):
            return
        if isinstance(event, Stepped):
            share, what = event.share, f"{event.target}: {event.done} of {event.total} tokens"
            is_last = event.step == event.steps - 1 and share >= 1
        else:
            share, what, is_last = 1.0, f"{event.target}: step {event.done} of {event.total}", False
        if time.monotonic() - self._began < DELAY:
            self._done += len(event.keys) if is_last else 0
            return
        if not self._progress.tasks:
            self._progress.add_task("generating", total=self._results, what="")
            self._progress.start()
        done = self._done + len(event.keys) * (share if isinstance(event, Stepped) else 0)
        self._progress.update(self._progress.task_ids[0], completed=done, what=what)
        self._done += len(event.keys) if is_last else 0
