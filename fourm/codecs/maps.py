"""Pictures and maps: how each kind is read, cropped, given to its tokenizer, and put back into its picture.

Alpha channels are dropped. Pixels are read as they are stored, without the rotation that an EXIF tag asks
for, because existing crops and tokens refer to them so; `GridCodec.read` rotates them if a sample asks so.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from fourm.codecs.colours import NO_CLASS, paint_features, to_bytes, turbo
from fourm.codecs.files import MAX_PIXELS, file_ending, levels_of, read_array, read_levels, read_picture
from fourm.data.layout import Crop, centre_crop
from fourm.errors import SampleError

Value = NDArray[Any]

DEPTH_LEVELS = 65535  # largest level of a 16-bit depth picture
_BICUBIC, _NEAREST = Resampling.BICUBIC, Resampling.NEAREST
_BILINEAR = Resampling.BILINEAR  # unlike bicubic, never beyond the values that it blends


@dataclass(frozen=True, slots=True)
class Form:
    """How one kind of value on a grid is read, resized, given to its tokenizer and coloured."""

    read: Callable[[Path], Value]
    # Checks an array or (but for features) a PIL picture that is held in memory, and returns it as `read`
    # would; the text names it in messages.
    take: Callable[[Any, str], Value]
    resample: Resampling | None  # filter for resizing; None: a value is neither cropped nor resized
    prepare: Callable[[Value], Tensor]  # value -> (C, H, W) float or (H, W) int64 for the tokenizer
    finish: Callable[[Tensor], Value]  # (C, H, W) of the tokenizer -> value
    paint: Callable[[Value], NDArray[np.uint8]] = np.asarray  # value -> 8-bit picture; not used for labels
    channels: int = 0  # C of `prepare`; 0: no tokenizer has one more channel for a mask of valid pixels
    outside: int = 0  # value of pixels that a crop shows beyond the picture
    is_normal: bool = False  # the red channel is a direction from left to right, which mirroring inverts
    is_labels: bool = False  # class numbers

    @property
    def is_measured(self) -> bool:
        """True where colours stand for numbers, from the lowest to the highest."""
        return self.paint is turbo


def read_pixels(path: Path, mode: str = "RGB", is_exact: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 of any picture, or (H, W) in mode "L".

    is_exact: refuse formats that store approximate values, such as JPEG. SampleError: the file is no picture
    that can be read, or its numbers are out of range (see `pixels_of`).
    """
    return pixels_of(read_picture(path, is_exact), mode, str(path))


def pixels_of(image: Image.Image, mode: str, where: str) -> NDArray[np.uint8]:
    """The pixels of a picture, as `read_pixels`; `where` names it in messages.

    Pictures of 16 bits (0..65535) and of floats (0..1) are scaled to 8 bits. SampleError: levels outside
    these ranges, levels of 32 bits that are all below 256, or a mode that cannot be converted.
    """
    if image.mode[0] in "IF":  # Pillow would clip instead of scaling
        levels = _checked_levels(image, where)
        # Such a file most likely holds 8-bit levels, which scaling from 16 bits would turn black.
        if levels.itemsize == 4 and image.mode != "F" and 0 < levels.max() < 256:
            raise SampleError(f"{where}: has whole numbers of 32 bits below 256; save it with 8 or 16 bits")
        image = Image.fromarray(to_bytes(levels) if image.mode == "F" else (levels >> 8).astype(np.uint8))
    elif "transparency" in image.info:  # dropped like an alpha channel
        image = image.copy()
        image.info.pop("transparency")
    try:
        return np.asarray(image.convert(mode))
    except (ValueError, OSError) as error:
        raise SampleError(f"{where}: of mode {image.mode}, not to be read as {mode} ({error})") from error


