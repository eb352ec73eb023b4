"""Analytic pictures of the demo world at any scale: every map is computed, nothing is estimated."""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demo.world import BACKGROUNDS, COLOURS, MARGIN, PATCH, SHAPES, SIDE, SIZES, Scene

Array = NDArray[np.floating]

_LIGHT = np.array([-0.45, -0.6, 0.66], np.float32)  # towards the light: from the upper left, in front
_FLOOR = 0.9  # depth of the background; 0 is at the camera
_BLUR = 0.35  # half width of an antialiased border, pixels
_COLOUR_NAMES, _BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)


@dataclass(frozen=True, slots=True)
class Maps:
    """All pictures of a region of H x W pixels."""

    rgb: NDArray[np.uint8]  # (H, W, 3)
    depth: Array  # (H, W) in [0, 1], 1 = far
    normal: Array  # (H, W, 3) unit vectors; x right, y down, z towards the viewer
    semseg: NDArray[np.uint8]  # (H, W) 0 = background, 1 + index into SHAPES
    edge: Array  # (H, W) in [0, 1]
    clip: Array  # (H / 8, W / 8, 14) shares of shape | background, colour, background colour


def render(scene: Scene, scale: int = 1, side: int = SIDE) -> Maps:
    """All maps of a scene; scale 1 gives 64 x 64 pixels, scale 2 128 x 128. side: at scale 1, in pixels."""
    side *= scale
    floor = render_floor(scene.background)
    maps: dict[str, Any] = {f.name: _tiled(getattr(floor, f.name), side) for f in fields(Maps)}
    for thing in scene.things:
        block = render_block(thing.shape, thing.colour, thing.size, scene.background, scale)
        row, column, count = (v * scale for v in thing.block)
        for name, canvas in maps.items():
            step = 1 if name == "clip" else PATCH
            area = (slice(row * step, (row + count) * step), slice(column * step, (column + count) * step))
            canvas[area] = getattr(block, name)
    return Maps(**maps)


@cache
def render_floor(background: str) -> Maps:
    """One patch of bare background."""
    clip = np.zeros((1, 1, 14), np.float32)
    clip[..., 3] = clip[..., 10 + _BACKGROUND_NAMES.index(background)] = 1
    flat = np.zeros((PATCH, PATCH), np.float32)
    return Maps(
        rgb=np.broadcast_to(np.array(BACKGROUNDS[background], np.uint8), (PATCH, PATCH, 3)).copy(),
        depth=flat + _FLOOR,
        normal=np.stack([flat, flat, flat + 1], -1),
        semseg=np.zeros((PATCH, PATCH), np.uint8),
        edge=flat,
        clip=clip,
    )


@cache
def render_block(shape: str, colour: str, size: str, background: str, scale: int) -> Maps:
    """The square block that an object fills, its background included."""
    half = SIZES[size] * scale
    axis = np.arange(-half, half, dtype=np.float32) + 0.5
    x, y = np.meshgrid(axis, axis)
    radius = half - MARGIN * scale
    distance, height, normal, crease = _FORMS[shape](x, y, radius)
    cover = np.clip(0.5 - distance / (2 * _BLUR), 0, 1)
    inside = distance < 0
    light = 0.5 + 0.5 * np.clip(normal @ _LIGHT, 0, 1)
    paint = np.array(COLOURS[colour], np.float32) * light[..., None]
    rgb = cover[..., None] * paint + (1 - cover[..., None]) * np.array(BACKGROUNDS[background], np.float32)
    line = np.minimum(np.abs(distance), crease)
    flat = np.array([0, 0, 1], np.float32)
    return Maps(
        rgb=np.rint(rgb).astype(np.uint8),
        depth=np.where(inside, _FLOOR - height / (SIZES["large"] * scale), _FLOOR).astype(np.float32),
        normal=np.where(inside[..., None], normal, flat).astype(np.float32),
        semseg=np.where(inside, 1 + SHAPES.index(shape), 0).astype(np.uint8),
        edge=np.clip(1.25 - line / scale, 0, 1).astype(np.float32),
        clip=_shares(cover, shape, colour, background),
    )


def _shares(cover: Array, shape: str, colour: str, background: str) -> Array:
    """(H, W) cover -> (H / 8, W / 8, 14) mean one-hot labels of each patch."""
    rows, columns = cover.shape[0] // PATCH, cover.shape[1] // PATCH
    share = cover.reshape(rows, PATCH, columns, PATCH).mean((1, 3)).round(2)
    clip = np.zeros((rows, columns, 14), np.float32)
    clip[..., SHAPES.index(shape)] = clip[..., 4 + _COLOUR_NAMES.index(colour)] = share
    clip[..., 3] = clip[..., 10 + _BACKGROUND_NAMES.index(background)] = 1 - share
    return clip.round(2)


def _circle(x: Array, y: Array, radius: float) -> tuple[Array, Array, Array, Array]:
    """A half ball: signed distance, height (pixels), normals, distance to the nearest crease."""
    reach = np.hypot(x, y)
    height = np.sqrt(np.clip(radius**2 - reach**2, 0, None))
    normal = np.stack([x, y, height], -1) / np.maximum(np.hypot(reach, height), 1e-6)[..., None]
    return reach - radius, 0.6 * height, normal, np.full_like(x, np.inf)


def _square(x: Array, y: Array, radius: float) -> tuple[Array, Array, Array, Array]:
    """A plateau with a bevelled frame of a quarter of its radius."""
    distance = np.maximum(np.abs(x), np.abs(y)) - radius
    frame = radius / 4
    sideways = np.abs(x) >= np.abs(y)
    slope = np.stack([np.sign(x) * sideways * 0.7, np.sign(y) * ~sideways * 0.7, np.full_like(x, 0.714)], -1)
    top = -distance > frame
    normal = np.where(top[..., None], np.array([0, 0, 1], np.float32), slope)
    return distance, np.clip(-distance, 0, frame), normal, np.abs(distance + frame)


def _triangle(x: Array, y: Array, radius: float) -> tuple[Array, Array, Array, Array]:
    """A low pyramid on an upright isosceles triangle that fills the block."""
    norm = float(np.hypot(2.0, 1.0))
    planes = np.stack([y - radius, (2 * x - y - radius) / norm, (-2 * x - y - radius) / norm])
    outward = np.array([[0, 1], [2 / norm, -1 / norm], [-2 / norm, -1 / norm]], np.float32)
    nearest = planes.argmax(0)
    distance = planes.max(0)
    normal = np.concatenate([0.7 * outward[nearest], np.full((*x.shape, 1), 0.714)], -1)
    ordered = np.sort(planes, axis=0)
    return distance, 0.8 * np.clip(-distance, 0, None), normal, ordered[2] - ordered[1]


def _tiled(patch: NDArray[np.generic], side: int) -> NDArray[np.generic]:
    repeats = side // PATCH
    return np.tile(patch, (repeats, repeats) + (1,) * (patch.ndim - 2))


_FORMS = {"circle": _circle, "square": _square, "triangle": _triangle}
