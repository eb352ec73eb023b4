"""Runs the parts one after the other, each in its own process and with a time limit."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Report, Row, Spent
from benchmarks.gpu.worker import run_part

FORK = multiprocessing.get_context("fork")  # modules imported here need not be imported again by every part
MINUTES = 6.0
# Name: the function that makes the cases, and the time limit in seconds; the most important first.
PARTS: Mapping[str, tuple[str, float]] = {
    "facts": ("benchmarks.gpu.facts:facts", 30.0),
    "tokens": ("benchmarks.gpu.tokens:tokens", 45.0),
    "tests": ("benchmarks.gpu.commands:marked", 75.0),
    "4m-b": ("benchmarks.gpu.pictures:base", 60.0),
    "4m-xl": ("benchmarks.gpu.pictures:xl", 90.0),
    "generate demo": ("benchmarks.gpu.commands:generate_demo", 30.0),
    "detokenize": ("benchmarks.gpu.tokenizers:detokenize", 40.0),
    "attention": ("benchmarks.gpu.packing:packing", 25.0),
    "precision": ("benchmarks.gpu.pictures:precision", 30.0),
    "profile": ("benchmarks.gpu.profile:where", 40.0),
    "load": ("benchmarks.gpu.commands:load", 45.0),
    "generate 4m-b": ("benchmarks.gpu.commands:generate_base", 60.0),
    "encode": ("benchmarks.gpu.tokenizers:encode", 20.0),
}


@dataclass(frozen=True, slots=True)
class Run:
    """The settings of all parts."""

    report: Report
    device: str
    quick: bool
    work: Path
    minutes: float
    deadline: float  # of all parts, as `time.monotonic` counts
    parts: Mapping[str, tuple[str, float]]

    def part(self, name: str) -> None:
        """Run one part until it ends or its time is up; every case gets a row in the report."""
        began = time.monotonic()
        limit = min(self.parts[name][1] * self.minutes / MINUTES, self.deadline - began)
        spent = Spent(name, round(max(limit, 0.0), 1))
        self.report.parts.append(spent)
        note, missing = "no time left", [name]
        while missing and began + limit - time.monotonic() > 1:
            before = self.report.names(name)
            planned, note = self._follow(name, began + limit)
            found = self.report.names(name)
            missing = [case for case in planned or [name] if case not in found]
            if found == before:
                break  # otherwise the process died in a case, and a new one runs the rest
        spent.seconds = round(time.monotonic() - began, 1)
        spent.status = note or "done"
        for case in missing:
            self.report.add(Row(name, case, "left out", {}, note))
        self.report.write()

    def _follow(self, name: str, deadline: float) -> tuple[list[str], str]:
        """Run the cases without a row; returns the names of all cases, and why the part stopped early."""
        receive, send = FORK.Pipe(duplex=False)
        report = self.report
        bench = Bench(self.device, self.quick, report.folder, self.work, deadline - 1, report.peaks())
        arguments = (name, self.parts[name][0], bench, report.names(name), send)
        process = FORK.Process(target=run_part, args=arguments)
        process.start()
        send.close()
        planned, running = list[str](), ""
        try:
            while (left := deadline - time.monotonic()) > 0:
                if not receive.poll(left):
                    continue
                match receive.recv():
                    case None:
                        return planned, ""
                    case Row() as row:
                        report.add(row)
                        _say(row)
                    case str() as case:
                        running = case
                    case cases:
                        planned = cases
            return planned, "stopped: its time was up"
        except (EOFError, OSError):
            process.join(5)
            note = f"its process ended with {process.exitcode}"
            if running and running not in report.names(name):
                report.add(Row(name, running, "failed", {}, note))
            return planned, note
        finally:
            _end(process, receive)


def _end(process: BaseProcess, receive: Connection) -> None:
    """Kill the process of a part and all processes that it started."""
    if process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        process.kill()
    process.join(5)
    receive.close()


def _say(row: Row) -> None:
    values = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.values.items())
    print(f"{row.part}: {row.name}: {row.note or values}", flush=True)


def preload(parts: Mapping[str, tuple[str, float]]) -> None:
    """Import the modules of the parts. Nothing here may use CUDA, which does not work after a fork."""
    for where, _ in parts.values():
        try:
            import_module(where.partition(":")[0])
        except Exception as error:  # the part will report it
            print(f"{where}: {error}", file=sys.stderr)
