"""Which part of a whole picture a sample shows: one rectangle for all modalities of the sample."""

from __future__ import annotations

from dataclasses import dataclass

CROP_SETTINGS = "crop_settings"  # folder of a dataset: a row of crops x (top, left, height, width, mirrored)


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
