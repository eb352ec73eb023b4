"""What weights of conditions do: draws and prints the numbers and pictures of docs/guidance.md.

    python -m demo.weights [--count 100] [--out docs/images] [--work FOLDER] [--json FILE]

Every number comes from a run of its own, what `fourm generate` does with a folder of conditions, and from the
pixels of the pictures that it wrote (`demo.contradict`). Needs matplotlib.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from math import sqrt
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from demo.contradict import (
    ATTRIBUTES,
    Pair,
    Verdict,
    contradictions,
    generate,
    overlap,
    pictures_of,
    shows_colour,
    unplaced,
    unsized,
    verdict_of,
    write_conditions,
)
from demo.patches import tokens_of
from demo.readback import agrees, caption_of
from demo.world import COLOURS, describe
from fourm.codecs.files import read_array
from fourm.data.layout import Key, path_of
from fourm.views.plots import draw_sheet
from fourm.views.saving import save_drawing

FEATURES, DEPTH, RGB = "tok_clip@64", "tok_depth@64", "tok_rgb@64"
CAPTION_WEIGHTS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # against features at 1
FEATURE_WEIGHTS = (-1.0, -0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # against the caption at 1
EQUAL_WEIGHTS = (0.25, 0.5, 1.0, 2.0)
SINGLE_WEIGHTS = ((1.0, 0.5), (1.0, 1.0), (0.5, 1.0))  # caption, features, where one attribute differs
SHARED_WEIGHTS = (
    (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.5), (0.5, 1.0), (1.0, 1.0),
    (2.0, 1.0), (1.0, 2.0), (2.0, 2.0),
)  # fmt: skip
PUSHES = (1.0, 0.5, 0.0, -0.25, -0.5, -1.0, -2.0)  # of a caption, with depth at 1
CHAIN_WEIGHTS = (-1.0, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0)  # of a finished target
SHEET_ROWS, SHEET_WEIGHTS = 5, (0.0, 0.25, 0.5, 0.75, 1.0)
LEAST_OVERLAP = 0.75
_COLOURS = {
    "first": "#1f77b4", "second": "#d95f02", "mixed": "#7570b3", "neither": "#9a9a9a",
    "first's patches": "#1f77b4", "second's patches": "#d95f02",
    "colour shown": "#1f77b4", "clean": "#9a9a9a", "fits depth": "#1f77b4", "caption shown": "#9a9a9a",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One setting of an experiment and the share of samples in each outcome."""

    experiment: str
    weights: tuple[float, ...]
    shares: dict[str, float]


@dataclass(frozen=True, slots=True)
class Lab:
    """Where the commands work, and on how many samples."""

    work: Path
    count: int

    def made(self, data: Path, cond: str, more: str = f"--targets {RGB}") -> Path:
        """The folder of what `generate --data DATA --cond COND MORE` makes."""
        return generate(data, f"--cond {cond} {more}", Path(tempfile.mkdtemp(dir=self.work)))


def contradicting(lab: Lab, only: str, weights: Sequence[tuple[float, float]], name: str) -> list[Row]:
    """A caption of one scene against the features of another, under pairs of weights."""
    pairs = contradictions(lab.count, only=only)
    root = lab.work / f"against-{only or 'all'}"
    captions = [describe(pair.first) for pair in pairs]
    keys = write_conditions(root, captions, [pair.second for pair in pairs], FEATURES)
    rows = []
    for first, second in weights:
        out = lab.made(root, f"caption:{first},{FEATURES}:{second}")
        made = pictures_of(out, keys)
        count = Counter(verdict_of(rgb, pair) for rgb, pair in zip(made, pairs, strict=True))
        shares = {v.value: count[v] / len(pairs) for v in Verdict}
        if not only:  # else many patches of the two scenes are the same
            shares |= _patches(out, keys, pairs)
        rows.append(Row(name, (first, second), shares))
    return rows


def completing(lab: Lab) -> list[Row]:
    """A caption without size and place, and depth, which has little else: share that shows all."""
    scenes = [pair.second for pair in contradictions(lab.count)]
    root, rows = lab.work / "completing", list[Row]()
    keys = write_conditions(root, [unplaced(scene) for scene in scenes], scenes, DEPTH)
    settings: list[tuple[tuple[float, ...], str]] = [
        (pair, f"caption:{pair[0]},{DEPTH}:{pair[1]} --targets {RGB}") for pair in SHARED_WEIGHTS
    ]
    settings += [((scale,), f"caption,{DEPTH} --targets {RGB} --cfg {scale}") for scale in (1.0, 2.0, 3.0)]
    for weights, options in settings:
        cond, _, more = options.partition(" ")
        made = pictures_of(lab.made(root, cond, more), keys)
        right = _mean([agrees(describe(s), caption_of(rgb)) for s, rgb in zip(scenes, made, strict=True)])
        rows.append(Row("completing", weights, {"whole scene": right}))
    return rows


