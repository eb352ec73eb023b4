"""Pictures of a target that is still being decoded: known tokens in colours, the rest grey."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image

from fourm.codecs import Codec
from fourm.codecs.images import Diffusion
from fourm.layout import Place, write_atomic
from fourm.modalities import Kind, Modality
from fourm.state import Slot

PREVIEWS = Place("preview", ".png")
GREY = (128, 128, 128)


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
