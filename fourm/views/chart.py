"""The chart of a chain: tokens, temperature and guidance of each step, a colour for each target."""

from collections.abc import Collection, Mapping

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fourm.schedule.chain import Chain
from fourm.schedule.schemes import SCHEMES

_TALL = 2.0  # times as high as all other bars: a text's limit is cut off there, so that the others are seen
WIDTH = 11.0  # inches, unless another width is wanted
_TITLE = 10  # characters for each inch, at 12 points


def draw_chain(chain: Chain, model: str, width: float = WIDTH) -> Figure:
    """Charts one below the other, `width` inches wide, with the steps of the chain from left to right."""
    lines = {"temperature": [step.temperature for step in chain.steps]}
    if any(step.guided for step in chain.steps):  # weights may add up to 1
        lines["guidance"] = [step.guidance for step in chain.steps]
    # Text stays legible, so a chart of half the width has more than half the height.
    height, size = (6.4 if "guidance" in lines else 4.8) * (0.5 + 0.5 * width / WIDTH), 10 if width > 6 else 8
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    charts = figure.subplots(1 + len(lines), 1, sharex=True)
    for axes, name in zip(charts, ("tokens", *lines), strict=True):
        axes.set_ylabel(name, fontsize=size)
        axes.tick_params(labelsize=size)
        axes.margins(y=0.15)
        axes.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    table = colormaps["tab10" if len(chain.targets) <= 10 else "tab20"]
    colours = {target: table(number % table.N) for number, target in enumerate(chain.targets)}
    # These end when they are finished, not after a number of tokens.
    texts = {spec.target for spec in chain.specs if SCHEMES[spec.scheme].causal}
    _draw_tokens(charts[0], chain, colours, texts)
    for axes, values in zip(charts[1:], lines.values(), strict=True):
        for target, colour in colours.items():
            steps = [step.number for step in chain.steps if step.target == target]
            axes.plot(steps, [values[number - 1] for number in steps], "o-", ms=3, lw=1.2, color=colour)
        if min(values, default=0) >= 0:
            axes.set_ylim(bottom=0)
    charts[-1].set_xlabel("step of the chain", fontsize=size)
    charts[-1].set_xlim(0.3, max(len(chain.steps), 1) + 0.7)  # steps count from 1
    for axis in (charts[0].yaxis, charts[-1].xaxis):
        axis.get_major_locator().set_params(integer=True)
    title = f"{model}: {', '.join(chain.conditions) or 'nothing'} → {', '.join(chain.targets)}"
    most = int(_TITLE * width * 12 / (size + 2))
    title = title if len(title) <= most else f"{title[:most].rstrip(', ')} ..."
    figure.suptitle(title, x=0.01, ha="left", fontsize=size + 2, parse_math=False)
    handles = [
        Patch(color=colours[name], label=f"{name}, {'at most ' if name in texts else ''}{count:,} tokens")
        for name, count in chain.num_tokens.items()
    ]
    columns = max(1, int(width // 2.7))
    legend = figure.legend(
        handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=size - 1
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _draw_tokens(
    axes: Axes, chain: Chain, colours: Mapping[str, tuple[float, ...]], texts: Collection[str]
) -> None:
    """A bar for each step; a text has one that says at most how many."""
    top = max((step.num_tokens for step in chain.steps if step.target not in texts), default=0) * _TALL
    for step in chain.steps:
        is_limit = step.target in texts
        height = top if is_limit and 0 < top < step.num_tokens else step.num_tokens
        hatch = "//" if is_limit else ""
        axes.bar(step.number, height, 0.9, color=colours[step.target], hatch=hatch, ec="white", linewidth=0)
        if is_limit:
            axes.annotate(f"≤ {step.num_tokens}", (step.number, height), ha="center", va="bottom", fontsize=8)
