"""`fourm schedule`: check a schedule against a model, or print its chain, without loading weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fourm.data.opening import local_path
from fourm.data.writing import check_drawing
from fourm.hub.files import DEMO, ModelFiles, find_model
from fourm.runs.superres import plan_finer
from fourm.schedule.chain import Chain, Step
from fourm.schedule.cost import Cost, estimate
from fourm.schedule.plan import build_chain
from fourm_cli.console import print_json, print_table, size_text
from fourm_cli.options import (
    AsJson,
    Config,
    DataConfig,
    Dtype,
    GenConfig,
    Model,
    SrConfig,
    SrModel,
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
        parser=local_path,
        metavar="FILE",
        show_default=False,
    ),
]
EXAMPLES = """
[bold]Examples[/bold]

fourm schedule {0} --cond caption --targets tok_clip-tok_rgb --temps 3.0-0.5

fourm schedule {0} --target tok_clip:steps=49,temp=6 --target tok_rgb:steps=25,temp=0.5
"""


def validate(
    *,
    schedule: Mapping[str, object],
    model: Model = None,
    sr_model: SrModel = None,
    dtype: Dtype = None,
    config: Config = None,
    data_config: DataConfig = None,
    gen_config: GenConfig = None,
    sr_config: SrConfig = None,
    as_json: AsJson = False,
) -> None:
    """Check a schedule against a model and say what the run will cost."""
    settings = settings_from((config, data_config, gen_config, sr_config), schedule)
    files = find_model((settings.run.model or DEMO) if model is None else model)
    chain = build_chain(settings.base, files)
    width = parse_dtype(dtype, settings.run.dtype)
    finer = plan_finer(settings, files, chain, sr_model)
    stages = [(files, chain, estimate(chain, files, width))]
    stages += [(*finer, estimate(finer[1], finer[0], width))] if finer else []
    if as_json:
        said = [{"model": f.name, "steps": len(c.steps), **cost.to_json()} for f, c, cost in stages]
        print_json({**said[0], **({"sr": said[1]} if finer else {})})
        return
    tables = [dict(_cost_rows(c, cost, f)) for f, c, cost in stages]
    columns = ("what", "how much", *(["super-resolution"] if finer else []))
    print_table(columns, [(what, *(table[what] for table in tables)) for what in tables[0]])


def show(
    *,
    schedule: Mapping[str, object],
    model: Model = None,
    sr_model: SrModel = None,
    config: Config = None,
    data_config: DataConfig = None,
    gen_config: GenConfig = None,
    sr_config: SrConfig = None,
    chart: Chart = None,
    as_json: AsJson = False,
) -> None:
    """Print the chain of a schedule step by step, and that of super-resolution where it is asked for."""
    if chart is not None:
        check_drawing("--plot", chart)
    settings = settings_from((config, data_config, gen_config, sr_config), schedule)
    files = find_model((settings.run.model or DEMO) if model is None else model)
    chain = build_chain(settings.base, files)
    finer = plan_finer(settings, files, chain, sr_model)
    if chart is not None:
        from fourm.schedule.chart import draw_chain, save_chart  # imports Matplotlib: half a second

        save_chart(draw_chain(chain, files.name), chart)
    if as_json:
        print_json({**chain.to_json(), **({"sr": finer[1].to_json()} if finer else {})})
        return
    _print_steps(chain)
    if finer:
        print(f"\nsuper-resolution, {finer[0].name}\n")
        _print_steps(finer[1])


def _print_steps(chain: Chain) -> None:
    columns = ("step", "target", "scheme", "tokens", "temperature", "guidance", "guided by")
    rows = [
        (str(s.number), s.target, s.scheme, _tokens(s), f"{s.temperature:.6g}", f"{s.guidance:g}",
         ", ".join(_weighted(n, s) for n in (*chain.conditions, *chain.targets) if n in s.guided))
        for s in chain.steps
    ]  # fmt: skip
    print_table(columns, rows, numbers=("step", "tokens", "temperature", "guidance"))


def _weighted(name: str, step: Step) -> str:
    """A guided modality, with its weight where each has one of its own."""
    if not step.removes_hidden:
        return name
    weights = (branch.weight for branch in step.branches if name in branch.visible)
    return f"{name}:{next(weights, 0.0):g}"


def _tokens(step: Step) -> str:
    return f"{step.passes} x {step.num_tokens}" if step.passes > 1 else str(step.num_tokens)


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
