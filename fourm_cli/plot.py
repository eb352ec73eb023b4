"""`fourm plot`: pictures of an output folder, a grid and a film strip for each sample, and contact sheets."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from fourm.errors import SampleError
from fourm.hub import find_model
from fourm.results import open_results
from fourm_cli.console import note, print_json
from fourm_cli.options import Folder, parse_folder
from fourm_cli.run_options import AsJson, Quiet

if TYPE_CHECKING:
    from fourm.plots import Plotted

EXAMPLES = """
[bold]Examples[/bold]

fourm plot out

fourm generate "a small red circle" --num-variations 4 --preview 5 --out out | fourm plot -

fourm plot out --count 20 --no-contact
"""
_CALM = 10.0  # seconds between two lines of progress
_SHOWN = 20  # problems that are said; all are in the data of --json

Count = Annotated[
    int | None,
    typer.Option(help="Draw the first N samples only.", metavar="N", min=1, show_default=False),
]
Films = Annotated[
    bool,
    typer.Option(
        "--films/--no-films",
        help="Film strips of samples made with --preview: NAME-film.png, at most 8 steps of each target.",
    ),
]
ContactSheets = Annotated[
    bool,
    typer.Option(
        "--contact/--no-contact",
        help="One picture of each sample and variation on a sheet, contact.png; more than 60 make several: "
        "contact-01.png, contact-02.png, ...",
    ),
]
PlotModel = Annotated[
    str | None,
    typer.Option(help="Whose modalities these are, where the model of the run is not here any more."),
]


def plot(
    *,
    folder: Folder,
    count: Count = None,
    films: Films = True,
    contact: ContactSheets = True,
    model: PlotModel = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw what an output folder holds: a sheet for each sample, DIR/plots/NAME.png.

    It shows conditions, targets and super-resolution, a row for each variation (32 at most).
    Where names alone are not clear, it is DIR/plots/FOLDER/NAME.png. Drawing again replaces plots.
    """
    root = parse_folder(folder, sys.stdin)
    results = open_results(root)
    if model is not None:
        find_model(model)

    from fourm.album import open_album
    from fourm.plots import PlotRequest, Plotter, plots_folder

    plots = plots_folder(root)
    album = open_album(root, model, results)
    plotter = Plotter(album, PlotRequest(count, films, contact))
    problems = [{"key": None, "problem": problem} for problem in album.problems]
    failed = set[str]()
    drawn = 0
    for one in _calmly(plotter.run(), len(plotter.keys), quiet):
        drawn += 1
        failed |= {one.key} if one.problems else set()
        problems += [{"key": one.key, "problem": problem} for problem in one.problems]
    if not quiet:
        _say(problems)
        if plotter.undrawn:
            note(_fonts(plotter.undrawn))
        note(f"{drawn:,} {'sample' if drawn == 1 else 'samples'} drawn in {plots}")
    if as_json:
        print_json({"out": str(root), "plots": str(plots), "samples": drawn, "problems": problems})
    else:
        print(root)
    if failed or album.problems:
        raise typer.Exit(SampleError.exit_code)


def _calmly(plotted: Iterable["Plotted"], total: int, quiet: bool) -> Iterable["Plotted"]:
    """Pass samples on, saying now and then how many there were."""
    spoken = time.monotonic()
    for number, one in enumerate(plotted, 1):
        if not quiet and time.monotonic() - spoken >= _CALM:
            spoken = time.monotonic()
            note(f"{number:,} of {total:,} samples drawn")
        yield one


def _say(problems: list[dict[str, str | None]]) -> None:
    for row in problems[:_SHOWN]:
        note(f"{row['key']}: {row['problem']}" if row["key"] else f"{row['problem']}")
    if (rest := len(problems) - _SHOWN) > 0:
        note(f"and {rest:,} more problems; --json has them all")


def _fonts(characters: set[str]) -> str:
    few = " ".join(sorted(characters)[:10])
    return f"note: no font on this machine has {few}; question marks stand for them (Noto fonts have most)"
