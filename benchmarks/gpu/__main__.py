"""`python -m benchmarks.gpu OUTDIR`: runs the parts one after the other, each within its time."""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from benchmarks.gpu import STARTED
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.report import Report, Row, Spent
from benchmarks.gpu.worker import run_part

FORK = multiprocessing.get_context("fork")  # what is imported here need not be imported by every part
# Name, where its cases are made, seconds; in the order of importance.
PARTS = {
    "facts": ("facts:facts", 30.0),
    "tokens": ("tokens:tokens", 45.0),
    "tests": ("commands:marked", 60.0),
    "4m-b": ("pictures:base", 60.0),
    "4m-xl": ("pictures:xl", 90.0),
    "generate demo": ("commands:generate_demo", 30.0),
    "detokenize": ("tokenizers:detokenize", 40.0),
    "precision": ("pictures:precision", 30.0),
    "profile": ("profile:where", 40.0),
    "load": ("commands:load", 45.0),
    "generate 4m-b": ("commands:generate_base", 60.0),
    "encode": ("tokenizers:encode", 20.0),
}
_MINUTES = 6.0  # for which the seconds above are meant
_MARGIN = 5.0  # seconds of the end that no part gets


@dataclass(frozen=True, slots=True)
class Run:
    """What all parts share."""

    report: Report
    device: str
    quick: bool
    work: Path
    minutes: float
    deadline: float

    def part(self, name: str) -> None:
        """One part, to its end or to that of its time; a row for every case of it, whatever happens."""
        began = time.monotonic()
        limit = min(PARTS[name][1] * self.minutes / _MINUTES, self.deadline - began)
        spent = Spent(name, round(max(limit, 0.0), 1))
        self.report.parts.append(spent)
        note, missing = "no time left", [name]
        while missing and began + limit - time.monotonic() > 1:
            before = self.report.names(name)
            planned, note = self._follow(name, began + limit)
            found = self.report.names(name)
            missing = [case for case in planned or [name] if case not in found]
            if found == before:
                break  # else a process died of one case, and another one takes the rest
        spent.seconds = round(time.monotonic() - began, 1)
        spent.status = note or "done"
        for case in missing:
            self.report.add(Row(name, case, "left out", {}, note))
        self.report.write()

    def _follow(self, name: str, deadline: float) -> tuple[list[str], str]:
        """The names of the cases if they came to be known, and what cut the part short."""
        receive, send = FORK.Pipe(duplex=False)
        report = self.report
        bench = Bench(self.device, self.quick, report.folder, self.work, deadline - 1, report.peaks())
        arguments = (name, PARTS[name][0], bench, report.names(name), send)
        process = FORK.Process(target=run_part, args=arguments)
        process.start()
        send.close()
        planned: list[str] = []
        try:
            while (left := deadline - time.monotonic()) > 0:
                if not receive.poll(left):
                    continue
                message = receive.recv()
                if message is None:
                    return planned, ""
                if isinstance(message, Row):
                    report.add(message)
                    _say(message)
                else:
                    planned = message
            return planned, "stopped: its time was up"
        except (EOFError, OSError):
            process.join(5)
            return planned, f"its process ended with {process.exitcode}"
        finally:
            _end(process, receive)


def _end(process: BaseProcess, receive: Connection) -> None:
    """Kill a part and what it started."""
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


def _preload() -> None:
    """Import what the parts need; nothing here may touch CUDA, which does not survive a fork."""
    for where, _ in PARTS.values():
        try:
            import_module(f"benchmarks.gpu.{where.partition(':')[0]}")
        except Exception as error:  # that part will say so itself
            print(f"{where}: {error}", file=sys.stderr)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that everything runs")
    parser.add_argument("--minutes", type=float, default=_MINUTES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", default=",".join(PARTS), help="by default all: " + ", ".join(PARTS))
    args = parser.parse_args()
    chosen = [name.strip() for name in args.parts.split(",")]
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    title = "Quick run, tiny sizes" if args.quick else "Measured on a GPU"
    report = Report(args.out.resolve(), title, STARTED)
    report.write()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = Path(tempfile.mkdtemp(prefix="fourm-gpu-"))
    deadline = STARTED + 60 * args.minutes - _MARGIN
    run = Run(report, args.device, args.quick, work, args.minutes, deadline)
    try:
        _preload()
        for name in chosen:
            run.part(name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report.write()
    print(args.out / "gpu.md")


if __name__ == "__main__":
    main()
