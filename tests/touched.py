"""Plugins for pytest that `tests.mutate` uses: which test runs which function, and a choice of tests."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType

import pytest

SLOW = 10  # seconds, after which a test is given up, and not used
LONG = 75  # seconds of a file, after which its other tests are not used
STARTS = {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system"}


@dataclass
class Test:
    """What one test did."""

    file: str
    seconds: float
    passed: bool
    starts: bool  # another process, whose functions are not seen
    functions: list[str]  # `fourm/decoding/engine.py Engine.run`; those of the file's fixtures too


class Touched:
    """Notes what each test of a file runs below a folder."""

    def __init__(self, root: Path) -> None:
        self.tests, self._began = dict[str, Test](), time.perf_counter()
        self._root, self._codes, self._shared, self._starts = f"{root}/", set[CodeType](), set[str](), False
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGALRM, self._give_up)

    def _give_up(self, _: int, frame: FrameType | None) -> None:
        raise TimeoutError

    def _audit(self, event: str, _: object) -> None:
        self._starts = self._starts or event in STARTS

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        self._codes.add(frame.f_code)

    def _watched(self) -> Iterator[None]:
        self._codes.clear()
        threading.settrace(self._trace)
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)  # type: ignore[arg-type]  # as documented

    def _functions(self) -> set[str]:
        ours = [code for code in self._codes if code.co_filename.startswith(self._root)]
        return {
            f"{code.co_filename.removeprefix(self._root)} {code.co_qualname.split('.<locals>')[0]}"
            for code in ours
        }

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        """Fixtures may serve later tests, so their functions count for all of the file."""
        self._starts = False
        self.tests[item.nodeid] = Test(item.location[0], time.perf_counter(), False, False, [])
        yield from self._watched()
        self._shared |= self._functions()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """What the test itself runs; it has not passed where this raises."""
        test = self.tests[item.nodeid]
        signal.alarm(SLOW)
        try:
            yield from self._watched()
        finally:
            signal.alarm(0)
        test.functions, test.starts, test.passed = sorted(self._functions()), self._starts, True
        test.seconds = round(time.perf_counter() - test.seconds, 3)

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        """Stop where a file takes too long."""
        if time.perf_counter() - self._began > LONG:
            item.session.shouldstop = "enough is known"

    def pytest_sessionfinish(self) -> None:
        """Share what the fixtures ran."""
        for test in self.tests.values():
            test.functions = sorted({*test.functions, *self._shared})


class Chosen:
    """Runs only these tests, in this order."""

    def __init__(self, names: list[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out and sort."""
        here = [item for item in items if item.nodeid in self._places]
        items[:] = sorted(here, key=lambda item: self._places[item.nodeid])
