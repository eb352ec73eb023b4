"""Runs one part in its own process, so that a crash or a CUDA error does not affect the other parts."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Collection
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench, Cases, last_line
from benchmarks.gpu.report import Row

ROOT = Path(__file__).resolve().parents[2]


def run_part(part: str, where: str, bench: Bench, done: Collection[str], send: Connection) -> None:
    """The main function of the process.

    It sends the names of all cases, then the name and the `Row` of each case that is not done, then None.
    where: "module:function" that makes the cases.
    """
    os.setsid()  # the driver kills the whole process group when the time is up
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(ROOT)
    if bench.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with open(bench.out / "gpu.log", "a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    print(f"\n== {part}", flush=True)
    code = 0 if _run_cases(part, where, bench, done, send) else 1
    sys.stdout.flush()
    os._exit(code)  # the normal exit of Python can hang in a GPU driver


def _run_cases(part: str, where: str, bench: Bench, done: Collection[str], send: Connection) -> bool:
    """Run the cases; False if the process had to stop before the last one."""
    began = time.monotonic()
    try:
        bench, cases = _prepare(where, bench)
    except Exception as error:
        traceback.print_exc()
        send.send([part])
        send.send(Row(part, part, "failed", {}, last_line(error), round(time.monotonic() - began, 2)))
        send.send(None)
        return False
    send.send(list(cases))
    for name, work in cases.items():
        if name in done:
            continue
        print(f"-- {name}", flush=True)
        send.send(name)
        status, values, note = bench.attempt(work)
        now = time.monotonic()
        send.send(Row(part, name, status, values, note, round(now - began, 2)))
        began = now
        if not bench.clean_up():
            return False
    send.send(None)
    return True


def _prepare(where: str, bench: Bench) -> tuple[Bench, Cases]:
    """The settings with `auto` replaced by a device, and the cases."""
    if bench.device == "auto":
        bench = replace(bench, device="cuda" if torch.cuda.is_available() else "cpu")
    module, _, function = where.partition(":")
    return bench, getattr(import_module(module), function)(bench)