def read_valid(path: Path) -> NDArray[np.uint8]:
    """(H, W) of a mask: 255 where the pixels of other maps are valid, else 0.

    A mask without white that is not all black is refused: it may use another number, such as 1, for valid.
    """
    mask = read_pixels(path, "L", is_exact=True)
    if 0 < (highest := mask.max()) < 255:
        raise SampleError(f"{path}: a mask has white, 255, for what is valid; nothing is above {highest}")
    return np.where(mask == 255, np.uint8(255), np.uint8(0))


def read_depth(path: Path) -> Value:
    """(H, W) uint16 levels of a 16-bit picture or .npy file, or float32 of a float .npy file or picture.

    A float array may hold NaN where depth is not known; a float picture lies in [0, 1]. SampleError: another
    shape, dtype or range, or infinity.
    """
    is_array = file_ending(path) == ".npy"
    return depth_of(read_array(path) if is_array else read_picture(path), str(path))


def depth_of(given: Image.Image | Value, where: str) -> Value:
    """The depth in a picture or array, as `read_depth`; `where` names it in messages."""
    if not isinstance(given, Image.Image):
        if given.dtype.newbyteorder("=") == np.uint16 and given.ndim == 2 and given.size > 0:
            return given.astype(np.uint16)
        return _checked_floats(given, where, 2, "or 16-bit levels (uint16) ", may_be_unknown=True)
    if given.mode == "F":
        return _checked_floats(np.asarray(given), where, 2)
    if not given.mode.startswith("I"):
        raise SampleError(f"{where}: depth needs a 16-bit grey picture or .npy, not {given.mode}")
    return _checked_levels(given, where).astype(np.uint16)


def read_distance(path: Path) -> NDArray[np.float32]:
    """(H, W) float32 as a tokenizer reads it: floats as they are, 16-bit levels scaled to [-1, 1]."""
    return _distance(read_depth(path))


def read_features(path: Path) -> NDArray[np.float32]:
    """(C, h, w) float32 of a .npy file. SampleError: another file, shape or dtype, or NaN or infinity."""
    if file_ending(path) != ".npy":
        raise SampleError(f"{path}: features are read from .npy files, channels x rows x columns")
    return _checked_floats(read_array(path), str(path), 3)


def finite_float32(array: Value, where: Path | str) -> NDArray[np.float32]:
    """The array as float32. SampleError: it holds NaN, infinity, or a number too large for float32."""
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise SampleError(f"{where}: holds values that are no finite numbers")
    return narrow


def cut(
    value: Value, crop: Crop, side: int, resample: Resampling = Resampling.NEAREST, outside: int = 0,
    where: Path | str | None = None,
) -> Value:  # fmt: skip
    """The part of a value (H, W[, C]) in a crop, resized to side x side pixels; mirrored if the crop is.

    outside: value of the pixels that the crop shows beyond the picture; the border of a padded picture
    repeats its edge instead. SampleError (which begins with `where`): the value has not the height and width
    of `crop.whole`, or is too long to be padded.
    """
    if value.shape[:2] != crop.whole:
        found, whole = (f"{width} x {height}" for height, width in (value.shape[:2], crop.whole))
        both = f"{found} pixels, but the picture of this sample has {whole}"
        raise SampleError(f"{where}: {both}; one crop cannot mean the same in both")
    if crop.is_padded:
        return _pad(value, crop, side, resample, where)
    left, top, right, bottom = crop.shown
    seen = value[top:bottom, left:right]
    square = np.full((crop.height, crop.width, *value.shape[2:]), outside, dtype=value.dtype)
    above, before = top - crop.top, left - crop.left
    square[above : above + len(seen), before : before + seen.shape[1]] = seen
    if square.shape[:2] != (side, side):
        square = np.asarray(Image.fromarray(square).resize((side, side), resample))
    return np.ascontiguousarray(square[:, ::-1]) if crop.mirrored else square


def fit_square(value: Value, side: int, resample: Resampling = Resampling.NEAREST) -> Value:
    """The largest centred square of (H, W[, C]), offset rounded down, at side x side pixels."""
    return cut(value, centre_crop(*value.shape[:2]), side, resample)


