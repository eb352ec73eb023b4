"""What memory is counted from: numbers of a tokenizer by part, and the tensors of a released transformer."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Self, cast

from fourm.hub.header import (
    IN_FLOAT32,
    LABELS,
    LABELS_IN_FLOAT32,
    TRAINING_BUFFERS,
    TensorInfo,
    TokenizerPart,
)
from fourm.modalities.registry import SEQUENCE_ROWS, Kind, Modality, Registry

_NORM = ("weight", "bias")
_FINEST, _LAST = "decoder.input_blocks.0.0.weight", "decoder.out_proj.weight"
_UNET_BLOCK = re.compile(r"decoder\.output_blocks\..*\.0\.in_layers\.2\.weight")


class UNet(NamedTuple):
    """What the memory of a diffusion UNet depends on: channels at its finest level, where it is largest."""

    channels: int
    joined: int  # with those of a skip connection, at most
    blocks: int  # of the upward half
    kernel: int  # numbers in its largest kernel, at any level


@dataclass(frozen=True, slots=True)
class TokenizerSizes:
    """How many numbers a tokenizer has in each part, and what the memory of its decoder depends on."""

    encoder: int
    encoder_float32: int  # what leads to the codebook, which is float32 in every run
    codebook: int  # float32 too; both halves need it
    decoder: int
    unused: int = 0  # statistics of training, which are not loaded
    unet: UNet | None = None
    output: tuple[int, int] | None = None  # of a transformer's last layer: numbers per token, its width

    @classmethod
    def of(cls, tensors: Mapping[str, TensorInfo]) -> Self:
        """From the header of its file."""
        counts = {name: info.num_elements for name, info in tensors.items()}
        loaded = {name: n for name, n in counts.items() if not name.startswith(TRAINING_BUFFERS)}
        halves = {name: n for name, n in loaded.items() if name.startswith(TokenizerPart.DECODER.value)}
        names = LABELS_IN_FLOAT32 if LABELS in tensors else IN_FLOAT32
        exact = sum(n for name, n in halves.items() if name.startswith(names))
        decoder = sum(n for name, n in loaded.items() if name.startswith(TokenizerPart.ENCODER.value))
        encoder, total = sum(halves.values()), sum(loaded.values())
        first, last = (tensors[name].shape if name in tensors else () for name in (_FINEST, _LAST))
        unet = None
        if len(first) == 4:
            blocks = [info.shape for name, info in tensors.items() if _UNET_BLOCK.fullmatch(name)]
            finest = [shape[1] for shape in blocks if shape[0] == first[0]]
            kernel = max(map(math.prod, blocks), default=0)
            unet = UNet(first[0], max(finest, default=first[0]), len(finest), kernel)
        return cls(
            encoder - exact, exact, total - encoder - decoder, decoder, sum(counts.values()) - total,
            unet, (last[0], last[1]) if len(last) == 2 else None,
        )  # fmt: skip

    @property
    def total(self) -> int:
        """All numbers in the file."""
        return self.encoder + self.encoder_float32 + self.codebook + self.decoder + self.unused


def released_tensors(config: Mapping[str, object], registry: Registry) -> dict[str, TensorInfo]:
    """The tensors of a released transformer, float32, sorted by name as safetensors files are.

    They follow from its modalities, width and depth; all other settings are the same in all of them.
    """
    dim, hidden = cast(int, config["dim"]), 2 * 4 * cast(int, config["dim"]) // 3  # of gated MLPs
    square, vector = (dim, dim), (dim,)
    shapes = dict[str, tuple[int, ...]](mask_token=(1, 1, dim))
    shapes |= {"decoder_proj_context.weight": square, "decoder_proj_context.bias": vector}
    mlp = {"mlp.fc1": (hidden, dim), "mlp.fc2": (dim, hidden), "mlp.fc3": (hidden, dim)}
    own = {"attn.qkv": (3 * dim, dim), "attn.proj": square}
    cross = {"cross_attn.q": square, "cross_attn.kv": (2 * dim, dim), "cross_attn.proj": square}
    encoder, decoder = own | mlp, {f"self_{name}": shape for name, shape in own.items()} | cross | mlp
    for side, domains, matrices, norms in (
        ("encoder", "domains_in", encoder, ("norm1", "norm2")),
        ("decoder", "domains_out", decoder, ("norm1", "norm2", "query_norm", "context_norm")),
    ):
        block: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in matrices.items()}
        block |= {f"{norm}.{part}": vector for norm in norms for part in _NORM}
        for index in range(cast(int, config[f"{side}_depth"])):
            shapes |= {f"{side}.{index}.{name}": shape for name, shape in block.items()}
        shapes |= {f"{side}_norm.{part}": vector for part in _NORM}
        for name in cast("list[str]", config[domains]):
            of_row = _embedding(registry.get(name), dim)
            if side == "decoder":
                of_row["to_logits.weight"] = of_row["token_emb.weight"]
            shapes |= {f"{side}_embeddings.{name}.{part}": shape for part, shape in of_row.items()}
    ends = accumulate(4 * math.prod(shapes[name]) for name in sorted(shapes))
    return {
        name: TensorInfo("F32", shapes[name], (end - 4 * math.prod(shapes[name]), end))
        for name, end in zip(sorted(shapes), ends, strict=True)
    }


def _embedding(row: Modality, dim: int) -> dict[str, tuple[int, ...]]:
    """The tensors that embed a modality, by the end of their names."""
    is_grid = row.kind in (Kind.GRID, Kind.PIXELS)
    shapes = dict[str, tuple[int, ...]](mod_emb=(1, 1, dim))
    shapes["pos_emb"] = (1, row.max_tokens if is_grid else SEQUENCE_ROWS, dim)
    if row.takes_ids:
        shapes["token_emb.weight"] = (row.vocab_size, dim)
    elif is_grid:
        shapes["proj.weight"] = (dim, 3 * row.patch_size**2)
    else:
        shapes |= {"emb_proj.weight": (dim, row.embedding_width), "emb_proj.bias": (dim,)}
    return shapes
