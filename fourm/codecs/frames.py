"""From the square that a model sees back to the picture that it was cut from, in that picture's own size."""

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from fourm.codecs.maps import DEPTH_LEVELS, NO_CLASS, Form, Value
from fourm.data.layout import Crop

# How maps grow: class numbers keep their edges, fractions are not overshot.
_GROWS = {"labels": Resampling.NEAREST, "colours": Resampling.BICUBIC, "fractions": Resampling.BILINEAR}


def restore_map(value: Value, crop: Crop, form: Form) -> Value:
    """A map of the model's square as a map of the whole picture, (H, W) or (H, W, C) of its height and width.

    What lies outside the crop is unknown: NaN in float32 maps (also of uint16 levels, as fractions 0 to 1),
    255 in class numbers. If there is such a part, 8-bit colours get a last channel, 0 where nothing is known
    and 255 elsewhere. Features, which have no pixels, stay as they are.
    """
    if form.resample is None:
        return value
    value = (value / DEPTH_LEVELS).astype(np.float32) if value.dtype == np.uint16 else value
    square = value[:, ::-1] if crop.mirrored else value
    if crop.mirrored and form.is_normal:
        square = np.where((True, False, False), 255 - square, square).astype(np.uint8)
    shown = _grow(square, crop, form)
    if shown.shape[:2] == crop.whole:
        return shown
    if form.is_labels:
        return _place(shown, crop, NO_CLASS)
    if value.dtype.kind == "f":
        return _place(shown, crop, np.nan)
    known = np.full(shown.shape[:2], 255, dtype=np.uint8)
    return np.dstack([_place(shown, crop, 0), _place(known, crop, 0)])


def _grow(square: Value, crop: Crop, form: Form) -> Value:
    """What a square shows of the picture, at the picture's size; of a border nothing is computed."""
    left, top, right, bottom = crop.shown
    width, height = right - left, bottom - top
    x, y = left - crop.left, top - crop.top
    if square.shape[:2] == (crop.height, crop.width):
        return np.ascontiguousarray(square[y : y + height, x : x + width])
    across, down = square.shape[1] / crop.width, square.shape[0] / crop.height
    box = x * across, y * down, (x + width) * across, (y + height) * down

    def resize(plane: Value, kind: str) -> Value:
        image = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(image.resize((width, height), _GROWS[kind], box))

    if form.is_labels:
        return resize(square, "labels")
    if square.dtype.kind == "f":
        return resize(square.astype(np.float32), "fractions")
    if not form.is_normal:
        return resize(square, "colours")
    # Normals, 0..255 for -1..1, are blended as vectors and made unit length again.
    vectors = square.astype(np.float32) / 127.5 - 1
    grown = np.dstack([resize(vectors[..., axis], "fractions") for axis in range(3)])
    length = np.linalg.norm(grown, axis=-1, keepdims=True)
    return np.rint((grown / np.maximum(length, 1e-6) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def _place(shown: Value, crop: Crop, outside: float) -> Value:
    """What the crop shows in its place in the whole picture, and `outside` around it."""
    whole = np.full((*crop.whole, *shown.shape[2:]), outside, dtype=shown.dtype)
    left, top, right, bottom = crop.shown
    whole[top:bottom, left:right] = shown
    return whole
