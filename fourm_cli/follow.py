"""A run that was found to be good, followed to its end: display, log, result, exit code."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import typer

from fourm.errors import SampleError
from fourm.events import Event
from fourm.world import World
from fourm_cli import console


def follow(
    start: Callable[[], Iterator[Event]], world: World, out: Path,
    *, quiet: bool, as_json: bool, log_json: Path | None,
) -> None:  # fmt: skip
    """Do what was found to be good, with exit code 3 where samples failed.

    start imports torch, which takes seconds, and begins. One process of a torchrun speaks.
    """
    rank = world.group_rank
    if log_json is not None and rank > 0:
        log_json = log_json.with_name(f"{log_json.name}.{rank}")
    with console.open_log(log_json) as log:
        # The same sums for every batch shape; it is read when torch loads its kernels.
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
        end = console.show(start(), quiet or rank > 0, log)
    if rank == 0:
        console.result(out, end, as_json)
    if end.failed and world.group_size == 1:  # torchrun would end the other processes
        raise typer.Exit(SampleError.exit_code)