def restore_map(value: Value, crop: Crop, form: Form) -> Value:
    """A map of the model's square as a map of the whole picture, (H, W) or (H, W, C) of its height and width.

    What lies outside the crop is unknown: NaN in float32 maps (uint16 levels become floats in [0, 1]), 255 in
    class numbers. If there is such a part, 8-bit colours get a last channel, 0 where nothing is known and 255
    elsewhere. Features, which have no pixels, stay as they are.
    """
    if form.resample is None:
        return value
    value = (value / DEPTH_LEVELS).astype(np.float32) if value.dtype == np.uint16 else value
    square = value[:, ::-1] if crop.mirrored else value
    if crop.mirrored and form.is_normal:
        square = np.where((True, False, False), 255 - square, square).astype(np.uint8)
    shown = _resize_back(square, crop, form)
    if shown.shape[:2] == crop.whole:
        return shown
    if form.is_labels:
        return _place(shown, crop, NO_CLASS)
    if value.dtype.kind == "f":
        return _place(shown, crop, np.nan)
    known = np.full(shown.shape[:2], 255, dtype=np.uint8)
    return np.dstack([_place(shown, crop, 0), _place(known, crop, 0)])


def to_unit_range(value: Value) -> Tensor:
    """uint8 (H, W, 3) or (H, W) -> (C, H, W) float32 in [0, 1]."""
    x = torch.from_numpy(value.astype(np.float32)) / 255
    return x.unsqueeze(0) if x.ndim == 2 else rearrange(x, "h w c -> c h w")


def standardise_depth(depth: Value) -> Tensor:
    """(H, W) -> (1, H, W) float32, standardised by the mean and variance of the middle 80 % of its values.

    uint16 levels are scaled to [0, 1] first. The reference does the same for its depth tokenizer.
    """
    x = torch.from_numpy(depth.astype(np.float64))  # so that a constant map is exactly 0
    x = x / DEPTH_LEVELS if depth.dtype == np.uint16 else x
    ordered = x.flatten().sort().values
    kept = ordered[int(0.1 * len(ordered)) : int(0.9 * len(ordered))]
    return ((x - kept.mean()) / (kept.var() + 1e-6).sqrt()).float().unsqueeze(0)


def _take_features(given: Image.Image | Value, where: str) -> NDArray[np.float32]:
    """(C, h, w) of an array."""
    if isinstance(given, Image.Image):
        raise SampleError(f"{where}: features are an array, channels x rows x columns, not a picture")
    return _checked_floats(given, where, 3)


def _take_pixels(given: Image.Image | Value, where: str, mode: str = "RGB") -> NDArray[np.uint8]:
    """(H, W, 3), or (H, W) in mode "L": of a picture, of booleans, of uint8 0..255 or of floats in [0, 1]."""
    if isinstance(given, Image.Image):
        return pixels_of(given, mode, where)
    is_shape = (given.ndim == 2 or (given.ndim == 3 and given.shape[2] in (3, 4))) and given.size > 0
    is_range = given.dtype in (np.uint8, np.bool_)
    if is_shape and given.dtype.kind == "f" and given.min() >= 0 and given.max() <= 1:  # nor is NaN
        given, is_range = to_bytes(given), True
    if not (is_shape and is_range):
        found = f"{given.dtype} of shape {given.shape}"
        if is_shape and given.dtype.kind in "iuf":
            found += f" from {given.min():.7g} to {given.max():.7g}"
        due = "rows x columns (x 3) of uint8 (0..255) or of floats (0..1)"
        raise SampleError(f"{where}: {found}, where a picture is {due}")
    levels = given.astype(np.uint8) * np.uint8(255) if given.dtype == np.bool_ else given
    return pixels_of(Image.fromarray(levels), mode, where)


