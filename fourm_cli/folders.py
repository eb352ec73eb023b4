"""The commands that read folders of samples: `plot`, `retrieve`, `verify`, `status` and `convert`."""

import itertools
import re
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fourm.errors import SampleError, UsageError, VerificationError, check_choice, printable
from fourm.files.opening import local_name, local_path, output_path
from fourm.hub.catalogue import DEMO
from fourm_cli.console import Screen, as_typed, counted, duration, note, print_json, print_path, print_table
from fourm_cli.help import help_of, show_group
from fourm_cli.options import argument, find_folder, one_of, option, parse_folder, with_options

if TYPE_CHECKING:
    from fourm.checks.status import Status

KINDS = ("png", "pdf", "svg")  # of sheets
SHOWN = 20  # problems that get a line of their own; all are in the data of --json
_SIZE = option("Width on paper in inches: of PDF and SVG, and as a PNG says it; its pixels stay.", "INCHES",
               min=1, max=100, show_default=False)  # fmt: skip
convert_app = typer.Typer()


def parse_kind(text: str) -> str:
    """One of KINDS."""
    check_choice("format", text, KINDS)
    return text


@with_options(
    count=option("Draw the first N samples only.", "N", min=1, show_default=False),
    films=option(
        "Film strips of samples made with --preview: NAME-film.png, at most 8 steps of each target."),
    contact=option(
        "RGB and all maps of each sample and variation on a sheet, contact.png; more than ten rows make "
        "several: contact-01.png, contact-02.png, ..."),
    show=option("What contact sheets show instead: rgb,depth", "NAME,...", show_default=False),
    html=option(
        "One page with all samples, index.html: search, zoom, compare, step through films. It needs no "
        "network."),
    sheets=option("Draw sheets; without them --html makes the page alone."),
    kind=option("Sheets as png, pdf or svg.", "ENDING", None, "--format",
                parser=parse_kind, autocompletion=one_of(*KINDS)),
    size=_SIZE,
    model="Whose modalities these are, where the model of the run is not here any more.",
)  # fmt: skip
def plot(
    *, folder: str, count: int | None = None, films: bool = True, contact: bool = True,
    show: str | None = None, html: bool = False, sheets: bool = True, kind: str = KINDS[0],
    size: float | None = None, model: str | None = None, quiet: bool = False, as_json: bool = False,
) -> None:  # fmt: skip
    """Draw what an output folder holds: a sheet for each sample, DIR/plots/NAME.png.

    It shows conditions, targets and super-resolution, a row for each variation (32 at most).
    Where names alone are not clear, it is DIR/plots/FOLDER/NAME.png. Drawing again replaces plots.

    Examples:
        fourm plot out
        fourm generate "a small red circle" --num-variations 4 --preview 5 --out out | fourm plot -
        fourm plot out --count 20 --no-contact
        fourm plot out --show rgb,depth --format pdf --size 7
        fourm plot out --html --no-sheets
    """
    from fourm.hub.files import find_model
    from fourm.output.samples import open_runs

    if not (sheets or html):
        raise UsageError("--no-sheets: there is nothing to draw without --html")
    if show is not None and not (contact and sheets):
        raise UsageError("--show: says what contact sheets show, and none is drawn")
    root = parse_folder(folder, sys.stdin.buffer)
    open_runs(root)  # mistakes end here, before torch is imported
    if model is not None:
        find_model(model)

    from fourm.data.mirrors import upload_made
    from fourm.views.album import open_album
    from fourm.views.gallery import PAGE, write_gallery
    from fourm.views.plots import Wanted, plot_album, plots_folder

    album, plots, screen = open_album(root, model), plots_folder(root), Screen(quiet)
    chosen = replace(album, keys=album.keys[:count])
    page = plots / PAGE if html else None
    found, undrawn = dict[str, tuple[str, ...]](), set[str]()  # problems by sample, characters without a font

    def seen(key: str, problems: tuple[str, ...], number: int) -> None:
        found[key] = problems
        screen.say_progress(f"{number:,} of {len(chosen.keys):,} samples drawn")

    if sheets:
        wanted = Wanted(count, films, contact, _parse_names(show or ""), kind, size)
        for number, one in enumerate(plot_album(album, wanted), 1):
            seen(one.key, one.problems, number)
            undrawn |= one.undrawn
    if page is not None:
        numbers = itertools.count(1)
        write_gallery(chosen, page, seen=lambda view: seen(view.key.text, view.problems, next(numbers)))
    problems: list[tuple[str | None, str]] = [(None, text) for text in album.problems]
    problems += [(key, text) for key, texts in found.items() for text in texts]
    if not quiet:
        _note_problems(problems, undrawn)
        note(f"{counted(len(found), 'sample')} drawn in {page or plots}")
    upload_made(plots)
    _print_plotted(root, plots, page, len(found), problems) if as_json else print_path(root)
    if problems:
        raise typer.Exit(SampleError.exit_code)


