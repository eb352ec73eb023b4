"""Folders to be measured, whose values tests know."""

from pathlib import Path

import numpy as np
from PIL import Image

from fourm.data.layout import number_keys
from tests.folders import CAPTION, RGB, noise, put, write_record
from tests.sharded_folder import IDS

KEYS = number_keys(5)


def run_folder(root: Path, count: int = 3, variations: int = 1, seed: int = 0) -> Path:
    """A run with pictures, tokens and the captions that they were made from."""
    write_record(root, [CAPTION, IDS, RGB], num_variations=variations)
    numbers = [None] if variations == 1 else [*range(variations)]
    for at, key in enumerate(KEYS[:count]):
        put(root, CAPTION, key, f"picture {at}")
        for number in numbers:
            put(root, RGB, key, noise(seed + 10 * at + (number or 0), 8, 8, 3), number)
            put(root, IDS, key, np.array([at, seed, number or 0], np.int16), number)
    return root


def dataset(root: Path, count: int = 3, seed: int = 0, shape: tuple[int, ...] = (8, 8, 3)) -> Path:
    """A dataset of pictures."""
    for at, key in enumerate(KEYS[:count]):
        path = root / "rgb" / f"{key.path}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed + 10 * at, *shape)).save(path)
    return root
