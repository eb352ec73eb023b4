"""`fourm schedule`: check a schedule against a model, or print its chain, without loading weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fourm.cost import Cost, estimate
from fourm.errors import UsageError, printable
from fourm.hub import DEMO, ModelFiles, find_model
from fourm.plan import build_chain
from fourm.schedule import Chain
from fourm_cli.console import print_json, print_table, size_text
from fourm_cli.options import (
    AsJson,
    Config,
    DataConfig,
    Dtype,
    GenConfig,
    Model,
    SrConfig,
    parse_dtype,
    schedule_options,
    settings_from,
)

schedule_app = typer.Typer(no_args_is_help=True, help="Check or print a schedule, without loading weights.")
Chart = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        help="Also draw tokens, temperature and guidance of each step, as this PNG.",
        metavar="FILE",
        show_default=False,
    ),
]
EXAMPLES = """
Examples:

  fourm schedule {0} --cond caption --targets tok_clip-tok_rgb --temps 3.0-0.5

  fourm schedule {0} --target tok_clip:steps=49,temp=6 --target tok_rgb:steps=25,temp=0.5
"""


def validate(
    *,
    schedule: Mapping[str, object],
    model: Model = None,
    dtype: Dtype = None,
    config: Config = None,
    data_config: DataConfig = None,
    gen_config: GenConfig = None,
    sr_config: SrConfig = None,
    as_json: AsJson = False,
) -> None:
    """Check a schedule against a model and say what the run will cost."""
    settings = settings_from((config, data_config, gen_config, sr_config), schedule)
    files = find_model(model or settings.run.model or DEMO)
    chain = build_chain(settings.base, files)
    cost = estimate(chain, files, parse_dtype(dtype or settings.run.dtype or "auto"))
    if as_json:
        print_json({"model": files.name, "steps": len(chain.steps), **cost.to_json()})
        return
    print_table(("what", "how much"), _cost_rows(chain, cost, files))


def show(
    *,
    schedule: Mapping[str, object],
    model: Model = None,
    config: Config = None,
    data_config: DataConfig = None,
    gen_config: GenConfig = None,
    sr_config: SrConfig = None,
    chart: Chart = None,
    as_json: AsJson = False,
) -> None:
    """Print the chain of a schedule step by step."""
    if chart is not None and chart.suffix.lower() != ".png":
        raise UsageError(f"--plot {printable(str(chart))}: must end in .png")
    settings = settings_from((config, data_config, gen_config, sr_config), schedule)
    files = find_model(model or settings.run.model or DEMO)
    chain = build_chain(settings.base, files)
    if chart is not None:
        from fourm.chart import draw_chain, save_chart  # imports Matplotlib: half a second

        save_chart(draw_chain(chain, files.name), chart)
    if as_json:
        print_json(chain.to_json())
        return
    columns = ("step", "target", "scheme", "tokens", "temperature", "guidance", "guided by")
    rows = [
        (str(s.index), s.target, s.scheme, str(s.num_tokens), f"{s.temperature:.6g}", f"{s.guidance:g}",
         ", ".join(n for n in (*chain.conditions, *chain.targets) if n in s.guided))
        for s in chain.steps
    ]  # fmt: skip
    print_table(columns, rows, numbers=("step", "tokens", "temperature", "guidance"))


def _cost_rows(chain: Chain, cost: Cost, files: ModelFiles) -> list[tuple[str, str]]:
    return [
        ("model", files.name),
        ("conditions", ", ".join(chain.conditions) or "none"),
        ("targets", ", ".join(chain.targets)),
        ("decoding steps", f"{len(chain.steps):,}"),
        ("forward passes per sample", f"{cost.passes:,}"),
        ("tokens per sample", f"{cost.tokens:,}"),
        ("memory for weights", size_text(cost.weights)),
        ("memory for activations", f"about {size_text(cost.activations)} per sample of a batch"),
        ("to fetch", size_text(cost.fetch) if cost.fetch else "nothing"),
    ]


schedule_app.command("validate", epilog=EXAMPLES.format("validate"))(schedule_options(validate))
schedule_app.command("show", epilog=EXAMPLES.format("show"))(schedule_options(show))
