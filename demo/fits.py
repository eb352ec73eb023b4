"""Pictures that are no squares: what cropping and padding cost, and which border costs least.

    python -m demo.fits [--count 100] [--work FOLDER]

Wide scenes of two things side by side, in two ways. `large`: the middle of a scene of the world, 192 x 120
pixels, so that the padded square has things of the sizes that the model knows. `small`: 96 x 64 pixels with
things of the world's own sizes, so that the centre has these, and in the padded square they are two thirds as
large.
Captions are judged whole; maps where the picture is, laid back to its size, as `--restore` does it.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.dataset import NO_CLASS
from demo.render import Maps, render
from demo.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scene, Thing, describe, normalise, parse_caption
from fourm.data.layout import Key, number_keys, path_of

Array = NDArray[Any]
Wide = tuple[Scene, Maps, slice]  # a scene, its maps on a square, and the rows of the picture

FILLS: dict[str, Callable[[Array], Array | int]] = {  # what a border holds, but the picture's own edge
    "black": lambda rgb: 0,
    "mid grey": lambda rgb: 128,
    "mean colour": lambda rgb: np.rint(rgb.reshape(-1, 3).mean(axis=0)),
}


def large(rng: random.Random) -> Wide:
    """The middle of a scene, 192 x 120 pixels."""
    scene = _scene(rng, (16, 48), 32)
    return scene, render(scene, 3), slice(36, 156)


def small(rng: random.Random) -> Wide:
    """96 x 64 pixels with things of the world's own sizes."""
    scene = _scene(rng, (16 + 8 * rng.choice((1, 2)), 80 - 8 * rng.choice((1, 2))), 48)
    return scene, render(scene, side=96), slice(16, 80)


def measure(work: Path, make: Callable[[random.Random], Wide], how: str, count: int) -> list[float]:
    """Share of right captions, of right pixels of segmentation, mean error of depth; how: a fit or a fill."""
    rng, fit = random.Random(5), how if how in ("crop", "pad") else "crop"
    scenes, keys = [make(rng) for _ in range(count)], number_keys(count)
    for key, (_, maps, rows) in zip(keys, scenes, strict=True):
        path = path_of(work / "in", "rgb", key, ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        rgb = maps.rgb[rows] if how == fit else _bordered(maps.rgb, rows, FILLS[how])
        Image.fromarray(rgb).save(path)
    options = "--cond rgb --targets caption,tok_depth,tok_semseg --restore --quiet --fit".split()
    command = [sys.executable, "-m", "fourm_cli", "generate", *options, fit]
    folders = ["--data", str(work / "in"), "--out", str(work / "out")]
    subprocess.run([*command, *folders], check=True, stdout=subprocess.DEVNULL)
    judged = [_judge(work / "out", key, wide, how == fit) for key, wide in zip(keys, scenes, strict=True)]
    return np.nanmean(judged, axis=0).tolist()


def _judge(root: Path, key: Key, wide: Wide, is_fitted: bool) -> tuple[float, float, float]:
    """Of one scene. Parts of the picture that were not seen are not judged."""
    scene, maps, rows = wide
    said = parse_caption(path_of(root, "caption", key, ".txt").read_text())
    classes = np.where(maps.semseg == 0, NO_CLASS, maps.semseg - 1)[rows]
    labels = np.asarray(Image.open(path_of(root, "semseg", key, ".png")))
    depth = np.load(path_of(root, "depth", key, ".npy"))
    if not is_fitted:
        labels, depth = labels[rows], depth[rows]
    seen = ~np.isnan(depth)
    is_right = said is not None and normalise(said) == normalise(describe(scene))
    error = np.abs((depth + 1) / 2 - maps.depth[rows])[seen].mean()  # written from -1 to 1
    return float(is_right), float((labels == classes)[seen].mean()), float(error)


def _bordered(rgb: Array, rows: slice, fill: Callable[[Array], Array | int]) -> Array:
    """The rows of a picture in a square, between borders of one colour."""
    square = np.empty_like(rgb)
    square[:] = fill(rgb[rows])
    square[rows] = rgb[rows]
    return square


def _scene(rng: random.Random, across: tuple[int, int], down: int) -> Scene:
    """Two things of different colours side by side."""
    background, colours = rng.choice(list(BACKGROUNDS)), rng.sample(list(COLOURS), 2)
    things = [
        Thing(rng.choice(SHAPES), colour, rng.choice(list(SIZES)), x, down)
        for colour, x in zip(colours, across, strict=True)
    ]
    return Scene(background, tuple(things))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--work", type=Path, default=None)
    args = parser.parse_args()
    print(
        "| pictures | how | captions right | segmentation | depth error |\n| --- | --- | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory() as folder:
        for make in (large, small):
            for how in ("crop", "pad", *FILLS):
                work = (args.work or Path(folder)) / make.__name__ / how
                found = measure(work, make, how, args.count)
                numbers = " | ".join(
                    f"{number:.{digits}f}" for number, digits in zip(found, (2, 3, 4), strict=True)
                )
                print(f"| {make.__name__} | {how} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
