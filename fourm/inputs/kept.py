"""Reads what is kept of a sample's targets: a picture, tokens or a text, of which a part is given."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fourm.codecs.files import file_ending, read_ids, read_text
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
from fourm.codecs.taking import take_ids, take_map, take_mask
from fourm.codecs.texts import CaptionCodec, StructuredCodec
from fourm.data.layout import Crop
from fourm.decoding.sampling import Noise
from fourm.errors import SampleError, UsageError
from fourm.modalities.registry import TOKENS, Modality
from fourm.modalities.text import Structured
from fourm.networks.state import Slot, partly_given, typed_text
from fourm.schedule.chain import Chain
from fourm.schedule.keeps import Keep


@dataclass(frozen=True, slots=True)
class Kept:
    """The given part of one target of a sample."""

    slot: Slot  # (1, L), True in `known` for what stays
    # As it was used: ids (L,), a text, or a map (H, W[, C]) in which the pixels to be made are hidden.
    value: Any
    mask: Mask | None = None  # True for what stays, at the size of the value or of the model's picture
    whole: tuple[Any, Mask] | None = None  # value and mask of the whole picture, where there is one


@dataclass(frozen=True, slots=True)
class KeptSource:
    """What a sample brings for a target of which a part is kept; `where` and `mask_where` are for errors."""

    value: Any  # the whole of a map, upright, or (L,) tokens
    where: str
    mask: Mask | None = None  # (H, W), True for what stays: of the upright picture, or of the frame of tokens
    mask_where: str = ""


def read_source(keep: Keep, codec: GridCodec, sources: Mapping[str, Any], turn: int = 1) -> KeptSource:
    """Read what is given of a target, and its mask. SampleError: one of them cannot be read.

    sources: files, or values in memory, by name; those of the target and of `Keep.mask` are read. turn: how
    pictures of files are turned first (see `read_turn`).
    """
    row, given, mask_given = codec.row, sources[keep.target], sources.get(keep.mask)
    where = str(given) if isinstance(given, Path) else row.key.removeprefix(TOKENS)
    mask_where = str(mask_given) if isinstance(mask_given, Path) else f"`keep` {keep.to_text()}"
    if isinstance(given, Path):
        value = codec.read(given, turn=turn) if keep.raw else read_ids(given, row.max_tokens, row.vocab_size)
    else:
        value = take_map(codec, given, where) if keep.raw else take_ids(row, given, where)
    if mask_given is None or keep.share is not None:
        return KeptSource(value, where, None, mask_where)
    is_file = isinstance(mask_given, Path)
    mask = read_keep_mask(mask_given) if is_file else take_mask(mask_given, mask_where)
    return KeptSource(value, where, mask, mask_where)


def keep_grid(
    keep: Keep, codec: GridCodec, source: KeptSource, crop: Crop | None, uniforms: NDArray[np.float32]
) -> Kept:
    """The kept part of a grid. uniforms: (L,) in [0, 1), by which a share of the tokens is drawn.

    Crop, mask and box refer to the upright picture. SampleError: the mask keeps everything or nothing, or has
    another size than the picture.
    """
    tokens = None if keep.share is None else tokens_of_share(keep.share, uniforms)
    value, row = source.value, codec.row
    if keep.raw and codec.form.resample is not None and crop is not None:
        mask = None if tokens is not None else _mask_of(keep, source, (value.shape[0], value.shape[1]))
        part = keep_pixels(codec, value, crop, mask, tokens, Path(source.where))
    else:
        part = _keep_in_frame(keep, row, source, tokens)
    if tokens is None:
        where = f"{source.mask_where}, in the square that the model sees"
        check_keep_mask(part.mask, None, where, keep.box is not None)
        if not part.tokens.any():
            size = f"{row.patch_size} x {row.patch_size} pixels" if row.patch_size else "a token"
            raise SampleError(f"{source.mask_where}: keeps no whole patch of {size} of {row.name}")
    if not keep.raw:
        ids = np.where(part.tokens, value, 0)
        return Kept(_given(torch.from_numpy(ids)[None], part.tokens), ids, part.mask)
    if codec.form.resample is None and row.grid == value.shape[1:]:
        part = replace(part, value=hide_pixels(value, part.tokens.reshape(row.grid), codec.form))
    try:
        slot = _given(codec.encode([part.value]).values, part.tokens)
        return Kept(slot, part.value, part.mask, part.whole)
    except SampleError as error:
        raise SampleError(f"{source.where}: {error}") from error


def keep_text(keep: Keep, codec: Codec, chain: Chain, value: Any) -> Kept:
    """A text whose sentinels mark what is to be filled; of a text without any, all is kept."""
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
    if isinstance(codec, StructuredCodec) and file_ending(path) == ".txt":
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
            check_keep_mask(read_keep_mask(Path(file)), None, file)
        except SampleError as error:
            raise UsageError(str(error)) from error


def _given(ids: torch.Tensor, tokens: Mask) -> Slot:
    return partly_given(ids, torch.from_numpy(tokens)[None])


def _mask_of(keep: Keep, source: KeptSource, whole: tuple[int, int]) -> Mask:
    """The mask of a whole picture, (H, W), that has pixels to keep and others."""
    mask = source.mask
    if mask is None:
        assert keep.box is not None
        mask = box_mask(keep.box, whole)
    check_keep_mask(mask, whole, source.mask_where, source.mask is None)
    return mask


def _keep_in_frame(keep: Keep, row: Modality, source: KeptSource, tokens: Mask | None) -> Part:
    """What stays of tokens or features: a mask refers to their frame, as there is no picture."""
    grid = row.grid or (1, row.max_tokens)
    if tokens is not None:
        return Part(source.value, tokens.reshape(grid), tokens)
    side = row.image_size or max(grid)
    whole = (side, side) if source.mask is None else (source.mask.shape[0], source.mask.shape[1])
    mask = framed_mask(_mask_of(keep, source, whole), side)
    return Part(source.value, mask, tokens_of_mask(mask, grid))
