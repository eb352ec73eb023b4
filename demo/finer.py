"""Super-resolution against the truth and against bicubic enlargement: `python -m demo.finer [--count 200]`.

One pipeline of commands, as a user types it, makes pictures of captions and makes them finer. The truth at
128 pixels is the scene of each caption, drawn at twice the size. Lines are where it differs from itself
shifted by a pixel, widened by one: there enlargement blurs, and super-resolution should not.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from demo.dataset import scenes_of
from demo.readback import agrees, caption_of
from demo.render import render
from demo.world import Scene, describe, print_caption
from fourm.codecs.files import read_picture
from fourm.data.layout import Key, number_keys, path_of

SCALE = 2
WAYS = {"nearest": Image.Resampling.NEAREST, "bicubic": Image.Resampling.BICUBIC,
        "Lanczos": Image.Resampling.LANCZOS}  # fmt: skip
Pixels = NDArray[np.uint8]


def make(scenes: Sequence[Scene], out: Path, seed: int) -> list[Key]:
    """Pictures of the scenes' captions, and finer ones beside them."""
    prompts = "\n".join(print_caption(describe(scene)) for scene in scenes)
    fourm = f"{sys.executable} -m fourm_cli"
    line = (
        f"{fourm} generate --cond caption --targets tok_clip-tok_rgb --data - --seed {seed} --out '{out}' -q"
        f" | {fourm} sr - -q"
    )
    subprocess.run(line, shell=True, check=True, input=prompts, text=True, stdout=subprocess.DEVNULL)
    return number_keys(len(scenes))


def measure(scenes: Sequence[Scene], keys: Sequence[Key], out: Path) -> dict[str, float]:
    """What super-resolution keeps, and how near to the truth it and plain enlargement come."""
    base, kept, errors = 0, 0, dict[str, list[float]]()
    for scene, key in zip(scenes, keys, strict=True):
        small, fine = (_picture(out, folder, key) for folder in ("rgb", "rgb@128"))
        if not agrees(describe(scene), caption_of(small)):
            continue
        base += 1
        kept += agrees(describe(scene), caption_of(fine))
        truth = render(scene, SCALE).rgb
        shown = {name: _enlarged(small, way) for name, way in WAYS.items()} | {"super-resolution": fine}
        lines = lines_of(truth)
        for name, picture in shown.items():
            for where, mask in (("everywhere", np.ones_like(lines)), ("lines", lines)):
                error = float(np.square(picture[mask].astype(np.float64) - truth[mask]).mean())
                errors.setdefault(f"{name}, {where}", []).append(error)
    result = {"pictures": float(len(scenes)), "right at 64 pixels": base / len(scenes),
              "of these right at 128 pixels": kept / max(base, 1)}  # fmt: skip
    return result | {f"PSNR {name}": psnr(float(np.mean(found))) for name, found in errors.items()}


def lines_of(truth: Pixels) -> NDArray[np.bool_]:
    """Pixels (H, W) of the truth (H, W, 3) where it changes by an eighth of its range, and those around."""
    values = truth.astype(np.int16)
    change = np.zeros(truth.shape[:2], np.uint8)
    change[1:] |= np.abs(np.diff(values, axis=0)).max(-1) > 32
    change[:, 1:] |= np.abs(np.diff(values, axis=1)).max(-1) > 32
    return np.asarray(Image.fromarray(change * 255).filter(ImageFilter.MaxFilter(3))) > 0


def psnr(error: float) -> float:
    """Decibels of a mean squared error of 8-bit pixels."""
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def _enlarged(picture: Pixels, way: Image.Resampling) -> Pixels:
    size = (picture.shape[1] * SCALE, picture.shape[0] * SCALE)
    return np.asarray(Image.fromarray(picture).resize(size, way))


def _picture(out: Path, folder: str, key: Key) -> Pixels:
    return np.asarray(read_picture(path_of(out, folder, key, ".png")))


def main() -> None:
    """Measure and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="scenes")
    parser.add_argument("--seed", type=int, default=0, help="of the run")
    parser.add_argument("--work", type=Path, help="folder for the pictures; else a temporary one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    scenes = scenes_of(options.count, seed=4242)
    with tempfile.TemporaryDirectory() as temporary:
        out = (options.work or Path(temporary)) / "out"
        result = measure(scenes, make(scenes, out, options.seed), out)
    if options.json:
        print(json.dumps(result, indent=1))
        return
    for name, value in result.items():
        print(f"{name:40} {value:8.3f}")


if __name__ == "__main__":
    main()
