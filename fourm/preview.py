"""Pictures of a target that is still being decoded: known tokens in colours, the rest grey."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from fourm.codecs import Codec
from fourm.codecs.images import Diffusion
from fourm.layout import Place, write_atomic
from fourm.modalities import Kind, Modality
from fourm.state import Slot

GREY = (128, 128, 128)
ORDER = "-order.npy"  # the decoding step of each token, (L,) int16


def preview_places(target: str) -> tuple[Place, Place]:
    """Where the pictures of a target's steps lie, and which step decided which token."""
    folder = f"preview/{target}"
    pictures = Place(folder, ".png", modality=target, form="extra")
    return pictures, Place(folder, ORDER, modality=target, form="extra")


class Orders:
    """Which step decided which token of a batch, target by target."""

    def __init__(self) -> None:
        self._orders: dict[str, Tensor] = {}

    def note(self, target: str, known: Tensor, step: int) -> Tensor:
        """Take in what is known (B, L) after a step; returns (B, L) int16, -1 where nothing is decided."""
        order = self._orders.setdefault(target, torch.full_like(known, -1, dtype=torch.int16))
        order[known & (order < 0)] = step
        return order


def write_previews(
    out: Path, paths: Sequence[Path], row: Modality, codec: Codec[Any], slot: Slot, diffusion: Diffusion
) -> None:
    """A picture for each row of a grid that is partly known, at its path."""
    if row.kind is not Kind.GRID or row.grid is None:
        return
    values = codec.decode(slot, diffusion)
    for path, value, known in zip(paths, values, slot.known, strict=True):
        picture = codec.picture(value).convert("RGB")
        cells = rearrange(known.to(torch.uint8) * 255, "(h w) -> h w", h=row.grid[0]).cpu().numpy()
        mask = Image.fromarray(cells).resize(picture.size, Image.Resampling.NEAREST)
        shown = Image.composite(picture, Image.new("RGB", picture.size, GREY), mask)
        write_atomic(out, path, partial(shown.save, format="PNG"))
