"""Quality against decoding steps: the numbers and the plot of docs/guidance.md.

    python -m demo.steps [--count 100] [--out docs/images]

Every number is the share of captions that are drawn right, judged by `demo.readback`. Needs matplotlib.
"""

import argparse
from pathlib import Path

import matplotlib
import torch
from matplotlib.figure import Figure

from demo.bench import Bench
from demo.evaluate import share_right, usual_scenes
from demo.weights import save_plot
from demo.world import describe

STEPS = (4, 8, 12, 16, 24)
HARD = "temp=1.5,temp-schedule=constant,cfg=3"  # with gentler draws nearly every picture is right
ORDERS = {
    "maskgit, cosine": "scheme=maskgit,token-schedule=cosine",
    "roar": "scheme=roar",
    "halton, linear": "scheme=halton,token-schedule=linear",
    "halton, arccos": "scheme=halton,token-schedule=arccos",
}
GUIDANCE = {  # beside constant guidance, which the orders have
    curve: f"{ORDERS['halton, linear']},cfg-schedule={curve}" for curve in ("linear", "interval:0.2:0.8")
}

Shares = dict[str, list[float]]  # by setting: for each number of steps


def measure(bench: Bench, count: int, settings: dict[str, str]) -> Shares:
    """The share of right pictures for each setting and number of steps; prints a row of a table for each."""
    captions, found = [describe(scene) for scene in usual_scenes(count)], Shares()
    for name, words in settings.items():
        options = f"--cond caption --top-p 0 --target tok_rgb:{HARD},{words}"
        found[name] = [share_right(bench, captions, f"{options},steps={steps}") for steps in STEPS]
        print(f"| {name} | {' | '.join(f'{share:.2f}' for share in found[name])} |", flush=True)
    return found


def draw_plot(panels: dict[str, Shares], count: int) -> Figure:
    """A panel for the orders and one for guidance, with bars of one standard error."""
    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(9.8, 3.6), layout="constrained")
    for axes, (title, shares) in zip(figure.subplots(1, 2, sharey=True), panels.items(), strict=True):
        for place, (name, ys) in enumerate(shares.items()):
            xs = [
                steps + 0.25 * (place - 1) for steps in STEPS
            ]  # side by side, so that bars can be told apart
            errors = [(y * (1 - y) / count) ** 0.5 for y in ys]
            axes.errorbar(xs, ys, errors, marker="o", markersize=3.5, capsize=2, label=name)
        axes.set(title=title, xlabel="steps", xticks=STEPS, ylabel="share of captions drawn right")
        axes.legend(frameon=False, fontsize=8, loc="best")
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the plot")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench.load()
    print(f"| | {' | '.join(map(str, STEPS))} |\n| --- |{' ---: |' * len(STEPS)}")
    orders = measure(bench, args.count, ORDERS)
    guidance = {"constant": orders["halton, linear"]} | measure(bench, args.count, GUIDANCE)
    panels = {"Orders, constant guidance 3": orders, "Guidance schedules at scale 3, halton": guidance}
    save_plot(draw_plot(panels, args.count), args.out / "steps.png")


if __name__ == "__main__":
    main()
