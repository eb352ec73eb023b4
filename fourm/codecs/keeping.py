"""Which pixels and tokens of a picture stay, what hides the others, and how both parts are joined afterwards.

Masks are True for what stays. A token stays if all pixels of its patch do.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from fourm.codecs import colours, maps
from fourm.codecs.colours import NO_CLASS
from fourm.codecs.images import GridCodec
from fourm.codecs.maps import Form, Value, restore_map
from fourm.data.layout import Crop
from fourm.errors import SampleError
from fourm.schedule.keeps import kept_of_share

Mask = NDArray[np.bool_]
WHITE_FROM = 128  # pixels of a mask picture with this grey level or a lighter one stay
_ROWS = 256  # of a picture that are joined at once, so that a large one takes little memory


def read_keep_mask(path: Path) -> Mask:
    """(H, W) bool of a mask picture, True for what stays. SampleError: it cannot be read."""
    return maps.read_pixels(path, "L") >= WHITE_FROM


def check_keep_mask(mask: Mask, whole: tuple[int, int] | None, where: str, is_box: bool = False) -> None:
    """SampleError for a mask (H, W) that keeps everything or nothing, or has another size than its picture.

    whole: height and width of the picture; None: any. where: names the mask in messages. is_box: it is that
    of a box.
    """
    if whole is not None and mask.shape != whole:
        found, right = (f"{width} x {height}" for height, width in (mask.shape, whole))
        raise SampleError(f"{where}: the mask has {found} pixels, but its picture has {right}")
    if mask.all() or not mask.any():
        what = (
            "all of the picture, so nothing is left to generate" if mask.all() else "nothing of the picture"
        )
        told = "" if is_box else "; white (128 and above) stays, black is generated"
        raise SampleError(f"{where}: the {'box' if is_box else 'mask'} keeps {what}{told}")


def box_mask(box: tuple[float, float, float, float], whole: tuple[int, int]) -> Mask:
    """(H, W) bool, True inside a box of fractions (left, top, right, bottom) of a picture."""
    height, width = whole
    left, top, right, bottom = box
    mask = np.zeros(whole, dtype=np.bool_)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    return mask


def framed_mask(mask: Mask, side: int) -> Mask:
    """A mask (H, W) of all that the model sees, resized to (side, side) like `cut_mask`."""
    return cut_mask(mask, Crop(mask.shape, 0, 0, *mask.shape), side)


def cut_mask(mask: Mask, crop: Crop, side: int) -> Mask:
    """The part of a mask (H, W) in a crop, resized to (side, side) bool; what lies outside the picture stays.

    A pixel stays if all pixels that it covers do. Those of a padded border are the picture's edge.
    """
    hidden, spans = ~mask, ((crop.top, crop.height), (crop.left, crop.width))
    for axis, (start, extent) in enumerate(spans):
        first, last = (start + places for places in _spans_of_pixels(extent, side))
        length = mask.shape[axis]
        is_inside = (last >= 0) & (first < length) | crop.is_padded
        bounds = np.stack([np.clip(first, 0, length - 1), np.clip(last, 0, length - 1) + 1], axis=1)
        ended = np.pad(hidden, [(0, int(axis == which)) for which in range(2)])  # a bound may be the end
        hidden = np.logical_or.reduceat(ended, bounds.reshape(-1), axis=axis)
        hidden = hidden[::2] & is_inside[:, None] if axis == 0 else hidden[:, ::2] & is_inside
    return ~hidden[:, ::-1] if crop.mirrored else ~hidden


def _spans_of_pixels(extent: int, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last of `extent` pixels whose centres lie in each of `side` pixels, or the nearest one."""
    numbers = np.arange(side)
    if extent < side:
        nearest = (2 * numbers + 1) * extent // (2 * side)
        return nearest, nearest
    ends = (2 * np.arange(side + 1) * extent + side) // (2 * side)
    return ends[:-1], ends[1:] - 1