def pushing(lab: Lab) -> list[Row]:
    """Depth of a scene, and a caption with some colour that pulls or pushes: share that shows the colour."""
    scenes = [pair.second for pair in contradictions(lab.count)]
    names = [tuple(COLOURS)[index % len(COLOURS)] for index in range(lab.count)]
    captions = [unplaced(scene, name, background=False) for scene, name in zip(scenes, names, strict=True)]
    root, rows = lab.work / "pushing", list[Row]()
    keys = write_conditions(root, captions, scenes, DEPTH)
    for weight in PUSHES:
        made = pictures_of(lab.made(root, f"caption:{weight},{DEPTH}:1"), keys)
        has = _mean([shows_colour(rgb, name) for rgb, name in zip(made, names, strict=True)])
        clean = _mean([caption_of(rgb) is not None for rgb in made])
        rows.append(Row("pushing", (weight, 1.0), {"colour shown": has, "clean": clean}))
    return rows


def chained(lab: Lab) -> list[Row]:
    """Caption without size -> depth -> picture: share whose things are those of the depth."""
    scenes = [pair.first for pair in contradictions(lab.count)]
    captions = [unsized(scene) for scene in scenes]
    root, rows = lab.work / "chained", list[Row]()
    keys = write_conditions(root, captions, scenes, DEPTH)
    for weight in CHAIN_WEIGHTS:
        more = f"--targets {DEPTH}-{RGB} --steps 64-12 --temps 0.5 --cfg 1,{weight}"
        out = lab.made(root, "caption:1", more)
        made = pictures_of(out, keys)
        depths = [read_array(path_of(out, "depth", key, ".npy")) for key in keys]
        fits = [overlap(rgb, _distance(d)) >= LEAST_OVERLAP for rgb, d in zip(made, depths, strict=True)]
        told = [agrees(caption, caption_of(rgb)) for caption, rgb in zip(captions, made, strict=True)]
        rows.append(Row("chained", (1.0, weight), {"fits depth": _mean(fits), "caption shown": _mean(told)}))
    return rows


def measure(lab: Lab) -> list[Row]:
    """All experiments."""
    rows = contradicting(lab, "", [(w, 1.0) for w in CAPTION_WEIGHTS], "caption moves")
    rows += contradicting(lab, "", [(1.0, w) for w in FEATURE_WEIGHTS], "features move")
    rows += contradicting(lab, "", [(w, w) for w in EQUAL_WEIGHTS], "equal")
    for name in ATTRIBUTES:
        rows += contradicting(lab, name, SINGLE_WEIGHTS, f"only {name}")
    return rows + completing(lab) + pushing(lab) + chained(lab)


def draw_plot(rows: Sequence[Row], count: int) -> Figure:
    """Four panels: either weight moving under contradiction, a push, and a finished target's weight."""
    matplotlib.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(9.8, 7.2), layout="constrained")
    (top_left, top_right), (low_left, low_right) = figure.subplots(2, 2)
    figure.suptitle(f"Weights of conditions, {count} samples, bars of one standard error", fontsize=10)
    names = {"first": "the caption's scene", "second": "the features' scene", "mixed": "something of both",
             "neither": "neither"}  # fmt: skip
    patches = {
        "first's patches": "patches of the caption's scene",
        "second's patches": "patches of the features' scene",
    }
    for axes, experiment, moving in ((top_left, "caption moves", 0), (top_right, "features move", 1)):
        _lines(axes, [row for row in rows if row.experiment == experiment], moving, names, count)
        _lines(axes, [row for row in rows if row.experiment == experiment], moving, patches, 0)
    legend = top_left.get_legend()  # the same as its neighbour's, and lines need its place
    if legend is not None:
        legend.remove()
    top_left.set(
        title="Contradiction: the caption's weight moves, features at 1", xlabel="weight of the caption"
    )
    top_right.set(
        title="Contradiction: the features' weight moves, caption at 1", xlabel="weight of the features"
    )
    pushed = {"colour shown": "the caption's colour is seen", "clean": "clean picture"}
    _lines(low_left, [row for row in rows if row.experiment == "pushing"], 0, pushed, count)
    low_left.set(title="Pulled to a colour, pushed from it (depth at 1)", xlabel="weight of the caption")
    fits = {"fits depth": "things stand as in the depth", "caption shown": "shows all of the caption"}
    _lines(low_right, [row for row in rows if row.experiment == "chained"], 1, fits, count)
    low_right.set(title="Caption (1) to depth to picture", xlabel="weight of the finished depth")
    return figure


