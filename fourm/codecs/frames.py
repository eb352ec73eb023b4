"""From the square that a model sees back to the picture that it was cut from, in that picture's own size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling

from fourm.codecs.maps import NO_CLASS, Form, Value
from fourm.data.layout import Crop

# How maps grow: class numbers keep their edges, fractions are not overshot.
_GROWS = {"labels": Resampling.NEAREST, "colours": Resampling.BICUBIC, "fractions": Resampling.BILINEAR}


def restore_map(value: Value, crop: Crop, form: Form) -> Value:
    """A map of the model's square as a map of the whole picture, (H, W) or (H, W, C) of its height and width.

    What lies outside the crop is unknown: NaN in float32 maps, 255 in class numbers; 8-bit colours get a last
    channel, 0 where nothing is known and 255 elsewhere. Features, which have no pixels, stay as they are.
    """
    if form.resample is None:
        return value
    square = value[:, ::-1] if crop.mirrored else value
    if crop.mirrored and form.is_normal:
        square = np.where((True, False, False), 255 - square, square).astype(np.uint8)
    grown = _grow(square, crop, form)
    if form.is_labels:
        return _place(grown, crop, NO_CLASS)
    if value.dtype.kind == "f":
        return _place(grown, crop, np.nan)
    known = np.full(grown.shape[:2], 255, dtype=np.uint8)
    return np.dstack([_place(grown, crop, 0), _place(known, crop, 0)])


def restore_points(points: NDArray[np.float64], crop: Crop, side: int) -> NDArray[np.float64]:
    """Points (..., 2), x and y in pixels of the model's square, as pixels of the whole picture."""
    x, y = points[..., 0] / side, points[..., 1] / side
    x = 1 - x if crop.mirrored else x
    return np.stack([crop.left + x * crop.width, crop.top + y * crop.height], axis=-1)


def _grow(square: Value, crop: Crop, form: Form) -> Value:
    """The square at the size of the crop's rectangle."""
    size = crop.width, crop.height
    if square.shape[:2] == (crop.height, crop.width):
        return square
    if form.is_labels:
        return np.asarray(Image.fromarray(square).resize(size, _GROWS["labels"]))
    if square.dtype.kind == "f":
        return np.asarray(Image.fromarray(square.astype(np.float32)).resize(size, _GROWS["fractions"]))
    if form.is_normal:
        return _grow_normals(square, size)
    return np.asarray(Image.fromarray(square).resize(size, _GROWS["colours"]))


def _grow_normals(square: Value, size: tuple[int, int]) -> Value:
    """Normals, 0..255 for -1..1, blended as vectors and made unit length again."""
    vectors = square.astype(np.float32) / 127.5 - 1
    planes = [Image.fromarray(np.ascontiguousarray(vectors[..., i])) for i in range(3)]
    grown = np.dstack([np.asarray(plane.resize(size, _GROWS["fractions"])) for plane in planes])
    length = np.linalg.norm(grown, axis=-1, keepdims=True)
    return np.rint((grown / np.maximum(length, 1e-6) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def _place(grown: Value, crop: Crop, outside: float) -> Value:
    """The crop's rectangle in the whole picture, and `outside` around it."""
    height, width = crop.whole
    whole = np.full((height, width, *grown.shape[2:]), outside, dtype=grown.dtype)
    top, left = max(crop.top, 0), max(crop.left, 0)
    bottom, right = min(crop.top + crop.height, height), min(crop.left + crop.width, width)
    shown = grown[top - crop.top : bottom - crop.top, left - crop.left : right - crop.left]
    whole[top:bottom, left:right] = shown
    return whole