def _take_labels(given: Image.Image | Value, where: str) -> NDArray[np.uint8]:
    """(H, W) class numbers: of a grey or palette picture, or of whole numbers 0..255."""
    if isinstance(given, Image.Image):
        return levels_of(given, where)
    if given.ndim != 2 or given.dtype.kind not in "iu" or given.size == 0:
        found = f"{given.dtype} of shape {given.shape}"
        raise SampleError(f"{where}: {found}, where class numbers are rows x columns of whole numbers")
    for number in (given.min(), given.max()):
        if not 0 <= number <= NO_CLASS:
            raise SampleError(f"{where}: class {number} is outside 0..{NO_CLASS} ({NO_CLASS} is none)")
    return given.astype(np.uint8)


def _checked_levels(image: Image.Image, where: str) -> Value:
    """(H, W) of a picture of floats in [0, 1], or of whole numbers in 0..65535; SampleError beyond that."""
    levels = np.asarray(image)
    most, what = (1, "floats") if image.mode == "F" else (DEPTH_LEVELS, "16 bits")
    if not (levels.min() >= 0 and levels.max() <= most):
        found = f"{levels.min():.7g} to {levels.max():.7g}"
        raise SampleError(f"{where}: a picture of {what} lies in 0 to {most}, not {found}")
    return levels


def _checked_floats(
    array: Value, where: str, rank: int, alternative: str = "", may_be_unknown: bool = False
) -> NDArray[np.float32]:
    """A float array with `rank` axes as finite float32; may_be_unknown: NaN is allowed.

    alternative: what else is allowed, for the message.
    """
    if array.ndim != rank or array.dtype.kind != "f" or array.size == 0:
        found = f"{array.dtype} of shape {array.shape}"
        raise SampleError(f"{where}: {found}, where {rank} axes of floats {alternative}belong")
    if may_be_unknown:
        unknown = np.isnan(array)
        return np.where(unknown, np.float32(np.nan), finite_float32(np.where(unknown, 0, array), where))
    return finite_float32(array, where)


def _distance(depth: Value) -> NDArray[np.float32]:
    scaled = 2 * depth.astype(np.float32) / DEPTH_LEVELS - 1 if depth.dtype == np.uint16 else depth
    return scaled.astype(np.float32)


def _pad(value: Value, crop: Crop, side: int, resample: Resampling, where: Path | str | None) -> Value:
    """All of a map in the middle of a square of side x side pixels, between borders that repeat its edge."""
    height, width = crop.whole
    if max(crop.whole) * side > MAX_PIXELS:
        raise SampleError(f"{where}: {width} x {height} pixels are too long for a square around them")

    def resize(part: Value, size: tuple[int, int]) -> Value:
        return part if part.shape[1::-1] == size else np.asarray(Image.fromarray(part).resize(size, resample))

    # The longer axis is resized before the border is added, so that a long picture takes little memory.
    strip = resize(value, (side, height) if width > height else (width, side))
    before = (-crop.top, 0) if width > height else (0, -crop.left)
    missing = (crop.height - height - before[0], crop.width - width - before[1])
    after = (missing[0], 0) if width > height else (0, missing[1])
    borders = [*zip(before, after, strict=True), *[(0, 0)] * (value.ndim - 2)]
    return resize(np.pad(strip, borders, mode="edge"), (side, side))


