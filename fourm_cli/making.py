"""Checks where results go, makes them, and shows what happens on the way."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from fourm import set_variables
from fourm.errors import SampleError, UsageError, as_addresses
from fourm.files.opening import real
from fourm.hub.header import read_header
from fourm_cli import options
from fourm_cli.console import (
    counted,
    duration,
    note,
    print_json,
    print_path,
    print_stages,
    print_table,
    quiet_library,
    size_text,
)
from fourm_cli.sharding import Sharded, count_variations

if TYPE_CHECKING:
    from fourm.data.dataset import Dataset
    from fourm.inputs.request import Request, TokenizeRequest
    from fourm.results.events import Event
    from fourm.sources.raw import RawInput

INCOMPLETE_SHOWN = 5  # samples without a file for each condition that get a line of their own
COMMANDS = ("generate", "sr", "tokenize", "embed")  # that make results


def make(
    requests: "Sequence[Request]", dataset: "Dataset", report: options.Reporting, engine: options.Execution,
    dry_run: bool = False, sharded: Sharded | None = None,
) -> None:  # fmt: skip
    """Check where results go, and make them; a second request is super-resolution of what the first makes."""
    quiet_library(report.quiet or requests[0].world.group_rank > 0)
    for one in requests:
        read_header(one.model.weights)  # a damaged file is told before torch is imported, which takes seconds

    def begin() -> "list[Iterator[Event]]":
        from fourm.runs.pipeline import check, check_weights, run

        runs = _with_sr(requests)
        _note_dtype(requests[0], report)
        for sr_run in runs[1:]:
            job = check(sr_run)  # what is wrong with it is said before the first begins
            if job.request.overwrite or not (job.request.out / job.request.record).exists():
                check_weights(job)
        return [run(one) for one in runs]

    notes = _notes(requests, dataset, sharded)
    if sharded is not None:
        make_shards(requests, sharded, engine, notes, report, dry_run)
        return
    request, world = requests[0], requests[0].world
    engine.check(False, world.size)
    _check_log(request, report)
    if dry_run:
        _check_free(request, world.size)
        _print_plan(requests, notes, report)
        return
    share = world.describe_share(len(request.samples), len(request.variations))
    _make_in_folder(begin, request, notes, report, share)


def make_shards(
    requests: "Sequence[Request | TokenizeRequest]", sharded: Sharded, engine: options.Execution,
    notes: Iterable[str], report: options.Reporting, dry_run: bool,
) -> None:  # fmt: skip
    """Check where shards go, and make them or have them made by an engine."""
    request, world = requests[0], requests[0].world
    quiet_library(report.quiet or world.group_rank > 0)
    engine.check(True, world.size)
    _check_log(request, report)
    notes = () if report.quiet else notes
    if engine.executor == "slurm":
        _check_free(request, 2)
        sharded.submit(request, engine, notes, report, dry_run)
    elif dry_run:
        _check_free(request, world.joining)
        for text in notes:
            note(text)
        sharded.print_plan(requests, report)
    else:

        def begin() -> "list[Iterator[Event]]":
            _note_dtype(request, report)
            return [sharded.begin(requests, engine)]

        _make_in_folder(begin, request, notes, report, sharded.describe_share(world), always=True)


def make_tokens(
    request: "TokenizeRequest", raw: "RawInput", dataset: "Dataset", report: options.Reporting, dry_run: bool,
    sharded: Sharded | None, engine: options.Execution,
) -> None:  # fmt: skip
    """Turn values into tokens, in files that are kept or in shards."""
    notes = _token_notes(request, raw, dataset, sharded)
    if sharded is not None:
        make_shards([request], sharded, engine, notes, report, dry_run)
        return
    engine.check(False, request.world.size)

    def begin() -> "list[Iterator[Event]]":
        from fourm.runs.tokenizing import tokenize_dataset

        return [tokenize_dataset(request)]

    if not dry_run:
        follow(begin, request, notes, report, request.world.describe_share(len(request.samples)))
        return
    for text in () if report.quiet else notes:
        note(text)
    if report.as_json:
        print_json({"out": str(request.out), "samples": len(request.samples)})


def _make_in_folder(
    begin: "Callable[[], list[Iterator[Event]]]", request: "Request | TokenizeRequest",
    notes: Iterable[str], report: options.Reporting, share: str, always: bool = False,
) -> None:  # fmt: skip
    """Do runs in a folder that is theirs; see `follow`. An interrupted one is told how to go on."""
    from fourm.output.joining import check_output
    from fourm.output.processes import Launch, now, remove_empty

    world = request.world
    launch = Launch(world.rank, world.joining if always else world.size, now())
    made = check_output(request.out, launch, request.resume, request.overwrite, request.record)
    try:
        follow(begin, request, notes, report, share, always)
    except BaseException as stop:
        if not isinstance(stop, Exception):  # a signal
            stop.add_note(resume_advice(request))
        raise
    finally:
        remove_empty(made)  # where a mistake came to light later


def _check_log(request: "Request | TokenizeRequest", report: options.Reporting) -> None:
    log = report.log_json
    if log is not None and real(log).is_relative_to(real(request.out)):
        raise UsageError(f"--log-json {log}: lies in the output folder, which holds results only")


def _check_free(request: "Request | TokenizeRequest", size: int) -> None:
    """UsageError if one of so many processes may not write to the folder."""
    from fourm.output.joining import check_free
    from fourm.output.processes import Launch, now

    launch = Launch(request.world.rank, size, now())
    check_free(request.out, launch, request.resume, request.overwrite, request.record)


def _notes(requests: "Sequence[Request]", dataset: "Dataset", sharded: Sharded | None) -> Iterator[str]:
    """What is said before a run."""
    from fourm.schedule.plan import unseen_picture
    from fourm.sources.notes import note_unknown_words

    request = requests[0]
    yield _announce(requests, dataset, sharded)
    yield from _notes_of(dataset)
    if unknown := note_unknown_words(dataset.samples, request.model):
        yield unknown
    for unseen in filter(None, (unseen_picture(request.chain, one.chain) for one in requests[1:])):
        yield f"note: {unseen}; --keep rgb:1 makes tokens of it"


def _token_notes(
    request: "TokenizeRequest", raw: "RawInput", dataset: "Dataset", sharded: Sharded | None
) -> Iterator[str]:
    """What is said before values become tokens."""
    count = sharded.describe("sample") if sharded else counted(len(dataset.samples), "sample")
    yield f"fourm: {request.model.name}, {count} -> {', '.join(row.name for row in raw.places)}"
    counts = Counter(name for sample in dataset.samples for name in sample.files)
    for row, name in raw.places.items() if raw.is_folder else ():
        yield f"{name} -> {row.name}" + ("" if sharded else f": {counted(counts[row.name], 'file')}")
    yield from _notes_of(dataset)
    yield from (f"note: {text}" for text in raw.notes)


def _notes_of(dataset: "Dataset") -> Iterator[str]:
    """What is said of the input."""
    yield from dataset.incomplete[:INCOMPLETE_SHOWN]
    if (rest := len(dataset.incomplete) - INCOMPLETE_SHOWN) > 0:
        yield f"{rest:,} more samples lack a file"
    yield from (f"note: {text}" for text in dataset.notes)


def _note_dtype(request: "Request | TokenizeRequest", report: options.Reporting) -> None:
    """Say where another dtype would be faster. It depends on the device, so torch is imported."""
    from fourm.runs.device import advise_dtype

    if not report.quiet and request.world.group_rank == 0 and (advice := advise_dtype(request)):
        note(f"note: {advice}")


def _announce(requests: "Sequence[Request]", dataset: "Dataset", sharded: Sharded | None) -> str:
    """What is about to be made; it is said before torch is imported, which takes seconds."""
    request = requests[0]
    unit = "prompt" if dataset.input.kind == "texts" else "sample"
    what = sharded.describe(unit) if sharded else counted(len(dataset.samples), unit)
    if len(request.variations) > 1 or request.best is not None:
        what += f", {count_variations(request)} variation{'s'[: request.num_drawn > 1]} of each"
    features = f"features of {', '.join(request.chain.conditions)}"
    stages = [(one.model.name, ", ".join(one.chain.targets) or features) for one in requests]
    then = "".join(f"; then {model} -> {targets}" for model, targets in stages[1:])
    return f"fourm: {stages[0][0]}, {what} -> {stages[0][1]}{then}"


def resume_advice(request: "Request | TokenizeRequest") -> str:
    """The advice for an interrupted run: its command, with --resume and its output folder."""
    if request.world.group_size > 1:
        return "the same command with --resume goes on"
    words = [word for word in request.command if word not in ("--resume", "--overwrite")]
    added, out = ["--resume"], as_addresses(str(request.out))
    if not request.is_beside and not any(re.match("--out(=|$)", word) for word in words):
        added += ["--out", out]
    if request.is_beside and "-" in words:  # the folder that was read from standard input
        words[words.index("-")] = out
    at = next(number for number, word in enumerate(words, 1) if word in COMMANDS)
    with_input = " (with the same standard input)" if {"-", "--data=-"} & {*words} else ""
    return f"to go on{with_input}: {shlex.join([*words[:at], *added, *words[at:]])}"


def _with_sr(requests: "Sequence[Request]") -> "list[Request]":
    """A request, and that of super-resolution of what it makes, if there is one."""
    from fourm.runs.pipeline import sr_request

    base = requests[0]
    return [base, *(sr_request(base, replace(one, stage="sr", is_beside=True)) for one in requests[1:])]


def _print_plan(requests: "Sequence[Request]", notes: Iterable[str], report: options.Reporting) -> None:
    """Print what a run would make, and then, since it is measured, how long that would take."""
    from fourm.runs.pipeline import measure, plan

    for text in () if report.quiet else notes:
        note(text)
    plans = [plan(one) for one in _with_sr(requests)]
    _note_dtype(requests[0], report)
    if report.as_json:
        said = [{**one.to_json(), "seconds_estimate": round(measure(one), 3)} for one in plans]
        print_stages(said)
        return
    for number, one in enumerate(plans):
        if number:
            print(f"\nsuper-resolution, {one.job.request.model.name}\n")
        print_table(("what", "how much"), [
            ("output folder", str(one.job.request.out)),
            ("model", f"{one.job.request.model.name} on {one.job.device}, {one.job.dtype}"),
            ("samples", f"{one.samples:,}"),
            ("variations of each", count_variations(one.job.request)),
            ("results to make", f"{one.to_make:,} ({one.complete:,} of {one.results:,} are complete)"),
            ("forward passes", f"{one.passes * one.to_make:,} ({one.passes:,} for each result)"),
            *([("steps of diffusion", f"{one.evaluations * one.to_make:,}")] if one.evaluations else []),
            ("files", f"{one.files:,}"),
            ("on disk", f"about {size_text(one.usual)}, an estimate; {size_text(one.free)} are free"),
        ])  # fmt: skip
        print()
        rows = [(name, f"{f.files:,}", size_text(f.usual)) for name, f in one.folders.items()]
        print_table(("folder", "files", "bytes, about"), rows, numbers=("files", "bytes, about"))
        print(f"\nabout {duration(measure(one))} on this machine as it is now, texts at full length")


def follow(
    begin: "Callable[[], list[Iterator[Event]]]", request: "Request | TokenizeRequest",
    notes: Iterable[str], report: options.Reporting, share: str, always: bool = False,
) -> None:  # fmt: skip
    """Print notes, then do the runs of `begin`, which imports torch; exit code 3 if samples failed.

    share: what this process does of a job of several; it is said of a single process only if `always`.
    """
    from fourm.inputs.world import other_launcher

    world, rank, log_json = request.world, request.world.group_rank, report.log_json
    quiet_library(report.quiet or rank > 0)
    if not report.quiet:
        for text in notes if rank == 0 else ():
            note(text)
        if world.size > 1 or world.is_told or always:
            note(share)
        if not world.is_told and (text := other_launcher(os.environ)):
            note(f"note: {text}")
    if log_json is not None and rank > 0:
        log_json = log_json.with_name(f"{log_json.name}.{rank}")
    from fourm_cli.progress import open_log, show

    with open_log(log_json) if log_json else nullcontext() as log:
        set_variables()  # before torch is imported
        ends = [show(events, report.quiet or rank > 0, log) for events in begin()]
    if rank == 0 and report.as_json:
        said = [{"saved": end.saved, "skipped": end.skipped, "failed": end.failed,
                 "seconds": round(end.seconds, 3)} for end in ends]  # fmt: skip
        print_stages(said, out=str(request.out))
    elif rank == 0:
        print_path(request.out)
    if world.group_size > 1:  # torchrun would end the other processes
        return
    if problem := next((end.problem for end in ends if end.problem), ""):
        raise SampleError(problem)
    if any(end.failed for end in ends):
        raise typer.Exit(SampleError.exit_code)
