"""`fourm download`: models, tokenizers, text tokenizer and prompt sets, fetched once, checked, recorded."""

from pathlib import Path
from typing import Annotated

import typer

from fourm.data.opening import local_name, local_path
from fourm.errors import UsageError
from fourm_cli.options import download_names

EXAMPLES = """
[bold]Examples[/bold]

fourm download 4m-21-xl tokenizers text-tokenizer

fourm download -c cfgs/generation/models/4m-xl_mod7+sr_4m-l_mod7.yaml --dry-run

fourm download EPFL-VILAB/4M-21_B --revision main

fourm download --verify
"""
CHOICE, OUTPUT = "What to fetch", "Output"

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME", parser=local_name, autocompletion=download_names, show_default=False,
        help="Short names, Hub ids (either also as NAME@REVISION), or a group: models, tokenizers.",
    ),
]  # fmt: skip
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
    from fourm.hub.download import read_wanted
    from fourm.schedule.settings import read_names
    from fourm_cli.transfers import fetch_all, print_names, print_plan, verify_all

    if list_all:
        print_names(as_json)
        return
    wanted = read_wanted(names or (), read_names(config) if config else None, str(config), revision)
    if verify:
        if revision is not None or dry_run:
            raise UsageError("--verify compares what is here; it takes neither --revision nor --dry-run")
        verify_all([one.entry.hub_id for one in wanted] if names or config else None, as_json, quiet)
    elif not names and not config:
        raise UsageError("name what to fetch, such as 4m-21-b; `fourm download --list` shows all names")
    elif dry_run:
        print_plan(wanted, as_json, quiet)
    else:
        fetch_all(wanted, as_json, quiet)