def _print_plotted(
    root: Path, plots: Path, page: Path | None, samples: int, problems: Sequence[tuple[str | None, str]]
) -> None:
    said = {"out": str(root), "plots": str(plots), "page": str(page) if page else None}
    rows = [{"key": key, "problem": text} for key, text in problems]
    print_json(said | {"samples": samples, "problems": rows})


def _parse_names(text: str) -> tuple[str, ...]:
    """The names in a list, between commas or hyphens."""
    return tuple(name for name in re.split(r"[-,\s]+", text) if name)


def _note_problems(problems: Sequence[tuple[str | None, str]], undrawn: set[str]) -> None:
    for key, text in problems[:SHOWN]:
        note(f"{key}: {text}" if key else text)
    if (rest := len(problems) - SHOWN) > 0:
        note(f"and {rest:,} more problems; --json has them all")
    if undrawn:
        few = " ".join(sorted(undrawn)[:10])
        note(f"note: no font on this machine has {few}; question marks stand for them (Noto fonts have most)")


@with_options(
    queries=argument("Samples to find neighbours for, or - to read their folder from stdin.", "DIR"),
    among=option("Folder of the samples that may be found.", "DIR"),
    by=option("Features to compare: dinov2_global, clip, ...; embed: what `fourm embed` wrote.", "NAME",
              show_default="clip"),
    count=option("Neighbours of each sample.", "K", None, "--count", "-k", min=1),
    metric=option("euclidean or cosine.", "NAME"),
    sheet=option(
        "Also draw queries and neighbours side by side: a .png, .pdf or .svg.", "FILE", parser=local_path
    ),
    size=_SIZE,
    show=option("What the sheet shows of neighbours: rgb, depth, semseg, ...", "NAME", show_default="rgb"),
    pictures=option("Folder with the pictures of the sheet (of a run, a dataset, or pictures alone), where "
                    "those of the features have none.", "DIR"),
)  # fmt: skip
def retrieve(
    *, queries: str, among: str, by: str | None = None, count: int = 5, metric: str = "euclidean",
    model: str | None = None, sheet: Path | None = None, size: float | None = None,
    show: str | None = None, pictures: str | None = None, as_json: bool = False,
) -> None:  # fmt: skip
    """Find the samples of a folder whose features are nearest to those of other samples.

    Where both are the same folder, each sample has the others as neighbours.

    Examples:
        fourm generate --data photos --cond rgb --targets tok_dinov2_global --model 4m-21-xl --out library
        fourm generate "a lake house" --targets tok_dinov2_global --model 4m-21-xl --out query
        fourm retrieve query --among library --by dinov2_global --model 4m-21-xl --sheet found.png
        fourm generate "a lake house" --targets tok_clip --out query | fourm retrieve - --among library
        fourm embed photos --out library
        fourm retrieve library --among library --by embed --sheet found.png --pictures photos
    """
    from fourm.files.writing import check_drawing
    from fourm.hub.files import find_model

    registry = find_model(DEMO if model is None else model).registry
    ask = f"fourm generate {shlex.quote(queries)} --targets clip | fourm retrieve - --among {among}"
    folder = parse_folder(queries, sys.stdin.buffer, f"; for words or a picture: `{ask}`")
    library = find_folder(among)
    if sheet is not None:
        check_drawing("sheet", sheet)
    drawing = {"show": show, "size": size, "pictures": pictures}
    if sheet is None and (unused := next((name for name, value in drawing.items() if value is not None), "")):
        raise UsageError(f"--{unused}: says how --sheet is drawn, and none is asked for")
    seen = None if pictures is None else find_folder(pictures)

    from fourm.views.retrieval import as_rows, draw_neighbours, feature_row, load_features, nearest
    from fourm.views.saving import save_drawing

    row = feature_row(registry, "clip" if by is None else by)
    asked, is_same = load_features(folder, row), folder.samefile(library)
    others = asked if is_same else load_features(library, row)
    problems = asked.problems if is_same else (*asked.problems, *others.problems)
    for problem in problems:
        note(problem)
    own = asked.keys if is_same else ()
    found = dict(zip(asked.keys, nearest(asked.vectors, others, count, metric, own), strict=True))
    if sheet is not None:
        save_drawing(draw_neighbours(seen or folder, seen or library, registry, show, found), sheet, size)
    if as_json:
        print_json(as_rows(found))
    else:
        ranked = [(key, rank, one) for key, near in found.items() for rank, one in enumerate(near, 1)]
        rows = [(key, str(rank), one.key, f"{one.distance:.4f}") for key, rank, one in ranked]
        print_table(("query", "rank", "neighbour", "distance"), rows, numbers=("rank", "distance"))
    if problems:
        raise typer.Exit(SampleError.exit_code)


