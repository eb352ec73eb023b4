"""Pictures of a target that is still being decoded: known tokens in colours, the rest grey."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image

from fourm.codecs import Codec
from fourm.layout import Key, Place, path_of, write_atomic
from fourm.modalities import Kind, Modality
from fourm.state import Batch

PREVIEWS = Place("preview", ".png")
GREY = (128, 128, 128)


def write_preview(
    out: Path, key: Key, variation: int | None, row: Modality, codec: Codec[Any], step: int, batch: Batch
) -> None:
    """`out/preview/MODALITY/...-stepNNN.png`: what a batch of one sample knows of a grid."""
    if row.kind is not Kind.GRID or row.grid is None:
        return
    slot = batch.slots[row.name]
    picture = codec.picture(codec.decode(slot)[0]).convert("RGB")
    known = rearrange(slot.known[0].to(torch.uint8) * 255, "(h w) -> h w", h=row.grid[0]).cpu().numpy()
    mask = Image.fromarray(known).resize(picture.size, Image.Resampling.NEAREST)
    shown = Image.composite(picture, Image.new("RGB", picture.size, GREY), mask)
    folder, suffix = f"{PREVIEWS.folder}/{row.name}", f"-step{step:03d}{PREVIEWS.suffix}"
    path = path_of(out, folder, key, suffix, variation)
    write_atomic(out, path, partial(shown.save, format="PNG"))
