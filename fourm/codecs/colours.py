"""Colours for values that have none: depth, labels, features. Arrays in, 8-bit RGB arrays out."""

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

GREY = 128

# Polynomial fit of the Turbo colour map (A. Mikhailov, Google 2019, Apache-2.0), lowest power first.
_TURBO = np.array([
    [0.13572138, 4.61539260, -42.66032258, 132.13108234, -152.94239396, 59.28637943],
    [0.09140261, 2.19418839, 4.84296658, -14.18503333, 4.27729857, 2.82956604],
    [0.10667330, 12.64194608, -60.58204836, 110.36276771, -89.90310912, 27.34824973],
])  # fmt: skip

# Colours of the 133 COCO panoptic categories in their usual order (80 things, 53 stuff), RRGGBB.
_COCO = bytes.fromhex(
    "dc143c770b2000008e0000e66a00e4003c640050640000460000c0faaa1e64aa1edcdc00af74affa001ea52a2aff4dff"
    "00e2fcb6b6ff00520078a69d6e4c00ae39ffc76400480076ffb3f0007d5cd10097bcd0b600dcb0ff63a45c00498581ff"
    "4eb4ff00e400aefff32d59ff8686679194aeffd0bac5e2ffab86016d3f36cf8aff97005f09503d5469334a4169a6c466"
    "d0c3d2ff6d41008f95b300c2d1636a057900e3ffcd93bad0994501035fa1a3ff007700aa00b6c700a578b782585f2000"
    "8272876e8185a64a76db8eb94fd272b25a3e41460f7fa7733b696a8e6c2dc4ac005f3650804cffc93901f6007abfa2d0"
    "ffff8093d3cb966464a8abac9270c6d2aa645c8859da58b8f18100d911ff7c4ab5464646ffe4ff9ad000c1005c4c5b71"
    "ffb4c36a9ab0e6968c3c8fff8040805c5237fed47c494daeffa062ffffff68546da9a483e1c7ff89364a879edf07f6e7"
    "6bffc83a2995b7798eff49616b8e23be9999928b8d4682b486c79cd1e28c60246c60606040aa4098fb98d0e5e4cebaab"
    "98a14074700000728f66669cfa8dff"
)
NUM_COCO_LABELS = 1 + len(_COCO) // 3  # with "no class"


def turbo(values: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) of any range -> (H, W, 3): lowest dark blue, highest dark red, a constant map lowest."""
    x = np.nan_to_num(values.astype(np.float64))
    low, high = x.min(), x.max()
    x = (x - low) / (high - low) if high > low else np.zeros_like(x)
    powers = x[..., None] ** np.arange(_TURBO.shape[1])
    return to_bytes(powers @ _TURBO.T)


def paint_labels(labels: NDArray[np.uint8], num_labels: int) -> NDArray[np.uint8]:
    """(H, W) class numbers, 255 = none -> (H, W, 3); COCO's own colours where there are COCO's 134 labels."""
    if num_labels == NUM_COCO_LABELS:
        colours = np.frombuffer(_COCO, dtype=np.uint8).reshape(-1, 3)
    else:
        # Steps of the golden ratio around the colour circle keep any number of classes apart.
        hues = [colorsys.hsv_to_rgb(0.618034 * k % 1.0, 0.75, 0.95) for k in range(max(num_labels - 1, 1))]
        colours = to_bytes(np.array(hues))
    table = np.full((256, 3), GREY, dtype=np.uint8)
    table[: min(len(colours), 255)] = colours[:255]
    return table[labels]


def paint_features(features: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(C, h, w) -> (h, w, 3): the three principal components of this one map, on one common scale.

    Signs are fixed by the largest weight of each component. A constant map is mid-grey.
    """
    channels, height, width = features.shape
    rows = np.nan_to_num(features.reshape(channels, -1).T.astype(np.float64))
    rows = rows - rows.mean(axis=0)
    picture = np.full((height, width, 3), GREY, dtype=np.uint8)
    if min(rows.shape) < 3 or np.abs(rows).max() < 1e-12:
        return picture
    _, _, components = np.linalg.svd(rows, full_matrices=False)
    components = components[:3]
    largest = np.abs(components).argmax(axis=1)
    components = components * np.sign(components[np.arange(3), largest])[:, None]
    projected = rows @ components.T
    low, high = projected.min(), projected.max()
    return to_bytes((projected - low) / (high - low)).reshape(height, width, 3)


def to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] -> 0..255, rounded; what lies outside is clipped."""
    return (np.nan_to_num(values).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
