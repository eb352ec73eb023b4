"""The command `eval`: how good the values of a folder are, as a table."""

import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fourm import set_variables
from fourm.errors import SampleError, UsageError, printable
from fourm.files.opening import output_path
from fourm.measures.tables import MEASURES
from fourm_cli.console import Screen, counted, note, print_json, print_table
from fourm_cli.options import list_of, option, parse_device, parse_folder, with_options

if TYPE_CHECKING:
    from fourm.evaluation.results import Evaluation

SHOWN = 20  # problems that get a line of their own; all are in eval.json


@with_options(
    folder="Output folder of a run, or a dataset; with --out also tars, s3://BUCKET/PATH; - reads its path.",
    against=option("What to compare with: a folder, tars, Parquet; samples are matched by name.", "DIR"),
    measures=option(f"Which of {', '.join(MEASURES)}; by default all that fit and whose networks are here.",
                    "NAME,...", autocompletion=list_of(*MEASURES)),
    metric_depth=option("Compare depth as it is; else scale and shift are fitted to each picture."),
    model="Whose modalities these are, where the model of the run is not here any more.",
    device=option("Where networks run: cpu, cuda, cuda:N or mps.", "NAME", parser=parse_device,
                  show_default="auto"),
    shard=option("Measure one n-th of the samples, 0/4 to 3/4; the last one merges all. Also array, slurm, "
                 "k8s/N.", "i/n"),
    merge=option("With --shard: measure nothing, merge what all shares have found."),
    plot=option("Draw histograms, and the worst twelve of each measure, in DIR/eval."),
    out=option("Folder for the results, in place of DIR.", "DIR", parser=output_path),
)  # fmt: skip
def evaluate(
    *, folder: str, against: str | None = None, measures: str | None = None, metric_depth: bool = False,
    model: str | None = None, device: str = "auto", shard: str | None = None, merge: bool = False,
    plot: bool = False, out: Path | None = None, quiet: bool = False, as_json: bool = False,
) -> None:  # fmt: skip
    """Measure the values of a folder: pictures, depth, normals, segmentation, boxes, captions, tokens.

    Means with 95 % intervals go to stdout, all numbers to DIR/eval.json, those of samples to DIR/eval.csv.

    Exit code 3: a file was damaged; it is named and left out.

    Examples:
        fourm eval out --against data
        fourm eval bfloat16 --against float32 --measures psnr,token_share
        fourm eval out --against data --plot
        fourm eval out --against data --json | jq '.results[0].value'
        for i in 0 1 2; do fourm eval out --against data --shard $i/3 & done; wait
    """
    from fourm.data.containers import is_container
    from fourm.evaluation.folder import Asked, measure_folder
    from fourm.inputs.world import other_launcher, parse_world

    root = Path(folder) if is_container(folder) else parse_folder(folder, sys.stdin.buffer)
    names = tuple((measures or "").replace(",", " ").split())
    if measures is not None and not names:
        raise UsageError("--measures: names no measure")
    world = parse_world(shard, os.environ)
    if merge and world.size == 1:
        raise UsageError("--merge: is for shares; --shard i/n says how many there are")
    screen, done = Screen(quiet), 0
    if not world.is_told and (text := other_launcher(os.environ)):
        screen.say(f"note: {text}")

    def seen(count: int) -> None:
        nonlocal done
        done += count
        screen.say_progress(f"{done:,} values measured")

    set_variables()  # before torch is imported
    asked = Asked(root, against, names, metric_depth, model, device, world, out)
    found = measure_folder(asked, seen, merge)
    if found is None:
        screen.say(f"share {world.rank} of {world.size} is measured; the last of them merges all")
        if as_json:
            print_json({"merged": False, "shard": world.rank, "shards": world.size})
        return
    if plot:
        from fourm.views.measures import plot_evaluation

        for path in plot_evaluation(found):
            screen.say(f"drawn: {path}")
    if not quiet:
        _note(found)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    if found.problems:
        raise typer.Exit(SampleError.exit_code)


def _print(found: "Evaluation") -> None:
    columns = ("modality", "measure", "value", "95 % interval", "samples", "better")
    rows = [one.texts() for one in found.numbers if not one.is_detail]
    print_table(columns, rows, numbers=("value", "95 % interval", "samples"))


def _note(found: "Evaluation") -> None:
    for text in found.notes:
        note(text)
    for name, counts in found.counts.items():
        lacking = [
            f"{counted(counts.without_partner, 'value')} without a partner" if counts.without_partner else "",
            f"{counted(counts.others - counts.matched, 'sample')} only in the other folder"
            if counts.others > counts.matched
            else "",
        ]
        if any(lacking):
            note(f"{name}: {counts.pairs:,} with a partner, {', '.join(filter(None, lacking))}")
    partial = dict[tuple[str, str], list[str]]()
    for number in found.numbers:
        if number.counts and math.isfinite(number.value) and not number.is_detail:
            left_out = ", ".join(f"{count:,} {why}" for why, count in number.counts.items())
            partial.setdefault((number.modality, left_out), []).append(number.name)
    for (modality, left_out), names in partial.items():
        note(f"{modality}: {', '.join(names)} without {left_out}")
    for one in found.problems[:SHOWN]:
        which = one.key if one.variation is None else f"{one.key}-v{one.variation}"
        note(f"{which}: {one.modality}: {printable(one.reason)}")
    if (rest := len(found.problems) - SHOWN) > 0:
        note(f"and {rest:,} more; all are in eval.json")