@with_options()
def verify(*, folder: str, as_json: bool = False) -> None:
    """Check an output folder: files that are missing, cut off, altered or not of its run (exit code 5).

    Examples:
        fourm verify out/001
        fourm generate "a red circle" | fourm verify -
        fourm verify out/001 --json | jq -r '.findings[].file'
    """
    from fourm.checks.verify import verify_folder

    root, screen = parse_folder(folder, sys.stdin.buffer), Screen()
    verdict = verify_folder(root, lambda done, total: screen.say_progress(f"{done:,} of {total:,} files"))
    if as_json:
        print_json(verdict.to_json())
    else:
        if shown := [*verdict.findings[:SHOWN], *verdict.notes[:SHOWN]]:
            print_table(
                ("what", "file", "detail"), [(one.kind, one.file, as_typed(one.detail)) for one in shown]
            )
        if (rest := len(verdict.findings) - SHOWN) > 0:
            print(f"... and {rest:,} more")
        kinds = Counter(finding.kind for finding in verdict.findings)
        counts = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
        what = f"{verdict.files:,} files of {counted(verdict.samples, 'sample')} checked"
        if verdict.failed:
            what += f", {counted(verdict.failed, 'result')} failed (see {verdict.failures})"
        print(f"{'ok' if verdict.ok else 'not ok'}: {what}{': ' if counts else ''}{counts}")
    if not verdict.ok:
        raise typer.Exit(VerificationError.exit_code)


@with_options()
def status(*, folder: str, as_json: bool = False) -> None:
    """Say how far a run is: shards that are done, missing or damaged, why results failed, the time left.

    Exit code 0: complete; 3: complete, but results failed; 1: not complete; 5: a shard is damaged.

    Examples:
        fourm status out
        fourm status out --json | jq '.[0].missing'
    """
    from fourm.checks.status import read_status

    found = read_status(parse_folder(folder, sys.stdin.buffer))
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        for one in found:
            _print_status(one)
    if any(one.damaged for one in found):
        raise typer.Exit(VerificationError.exit_code)
    if not all(one.is_complete for one in found):
        raise typer.Exit(1)
    if any(one.failed for one in found):
        raise typer.Exit(SampleError.exit_code)


