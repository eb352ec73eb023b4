"""`fourm plot`: an output folder as sheets (grids, film strips, contact sheets) and as a page."""

import sys
import time
from dataclasses import dataclass, field, replace
from typing import Annotated

import typer

from fourm.data.opening import local_name
from fourm.errors import SampleError, UsageError
from fourm.hub.files import find_model
from fourm.output.results import open_results
from fourm_cli.console import PLAIN_LINE_SECONDS, note, print_json
from fourm_cli.options import Folder, parse_folder
from fourm_cli.run_options import AsJson, Quiet
from fourm_cli.streams import print_path

EXAMPLES = """
[bold]Examples[/bold]

fourm plot out

fourm generate "a small red circle" --num-variations 4 --preview 5 --out out | fourm plot -

fourm plot out --count 20 --no-contact

fourm plot out --html --no-sheets
"""
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
Html = Annotated[
    bool,
    typer.Option(
        "--html",
        help="One page with all samples, index.html: search, zoom, compare, step through films. It needs no "
        "network.",
    ),
]
Sheets = Annotated[
    bool,
    typer.Option("--sheets/--no-sheets", help="Draw sheets; without them --html makes the page alone."),
]
PlotModel = Annotated[
    str | None,
    typer.Option(
        help="Whose modalities these are, where the model of the run is not here any more.",
        parser=local_name,
        metavar="NAME",
    ),
]


def plot(
    *,
    folder: Folder,
    count: Count = None,
    films: Films = True,
    contact: ContactSheets = True,
    html: Html = False,
    sheets: Sheets = True,
    model: PlotModel = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Draw what an output folder holds: a sheet for each sample, DIR/plots/NAME.png.

    It shows conditions, targets and super-resolution, a row for each variation (32 at most).
    Where names alone are not clear, it is DIR/plots/FOLDER/NAME.png. Drawing again replaces plots.
    """
    if not (sheets or html):
        raise UsageError("--no-sheets: there is nothing to draw without --html")
    root = parse_folder(folder, sys.stdin.buffer)
    results = open_results(root)
    if model is not None:
        find_model(model)

    from fourm.views.album import View, open_album
    from fourm.views.gallery.page import PAGE, write_gallery
    from fourm.views.plots import PlotRequest, Plotter, plots_folder

    plots = plots_folder(root)
    album = open_album(root, model, results)
    plotter = Plotter(album, PlotRequest(count, films, contact))
    tally = _Tally(len(plotter.keys), quiet)
    if sheets:
        for one in plotter.run():
            tally.add(one.key, one.problems)
    page = plots / PAGE if html else None
    if page is not None:
        tally.done = 0

        def seen(view: View) -> None:
            tally.add(view.key.text, view.problems)

        write_gallery(replace(album, keys=plotter.keys), page, seen=seen)
    problems = [{"key": None, "problem": problem} for problem in album.problems]
    problems += [{"key": key, "problem": text} for key, texts in tally.problems.items() for text in texts]
    if not quiet:
        _say(problems)
        if plotter.undrawn:
            note(_fonts(plotter.undrawn))
        note(f"{tally.done:,} {'sample' if tally.done == 1 else 'samples'} drawn in {page or plots}")
    if as_json:
        row = {"out": str(root), "plots": str(plots), "page": str(page) if page else None}
        print_json({**row, "samples": tally.done, "problems": problems})
    else:
        print_path(root)
    if problems:
        raise typer.Exit(SampleError.exit_code)


@dataclass(slots=True)
class _Tally:
    """Samples that were drawn, said now and then, and what is wrong with them."""

    total: int
    quiet: bool
    done: int = 0
    problems: dict[str, tuple[str, ...]] = field(default_factory=dict)  # by key, of samples that have some
    spoken: float = field(default_factory=time.monotonic)

    def add(self, key: str, problems: tuple[str, ...]) -> None:
        self.done += 1
        if problems:
            self.problems[key] = problems
        if not self.quiet and time.monotonic() - self.spoken >= PLAIN_LINE_SECONDS:
            self.spoken = time.monotonic()
            note(f"{self.done:,} of {self.total:,} samples drawn")


def _say(problems: list[dict[str, str | None]]) -> None:
    for row in problems[:_SHOWN]:
        note(f"{row['key']}: {row['problem']}" if row["key"] else f"{row['problem']}")
    if (rest := len(problems) - _SHOWN) > 0:
        note(f"and {rest:,} more problems; --json has them all")


def _fonts(characters: set[str]) -> str:
    few = " ".join(sorted(characters)[:10])
    return f"note: no font on this machine has {few}; question marks stand for them (Noto fonts have most)"
