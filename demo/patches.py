"""All patches that the demo world can show, and every scene as indices into these tables."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from demo.render import Maps, render_block, render_floor
from demo.world import BACKGROUNDS, COLOURS, PATCH, SHAPES, SIDE, SIZES, Scene

FIELDS = ("rgb", "clip", "depth", "normal", "semseg", "edge")  # maps that have tokens

Ids = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class PatchTable:
    """The distinct patches of one map at one scale; a patch's row is its token."""

    rows: NDArray[np.generic]  # (K, C, 8, 8), or (K, C, 1, 1) for the feature map, or (K, 8, 8) labels
    blocks: dict[tuple[str, ...], Ids]  # (shape, colour, size, background) or (background,) -> (h, w) tokens


@cache
def patch_table(field: str, scale: int) -> PatchTable:
    """The table of one map, rendered from every kind of object on every background."""
    known: dict[bytes, int] = {}
    rows: list[NDArray[np.generic]] = []
    blocks = {}
    for key, maps in _all_blocks(scale):
        tiles = _tiles(network_input(field, maps))
        ids = np.empty(tiles.shape[:2], np.int16)
        for place in np.ndindex(*ids.shape):
            tile = np.ascontiguousarray(tiles[place])
            ids[place] = known.setdefault(tile.tobytes(), len(rows))
            if ids[place] == len(rows):
                rows.append(tile)
        blocks[key] = ids
    return PatchTable(np.stack(rows), blocks)


def tokens_of(scene: Scene, field: str, scale: int = 1) -> Ids:
    """(h, w) tokens of a scene: equal to a look-up of each rendered patch, without rendering."""
    table = patch_table(field, scale)
    side = SIDE * scale // PATCH
    ids = np.full((side, side), table.blocks[(scene.background,)][0, 0], np.int16)
    for thing in scene.things:
        row, column, count = (v * scale for v in thing.block)
        block = table.blocks[(thing.shape, thing.colour, thing.size, scene.background)]
        ids[row : row + count, column : column + count] = block
    return ids


def network_input(field: str, maps: Maps) -> NDArray[np.generic]:
    """A map as the tokenizers read it: (C, H, W) float32, or (H, W) int64 labels.

    rgb, normals and edges lie in [-1, 1] as 8-bit pictures do; depth is 2 d - 1; features are as they are.
    """
    if field == "rgb":
        return _signed(maps.rgb)
    if field == "normal":
        return _signed(np.rint((maps.normal + 1) * 127.5).astype(np.uint8))
    if field == "edge":
        return _signed(np.rint(maps.edge[..., None] * 255).astype(np.uint8))
    if field == "depth":
        return (2 * maps.depth.round(3) - 1)[None]
    return maps.clip.transpose(2, 0, 1) if field == "clip" else maps.semseg.astype(np.int64)


def _signed(picture: NDArray[np.uint8]) -> NDArray[np.floating]:
    return ((picture.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)


def _tiles(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """(C, H, W) -> (h, w, C, P, P); (H, W) -> (h, w, P, P). Small inputs (features) have P = 1."""
    patch = 1 if values.ndim == 3 and values.shape[0] == 14 else PATCH
    h, w = values.shape[-2] // patch, values.shape[-1] // patch
    if values.ndim == 2:
        return values.reshape(h, patch, w, patch).transpose(0, 2, 1, 3)
    return values.reshape(-1, h, patch, w, patch).transpose(1, 3, 0, 2, 4)


def _all_blocks(scale: int) -> Iterator[tuple[tuple[str, ...], Maps]]:
    for background in BACKGROUNDS:
        yield (background,), render_floor(background)
        for shape in SHAPES:
            for colour in COLOURS:
                for size in SIZES:
                    key = (shape, colour, size, background)
                    yield key, render_block(*key, scale)
