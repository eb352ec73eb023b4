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
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.dataset import DEPTH_LEVELS, scenes_of, write_dataset
from demo.metadata import FIELDS
from demo.readback import agrees, caption_of
from demo.world import NUM_BINS, Caption, Claim, describe, normalise, parse_caption
from fourm.codecs.files import read_array, read_json, read_picture, read_text
from fourm.data.layout import Key, path_of

# Conditions of the second command, from what the first one wrote; the last three draw on several at once.
BACK = (
    "caption", "det", "depth", "normal", "semseg", "canny_edge", "color_palette", "metadata",
    "depth,color_palette", "semseg,color_palette", "det,metadata,color_palette",
)  # fmt: skip

Array = NDArray[Any]


def fourm(*words: object) -> None:
    """One command, as a user types it."""
    command = [sys.executable, "-m", "fourm_cli", *map(str, words), "--quiet", "--overwrite"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(work: Path, count: int, dtype: str, weights: str, names: Sequence[str]) -> dict[str, float]:
    """Every way there, and back from these conditions, and how right each end of it is."""
    options = ("--dtype", dtype, "--weights", weights)
    scenes = scenes_of(count)
    keys = write_dataset(work / "truth", scenes)
    words = ("--data", work / "truth", "--cond", "rgb", "--targets", "all")
    fourm("generate", *words, *options, "--out", work / "said")
    result = _there(work, keys)
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


def _caption_right(said: Path, truth: Path) -> float:
    words = parse_caption(read_text(said))
    wanted = parse_caption(read_text(truth))
    return float(words is not None and wanted is not None and normalise(words) == normalise(wanted))


def _boxes_right(said: Path, truth: Path) -> float:
    """1 where the same classes stand in the same boxes, to one of 64 bins."""
    found, wanted = sorted(_boxes(read_json(said))), sorted(_boxes(read_json(truth)))
    return float(
        [name for name, _ in found] == [name for name, _ in wanted]
        and all(
            abs(x - y) <= 1.01 / NUM_BINS
            for (_, one), (_, other) in zip(found, wanted, strict=True)
            for x, y in zip(one, other, strict=True)
        )
    )


def _boxes(data: Any) -> list[tuple[str, list[float]]]:
    return [(one["class_name"], one["boxes"]) for one in data["instances"]]


def _palette_right(said: Path, truth: Path) -> float:
    return float(_colours_of(read_json(said)) == _colours_of(read_json(truth)))


def _colours_of(data: Any) -> list[list[int]]:
    return next(iter(data[0].values())) if data and data[0] else []


def _fields_right(said: Path, truth: Path) -> float:
    """Share of fields in the right bin."""
    found: Any = read_json(said)
    wanted: Any = read_json(truth)
    return _mean(
        name in found and _bin(name, found[name]) == _bin(name, value) for name, value in wanted.items()
    )


def _bin(name: str, value: float) -> int:
    top = FIELDS[name][1]
    return int(min(value, top) / top * 49) if top else int(value)


def _pixels_right(said: Path, truth: Path) -> float:
    return float((np.asarray(read_picture(said)) == np.asarray(read_picture(truth))).mean())


def _picture_error(said: Path, truth: Path) -> float:
    """Mean difference of 8-bit pictures, in [0, 1]."""
    found, wanted = (np.asarray(read_picture(path)).astype(float) for path in (said, truth))
    return float(np.abs(found - wanted).mean() / 255)


def _depth_error(said: Path, truth: Path) -> float:
    """Mean difference of depth, in [0, 1]."""
    wanted = np.asarray(read_picture(truth)).astype(float) / DEPTH_LEVELS
    return float(np.abs((read_array(said).astype(float) + 1) / 2 - wanted).mean())  # written from -1 to 1


MAPS = ("depth", "normal", "semseg", "canny_edge")
# What the first command says of a picture: what is measured, file suffixes of what it wrote and of the truth.
THERE: dict[str, tuple[str, str, str, Callable[[Path, Path], float]]] = {
    "caption": ("right as a whole", ".txt", ".txt", _caption_right),
    "det": ("right as a whole", ".json", ".json", _boxes_right),
    "color_palette": ("right as a whole", ".json", ".json", _palette_right),
    "metadata": ("fields in the right bin", ".json", ".json", _fields_right),
    "semseg": ("pixels right", ".png", ".png", _pixels_right),
    "depth": ("mean error", ".npy", ".png", _depth_error),
    "normal": ("mean error", ".png", ".png", _picture_error),
    "canny_edge": ("mean error", ".png", ".png", _picture_error),
}


def _there(work: Path, keys: Sequence[Key]) -> dict[str, float]:
    result = {}
    for name, (what, suffix, true_suffix, judge) in THERE.items():
        files = [
            (path_of(work / "said", name, key, suffix), path_of(work / "truth", name, key, true_suffix))
            for key in keys
        ]
        result[f"rgb -> {name}: {what}"] = _mean(judge(said, truth) for said, truth in files)
    return result


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
    print("| way | share right, or error |\n| --- | ---: |")
    for name, value in result.items():
        print(f"| {name} | {value:.4f} |")


if __name__ == "__main__":
    main()
