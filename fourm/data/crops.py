"""Which part of a whole picture a sample shows: one rectangle for all modalities of the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WHOLE = "rgb"  # folder of a dataset: the whole pictures, whose size others refer to
CROP_SETTINGS = "crop_settings"  # folder of a dataset: a row of crops x (top, left, height, width, mirrored)
_ASPECTS = (0.75, 1.3333)  # width / height of random crops
_TRIES = 10
NUM_UNIFORMS = 4 * _TRIES + 1  # that a random crop takes


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle in pixels of the whole picture, and whether it is mirrored left to right.

    A rectangle may reach outside the picture, as random crops of the reference do; there is nothing there.
    """

    whole: tuple[int, int]  # height, width of the whole picture
    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False
    number: int = 0  # row in token files, caption lists and SAM files of several crops

    def __post_init__(self) -> None:
        if min(*self.whole, self.height, self.width) < 1:
            raise ValueError(f"an empty crop: {self}")


def centre_crop(height: int, width: int) -> Crop:
    """The largest centred square of a picture, its offset rounded down."""
    side = min(height, width)
    return Crop((height, width), (height - side) // 2, (width - side) // 2, side, side)


def random_crop(
    height: int, width: int, min_scale: float, uniforms: Sequence[float], number: int = 0
) -> Crop:
    """A random resized crop of a picture, drawn by NUM_UNIFORMS numbers in [0, 1).

    Its area is a share of the picture's between min_scale and 1, its aspect log-uniform, its place uniform
    (Szegedy et al. 2015, arXiv:1409.4842); every other crop is mirrored. A picture in which ten draws find
    no room gives its centre, as much of it as the aspects allow.
    """
    mirrored = uniforms[-1] < 0.5
    low, high = (math.log(aspect) for aspect in _ASPECTS)
    for at in range(0, 4 * _TRIES, 4):
        share, shape, down, right = uniforms[at : at + 4]
        area = height * width * (min_scale + share * (1 - min_scale))
        aspect = math.exp(low + shape * (high - low))
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            return Crop((height, width), top, left, tall, wide, mirrored, number)
    tall = min(height, max(1, round(width / _ASPECTS[0])))
    wide = min(width, max(1, round(height * _ASPECTS[1])))
    return Crop((height, width), (height - tall) // 2, (width - wide) // 2, tall, wide, mirrored, number)
