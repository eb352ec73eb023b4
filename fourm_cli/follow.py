"""Runs that were found to be good, followed to their end: display, log, result, exit code."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import typer

from fourm.data.opening import real
from fourm.errors import SampleError, UsageError
from fourm.output.processes import Launch, now
from fourm.output.record import check_output, remove_empty
from fourm.runs.events import Event
from fourm.runs.request import Request
from fourm.runs.world import World
from fourm_cli import console


def follow(
    start: Callable[[], Sequence[Iterator[Event]]], world: World, out: Path,
    *, quiet: bool, as_json: bool, log_json: Path | None,
) -> None:  # fmt: skip
    """Do what was found to be good, one run after the other, with exit code 3 where samples failed.

    start imports torch, which takes seconds, and begins. One process of a torchrun speaks, the others
    say their share.
    """
    rank = world.group_rank
    if log_json is not None and rank > 0:
        log_json = log_json.with_name(f"{log_json.name}.{rank}")
    with console.open_log(log_json) as log:
        # The same sums for every batch shape; it is read when torch loads its kernels.
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
        ends = [console.show(events, quiet or rank > 0, log) for events in start()]
    if rank == 0:
        console.result(out, ends, as_json)
    if any(end.failed for end in ends) and world.group_size == 1:  # torchrun would end the other processes
        raise typer.Exit(SampleError.exit_code)


def make(
    request: Request, finer: Request | None, say_notes: Callable[[], None],
    *, quiet: bool, as_json: bool, log_json: Path | None,
) -> None:  # fmt: skip
    """Check where the results of a request go, say what is worth knowing, make them.

    finer: super-resolution of what the request makes, still without samples.
    """
    if log_json is not None and real(log_json).is_relative_to(real(request.out)):
        raise UsageError(f"--log-json {log_json}: lies in the output folder, which holds results only")
    console.quiet_library(quiet or request.world.group_rank > 0)
    launch = Launch(request.world.rank, request.world.size, now())
    made = check_output(request.out, launch, request.resume, request.overwrite, request.record)
    try:
        if not quiet and request.world.group_rank == 0:
            say_notes()
        if not quiet and request.world.size > 1:
            console.note(request.world.describe_share(len(request.samples), len(request.variations)))
        follow(
            partial(_begin, request, finer), request.world, request.out,
            quiet=quiet, as_json=as_json, log_json=log_json,
        )  # fmt: skip
    finally:
        remove_empty(made)  # where a mistake came to light later


def _begin(request: Request, finer: Request | None) -> list[Iterator[Event]]:
    from fourm.runs.pipeline import check, check_weights, follow_on, run

    if finer is None:
        return [run(request)]
    finer = follow_on(request, finer)
    check(request)  # what is wrong with the second is said before the first begins
    job = check(finer)
    if finer.overwrite or not (finer.out / finer.record).exists():
        check_weights(job)
    return [run(request), run(finer)]