def tokens_of_mask(mask: Mask, grid: tuple[int, int]) -> Mask:
    """(L,) bool: the tokens of a grid whose whole patch stays; mask (H, W)."""
    rows, columns = (np.arange(size) * n // size for size, n in zip(mask.shape, grid, strict=True))
    hidden = np.zeros(grid, dtype=np.bool_)
    np.logical_or.at(hidden, (rows[:, None], columns[None, :]), ~mask)
    return ~hidden.reshape(-1)


def mask_of_tokens(tokens: Mask, grid: tuple[int, int], side: int) -> Mask:
    """(side, side) bool: the pixels of the patches of tokens (L,)."""
    rows = np.arange(side) * grid[0] // side
    columns = np.arange(side) * grid[1] // side
    return tokens.reshape(grid)[rows[:, None], columns[None, :]]


def whole_mask(tokens: Mask, grid: tuple[int, int], crop: Crop) -> Mask:
    """(H, W) bool of a whole picture: the pixels whose centres lie in the patches of tokens (L,) of a crop.

    What lies outside the crop stays.
    """
    places = list[NDArray[np.int64]]()
    spans = ((crop.whole[0], crop.top, crop.height), (crop.whole[1], crop.left, crop.width))
    for count, (length, start, extent) in zip(grid, spans, strict=True):
        centres = 2 * (np.arange(length) - start) + 1  # in half pixels from the start of the crop
        found = centres * count // (2 * extent)
        places.append(np.where((found >= 0) & (found < count), found, -1))
    rows, columns = places
    columns = np.where(columns >= 0, grid[1] - 1 - columns, -1) if crop.mirrored else columns
    is_inside = (rows >= 0)[:, None] & (columns >= 0)[None, :]
    return ~is_inside | tokens.reshape(grid)[rows[:, None], columns[None, :]]


def tokens_of_share(share: float, uniforms: NDArray[np.float32]) -> Mask:
    """(L,) bool: the share of tokens with the lowest numbers; uniforms (L,) in [0, 1)."""
    order = np.argsort(uniforms, kind="stable")
    tokens = np.zeros(len(uniforms), dtype=np.bool_)
    tokens[order[: kept_of_share(share, len(uniforms))]] = True
    return tokens


def hide_pixels(value: Value, mask: Mask, form: Form) -> Value:
    """A copy of a value with its hidden pixels replaced by the mean of the kept ones; labels by "no class".

    value: (H, W) or (H, W, C); mask: (H, W). Features, (C, h, w), take a mask of their places (h, w).
    """
    hidden = value.copy()
    if form.is_labels:
        hidden[~mask] = NO_CLASS
    elif form.resample is None:
        hidden[:, ~mask] = value[:, mask].mean(axis=1, keepdims=True) if mask.any() else 0
    elif mask.any():
        mean = value[mask].mean(axis=0, dtype=np.float64)
        hidden[~mask] = np.rint(mean) if value.dtype.kind in "iu" else mean
    else:
        hidden[:] = colours.GREY if value.dtype == np.uint8 else 0
    return hidden


def seam(mask: Mask, width: int) -> NDArray[np.float32]:
    """(H, W) weights of the kept picture: 0 where it is hidden, rising to 1 over `width` pixels inside.

    The seam lies inside the kept part, so that nothing of the hidden part shows through.
    """
    picture, total = Image.fromarray(mask.astype(np.uint8)), np.zeros(mask.shape, dtype=np.float32)
    for _ in range(width):
        picture = picture.filter(ImageFilter.MinFilter(3))
        total += np.asarray(picture)
    return total / np.float32(width) if width else mask.astype(np.float32)


def lay_over(kept: Value, made: Value, mask: Mask, width: int) -> Value:
    """The made picture with the kept one laid over it, both (H, W[, C]) of one dtype, joined by a `seam`."""
    return _mixed(kept, made, seam(mask, width))


def lay_over_whole(kept: Value, made: Value, mask: Mask, square: Mask, width: int, crop: Crop) -> Value:
    """`lay_over` in a whole picture: kept (H, W, 3), made (H, W, 3 or 4) of `restore_map`, mask (H, W).

    square: the mask of the model's square, (side, side). Its seam of `width` pixels is made there, and then
    brought to the picture's size like any map.
    """
    weights = restore_map(seam(square, width), crop, maps.FORMS["tok_depth"])  # depth: a map of floats
    weights = np.where(mask, np.nan_to_num(weights), 0)  # NaN outside the crop, where nothing was made
    mixed = _mixed(kept, made[..., :3], weights)
    return np.dstack([mixed, made[..., 3:]]) if made.shape[2] > mixed.shape[2] else mixed


def _mixed(kept: Value, made: Value, weights: NDArray[np.float32]) -> Value:
    weights, joined = weights[..., None] if made.ndim == 3 else weights, np.empty_like(made)
    for top in range(0, len(made), _ROWS):
        rows = slice(top, top + _ROWS)
        mixed = made[rows] + (kept[rows].astype(np.float64) - made[rows]) * weights[rows]
        joined[rows] = np.rint(mixed) if made.dtype.kind in "iu" else mixed
    return joined


@dataclass(frozen=True, slots=True)
class Part:
    """The kept part of a value."""

    value: Value  # with the hidden pixels replaced (see `hide_pixels`)
    mask: Mask  # True for what stays: (H, W) pixels of a picture, (h, w) places of features
    tokens: Mask  # (L,) True for what stays
    whole: tuple[Value, Mask] | None = None  # value and mask of the whole picture, where there is one


def keep_pixels(
    codec: GridCodec, whole: Value, crop: Crop, mask: Mask | None, tokens: Mask | None, path: Path
) -> Part:
    """The part of a whole picture or map, (H, W[, C]), that stays in a crop, at the size of the codec's row.

    What stays is given by `mask`, of the whole picture, or by `tokens`, (L,). Hidden pixels are replaced
    before the picture is resized, which would mix them with kept ones. SampleError, which begins with
    `path`: the value has another size than the crop's picture.
    """
    row, grid = codec.row, codec.row.grid or (1, 1)
    if mask is None:
        assert tokens is not None  # one of both is given
        mask, square = whole_mask(tokens, grid, crop), mask_of_tokens(tokens, grid, row.image_size)
    else:
        square = cut_mask(mask, crop, row.image_size)
        tokens = tokens_of_mask(square, grid)
    hidden = hide_pixels(whole, mask, codec.form)
    value = codec.cut(hidden, crop, path)
    return Part(hide_pixels(value, square, codec.form), square, tokens, (hidden, mask))
