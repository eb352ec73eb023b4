"""A dataset of true scenes in every modality's natural format: `python -m demo.dataset FOLDER [--count N]`.

The layout is that of any dataset (docs/datasets.md): `fourm generate --data FOLDER --cond depth` reads it,
and what a model says of its pictures can be compared with the truth beside them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from demo.bench import held_out_scenes
from demo.metadata import metadata_values
from demo.render import Maps, render
from demo.world import Scene, describe, palette_colours, print_caption, straighten
from fourm.data.layout import Key, number_keys

DEPTH_LEVELS = 65535  # of 16-bit pictures
NO_CLASS = 255


def scenes_of(count: int, seed: int = 77) -> list[Scene]:
    """Different held-out scenes in their usual places, so that a caption says all about one."""
    return list(dict.fromkeys(straighten(scene) for scene in held_out_scenes(2 * count, seed)))[:count]


def write_dataset(root: Path, scenes: Sequence[Scene], scale: int = 1) -> list[Key]:
    """One file per scene and modality, and the names of the samples."""
    keys = number_keys(len(scenes))
    for key, scene in zip(keys, scenes, strict=True):
        write_maps(root, key, render(scene, scale))
        _write_texts(root, key, scene)
    return keys


def write_maps(root: Path, key: Key, maps: Maps) -> None:
    """All maps of a scene, as files."""
    pictures: dict[str, NDArray[Any]] = {
        "rgb": maps.rgb,
        "depth": np.rint(maps.depth * DEPTH_LEVELS).astype(np.uint16),
        "normal": np.rint((maps.normal + 1) / 2 * 255).astype(np.uint8),
        "semseg": np.where(maps.semseg == 0, NO_CLASS, maps.semseg - 1).astype(np.uint8),
        "canny_edge": np.rint(maps.edge * 255).astype(np.uint8),
    }
    for folder, pixels in pictures.items():
        Image.fromarray(pixels).save(_path(root, folder, key, ".png"))
    features = np.ascontiguousarray(np.moveaxis(maps.clip, -1, 0), dtype=np.float32)
    np.save(_path(root, "clip", key, ".npy"), features, allow_pickle=False)


def _write_texts(root: Path, key: Key, scene: Scene) -> None:
    boxes = [
        {"boxes": [float(v) for v in thing.box], "class_name": thing.shape, "score": 1.0}
        for thing in scene.things
    ]
    colours = palette_colours(scene)
    values = {
        "det": {"instances": boxes},
        "color_palette": [{str(len(colours)): [list(colour) for colour in colours]}],
        "metadata": metadata_values(scene),
    }
    for folder, value in values.items():
        _path(root, folder, key, ".json").write_text(json.dumps(value) + "\n")
    _path(root, "caption", key, ".txt").write_text(print_caption(describe(scene)))


def _path(root: Path, folder: str, key: Key, suffix: str) -> Path:
    path = root / folder / key.folder / (key.name + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--scale", type=int, default=1, help="1: 64 x 64 pixels, 2: 128 x 128")
    args = parser.parse_args()
    write_dataset(args.folder, scenes_of(args.count), args.scale)
    print(args.folder)


if __name__ == "__main__":
    main()
