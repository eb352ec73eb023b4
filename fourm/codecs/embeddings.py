"""Sequences of outside vectors that condition a model: what a T5 encoder makes of a caption."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.drawing import text_card
from fourm.codecs.files import read_members, write_members
from fourm.codecs.images import Diffusion
from fourm.data.layout import Crop
from fourm.errors import SampleError
from fourm.modalities.registry import Modality
from fourm.networks.state import Slot, full_embedding

Vectors = NDArray[np.float32]  # (n, E), n >= 1, all of them meant


@dataclass(frozen=True, slots=True)
class EmbeddingCodec:
    """Vectors of one caption. A .npz file has `emb`, captions x length x width, and `mask_valid` for it."""

    row: Modality

    def read(self, path: Path, crop: Crop | None = None) -> Vectors:
        """The valid vectors of the caption that belongs to the crop; of the first one if there is none."""
        embeddings, valid = read_members(path, "emb", "mask_valid")
        if embeddings.ndim != 3 or embeddings.shape[0] == 0 or embeddings.shape[:2] != valid.shape:
            raise SampleError(
                f"{path}: 'emb' of shape {embeddings.shape} and 'mask_valid' of shape {valid.shape} are not "
                "captions x length x width and captions x length"
            )
        if embeddings.shape[2] != self.row.embedding_width:
            raise SampleError(
                f"{path}: vectors of {embeddings.shape[2]} numbers, where the modality has "
                f"{self.row.embedding_width}"
            )
        number = crop.number if crop is not None and crop.number < len(embeddings) else 0
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused as such
            vectors = embeddings[number][_mask(valid[number], path)].astype(np.float32)
        if len(vectors) == 0:
            raise SampleError(f"{path}: no vector of caption {number} is valid")
        if not np.isfinite(vectors).all():
            raise SampleError(f"{path}: holds numbers that are not finite")
        return vectors

    def write(self, value: Vectors, path: Path, text: Mapping[str, str] | None = None) -> None:
        """A .npz file of one caption; there is no room for `text` in it."""
        write_members(path, emb=value[None], mask_valid=np.ones((1, len(value)), dtype=np.int64))

    def encode(self, values: Sequence[Vectors]) -> Slot:
        """The first max_tokens vectors of each value, zeros behind fewer; all of a value's are known."""
        count, width = self.row.max_tokens, self.row.embedding_width
        vectors = torch.zeros(len(values), count, width)  # (B, L, E)
        valid = torch.zeros(len(values), count, dtype=torch.bool)  # (B, L)
        for i, value in enumerate(values):
            kept = torch.from_numpy(np.ascontiguousarray(value[:count]))
            vectors[i, : len(kept)] = kept
            valid[i, : len(kept)] = True
        return full_embedding(vectors, valid)

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[Vectors]:
        """The vectors that the model was shown."""
        rows = zip(slot.values.float().cpu(), slot.known.cpu(), strict=True)
        return [vectors[known].numpy() for vectors, known in rows]

    def picture(self, value: Vectors) -> Image.Image:
        """A card that says what there is: vectors are nothing to look at."""
        return text_card(f"{self.row.title} embedding: {len(value)} vectors of {value.shape[1]} numbers")


def _mask(valid: NDArray[Any], path: Path) -> NDArray[np.bool_]:
    if not np.isin(valid, (0, 1)).all():
        raise SampleError(f"{path}: 'mask_valid' must hold zeros and ones")
    return valid.astype(np.bool_)
