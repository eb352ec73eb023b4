"""What a setting costs in quality: pictures of held-out captions made with two settings, by `fourm eval`.

    python -m demo.compare [dtype solver steps order weights] [--count 500] [--work FOLDER]

Each comparison makes a folder of pictures with each of two settings, and measures the second one against the
first and both against the scenes that the captions tell of. Everything is a command as a user types it.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo.dataset import scenes_of, write_dataset
from demo.readback import agrees, caption_of
from demo.roundtrip import fourm, measured
from demo.world import describe
from fourm.codecs.files import read_picture
from fourm.data.layout import path_of

USUAL = "--cond caption --targets tok_clip-tok_rgb --temps 3.0-0.5"
DIFFUSION = "--tokenizer rgb=rgb_divae"
HOT = "--top-p 0 --cfg 1"  # else every picture is right, in few steps as in many


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two settings, as options of `fourm generate`."""

    usual: str
    other: str
    both: str = ""


COMPARISONS = {
    "dtype": Comparison("--dtype float32", "--dtype bfloat16"),
    "weights": Comparison("--dtype float32", "--dtype float32 --weights int8"),
    "solver": Comparison("", "--detokenizer-solver ddim --detokenizer-steps 50", DIFFUSION),
    "steps": Comparison("--steps 24-12", "--steps 4-4", HOT),
    "order": Comparison("--schemes roar-roar", "--schemes maskgit-maskgit", HOT),
}
COLUMNS = ("comparison", "options", "right", "PSNR to the scene", "SSIM", "tokens as in the line above",
           "PSNR to the line above")  # fmt: skip


def compare(work: Path, names: list[str], count: int) -> list[dict[str, Any]]:
    """A row for each setting of each comparison."""
    scenes, made = scenes_of(count), dict[str, dict[str, Any]]()
    keys, rows = write_dataset(work / "truth", scenes), list[dict[str, Any]]()

    def make(options: str) -> dict[str, Any]:
        """Pictures with these options, and how good they are."""
        out = work / f"pictures{len(made)}"
        fourm("generate", "--data", work / "truth", *USUAL.split(), *options.split(), "--out", out)
        shown = (caption_of(np.asarray(read_picture(path_of(out, "rgb", key, ".png")))) for key in keys)
        right = [agrees(describe(scene), seen) for scene, seen in zip(scenes, shown, strict=True)]
        scene = measured(out, work / "truth", "--measures", "psnr,ssim")
        return {"options": options, "out": str(out), "right": float(np.mean(right)), "scene": scene}

    for name in names:
        one = COMPARISONS[name]
        sides = [" ".join(filter(None, (one.both, options))) for options in (one.usual, one.other)]
        for options in sides:
            made[options] = made.get(options) or make(options)
        first, second = (made[options] for options in sides)
        beside = measured(Path(second["out"]), Path(first["out"]), "--measures", "psnr,token_share")
        rows += [{"comparison": name, **first, "first": {}}, {"comparison": name, **second, "first": beside}]
    return rows


def line_of(row: Mapping[str, Any]) -> str:
    """A line of the table."""
    scene, first = row["scene"], row["first"]
    cells = [
        row["comparison"], f"`{row['options']}`", f"{row['right']:.3f}", _decibels(scene["rgb/psnr"]),
        f"{scene['rgb/ssim']['value']:.4f}",
        ", ".join(f"{first[f'{name}/token_share']['value']:.4f}" for name in ("tok_clip@64", "tok_rgb@64"))
        if first else "",
        _decibels(first["rgb/psnr"]) if first else "",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _decibels(number: Mapping[str, Any]) -> str:
    """A PSNR with its interval, and how many pictures are identical."""
    same = f"{number['identical']} identical" if number.get("identical") else ""
    value, low, high = (
        math.inf if number[name] is None else number[name] for name in ("value", "low", "high")
    )
    shown = f"{value:.2f} ({low:.2f} to {high:.2f})" if math.isfinite(value) else ""
    return "; ".join(filter(None, (shown, same)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(COMPARISONS)}")
    parser.add_argument("--count", type=int, default=500, help="held-out scenes")
    parser.add_argument("--work", type=Path, help="folder for the pictures; else a temporary one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in COMPARISONS]:
        parser.error(f"no comparison {unknown[0]!r}; there are {', '.join(COMPARISONS)}")
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(args.work or Path(folder), args.names or list(COMPARISONS), args.count)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}")
    print("\n".join(map(line_of, rows)))


if __name__ == "__main__":
    main()
