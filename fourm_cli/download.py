"""`fourm download`: models, tokenizers, text tokenizer and prompt sets, fetched once, checked, recorded."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from fourm.data.opening import local_name, local_path
from fourm.errors import UsageError, VerificationError
from fourm.hub.catalogue import CATALOGUE, GROUPS
from fourm.hub.download import (
    Job,
    Verified,
    Wanted,
    check_room,
    fetch,
    plan_downloads,
    read_wanted,
    verify_cached,
)
from fourm.hub.remote import Client, Transfer, Waiting
from fourm.hub.transfer import KEPT
from fourm.schedule.settings import read_names
from fourm_cli.completion import download_names
from fourm_cli.console import note, print_json, print_table, quiet_library, size_text
from fourm_cli.streams import print_path
from fourm_cli.transfers import Transfers, display, headline, waiting_line

EXAMPLES = """
[bold]Examples[/bold]

fourm download 4m-21-xl tokenizers text-tokenizer

fourm download -c cfgs/generation/models/4m-xl_mod7+sr_4m-l_mod7.yaml --dry-run

fourm download EPFL-VILAB/4M-21_B --revision main

fourm download --verify
"""
CLIENT = Client()  # how often to try and how long to wait
SHOWN = 5  # files that are named in an error
CHOICE, OUTPUT = "What to fetch", "Output"

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME",
        help="Short names, Hub ids (either also as NAME@REVISION), or a group: models, tokenizers.",
        parser=local_name,
        autocompletion=download_names,
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "-c", "--config", help="YAML with models: all that it names.", parser=local_path, metavar="FILE",
        rich_help_panel=CHOICE,
    ),
]  # fmt: skip
Revision = Annotated[
    str | None,
    typer.Option(
        help="Branch, tag or commit. By default the one fetched before, else main.", rich_help_panel=CHOICE
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say files and sizes.", rich_help_panel=CHOICE)]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Compare what is here with the record; no network. Without names, all.",
        rich_help_panel=CHOICE,
    ),
]  # fmt: skip
List = Annotated[bool, typer.Option("--list", help="Print all names.", rich_help_panel=CHOICE)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=OUTPUT)]
AsJson = Annotated[
    bool, typer.Option("--json", help="On stdout, JSON in place of paths or tables.", rich_help_panel=OUTPUT)
]


def download(
    *,
    names: Names = None,
    config: Config = None,
    revision: Revision = None,
    dry_run: DryRun = False,
    verify: Verify = False,
    list_all: List = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Fetch models, tokenizers, the text tokenizer and prompts into the Hub's cache, once, and check them."""
    if list_all:
        _print_names(as_json)
        return
    wanted = read_wanted(names or (), read_names(config) if config else None, str(config), revision)
    if verify:
        if revision is not None or dry_run:
            raise UsageError("--verify compares what is here; it takes neither --revision nor --dry-run")
        _verify([one.hub_id for one in wanted] if names or config else None, as_json, quiet)
        return
    if not names and not config:
        raise UsageError("name what to fetch, such as 4m-21-b; `fourm download --list` shows all names")
    jobs = _plan(wanted, quiet, dry_run)
    if dry_run:
        _print_plan(jobs, as_json)
        return
    _fetch(jobs, quiet, as_json)


def _plan(wanted: Sequence[Wanted], quiet: bool, dry_run: bool) -> tuple[Job, ...]:
    def report(event: Transfer) -> None:
        if not quiet and isinstance(event, Waiting):
            note(waiting_line(event))

    tries = 1 if dry_run else CLIENT.tries
    return plan_downloads(wanted, replace(CLIENT, report=report, tries=tries), is_estimate=dry_run)


def _fetch(jobs: Sequence[Job], quiet: bool, as_json: bool) -> None:
    quiet_library(quiet)
    if not quiet:
        for line in _licences(jobs):
            note(line)
        if len(jobs) > 1:
            note(f"{len(jobs)} downloads, {size_text(sum(job.to_fetch for job in jobs))} to fetch")
    check_room(jobs)
    state = Transfers(left_later=sum(job.to_fetch for job in jobs))
    for job in jobs:
        if not quiet:
            note(headline(job))
        state.begin(job)
        with display(state, quiet) as report:
            path = fetch(job, replace(CLIENT, report=report))
        if not as_json:
            print_path(path)
            sys.stdout.flush()
    if as_json:
        print_json([job.to_json() | {"fetched": job.to_fetch} for job in jobs])


def _licences(jobs: Iterable[Job]) -> list[str]:
    """The terms of what is fetched for the first time, each once with the names that they are for."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        if job.licence is not None:
            names.setdefault(job.licence.sentence, []).append(job.wanted.name)
    return [
        f"terms of {', '.join(those)}: {sentence.removeprefix('weights: ')}"
        for sentence, those in names.items()
    ]


def _print_plan(jobs: Sequence[Job], as_json: bool) -> None:
    if as_json:
        print_json([job.to_json() for job in jobs])
        return
    rows = [
        (job.wanted.name, file.remote.name, size_text(file.remote.size),
         size_text(file.remote.size - file.done) if file.done < file.remote.size else "", job.revision[:7])
        for job in jobs for file in job.files
    ]  # fmt: skip
    print_table(("name", "file", "size", "to fetch", "revision"), rows, numbers=("size", "to fetch"))
    for line in _licences(jobs):
        note(line)
    if reason := next((job.unconfirmed for job in jobs if job.unconfirmed), ""):
        note(f"{reason}; sizes are those on record here, or of the catalogue: of the largest file")
    whole, missing = sum(job.num_bytes for job in jobs), sum(job.to_fetch for job in jobs)
    note(f"{size_text(missing)} of {size_text(whole)} to fetch; nothing was fetched")


def _verify(hub_ids: Sequence[str] | None, as_json: bool, quiet: bool) -> None:
    state = Transfers()
    with display(state, quiet) as report:
        found = verify_cached(hub_ids, replace(CLIENT, report=report))
    if as_json:
        print_json([one.to_json() for one in found])
    elif found:
        rows = [(one.name, one.file, one.problem or "right") for one in found]
        print_table(("name", "file", "checksum"), rows)
    elif not quiet:
        note("nothing is on record; `fourm download` fetches, checks and records")
    _refuse([one for one in found if one.problem])


def _refuse(wrong: Sequence[Verified]) -> None:
    if wrong:
        shown = ", ".join(f"{one.path} is {_told(one)}" for one in wrong[:SHOWN])
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        names = " ".join(dict.fromkeys(one.name for one in wrong))
        raise VerificationError(f"{shown}{more}; `fourm download {names}` fetches what is missing")


def _told(one: Verified) -> str:
    return f"damaged ({KEPT})" if one.problem == "damaged" and not one.removed else one.problem


def _print_names(as_json: bool) -> None:
    entries = CATALOGUE.values()
    if as_json:
        rows = [{"name": e.name, "hub_id": e.hub_id, "kind": e.kind.value, "title": e.title,
                 "bytes": e.num_bytes, "licence": e.licence.name} for e in entries]  # fmt: skip
        print_json({"names": rows, "groups": {group: list(names) for group, names in GROUPS.items()}})
        return
    table = [(e.name, e.title, size_text(e.num_bytes), e.licence.name) for e in entries]
    print_table(("name", "what", "size", "licence"), table, numbers=("size",))
    note("groups: " + ", ".join(f"{group} (all {len(names)})" for group, names in GROUPS.items()))
