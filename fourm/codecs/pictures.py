"""Files of pictures and maps to arrays, and the square of them that a model sees.

Alpha channels are dropped and EXIF rotation is not applied, as in the reference: crops and tokens that others
made count in the pixels as they are stored.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.colours import to_bytes
from fourm.codecs.files import read_array, read_levels, read_picture
from fourm.data.layout import Crop, centre_crop
from fourm.errors import SampleError

Value = NDArray[Any]

DEPTH_LEVELS = 65535  # of 16-bit depth pictures


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) of any picture; of an animation its first frame."""
    return _eight_bit(path, "RGB")


def read_grey(path: Path) -> NDArray[np.uint8]:
    """(H, W) of any picture."""
    return _eight_bit(path, "L")


def read_valid(path: Path) -> NDArray[np.uint8]:
    """(H, W), 255 where a mask says that the pixels of other maps mean something, else 0.

    A mask without white that is not black counts in another way, perhaps 1 for valid.
    """
    mask = _eight_bit(path, "L", is_exact=True)
    if 0 < (highest := mask.max()) < 255:
        raise SampleError(f"{path}: a mask has white, 255, for what is valid; nothing is above {highest}")
    return np.where(mask == 255, np.uint8(255), np.uint8(0))


def read_classes(path: Path) -> NDArray[np.uint8]:
    """(H, W) class numbers from 0, NO_CLASS where there is none."""
    return read_levels(path)


def read_depth(path: Path) -> Value:
    """(H, W): uint16 levels of a 16-bit picture or .npy, or float32 of a .npy or a picture of fractions."""
    if is_array(path):
        levels = read_array(path)
        is_levels = levels.dtype.kind == "u" and levels.itemsize == 2 and levels.ndim == 2 and levels.size > 0
        return levels.astype(np.uint16) if is_levels else _read_floats(path, 2, "or 16-bit levels (uint16) ")
    image = read_picture(path)
    levels = np.asarray(image)
    if image.mode == "F":
        return _finite(levels, path)
    if not image.mode.startswith("I"):
        raise SampleError(f"{path}: depth needs a 16-bit grey picture or .npy, not {image.mode}")
    _check_levels(levels, path)
    return levels.astype(np.uint16)


def read_distance(path: Path) -> NDArray[np.float32]:
    """(H, W) float32 as a tokenizer reads it: a .npy as it is, 16-bit levels from -1 to 1."""
    depth = read_depth(path)
    scaled = 2 * depth.astype(np.float32) / DEPTH_LEVELS - 1 if depth.dtype == np.uint16 else depth
    return scaled.astype(np.float32)


def read_features(path: Path) -> NDArray[np.float32]:
    """(C, h, w) float32."""
    if not is_array(path):
        raise SampleError(f"{path}: features are read from .npy files, channels x rows x columns")
    return _read_floats(path, 3)


def is_array(path: Path) -> bool:
    """True for a .npy file by its name."""
    return path.suffix.lower() == ".npy"


def cut(value: Value, crop: Crop, side: int, resample: Image.Resampling, outside: int = 0) -> Value:
    """(H, W[, C]) -> the rectangle of a crop at side x side pixels, mirrored if the crop is.

    `outside` is the value of what lies outside the whole picture.
    """
    square = _rectangle(value, crop, outside)
    if square.shape[:2] != (side, side):
        square = np.asarray(Image.fromarray(square).resize((side, side), resample))
    return np.ascontiguousarray(square[:, ::-1]) if crop.mirrored else square


def fit_square(value: Value, side: int, resample: Image.Resampling) -> Value:
    """The largest centred square of (H, W[, C]), offset rounded down, at side x side pixels."""
    return cut(value, centre_crop(*value.shape[:2]), side, resample)


def _rectangle(value: Value, crop: Crop, outside: int) -> Value:
    height, width = value.shape[:2]
    top, left = max(crop.top, 0), max(crop.left, 0)
    bottom, right = min(crop.top + crop.height, height), min(crop.left + crop.width, width)
    inside = value[top : max(bottom, top), left : max(right, left)]
    if inside.shape[:2] == (crop.height, crop.width):
        return np.ascontiguousarray(inside)
    whole = np.full((crop.height, crop.width, *value.shape[2:]), outside, dtype=value.dtype)
    above, before = top - crop.top, left - crop.left
    whole[above : above + inside.shape[0], before : before + inside.shape[1]] = inside
    return whole


def _eight_bit(path: Path, mode: str, is_exact: bool = False) -> NDArray[np.uint8]:
    image = read_picture(path, is_exact)
    image.info.pop("transparency", None)  # dropped like an alpha channel
    if image.mode[0] in "IF":  # Pillow would clip instead of scaling
        image = Image.fromarray(_scaled(np.asarray(image), path))
    try:
        return np.asarray(image.convert(mode))
    except (ValueError, OSError) as error:
        raise SampleError(f"{path}: of mode {image.mode}, not to be read as {mode} ({error})") from error


def _scaled(levels: Value, path: Path) -> NDArray[np.uint8]:
    """16-bit whole numbers, or fractions from 0 to 1, in 8 bits."""
    if levels.dtype.kind == "f":
        low, high = levels.min(), levels.max()
        if not (low >= 0 and high <= 1):
            raise SampleError(f"{path}: a picture of fractions lies in 0 to 1, not {low:g} to {high:g}")
        return to_bytes(levels)
    _check_levels(levels, path)
    if levels.itemsize == 4 and 0 < levels.max() < 256:
        raise SampleError(f"{path}: has whole numbers of 32 bits below 256; save it with 8 or 16 bits")
    return (levels >> 8).astype(np.uint8)


def _check_levels(levels: Value, path: Path) -> None:
    low, high = levels.min(), levels.max()
    if low < 0 or high > DEPTH_LEVELS:
        raise SampleError(f"{path}: a picture of 16 bits lies in 0 to {DEPTH_LEVELS}, not {low} to {high}")


def _read_floats(path: Path, rank: int, other: str = "") -> NDArray[np.float32]:
    array = read_array(path)
    if array.ndim != rank or array.dtype.kind != "f" or array.size == 0:
        raise SampleError(
            f"{path}: {array.dtype} of shape {array.shape}, where {rank} axes of fractions {other}belong"
        )
    return _finite(array, path)


def _finite(array: Value, path: Path) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise SampleError(f"{path}: holds values that are no finite numbers")
    return narrow
