"""A progress bar for notebooks and terminals; elsewhere nothing is shown."""

import html
import importlib
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fourm.output.record import FEATURES
from fourm.results.events import Detokenized, Event, Saved, Stepped

DELAY = 0.5  # seconds that work may take without a bar
PAUSE = 0.1  # seconds between two updates in a notebook


class Bar:
    """Shows the events of a call, from `DELAY` after its start on; used as a context."""

    def __init__(self, is_wanted: bool, results: int) -> None:
        self._screen = _screen_for(results) if is_wanted else None
        self._began, self._done = time.monotonic(), 0.0  # results of the batches that are decoded

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen is not None:
            self._screen.close()

    def show(self, event: Event) -> None:
        """Move the bar by an event."""
        if self._screen is None:
            return
        done, what = self._done, ""
        if isinstance(event, Stepped):
            done += len(event.keys) * event.share
            what = f"{event.target}: {event.done} of {event.total} tokens"
            if event.share >= 1:  # the last step of these samples
                self._done = done
        elif isinstance(event, Detokenized):
            what = f"{event.target}: step {event.done} of {event.total}"
        elif isinstance(event, Saved) and event.stage == FEATURES:
            done, what = done + 1, "features"
            self._done = done
        if what and time.monotonic() - self._began >= DELAY:
            self._screen.move(done, what)


class _Terminal:
    """A bar of rich, which disappears at the end."""

    def __init__(self, console: Console, total: int) -> None:
        columns = (
            TextColumn("generating"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
        )
        self._progress, self._total = Progress(*columns, console=console, transient=True), total

    def move(self, done: float, what: str) -> None:
        if not self._progress.tasks:
            self._progress.add_task("", total=self._total, what="")
            self._progress.start()
        self._progress.update(self._progress.task_ids[0], completed=done, what=what)

    def close(self) -> None:
        self._progress.stop()


class _Notebook:
    """A bar of HTML, which is emptied at the end."""

    def __init__(self, total: int) -> None:
        self._display: Any = importlib.import_module("IPython.display")  # is there, as this is a notebook
        self._handle: Any = None
        self._total, self._shown = total, 0.0

    def move(self, done: float, what: str) -> None:
        if time.monotonic() - self._shown < PAUSE:
            return
        self._shown = time.monotonic()
        text = f'<progress value="{done:.3f}" max="{self._total}"></progress> {html.escape(what)}'
        bar = self._display.HTML(text)
        if self._handle is None:
            self._handle = self._display.display(bar, display_id=True)
        else:
            self._handle.update(bar)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.update(self._display.HTML(""))


def _screen_for(total: int) -> _Terminal | _Notebook | None:
    """Where a bar can be seen: a notebook, a terminal, or None."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if type(shell).__name__ == "ZMQInteractiveShell":  # of notebooks; a terminal has another one
        return _Notebook(total)
    console = Console(stderr=True)
    return _Terminal(console, total) if console.is_terminal and not console.is_dumb_terminal else None