def _resize_back(square: Value, crop: Crop, form: Form) -> Value:
    """The part of a square that lies inside the picture, at the picture's size; the border is left out."""
    left, top, right, bottom = crop.shown
    width, height = right - left, bottom - top
    x, y = left - crop.left, top - crop.top
    if square.shape[:2] == (crop.height, crop.width):
        return np.ascontiguousarray(square[y : y + height, x : x + width])
    across, down = square.shape[1] / crop.width, square.shape[0] / crop.height
    box = x * across, y * down, (x + width) * across, (y + height) * down

    def resize(plane: Value, resample: Resampling) -> Value:
        image = Image.fromarray(np.ascontiguousarray(plane))
        return np.asarray(image.resize((width, height), resample, box))

    if form.is_labels:
        return resize(square, _NEAREST)
    if square.dtype.kind == "f":
        return resize(square.astype(np.float32), _BILINEAR)
    if not form.is_normal:
        return resize(square, _BICUBIC)
    # Normals, 0..255 for -1..1, are blended as vectors and made unit length again.
    vectors = square.astype(np.float32) / 127.5 - 1
    blended = np.dstack([resize(vectors[..., axis], _BILINEAR) for axis in range(3)])
    length = np.linalg.norm(blended, axis=-1, keepdims=True)
    return np.rint((blended / np.maximum(length, 1e-6) + 1) * 127.5).clip(0, 255).astype(np.uint8)


def _place(shown: Value, crop: Crop, outside: float) -> Value:
    """What the crop shows in its place in the whole picture, and `outside` around it."""
    whole = np.full((*crop.whole, *shown.shape[2:]), outside, dtype=shown.dtype)
    left, top, right, bottom = crop.shown
    whole[top:bottom, left:right] = shown
    return whole


def _to_signed_range(value: Value) -> Tensor:
    """uint8 (H, W, 3) or (H, W) -> (C, H, W) float32 in [-1, 1]."""
    return (to_unit_range(value) - 0.5) / 0.5


def _finish_colours(x: Tensor) -> Value:
    return to_bytes(rearrange((x[:3] + 1) / 2, "c h w -> h w c").numpy())


def _finish_edges(x: Tensor) -> Value:
    edges = x[:3] if len(x) > 2 else x[:1]  # one channel more would be a mask
    return to_bytes((edges.mean(dim=0).numpy() + 1) / 2)


# Label 0 is "no class": class numbers start at 0 for label 1, and no class (255) wraps around to label 0.
def _prepare_labels(classes: Value) -> Tensor:
    return torch.from_numpy((classes + np.uint8(1)).astype(np.int64))


def _finish_labels(logits: Tensor) -> Value:
    return logits.argmax(dim=0).numpy().astype(np.uint8) - np.uint8(1)


_COLOURS = Form(read_pixels, _take_pixels, _BICUBIC, _to_signed_range, _finish_colours, channels=3)
_DEPTH = Form(read_depth, depth_of, _BICUBIC, standardise_depth, lambda x: x[0].numpy(), turbo, channels=1)
_DISTANCE = replace(
    _DEPTH, read=read_distance, take=lambda given, where: _distance(depth_of(given, where)),
    prepare=lambda depth: torch.tensor(depth)[None],
)  # fmt: skip
_EDGES = Form(
    partial(read_pixels, mode="L"), partial(_take_pixels, mode="L"), _BICUBIC, _to_signed_range,
    _finish_edges, channels=1,
)  # fmt: skip
_LABELS = Form(
    read_levels, _take_labels, _NEAREST, _prepare_labels, _finish_labels, outside=NO_CLASS, is_labels=True
)
_FEATURES = Form(
    read_features, _take_features, None, torch.from_numpy, Tensor.numpy, lambda x: paint_features(x)[0]
)
# By the codec name of a row; no released model has rows of `tok_edge`, `tok_feature` or `tok_distance`.
FORMS: dict[str, Form] = {
    "tok_rgb": _COLOURS,
    "tok_normal": replace(_COLOURS, is_normal=True),
    "tok_depth": _DEPTH,
    "tok_distance": _DISTANCE,
    "tok_semseg": _LABELS,
    **dict.fromkeys(("tok_edge", "tok_canny_edge", "tok_sam_edge"), _EDGES),
    **dict.fromkeys(("tok_feature", "tok_clip", "tok_dinov2", "tok_imagebind"), _FEATURES),
    **dict.fromkeys(("tok_dinov2_global", "tok_imagebind_global"), _FEATURES),
}
