"""Parts of a value that are codes of a tokenizer (the masks of instances, the poses of people), decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fourm.errors import SampleError, UsageError
from fourm.modalities.registry import Modality
from fourm.modalities.text import NUM_CODES
from fourm.networks.tokenizers import AnyTokenizer
from fourm.networks.tokenizers.vq import VQTokenizer

Decode = Callable[[Sequence[tuple[int, ...]]], NDArray[np.float32]]  # codes (n, k) -> (n, C, H, W)
_AT_ONCE = 512  # parts that are decoded together; a text holds far fewer


@dataclass(frozen=True, slots=True)
class CodedParts:
    """What the codes of a part are, and the drawing of a value whose parts can be decoded."""

    codes: tuple[int, ...]  # shape of one part's codes: (h, w), or (codebooks, h, w)
    channels: int  # of what the tokenizer makes of them
    draw: Callable[[Any, Decode], Image.Image]


def decoder_of(row: Modality, parts: CodedParts, tokenizer: AnyTokenizer) -> Decode:
    """What decodes the codes of parts; a tokenizer of something else is refused."""
    config, shape = tokenizer.config, parts.codes
    books = shape[0] if len(shape) == 3 else 1
    wanted = (books, len(shape) + 1, parts.channels)
    if (
        not isinstance(tokenizer, VQTokenizer)
        or (config.num_codebooks, config.token_rank, config.out_channels) != wanted
        or config.codebook_size < NUM_CODES
    ):
        raise UsageError(
            f"{row.name}: the tokenizer '{row.tokenizer}' does not fit; it needs {books} x {NUM_CODES} codes "
            f"and {parts.channels} channels of output"
        )
    network = tokenizer

    @torch.no_grad()
    def decode(codes: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
        device = next(network.parameters()).device
        ids = torch.tensor(codes, dtype=torch.int64, device=device).view(-1, *shape)  # (n, ...)
        groups = [ids[first : first + _AT_ONCE] for first in range(0, len(ids), _AT_ONCE)]
        decoded = torch.cat([network.decode_tokens(group).cpu() for group in groups])
        if not bool(decoded.isfinite().all()):
            raise SampleError(
                f"{row.name}: its tokenizer's results are not finite numbers; the weights are damaged"
            )
        return decoded.numpy()

    return decode
