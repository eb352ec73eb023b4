"""Round trips by the command line alone: picture -> everything -> picture, against the truth.

    python -m demo.roundtrip [--count 200] [--dtype bfloat16] [--weights int8] [--back caption ...]
                             [--work FOLDER]

Each arrow is a `fourm` command of its own that reads the folder which the one before it wrote; nothing is
handed over in memory. The truth comes from `demo.dataset`. Pictures are judged by `demo.readback`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.dataset import scenes_of, write_dataset
from demo.readback import agrees, caption_of
from demo.world import Caption, Claim, describe
from fourm.codecs.files import read_picture
from fourm.data.layout import Key, path_of

# Conditions of the second command, from what the first one wrote; the last three draw on several at once.
BACK = (
    "caption", "det", "depth", "normal", "semseg", "canny_edge", "color_palette", "metadata",
    "depth,color_palette", "semseg,color_palette", "det,metadata,color_palette",
)  # fmt: skip

Array = NDArray[Any]


def fourm(command: str, *words: object) -> str:
    """What a command prints, as a user types it."""
    again = ("--overwrite",) if command == "generate" else ()
    line = [sys.executable, "-m", "fourm_cli", command, *map(str, words), "--quiet", *again]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout


def measure(work: Path, count: int, dtype: str, weights: str, names: Sequence[str]) -> dict[str, float]:
    """Every way there, and back from these conditions, and how right each end of it is."""
    options = ("--dtype", dtype, "--weights", weights)
    scenes = scenes_of(count)
    keys = write_dataset(work / "truth", scenes)
    words = ("--data", work / "truth", "--cond", "rgb", "--targets", "all")
    fourm("generate", *words, *options, "--out", work / "said")
    there = measured(work / "said", work / "truth")
    result = {f"rgb -> {name.replace('/', ': ')}": there[name]["value"] for name in THERE}
    for name in names:
        told = "" if "caption" in name else "caption-"
        for targets in ("tok_rgb", f"{told}tok_clip-tok_rgb"):
            back = work / f"back-{name.replace(',', '-')}-{targets}"
            words = ("--data", work / "said", "--cond", name, "--targets", targets)
            fourm("generate", *words, *options, "--out", back)
            shown = [caption_of(_picture(back, key)) for key in keys]
            result[f"{name} -> {targets}"] = _mean(
                _tells(name, describe(scene), seen) for scene, seen in zip(scenes, shown, strict=True)
            )
    return result


def _tells(conditions: str, asked: Caption, seen: Caption | None) -> bool:
    """Whether a picture shows all that these conditions can tell of a scene."""
    names = conditions.split(",")
    if seen is None:
        return False
    shapes = "caption" in names or any(name in ("det", *MAPS) for name in names)
    right = not shapes or agrees(asked if "caption" in names else _without_colours(asked), seen)
    if "color_palette" in names:
        right = right and _colours(asked) == _colours(seen) and asked.background == seen.background
    return right and len(asked.things) == len(seen.things)  # metadata tells the number of things


def _without_colours(caption: Caption) -> Caption:
    things = tuple(Claim(thing.shape, "", thing.size) for thing in caption.things)
    return Caption(things, caption.place, caption.relation)


def _colours(caption: Caption) -> set[str]:
    return {thing.colour for thing in caption.things}


MAPS = ("depth", "normal", "semseg", "canny_edge")
# Of what the first command says of a picture, by `fourm eval`: modality and number.
THERE = (
    "caption/exact_match", "det/ap", "color_palette/lab_distance", "metadata/fields_equal", "semseg/miou",
    "depth/abs_rel", "normal/mean_angle", "canny_edge/ods_f1", "clip/cosine",
)  # fmt: skip


def measured(folder: Path, against: Path, *options: str) -> dict[str, Any]:
    """What `fourm eval` says of a folder: its results by modality and number."""
    text = fourm("eval", folder, "--against", against, "--json", *options)
    return {f"{one['modality']}/{one['name']}": one for one in json.loads(text)["results"]}


def _picture(root: Path, key: Key) -> Array:
    return np.asarray(read_picture(path_of(root, "rgb", key, ".png")))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--weights", default="full")
    parser.add_argument("--back", nargs="*", default=BACK, choices=BACK)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.work or Path(folder), args.count, args.dtype, args.weights, args.back)
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print("| way | measured |\n| --- | ---: |")
    for name, value in result.items():
        print(f"| {name} | {value:.4f} |")


if __name__ == "__main__":
    main()
