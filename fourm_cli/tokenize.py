"""`fourm tokenize`: pictures and maps of a dataset become token files that `generate` reads as conditions."""

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from fourm.data.opening import local_path
from fourm.data.writing import output_path
from fourm.errors import UsageError
from fourm.hub.files import DEMO, find_model
from fourm.runs.events import Event
from fourm.runs.rawdata import TokenizeRequest, find_folders, list_samples, missing_tokenizers
from fourm.runs.world import parse_world
from fourm.schedule.settings import Item, parse_list
from fourm_cli import console
from fourm_cli.follow import follow
from fourm_cli.options import (
    Device,
    Dtype,
    Model,
    parse_batch_size,
    parse_device,
    parse_dtype,
    parse_tokenizers,
)
from fourm_cli.run_options import (
    INPUT,
    OUTPUT,
    RUN,
    AsJson,
    Attention,
    LogJson,
    Quiet,
    Seed,
    Shard,
    Tokenizers,
)

EXAMPLES = """
[bold]Examples[/bold]

fourm tokenize DATASET

fourm tokenize DATASET/train --modalities rgb-depth-normal --model 4m-21-b

fourm tokenize DATASET --crops 10 --min-scale 0.5 --out tokens

fourm generate --data DATASET --cond tok_rgb --targets tok_depth --out out
"""

Folder = Annotated[
    Path,
    typer.Argument(
        metavar="DIR",
        help="A dataset, or a split of one: DIR/MODALITY/FOLDER/NAME.EXT.",
        parser=local_path,
        show_default=False,
    ),
]
Modalities = Annotated[
    str | None,
    typer.Option(
        help="Folders or modalities: rgb-depth. By default all that the model has a tokenizer for.",
        metavar="NAMES",
        rich_help_panel=INPUT,
    ),
]
Crops = Annotated[
    int | None,
    typer.Option(
        help="Crops of each sample: the centre, then random ones. By default as many as crop_settings has, "
        "else 1.",
        metavar="N",
        rich_help_panel=RUN,
    ),
]
MinScale = Annotated[
    float,
    typer.Option(
        help="Smallest share of a picture's area that a random crop shows.",
        metavar="SHARE",
        rich_help_panel=RUN,
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(help="Samples read together. It changes no result.", metavar="auto|N", rich_help_panel=RUN),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Where folders of tokens go. By default DIR.", parser=output_path, metavar="DIR",
        rich_help_panel=OUTPUT,
    ),
]  # fmt: skip
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Make token files anew that are there.", rich_help_panel=OUTPUT),
]


def tokenize(
    *,
    folder: Folder,
    modalities: Modalities = None,
    model: Model = None,
    tokenizers: Tokenizers = None,
    device: Device = None,
    dtype: Dtype = None,
    attention: Attention = "sdpa",
    crops: Crops = None,
    min_scale: MinScale = 0.8,
    seed: Seed = None,
    batch_size: BatchSize = "auto",
    shard: Shard = None,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    log_json: LogJson = None,
) -> None:
    """Turn pictures, depth, normals ... of a dataset into token files, with the same crops for all of them.

    Files that are there and whole are left as they are: the same command goes on where it was interrupted.
    """
    files = find_model(DEMO if model is None else model, needs_weights=False)
    own = parse_tokenizers(tokenizers or [], files)
    files = replace(files, tokenizers={**files.tokenizers, **own})
    names = None if modalities is None else _names(modalities)
    found = find_folders(folder, files, names)
    out = out if out is not None else output_path(folder)
    world = parse_world(shard, os.environ)
    dataset = list_samples(folder, out, found)
    request = TokenizeRequest(
        files, tuple(one.row for one in found), dataset.samples, out, num_crops=crops,
        min_scale=min_scale, seed=seed or 0, batch_size=parse_batch_size(batch_size),
        device=parse_device(device), dtype=parse_dtype(dtype), attention=attention,
        overwrite=overwrite, world=world,
    )  # fmt: skip
    console.quiet_library(quiet or world.group_rank > 0)
    if not quiet and world.group_rank == 0:
        for one in found:
            count = sum(one.row.name in sample.files for sample in request.samples)
            console.note(f"{one.folder} -> {one.row.name}: {count} file{'' if count == 1 else 's'}")
        for text in (*dataset.notes, *(missing_tokenizers(folder, files) if names is None else ())):
            console.note(f"note: {text}")
    if not quiet and world.size > 1:
        console.note(world.describe_share(len(request.samples)))
    follow(partial(_begin, request), world, out, quiet=quiet, as_json=as_json, log_json=log_json)


def _begin(request: TokenizeRequest) -> list[Iterator[Event]]:
    from fourm.runs.tokenizing import tokenize_dataset

    return [tokenize_dataset(request)]


def _names(text: str) -> list[str]:
    """The items of a list of names."""
    try:
        names = parse_list(text, Item.NAME)
    except UsageError as error:
        raise UsageError(f"--modalities: {error}") from error
    return [name if isinstance(name, str) else "none" for name in names]
