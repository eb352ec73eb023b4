"""`fourm sr`: super-resolution of what a run has made, or of a dataset."""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fourm.data.opening import local_name, real
from fourm.data.writing import output_path
from fourm.errors import UsageError
from fourm.output.runfile import RunRecord
from fourm.runs.request import DETOKENIZER_STEPS, Origin, Request
from fourm.runs.superres import find_finer, names_made, read_finer, read_origin
from fourm.runs.world import parse_world
from fourm.schedule.plan import build_chain
from fourm.schedule.settings import merge, read_settings
from fourm_cli.completion import model_names
from fourm_cli.follow import make
from fourm_cli.generate import say_notes, with_named_parts
from fourm_cli.options import (
    MODEL_PANEL,
    Config,
    Device,
    Dtype,
    Folder,
    SrConfig,
    parse_batch_size,
    parse_device,
    parse_dtype,
    parse_folder,
    schedule_options,
    settings_from,
)
from fourm_cli.run_options import (
    OUTPUT,
    RUN,
    AsJson,
    Attention,
    BatchSize,
    Decode,
    DetokenizerSteps,
    LogJson,
    Overwrite,
    Preview,
    Quiet,
    Resume,
    Shard,
    Tokenizers,
)

EXAMPLES = """
[bold]Examples[/bold]

fourm sr out

fourm generate "a small red circle above a blue square" --out out | fourm sr -

fourm sr out --targets tok_clip-tok_rgb --steps 8 --cfg 3.0

fourm sr DATASET --model 4m-7-sr-l --out finer
"""

Model = Annotated[
    str | None,
    typer.Option(
        help="Name, Hub id, folder or .safetensors file of a model for super-resolution. Without it, the "
        "one that belongs to the model of the run, or to demo.",
        parser=local_name,
        metavar="NAME",
        autocompletion=model_names,
        rich_help_panel=MODEL_PANEL,
    ),
]
NumVariations = Annotated[
    int | None,
    typer.Option(
        min=1, help="Results per sample. By default as many as the run has.", metavar="K", rich_help_panel=RUN
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        min=0, help="Seed of all random draws. By default that of the run.", metavar="S", rich_help_panel=RUN
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Output folder. By default DIR, beside the files that are read.",
        parser=output_path,
        metavar="DIR",
        rich_help_panel=OUTPUT,
    ),
]


@partial(schedule_options, sr=False)
def sr(
    *,
    folder: Folder,
    schedule: Mapping[str, object],
    model: Model = None,
    tokenizers: Tokenizers = None,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = "sdpa",
    config: Config = None,
    sr_config: SrConfig = None,
    num_variations: NumVariations = None,
    seed: Seed = None,
    batch_size: BatchSize = "auto",
    shard: Shard = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    decode: Decode = True,
    detokenizer_steps: DetokenizerSteps = None,
    preview: Preview = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
    log_json: LogJson = None,
) -> None:
    """Make pictures of a folder finer: super-resolution of what a run has made, or of a dataset of tokens.

    Conditions are what the run was given and what it made. Results go beside them, or to --out.
    """
    root = parse_folder(folder, sys.stdin.buffer)
    settings, own = settings_from((config, None, None, sr_config), {}), read_settings([], schedule)
    origin = read_origin(root)
    made = None if origin is None else origin.runs[0].record
    named = settings.run.sr_model if model is None else model
    files = with_named_parts(find_finer(origin, named), settings.run, tokenizers)
    layer = merge([settings.base, settings.sr, own.base])
    chain = build_chain(layer, files, names_made(root, origin, files))
    dataset = read_finer(root, origin, chain, files, sys.stdin.buffer)
    is_beside = out is None or real(out) == real(root)
    request = Request(
        files, chain, dataset.samples, root if out is None else out, world=parse_world(shard, os.environ),
        num_variations=_num_variations(made, num_variations),
        variation=made.variation if made else None,
        seed=seed if seed is not None else made.seed if made else 0,
        batch_size=parse_batch_size(batch_size),
        device=parse_device(device, settings.run.device),
        dtype=parse_dtype(dtype, made.dtype if made else None),
        attention=attention, decode=decode, preview=preview, resume=resume, overwrite=overwrite,
        detokenizer_steps=detokenizer_steps or settings.run.detokenizer_steps or DETOKENIZER_STEPS,
        command=("fourm", *sys.argv[1:]), origin=Origin(made, is_beside),
    )  # fmt: skip
    notes = partial(say_notes, dataset, files)
    make(request, None, notes, quiet=quiet, as_json=as_json, log_json=log_json)


def _num_variations(made: RunRecord | None, asked: int | None) -> int:
    """As many as the run has made; several of its one variation."""
    if made is None or made.num_variations == 1:
        return asked or 1
    if asked not in (None, made.num_variations):
        raise UsageError(
            f"--num-variations {asked}: the run made {made.num_variations} variations, each of which gets "
            "one result; leave it out"
        )
    return made.num_variations
