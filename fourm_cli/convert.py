"""`fourm convert`: files of other programs become files in open formats."""

from pathlib import Path

import typer

from fourm.data.opening import local_path, output_path
from fourm.errors import SampleError
from fourm_cli.console import note, print_path
from fourm_cli.options import add_command, argument, option, with_options

EXAMPLES = """
[bold]Examples[/bold]

fourm convert sam-instances dataset --out converted
"""
convert_app = typer.Typer(
    help="Convert files of other programs to open formats.", no_args_is_help=True, epilog=EXAMPLES
)


@convert_app.callback()
def convert() -> None:
    """Convert files of other programs to open formats."""


@with_options(
    source=argument("Dataset folder with sam_instance/<folder>/<name>.npy.", "DIR", parser=local_path),
    out=option(
        "Folder for sam_instance/<folder>/<name>.json.", "DIR", parser=output_path, show_default=False
    ),
    overwrite=option("Convert again what is there already."),
    quiet=option("Say only what went wrong.", None, None, "--quiet", "-q"),
)
def sam_instances(*, source: Path, out: Path, overwrite: bool = False, quiet: bool = False) -> None:
    """Convert pickled SAM instances to JSON. Nothing in a pickle is run; what is no instance is refused.

    Examples:
        fourm convert sam-instances dataset --out converted
    """
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


add_command(convert_app, sam_instances)
