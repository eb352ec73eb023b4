"""Runs in shards: who makes them, and what is said of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fourm.errors import UsageError, as_addresses
from fourm_cli import options
from fourm_cli.console import counted, note, print_json, print_path, print_table

if TYPE_CHECKING:
    from fourm.batch.batches import AnyRequest, Batch
    from fourm.inputs.world import World
    from fourm.results.events import Event
    from fourm.sources.shards import Shards


@dataclass(frozen=True, slots=True)
class Sharded:
    """The shards of an input, and what they become; requests have no samples then."""

    shards: "Shards"
    format: str
    size: int  # samples of a shard, at most
    retry_failed: bool

    def describe_share(self, world: "World") -> str:
        """`process 0 of 8: 2 of 9 shards`."""
        total = len(self.shards.shards)
        share = len(range(total)[world.rank :: world.size])
        return f"process {world.rank} of {world.size}: {share:,} of {counted(total, 'shard')}"

    def describe(self, unit: str) -> str:
        """`7 samples in 2 shards`, or the shards alone."""
        total, shards = self.shards.total, counted(len(self.shards.shards), "shard")
        return shards if total is None else f"{counted(total, unit)} in {shards}"

    def plan(self, requests: "Sequence[AnyRequest]") -> "Batch":
        """The run as its workers get it."""
        from fourm.batch.batches import plan

        return plan(requests, self.shards, self.format, self.size, self.retry_failed)

    def begin(self, requests: "Sequence[AnyRequest]", engine: options.Execution) -> "Iterator[Event]":
        """Open the folder, and make the shards of this process."""
        from fourm.batch.local import count_workers, run_share
        from fourm.batch.ray import run_ray

        batch, world = self.plan(requests), requests[0].world
        if engine.executor == "ray":
            return run_ray(batch, int(engine.workers or 1), engine.gpus_per_worker)
        if engine.workers is not None and world.group_size > 1:
            raise UsageError("--workers: torchrun starts the processes; leave it out")
        workers = count_workers(batch, engine.workers)
        batch.open_folder()
        return run_share(batch, batch.share(world.rank, world.size), workers)

    def submit(
        self, request: "AnyRequest", engine: options.Execution, notes: Iterable[str],
        report: options.Reporting, dry_run: bool,
    ) -> None:  # fmt: skip
        """Submit the run as an array of SLURM, or print the script that does."""
        from fourm.batch.slurm import job_script, submit, task_command

        if request.overwrite:
            raise UsageError("--overwrite: deletes what other tasks make; delete the folder first")
        if {"-", "--data=-"} & {*request.command}:
            raise UsageError("--executor slurm: its tasks cannot read standard input; write it to a file")
        tasks = min(int(engine.workers or 1), max(len(self.shards.shards), 1))
        out = as_addresses(str(request.out))
        command = task_command(request.command, out)
        script = job_script(command, tasks, engine.sbatch or "")
        for text in notes:
            note(text)
        if dry_run:
            print(script, end="")
            return
        job = submit(script)
        note(f"job {job}: {counted(tasks, 'task')}; `fourm status {out}` says how far it is")
        if report.as_json:
            print_json({"out": out, "job": job, "tasks": tasks})
        else:
            print_path(out)

    def print_plan(self, requests: "Sequence[AnyRequest]", report: options.Reporting) -> None:
        """Print what this process would make."""
        batch, world, out = self.plan(requests[:1]), requests[0].world, str(requests[0].out)
        share = batch.share(world.rank, world.size)
        if report.as_json:
            print_json({"out": out, "format": self.format, "samples": self.shards.total,
                        "shards": len(share.shards), "to_make": len(share.todo)})  # fmt: skip
            return
        print_table(("what", "how much"), [
            ("output folder", out),
            ("samples", "not known" if self.shards.total is None else f"{self.shards.total:,}"),
            ("variations of each", count_variations(requests[0])),
            ("shards to make", f"{len(share.todo):,} ({len(share.shards) - len(share.todo):,} of "
                               f"{len(share.shards):,} are whole)"),
        ])  # fmt: skip


def count_variations(request: "AnyRequest") -> str:
    """How many results each sample gets: `2`, or `the best 2 of 8`."""
    from fourm.inputs.request import Request

    count, best = f"{len(request.variations):,}", request.best if isinstance(request, Request) else None
    return count if best is None else f"the best {count} of {best.of:,}"
