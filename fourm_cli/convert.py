"""`fourm convert`: files of other programs become files in open formats."""

from pathlib import Path
from typing import Annotated

import typer

from fourm.data.opening import local_path, output_path
from fourm.errors import SampleError
from fourm_cli.console import note, print_path

EXAMPLES = """
[bold]Examples[/bold]

fourm convert sam-instances dataset --out converted
"""
convert_app = typer.Typer(
    help="Convert files of other programs to open formats.", no_args_is_help=True, epilog=EXAMPLES
)
Source = Annotated[
    Path,
    typer.Argument(
        metavar="DIR", help="Dataset folder with sam_instance/<folder>/<name>.npy.", parser=local_path
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        help="Folder for sam_instance/<folder>/<name>.json.", parser=output_path, metavar="DIR",
        show_default=False,
    ),
]  # fmt: skip
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Convert again what is there already.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say only what went wrong.")]


@convert_app.callback()
def convert() -> None:
    """Convert files of other programs to open formats."""


@convert_app.command("sam-instances", epilog=EXAMPLES)
def sam_instances(source: Source, out: Out, overwrite: Overwrite = False, quiet: Quiet = False) -> None:
    """Convert pickled SAM instances to JSON. Nothing in a pickle is run; what is no instance is refused."""
    from fourm.runs.convert import convert_dataset

    made = kept = failed = 0
    for one in convert_dataset(source, out, overwrite):
        kept += one.was_there
        failed += bool(one.problem)
        made += not (one.was_there or one.problem)
        if one.problem:
            note(one.problem)
    if not quiet:
        note(f"{made} converted, {kept} were there, {failed} failed")
    print_path(out)
    if failed:
        raise typer.Exit(SampleError.exit_code)