def save_plot(figure: Figure, path: Path) -> None:
    """A PNG of few colours, which is a third of the size."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=100)
    picture = Image.open(drawn).convert("RGB")
    picture.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def draw_examples(lab: Lab) -> Image.Image:
    """Pairs of contradicting conditions in rows, the caption's weight against features at 1 in columns."""
    pairs = contradictions(SHEET_ROWS)
    root = lab.work / "examples"
    keys = write_conditions(root, [describe(p.first) for p in pairs], [p.second for p in pairs], FEATURES)
    settings = [(1.0, w) for w in SHEET_WEIGHTS] + [(w, 1.0) for w in reversed(SHEET_WEIGHTS[:-1])]
    columns = [(w, pictures_of(lab.made(root, f"caption:{w[0]},{FEATURES}:{w[1]}"), keys)) for w in settings]
    return draw_sheet(
        [
            [(Image.fromarray(made[row]), f"{w[0]:g} caption, {w[1]:g} clip") for w, made in columns]
            for row in range(len(pairs))
        ]
    )


def _lines(axes: Axes, rows: Sequence[Row], moving: int, names: dict[str, str], count: int) -> None:
    """Shares over the weight that moves, with one standard error up and down; count 0: dashed, of patches."""
    rows = sorted(rows, key=lambda row: row.weights[moving])
    xs = [row.weights[moving] for row in rows]
    for name, label in names.items():
        ys = [row.shares[name] for row in rows]
        if count:
            errors = [sqrt(y * (1 - y) / count) for y in ys]
            axes.errorbar(
                xs, ys, errors, marker="o", markersize=3.5, capsize=2, color=_COLOURS[name], label=label
            )
        else:
            axes.plot(xs, ys, linestyle="--", linewidth=1, color=_COLOURS[name], label=label)
    axes.axvline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axes.set(
        ylabel="share of pictures, or of patches" if not count else "share of pictures", ylim=(-0.03, 1.03)
    )
    axes.legend(frameon=False, fontsize=7.5, loc="center right" if not count else "best")


def _patches(out: Path, keys: Sequence[Key], pairs: Sequence[Pair]) -> dict[str, float]:
    """Share of all patches that are those of either scene at the same place."""
    made = np.stack([read_array(path_of(out, RGB, key, ".npy")).reshape(-1) for key in keys])
    first = np.stack([tokens_of(pair.first, "rgb").reshape(-1) for pair in pairs])
    second = np.stack([tokens_of(pair.second, "rgb").reshape(-1) for pair in pairs])
    return {
        "first's patches": float((made == first).mean()),
        "second's patches": float((made == second).mean()),
    }


def _distance(depth: NDArray[Any]) -> NDArray[np.floating]:
    """A depth map as written, 2 d - 1, as distance from the camera in [0, 1], (H, W)."""
    return (np.squeeze(depth).astype(np.float32) + 1) / 2


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)


def _print(rows: Sequence[Row], count: int) -> None:
    """A table for each kind of outcome; the standard error of a share p is sqrt(p (1 - p) / count)."""
    header: tuple[str, ...] = ()
    for row in rows:
        if tuple(row.shares) != header:
            header = tuple(row.shares)
            print(
                f"\n| experiment | weights | {' | '.join(header)} |\n| --- | --- |{' ---: |' * len(header)}"
            )
        shares = " | ".join(f"{p:.3f} ± {sqrt(p * (1 - p) / count):.3f}" for p in row.shares.values())
        print(f"| {row.experiment} | {', '.join(f'{w:g}' for w in row.weights)} | {shares} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    parser.add_argument(
        "--work", type=Path, default=None, help="where the commands write; by default, nothing stays"
    )
    parser.add_argument("--json", type=Path, default=None, help="also write the numbers here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(args.work or Path(folder), args.count)
        save_drawing(draw_examples(lab), args.out / "weighted-guidance-samples.png")
        rows = measure(lab)
    if args.json:
        data = [{"experiment": r.experiment, "weights": r.weights, "shares": r.shares} for r in rows]
        args.json.write_text(json.dumps({"count": args.count, "rows": data}, indent=1) + "\n")
    _print(rows, args.count)
    save_plot(draw_plot(rows, args.count), args.out / "weighted-guidance.png")


if __name__ == "__main__":
    main()
