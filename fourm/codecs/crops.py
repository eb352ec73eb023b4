"""Files of crops: which rectangles of a picture the rows of a sample's token files show."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fourm.codecs.files import MAX_PIXELS, read_array, read_size, write_array
from fourm.data.layout import Crop, centre_crop
from fourm.errors import SampleError

_COLUMNS = 5  # top, left, height, width, mirrored
_MAX_PLACE = 1 << 26  # pixels; beyond any picture


def read_crop(settings: Path | None, picture: Path | None) -> Crop | None:
    """The crop of a sample: the first row of its settings, else the centre of its picture, else None.

    Either file may be missing. Settings without a picture are refused: what share of the whole they show
    is not known.
    """
    if picture is None:
        if settings is not None:
            raise SampleError(f"{settings}: the sample has no picture, so the size of the whole is not known")
        return None
    whole = read_size(picture)
    return centre_crop(*whole) if settings is None else read_crops(settings, whole)[0]


def read_crops(path: Path, whole: tuple[int, int]) -> tuple[Crop, ...]:
    """All crops of a file of crops x (top, left, height, width, mirrored), for a picture (height, width)."""
    return tuple(_read_row(path, row, whole, number) for number, row in enumerate(_read_rows(path)))


def count_crops(path: Path) -> int:
    """How many crops a file has, whatever picture they belong to."""
    return len(_read_rows(path))


def write_crops(crops: Sequence[Crop], path: Path) -> None:
    """A file that `read_crops` reads, in the form that the reference writes."""
    rows = [(c.top, c.left, c.height, c.width, int(c.mirrored)) for c in crops]
    write_array(np.array(rows, dtype=np.int64), path)


def _read_rows(path: Path) -> NDArray[np.int64]:
    """(crops, 5) of whole numbers."""
    rows = read_array(path)
    if rows.ndim != 2 or rows.shape[1] != _COLUMNS or len(rows) == 0:
        raise SampleError(
            f"{path}: {rows.dtype} of shape {rows.shape}, where rows of "
            "top, left, height, width, mirrored belong"
        )
    values = rows.astype(np.float64)
    if not np.isfinite(values).all() or np.abs(values).max() > _MAX_PLACE:
        raise SampleError(f"{path}: holds numbers that are no places in a picture")
    if (values != np.floor(values)).any():
        raise SampleError(f"{path}: holds fractions, where whole pixels belong")
    return rows.astype(np.int64)


def _read_row(path: Path, row: NDArray[np.int64], whole: tuple[int, int], number: int) -> Crop:
    top, left, height, width, mirrored = row.tolist()
    problem = ""
    if height < 1 or width < 1:
        problem = "holds no pixel"
    elif height * width > MAX_PIXELS:
        problem = "is too large to be read"
    elif mirrored not in (0, 1):
        problem = f"says {mirrored} where mirrored is 0 or 1"
    elif top >= whole[0] or left >= whole[1] or top + height <= 0 or left + width <= 0:
        problem = f"lies wholly outside the picture of {whole[1]} x {whole[0]} pixels"
    if problem:
        raise SampleError(f"{path}: crop {number}, {width} x {height} pixels at ({left}, {top}), {problem}")
    return Crop(whole, top, left, height, width, bool(mirrored), number)
