"""Pictures of a target that is still being decoded: known tokens in colours, the rest grey."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from fourm.codecs.images import GridCodec
from fourm.data.layout import Place
from fourm.modalities.registry import Modality
from fourm.networks.state import Slot

GREY = (128, 128, 128)
ORDER = "-order.npy"  # the decoding step of each token, from 1, (L,) int16


def preview_places(target: str) -> tuple[Place, Place]:
    """Where the pictures of a target's steps lie, and which step decided which token."""
    folder = f"preview/{target}"
    pictures = Place(folder, ".png", modality=target, form="extra")
    return pictures, Place(folder, ORDER, modality=target, form="extra")


class Film:
    """How the targets of a batch came to be: which step decided which token, pictures still to be drawn."""

    def __init__(self) -> None:
        self._orders: dict[str, Tensor] = {}
        self._waiting: dict[str, list[tuple[Sequence[Path], Slot, list[Any]]]] = {}

    def note(self, target: str, known: Tensor, step: int) -> Tensor:
        """Take in what is known (B, L) after a step; (B, L) int16 numbers of steps, -1 for undecided ones."""
        order = self._orders.setdefault(target, torch.full_like(known, -1, dtype=torch.int16))
        order[known & (order < 0)] = step
        return order

    def keep(self, target: str, paths: Sequence[Path], slot: Slot, values: list[Any]) -> None:
        """Remember the values (B) of one step, whose pictures belong at these paths (B)."""
        self._waiting.setdefault(target, []).append((paths, slot, values))

    def draw(self, target: str, row: Modality, codec: GridCodec) -> Iterator[tuple[Path, Image.Image]]:
        """The pictures that wait, each with its path; colours of features mean the same in all of them."""
        frames = self._waiting.pop(target, [])
        for index in range(len(frames[0][0]) if frames else 0):
            pictures = codec.pictures([values[index] for _, _, values in frames])
            for (paths, slot, _), picture in zip(frames, pictures, strict=True):
                yield paths[index], _covered(picture.convert("RGB"), slot.known[index], row)


def _covered(picture: Image.Image, known: Tensor, row: Modality) -> Image.Image:
    """The picture with what is not known (L,) in grey."""
    rows = row.grid[0] if row.grid else 1
    cells = rearrange(known.to(torch.uint8) * 255, "(h w) -> h w", h=rows).cpu().numpy()
    mask = Image.fromarray(cells).resize(picture.size, Image.Resampling.NEAREST)
    return Image.composite(picture, Image.new("RGB", picture.size, GREY), mask)
