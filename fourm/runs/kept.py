"""Reads what is kept of a sample's targets: a picture, tokens or a text, of which a part is given."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fourm.codecs.files import read_ids, read_text
from fourm.codecs.images import GridCodec
from fourm.codecs.keeping import (
    Mask,
    Part,
    box_mask,
    check_keep_mask,
    framed_mask,
    hide_pixels,
    keep_pixels,
    read_keep_mask,
    tokens_of_mask,
    tokens_of_share,
)
from fourm.codecs.table import Codec
from fourm.codecs.texts import CaptionCodec, StructuredCodec
from fourm.data.layout import Crop
from fourm.decoding.sampling import Noise
from fourm.errors import SampleError, UsageError
from fourm.modalities.registry import Modality
from fourm.modalities.text import Structured
from fourm.networks.state import Slot, partly_given, typed_text
from fourm.schedule.chain import Chain
from fourm.schedule.keeps import Keep


@dataclass(frozen=True, slots=True)
class Kept:
    """The given part of one target of a sample."""

    slot: Slot  # one row
    value: Any  # as it was used: a map whose hidden pixels tell nothing, (L,) tokens, or a text
    mask: Mask | None = None  # True for what stays, at the size of the value or of the model's picture


def keep_grid(
    keep: Keep, codec: GridCodec, files: Mapping[str, Path], crop: Crop | None,
    uniforms: NDArray[np.float32], turn: int = 1,
) -> Kept:  # fmt: skip
    """The kept part of a grid. uniforms: (L,) in [0, 1), by which a share of the tokens is drawn.

    turn: how the picture is turned first (see `read_turn`); crop, mask and box are of the turned picture.
    SampleError: a file is missing or damaged, or the mask keeps everything or nothing.
    """
    row, path, mask_path = codec.row, files[keep.target], files.get(keep.mask)
    tokens = None if keep.share is None else tokens_of_share(keep.share, uniforms)
    if not keep.raw:
        ids = read_ids(path, row.max_tokens, row.vocab_size)
        part = _keep_in_frame(ids, keep, mask_path, tokens, row)
        if tokens is None:
            _check_part(part, row, str(mask_path or keep.to_text()))
        ids = np.where(part.tokens, ids, 0)
        return Kept(_given(torch.from_numpy(ids)[None], part.tokens), ids, part.mask)
    value = codec.read(path, turn=turn)
    if codec.form.resample is None or crop is None:
        part = _keep_in_frame(value, keep, mask_path, tokens, row)
        if row.grid == value.shape[1:]:
            part = replace(part, value=hide_pixels(value, part.tokens.reshape(row.grid), codec.form))
    else:
        whole = value.shape[0], value.shape[1]
        mask = None if tokens is not None else _mask_of(keep, mask_path, whole)
        part = keep_pixels(codec, value, crop, mask, tokens, path)
    if tokens is None:
        _check_part(part, row, str(mask_path or keep.to_text()))
    try:
        return Kept(_given(codec.encode([part.value]).values, part.tokens), part.value, part.mask)
    except SampleError as error:
        raise SampleError(f"{path}: {error}") from error


def keep_text(keep: Keep, codec: Codec, chain: Chain, value: Any) -> Kept:
    """A text in which sentinels mark what is to be filled; without any, nothing is."""
    assert isinstance(codec, CaptionCodec | StructuredCodec)
    full = codec.encode([value])
    slot = typed_text(full.values, chain.num_tokens[keep.target], known=full.known)
    ids = full.values[full.known].tolist()
    if not any(token in codec.wordpiece.sentinels for token in ids):
        slot = replace(slot, wanted=torch.zeros_like(slot.wanted))
    if isinstance(codec, StructuredCodec):
        value = value.text or codec.grammar.to_text(value.value)
    return Kept(slot, value)


def read_marked(codec: Codec, path: Path) -> Structured[Any] | None:
    """A text as the model writes it, of a .txt file; None for a file of another form."""
    if isinstance(codec, StructuredCodec) and path.suffix.lower() == ".txt":
        return codec.marked(read_text(path).strip())
    return None


def share_uniforms(keep: Keep, seed: int, result: tuple[str, int], count: int) -> NDArray[np.float32]:
    """(count,) numbers in [0, 1) of a sample's key and variation, by which a share of tokens is drawn."""
    noise = Noise.for_samples(seed, [result], f"keep {keep.target}")
    return noise.uniforms(0, 0, torch.arange(count)[None])[0].numpy()


def check_mask_files(chain: Chain) -> None:
    """UsageError for a mask of all samples that cannot be read, or keeps everything or nothing."""
    for file in dict.fromkeys(keep.file for keep in chain.keeps if keep.file):
        try:
            read_keep_mask(Path(file))
        except SampleError as error:
            raise UsageError(str(error)) from error


def _given(ids: torch.Tensor, tokens: Mask) -> Slot:
    return partly_given(ids, torch.from_numpy(tokens)[None])


def _mask_of(keep: Keep, path: Path | None, whole: tuple[int, int] | None) -> Mask:
    """The mask of a whole picture, (H, W)."""
    if path is not None:
        return read_keep_mask(path, whole)
    assert keep.box is not None
    assert whole is not None
    mask = box_mask(keep.box, whole)
    check_keep_mask(mask, whole, keep.to_text())
    return mask


def _keep_in_frame(value: Any, keep: Keep, path: Path | None, tokens: Mask | None, row: Modality) -> Part:
    """What stays of tokens or features: a mask refers to their frame, as there is no picture."""
    grid = row.grid or (1, row.max_tokens)
    if tokens is not None:
        return Part(value, tokens.reshape(grid), tokens)
    side = row.image_size or max(grid)
    mask = framed_mask(_mask_of(keep, path, (side, side) if path is None else None), side)
    return Part(value, mask, tokens_of_mask(mask, grid))


def _check_part(part: Part, row: Modality, where: str) -> None:
    """SampleError for a mask that keeps everything or nothing of what the model sees."""
    check_keep_mask(part.mask, None, f"{where}, in the square that the model sees")
    if not part.tokens.any():
        size = f"{row.patch_size} x {row.patch_size} pixels" if row.patch_size else "a token"
        raise SampleError(f"{where}: keeps no whole patch of {size} of {row.name}, so no token of it")
