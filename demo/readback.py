"""Reads objects and background back from the pixels of a picture, knowing nothing of where it came from."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from demo.world import (
    BACKGROUNDS,
    COLOURS,
    MARGIN,
    SHAPES,
    SIDE,
    SIZES,
    Caption,
    Claim,
    normalise,
    place_of,
    relation_between,
)

Mask = NDArray[np.bool_]

_LEAST_AREA = 24  # pixels at scale 1: anything smaller is noise
_LEAST_FIT = 0.75  # intersection over union below which a blob is no object


@dataclass(frozen=True, slots=True)
class Seen:
    """One blob of colour: the best fitting object and how well it fits (intersection over union)."""

    claim: Claim
    cx: float  # pixels at scale 1
    cy: float
    fit: float


def read_picture(rgb: NDArray[np.uint8]) -> tuple[str, tuple[Seen, ...]]:
    """(H, W, 3) uint8 -> the background's name and the blobs, the left or upper one first."""
    scale = rgb.shape[0] / SIDE
    hue, saturation, value = _hsv(rgb)
    foreground = (saturation > 0.48) & (value > 0.3)
    names = tuple(COLOURS)
    turns = np.array([_hsv(np.array([[COLOURS[name]]], np.uint8))[0][0, 0] for name in names])
    gap = np.abs(hue[..., None] - turns)
    nearest = np.minimum(gap, 1 - gap).argmin(-1)
    masks = {name: _open(foreground & (nearest == index)) for index, name in enumerate(names)}
    seen = [_fit(mask, name, scale) for name, mask in masks.items() if mask.sum() >= _LEAST_AREA * scale**2]
    return _background(rgb[~foreground]), tuple(sorted(seen, key=lambda s: s.cx + s.cy))


def caption_of(rgb: NDArray[np.uint8]) -> Caption | None:
    """The complete caption of a picture, or None where it does not show one or two clean objects."""
    background, seen = read_picture(rgb)
    if len(seen) not in (1, 2) or min(s.fit for s in seen) < _LEAST_FIT:
        return None
    claims = tuple(s.claim for s in seen)
    if len(seen) == 1:
        return Caption(claims, place=place_of(seen[0].cx, seen[0].cy), background=background)
    relation = relation_between((seen[0].cx, seen[0].cy), (seen[1].cx, seen[1].cy))
    return normalise(Caption(claims, relation=relation, background=background))


def agrees(asked: Caption, shown: Caption | None) -> bool:
    """True where the picture shows everything that was asked for; what was left unsaid may be anything."""
    if shown is None or len(asked.things) != len(shown.things):
        return False
    asked, shown = normalise(asked), normalise(shown)
    pairs = [
        (asked.background, shown.background),
        (asked.place, shown.place),
        (asked.relation, shown.relation),
    ]
    for want, have in zip(asked.things, shown.things, strict=True):
        pairs += [(want.shape, have.shape), (want.colour, have.colour), (want.size, have.size)]
    return all(want in ("", have) for want, have in pairs)


def _open(mask: Mask) -> Mask:
    """The mask without lines one pixel wide: mixed colours on antialiased borders."""
    return ~_shrunk(~_shrunk(mask))


def _shrunk(mask: Mask) -> Mask:
    """True where a pixel and its four neighbours are True; the world beyond the picture counts as True."""
    wide = np.pad(mask, 1, constant_values=True)
    return mask & wide[2:, 1:-1] & wide[:-2, 1:-1] & wide[1:-1, 2:] & wide[1:-1, :-2]


def _fit(mask: Mask, colour: str, scale: float) -> Seen:
    """The shape, size and centre whose silhouette covers the mask best."""
    ys, xs = np.nonzero(mask)
    middle = (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2
    best = Seen(Claim(SHAPES[0], colour), 0.0, 0.0, -1.0)
    for shape in SHAPES:
        for size in SIZES:
            for dx in (-1, 0, 1):
                for dy in (-1, 0, 1):
                    cx, cy = middle[0] + dx * scale, middle[1] + dy * scale
                    form = _silhouette(shape, size, cx, cy, mask.shape[0])
                    fit = float((form & mask).sum() / (form | mask).sum())
                    if fit > best.fit:
                        best = Seen(Claim(shape, colour, size), cx / scale, cy / scale, fit)
    return best


@lru_cache(maxsize=4096)
def _silhouette(shape: str, size: str, cx: float, cy: float, side: int) -> Mask:
    """(side, side) bool, True inside the object."""
    radius = (SIZES[size] - MARGIN) * side / SIDE
    x = np.arange(side) + 0.5 - cx
    y = (np.arange(side) + 0.5 - cy)[:, None]
    if shape == "circle":
        return np.hypot(x, y) < radius
    if shape == "square":
        return (np.abs(x) < radius) & (np.abs(y) < radius)
    return (y < radius) & (2 * np.abs(x) - y < radius)


def _background(pixels: NDArray[np.uint8]) -> str:
    """The named background nearest to the median of (N, 3) pixels."""
    if not len(pixels):
        return ""
    median = np.median(pixels, axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.abs(median - BACKGROUNDS[name]).sum()))


def _hsv(rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """(H, W, 3) uint8 -> hue in turns, saturation, value, each (H, W) in [0, 1]."""
    r, g, b = np.moveaxis(rgb.astype(np.float32) / 255, -1, 0)
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    spread = np.maximum(high - low, 1e-6)
    hue = np.where(
        high == r, (g - b) / spread % 6, np.where(high == g, (b - r) / spread + 2, (r - g) / spread + 4)
    )
    return hue / 6, (high - low) / np.maximum(high, 1e-6), high
