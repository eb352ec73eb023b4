"""`fourm retrieve`: for each sample of one folder the samples of another whose features are nearest."""

from pathlib import Path
from typing import Annotated

import typer

from fourm.data.opening import local_path
from fourm.data.writing import check_drawing
from fourm.errors import SampleError, UsageError
from fourm.hub.files import DEMO, find_model
from fourm_cli.console import note, print_json, print_table
from fourm_cli.options import AsJson, Model

EXAMPLES = """
[bold]Examples[/bold]

fourm generate --data photos --cond rgb --targets tok_dinov2_global --model 4m-21-xl --out library

fourm generate "a lake house" --targets tok_dinov2_global --model 4m-21-xl --out query

fourm retrieve query --among library --by dinov2_global --model 4m-21-xl --sheet found.png
"""

Queries = Annotated[
    Path, typer.Argument(metavar="DIR", help="Samples to find neighbours for.", parser=local_path)
]
Among = Annotated[
    Path, typer.Option(help="Folder of the samples that may be found.", parser=local_path, metavar="DIR")
]
By = Annotated[
    str | None,
    typer.Option(help="Features to compare: dinov2_global, clip, ... Without it, clip.", metavar="NAME"),
]
Count = Annotated[int, typer.Option("--count", "-k", min=1, help="Neighbours of each sample.", metavar="K")]
Metric = Annotated[str, typer.Option(help="euclidean or cosine.", metavar="NAME")]
Sheet = Annotated[
    Path | None,
    typer.Option(
        help="Also draw queries and neighbours side by side, as this PNG.", parser=local_path, metavar="FILE"
    ),
]
Show = Annotated[
    str, typer.Option(help="What the sheet shows of neighbours: rgb, depth, semseg, ...", metavar="NAME")
]


def retrieve(
    queries: Queries, among: Among, by: By = None, count: Count = 5, metric: Metric = "euclidean",
    model: Model = None, sheet: Sheet = None, show: Show = "rgb", as_json: AsJson = False,
) -> None:  # fmt: skip
    """Find the samples of a folder whose features are nearest to those of other samples."""
    registry = find_model(DEMO if model is None else model).registry
    for folder in (queries, among):
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")
    if sheet is not None:
        check_drawing("--sheet", sheet)

    from fourm.views.retrieval import as_rows, draw_neighbours, feature_row, load_features, nearest
    from fourm.views.sheets import save_sheet

    row = feature_row(registry, "clip" if by is None else by)
    asked, library = load_features(queries, row), load_features(among, row)
    for problem in (*asked.problems, *library.problems):
        note(problem)
    found = nearest(asked.vectors, library, count, metric)
    if sheet is not None:
        drawn = draw_neighbours(queries, among, registry, show, dict(zip(asked.keys, found, strict=True)))
        save_sheet(drawn, sheet)
    if as_json:
        print_json(as_rows(asked.keys, found))
    else:
        lines = [
            (key, str(rank), one.key, f"{one.distance:.4f}")
            for key, row_of in zip(asked.keys, found, strict=True)
            for rank, one in enumerate(row_of, 1)
        ]
        print_table(("query", "rank", "neighbour", "distance"), lines, numbers=("rank", "distance"))
    if asked.problems or library.problems:
        raise typer.Exit(SampleError.exit_code)