def _print_status(one: "Status") -> None:
    from fourm.checks.verify_shards import as_ranges

    total = f" of {one.total:,}" if one.total is not None else ""
    results = f"{one.saved:,}{total} results, {one.failed:,} failed"
    results += f", {counted(one.incomplete, 'sample')} lacked a file" if one.incomplete else ""
    if one.shards is not None:
        results = f"{one.done:,} of {counted(one.shards, 'shard')}; {results}"
    if one.rate is not None:
        results += f"; {one.rate:.3g} results/s"
    if one.left:
        results += f", about {duration(one.left)} left"
    print(f"{one.run}: {results}")
    if one.missing:
        print(f"missing: {as_ranges(one.missing)}")
    for text in one.damaged[:SHOWN]:
        print(f"damaged: {text}; --resume makes it again")
    for reason, number in one.reasons[:SHOWN]:
        print(f"failed {counted(number, 'time')}: {printable(reason)}")
    if one.failed:
        print(f"--resume{' --retry-failed' if one.shards is not None else ''} makes failed results again")


@with_options()
def convert(*, context: typer.Context) -> None:
    """Convert files of other programs to open formats.

    Examples:
        fourm convert sam-instances dataset --out converted
        fourm convert weights inception-fid
    """
    show_group(context)


@with_options(
    source=argument("Dataset folder with sam_instance/<folder>/<name>.npy.", "DIR", parser=local_path),
    out=option("Folder for sam_instance/<folder>/<name>.json.", "DIR", parser=output_path,
               show_default=False),
    overwrite=option("Convert again what is there already."),
    quiet=option("Say only what went wrong.", None, None, "--quiet", "-q"),
)  # fmt: skip
def sam_instances(*, source: Path, out: Path, overwrite: bool = False, quiet: bool = False) -> None:
    """Convert pickled SAM instances to JSON. Nothing in a pickle is run; what is no instance is refused.

    Examples:
        fourm convert sam-instances dataset --out converted
    """
    from fourm.inputs.convert import convert_dataset

    counts = Counter[str]()
    for one in convert_dataset(source, out, overwrite):
        counts["failed" if one.problem else "kept" if one.was_there else "made"] += 1
        if one.problem:
            note(one.problem)
    if not quiet:
        note(f"{counts['made']} converted, {counts['kept']} were there, {counts['failed']} failed")
    print_path(out)
    if counts["failed"]:
        raise typer.Exit(SampleError.exit_code)


@with_options(
    names=argument("Pickled files (.pth, .pt, .bin), or one name of what `fourm download` has fetched: "
                   "inception-fid, lpips-alex.", "FILE", parser=local_name),
    out=option("The file to write. By default where weights of that name are looked for, or beside FILE.",
               "FILE.safetensors", parser=output_path, show_default=False),
    overwrite=option("Replace a file that is there already."),
)  # fmt: skip
def weights(*, names: list[str], out: Path | None = None, overwrite: bool = False) -> None:
    """Convert pickled weights of PyTorch to safetensors. Nothing in a pickle is run; only tensors are taken.

    Several files become one. Of a checkpoint of training, its weights are taken.

    Examples:
        fourm convert weights inception-fid
        fourm convert weights checkpoint-499.pth --out model.safetensors
    """
    from fourm.inputs.weights import convert_weights

    path, count = convert_weights(names, out, overwrite)
    note(f"{counted(count, 'tensor')} converted")
    print_path(path)


convert_app.callback(invoke_without_command=True, **help_of(convert))(convert)
convert_app.command(**help_of(sam_instances))(sam_instances)
convert_app.command(**help_of(weights))(weights)
