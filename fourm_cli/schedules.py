"""`fourm schedule`: check a schedule against a model, or print its chain, without loading weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fourm.files.opening import local_path
from fourm.hub.catalogue import CATALOGUE, DEMO, PARTI, Entry
from fourm.hub.header import AUTO, FULL
from fourm.schedule.settings import Settings, read_settings
from fourm_cli.console import note, print_stages, print_table, size_text
from fourm_cli.help import help_of, show_group
from fourm_cli.options import ConfigFiles, ScheduleWithSr, option, with_options

if TYPE_CHECKING:
    from fourm.hub.files import ModelFiles
    from fourm.schedule.chain import Chain
    from fourm.schedule.cost import Cost

schedule_app = typer.Typer()


@with_options()
def schedule(*, context: typer.Context) -> None:
    """Check or print a schedule, without loading weights.

    Examples:
        fourm schedule validate --cond caption --targets tok_clip-tok_rgb --temps 3.0-0.5
        fourm schedule show --target tok_clip:steps=49,temp=6 --target tok_rgb:steps=25,temp=0.5
    """
    show_group(context)


@with_options()
def validate(
    *, schedule: ScheduleWithSr, model: str | None = None, sr_model: str | None = None,
    dtype: str | None = None, weights: str | None = None, configs: ConfigFiles, as_json: bool = False,
) -> None:  # fmt: skip
    """Check a schedule against a model and say what the run will cost.

    Examples:
        fourm schedule validate --cond caption --targets tok_clip-tok_rgb --temps 3.0-0.5
        fourm schedule validate --target tok_clip:steps=49,temp=6 --target tok_rgb:steps=25,temp=0.5
    """
    from fourm.schedule.cost import advise_bfloat16

    settings, stages = _plan(schedule, configs, model, sr_model)
    width = dtype or settings.run.dtype or AUTO
    stages = [(files, chain.expected()) for files, chain in stages]
    costs = _costs(settings, stages, width, weights or FULL)
    if as_json:
        said = [{"model": f.name, "steps": len(c.steps), **cost.to_json()} for f, c, cost in costs]
        print_stages(said)
        return
    tables = [
        {
            "model": files.name,
            "conditions": ", ".join(chain.conditions) or "none",
            "targets": ", ".join(chain.targets),
            **({"kept": ", ".join(keep.to_text() for keep in chain.keeps)} if chain.keeps else {}),
            "decoding steps": f"{_at_most(chain)}{len(chain.steps):,}",
            "forward passes per sample": f"{_at_most(chain)}{cost.passes:,}",
            "tokens per sample": f"{_at_most(chain)}{cost.tokens:,}",
            "memory for weights": size_text(cost.weights),
            "memory for activations": f"about {size_text(cost.activations)} per sample of a batch",
            "to fetch": size_text(cost.fetch_bytes) if cost.missing else "nothing",
        }
        for files, chain, cost in costs
    ]
    columns = ("what", "how much", "super-resolution")[: 1 + len(tables)]
    rows = dict.fromkeys(what for table in tables for what in table)
    print_table(columns, [(what, *(table.get(what, "") for table in tables)) for what in rows])
    may_be_cpu = settings.run.device in (None, "auto", "cpu")
    if width == AUTO and may_be_cpu and (advice := advise_bfloat16(*stages[0])):
        note(advice)
    if names := [part.name for *_, cost in costs for part in cost.missing]:
        note(f"`fourm download {' '.join(names)}` fetches what is not here")


@with_options(
    chart=option("Also draw tokens, temperature and guidance of each step: a .png, .pdf or .svg.", "FILE",
                 None, "--plot", parser=local_path, show_default=False),
    size=option("Width of the chart in inches; a PNG has 120 pixels for each. By default 11.", "INCHES",
                min=3, max=40, show_default=False),
)  # fmt: skip
def show(
    *, schedule: ScheduleWithSr, model: str | None = None, sr_model: str | None = None,
    configs: ConfigFiles, chart: Path | None = None, size: float | None = None, as_json: bool = False,
) -> None:  # fmt: skip
    """Print the chain of a schedule step by step, and that of super-resolution where it is asked for.

    Examples:
        fourm schedule show --cond caption --targets tok_clip-tok_rgb --temps 3.0-0.5
        fourm schedule show --target tok_clip:steps=49,temp=6 --target tok_rgb:steps=25,temp=0.5
    """
    stages = [(files, chain.expected()) for files, chain in _plan(schedule, configs, model, sr_model)[1]]
    if chart is not None:
        from fourm.files.writing import check_drawing
        from fourm.views.chart import WIDTH, draw_chain  # imports Matplotlib: half a second
        from fourm.views.saving import save_drawing

        check_drawing("plot", chart)
        save_drawing(draw_chain(stages[0][1], stages[0][0].name, size or WIDTH), chart)
    if as_json:
        said = [chain.to_json() for _, chain in stages]
        print_stages(said)
        return
    columns = ("step", "target", "scheme", "tokens", "temperature", "guidance", "guided by")
    for number, (files, chain) in enumerate(stages):
        if number:
            print(f"\nsuper-resolution, {files.name}\n")
        rows = list[tuple[str, ...]]()
        for step in chain.steps:
            guided = chain.guided_by(step)
            if step.removes_hidden:  # each has a weight of its own
                weights = {name: branch.weight for branch in step.branches for name in branch.visible}
                guided = [f"{name}:{weights.get(name, 0.0):g}" for name in guided]
            tokens = f"{step.passes} x {step.num_tokens}" if step.passes > 1 else str(step.num_tokens)
            if any(keep.target == step.target and keep.share is None for keep in chain.keeps):
                tokens = f"up to {tokens}"
            numbers = (tokens, f"{step.temperature:.6g}", f"{step.guidance:g}")
            rows.append((str(step.number), step.target, step.scheme, *numbers, ", ".join(guided)))
        print_table(columns, rows, numbers=("step", "tokens", "temperature", "guidance"))


def _at_most(chain: "Chain") -> str:
    """What stands before a count that depends on how much of a sample is given."""
    return "up to " if any(keep.share is None for keep in chain.keeps) else ""


def _plan(
    schedule: Mapping[str, object], configs: ConfigFiles, model: str | None, sr_model: str | None
) -> "tuple[Settings, list[tuple[ModelFiles, Chain]]]":
    """Settings, then model and chain of generation and of super-resolution, where it is asked for."""
    from fourm.hub.files import find_model, with_parts
    from fourm.inputs.origins import plan_sr
    from fourm.schedule.plan import build_chain

    settings = read_settings(configs.paths, schedule)
    run = settings.run
    files = find_model((run.model or DEMO) if model is None else model, needs_weights=False)
    files = with_parts(files, run.tokenizers, run.text_tok_path)
    chain = build_chain(settings.base, files)
    sr_run = plan_sr(settings, files, chain, sr_model, needs_weights=False)
    return settings, [(files, chain), *([sr_run] if sr_run else [])]


def _costs(
    settings: Settings, stages: "Sequence[tuple[ModelFiles, Chain]]", dtype: str, weights: str
) -> "list[tuple[ModelFiles, Chain, Cost]]":
    """Stages with their costs; what is to be fetched is named where it is needed first."""
    from fourm.hub.cache import find_cached
    from fourm.schedule.cost import estimate

    prompts, found, named = CATALOGUE["parti-prompts"], [], list[Entry]()
    lacks_prompts = settings.run.data_path == PARTI and find_cached(prompts) is None
    for files, chain in stages:
        cost = estimate(chain, files, dtype, weights=weights)
        missing = (*cost.missing, prompts) if lacks_prompts else cost.missing
        own = tuple(part for part in missing if part not in named)
        named += own
        found.append((files, chain, replace(cost, missing=own)))
    return found


schedule_app.callback(invoke_without_command=True, **help_of(schedule))(schedule)
schedule_app.command(**help_of(validate))(validate)
schedule_app.command(**help_of(show))(show)
