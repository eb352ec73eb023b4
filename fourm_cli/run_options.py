"""Options of commands that make samples: what goes in, how it runs, what comes out."""

from pathlib import Path
from typing import Annotated

import typer

from fourm.data.opening import local_name, local_path
from fourm.data.writing import output_path
from fourm.runs.request import ATTENTIONS
from fourm_cli.completion import one_of
from fourm_cli.options import MODEL_PANEL

INPUT, OUTPUT, RUN = "Input", "Output", "Run"

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="Captions, a sample for each.")]
Data = Annotated[
    str | None,
    typer.Option(
        help="Prompts: a .txt, .tsv, .csv or .jsonl file, - for standard input, or parti_prompts; tables may "
        "have a column for each condition that is text. A dataset: "
        "a folder that holds MODALITY/FOLDER/NAME.EXT. Or empty: no condition at all, with --num-samples.",
        parser=local_name,
        metavar="SOURCE",
        rich_help_panel=INPUT,
    ),
]
Column = Annotated[
    str | None,
    typer.Option(
        help="Column of a table that holds the prompts. By default caption, prompt or text.",
        metavar="NAME",
        rich_help_panel=INPUT,
    ),
]
NumSamples = Annotated[
    int | None, typer.Option(min=1, help="Only the first N samples.", metavar="N", rich_help_panel=INPUT)
]
SubsetSeed = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="With --num-samples: N drawn at random by this seed, not the first.",
        metavar="S",
        rich_help_panel=INPUT,
    ),
]
ReplayFile = Annotated[
    Path | None,
    typer.Option(
        "--replay",
        help="Repeat what made this PNG, or everything of a run.json: same samples, schedule and seed.",
        parser=local_path,
        metavar="FILE",
        rich_help_panel=INPUT,
    ),
]
NumVariations = Annotated[
    int | None,
    typer.Option(min=1, help="Results per sample. By default 1.", metavar="K", rich_help_panel=RUN),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of all random draws. By default 0.", metavar="S", rich_help_panel=RUN),
]
BatchSize = Annotated[
    str,
    typer.Option(
        help="Results decoded together. It changes no result in float32.",
        metavar="auto|N",
        rich_help_panel=RUN,
    ),
]
Shard = Annotated[
    str | None,
    typer.Option(
        help="Do one n-th of the results: 0/4, 1/4, 2/4 or 3/4. Shards may share --out.",
        metavar="i/n",
        rich_help_panel=RUN,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Output folder. By default the first free of out/001, out/002, ...",
        parser=output_path,
        metavar="DIR",
        rich_help_panel=OUTPUT,
    ),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Do what an earlier run with the same settings left undone.", rich_help_panel=OUTPUT
    ),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Delete what an earlier run wrote, then start again.", rich_help_panel=OUTPUT
    ),
]
Decode = Annotated[
    bool,
    typer.Option(
        "--decode/--no-decode",
        help="Write pictures and other values, or tokens alone.",
        rich_help_panel=OUTPUT,
    ),
]
DetokenizerSteps = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Steps of tokenizers that decode by diffusion. By default 50, at most 25 for previews.",
        metavar="N",
        rich_help_panel=OUTPUT,
    ),
]
Attention = Annotated[
    str,
    typer.Option(
        help="sdpa or, on NVIDIA GPUs with the extra 'fast', xformers.",
        metavar="KERNEL",
        autocompletion=one_of(*ATTENTIONS),
        rich_help_panel=MODEL_PANEL,
    ),
]
Tokenizers = Annotated[
    list[str] | None,
    typer.Option(
        "--tokenizer",
        help="Another tokenizer for a key of the model: a name, Hub id, folder or file. May be repeated.",
        metavar="KEY=NAME",
        rich_help_panel=MODEL_PANEL,
    ),
]
Preview = Annotated[
    int,
    typer.Option(
        min=0, help="Keep the picture after every N-th step; 0 is never.", metavar="N", rich_help_panel=OUTPUT
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.", rich_help_panel=OUTPUT)]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="On stdout, a JSON record in place of the folder's path.", rich_help_panel=OUTPUT
    ),
]
LogJson = Annotated[
    Path | None,
    typer.Option(
        help="Write one JSON object per event.", parser=local_path, metavar="FILE", rich_help_panel=OUTPUT
    ),
]
