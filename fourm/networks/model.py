"""The 4M transformer: embeddings for each kind of modality, encoder, decoder, heads.

Mizrahi et al. 2023 (arXiv:2312.06647), Bachmann et al. 2024 (arXiv:2406.09406). Parameters are named as in
the released checkpoints. It maps tensors to logits and knows nothing of schedules, files or sampling.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm.errors import CheckpointError
from fourm.modalities.registry import SEQUENCE_ROWS, Kind, Modality, Registry
from fourm.modalities.typed import Limits, to_type
from fourm.networks.layers import BlockConfig, DecoderBlock, EncoderBlock, sincos_1d, sincos_2d, token_table
from fourm.networks.state import Batch, Context, DecoderCache, KVCache, Packing, Slot

PACKED_BELOW = 0.9  # share of visible tokens below which it is faster to leave the padding out


@dataclass(frozen=True, slots=True)
class FourMConfig:
    """Architecture of one model; all fields except the modalities are keys of its config.json.

    The limits are far above any real model: a damaged config must not fill the memory or build for hours.
    """

    norm_bias: bool
    act_layer: Literal["SiLU", "GELU", "ReLU"]
    dim: Annotated[int, Limits(4, 1 << 16)] = 768  # a multiple of 4 and of num_heads
    encoder_depth: Annotated[int, Limits(0, 256)] = 12
    decoder_depth: Annotated[int, Limits(0, 256)] = 12
    num_heads: Annotated[int, Limits(1, 1 << 12)] = 12
    mlp_ratio: Annotated[float, Limits(0.01, 64)] = 4.0
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    gated_mlp: bool = False
    qk_norm: bool = False
    num_register_tokens: Annotated[int, Limits(0, 1 << 12)] = 0
    share_modality_embeddings: bool = True
    modalities_in: tuple[Modality, ...] = ()  # domains_in
    modalities_out: tuple[Modality, ...] = ()  # domains_out that are decoded as tokens

    def __post_init__(self) -> None:
        if self.dim % 4 or self.dim % self.num_heads:
            rule = f"is not divisible by 4 and by num_heads {self.num_heads}"
            raise CheckpointError(f"config: dim {self.dim} {rule}")

    @staticmethod
    def from_dict(config: Mapping[str, object], registry: Registry) -> "FourMConfig":
        """Read a config.json; other keys are ignored. CheckpointError: a key is missing or a value wrong."""
        own = {key: value for key, value in config.items() if not key.startswith("modalities_")}
        fitted: FourMConfig = to_type(FourMConfig, own, "config", strict=False, error=CheckpointError)
        reads, writes = (
            to_type(tuple[str, ...], config.get(key), f"config.{key}", error=CheckpointError)
            for key in ("domains_in", "domains_out")
        )
        targets = tuple(row for row in map(registry.get, writes) if row.takes_ids)
        return replace(fitted, modalities_in=tuple(map(registry.get, reads)), modalities_out=targets)

    @property
    def blocks(self) -> BlockConfig:
        """Settings of every block; a gated MLP has 2/3 of the width, so its parameter count is the same."""
        hidden = int(self.dim * self.mlp_ratio)
        if self.gated_mlp:
            hidden = int(2 * hidden / 3)
        biases = (self.qkv_bias, self.proj_bias, self.mlp_bias, self.norm_bias)
        act: type[nn.Module] = getattr(nn, self.act_layer)
        return BlockConfig(self.dim, self.num_heads, hidden, *biases, self.qk_norm, self.gated_mlp, act)


class Embedding(nn.Module):
    """Embeds a modality for the encoder: its values (content), and their positions and modality (address)."""

    def __init__(self, modality: Modality, config: FourMConfig) -> None:
        super().__init__()
        self.modality = modality
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_emb = _positions(modality, config)
        if modality.kind is Kind.PIXELS:
            self.proj = nn.Linear(3 * modality.patch_size**2, config.dim, bias=False)
        elif modality.kind is Kind.EMBEDDING:
            self.emb_proj = nn.Linear(modality.embedding_width, config.dim)
        else:
            self.token_emb = token_table(modality.vocab_size, config.dim)

    def forward(self, slot: Slot) -> tuple[Tensor, Tensor]:
        """Content (B, L, D), address (B or 1, L, D) of known and unknown places. ValueError: a wrong size."""
        kind = self.modality.kind
        if kind is Kind.PIXELS:
            patch = self.modality.patch_size
            rows, columns = self.modality.grid or (0, 0)
            shape, expected = tuple(slot.values.shape[1:]), (3, rows * patch, columns * patch)
            if shape != expected:
                raise ValueError(f"{self.modality.name}: image {shape}, expected {expected}")
            pixels = slot.values.to(self.proj.weight.dtype)
            patches = rearrange(pixels, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
            return self.proj(patches), self.pos_emb + self.mod_emb
        if kind is Kind.GRID:
            count, room = slot.values.shape[1], self.pos_emb.shape[1]
            if count != room:
                raise ValueError(f"{self.modality.name}: {count} tokens, the model has {room} positions")
            return self.token_emb(slot.values), self.pos_emb + self.mod_emb
        if kind is Kind.SEQUENCE:
            content = self.token_emb(slot.values)
        else:
            content = self.emb_proj(slot.values.to(self.emb_proj.weight.dtype))
        # Only known tokens are counted, so unknown ones do not shift the positions of those behind them.
        order = (slot.known.long().cumsum(dim=1) - 1).clamp_min(0)
        return content, F.embedding(order, self.pos_emb[0]) + self.mod_emb


class Head(nn.Module):
    """Embeds the positions of a target for the decoder (address), and maps its output to logits."""

    def __init__(self, modality: Modality, config: FourMConfig) -> None:
        super().__init__()
        self.modality = modality
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_emb = _positions(modality, config)
        if modality.kind is Kind.SEQUENCE:
            self.token_emb = token_table(modality.vocab_size, config.dim)
        self.to_logits = nn.Linear(config.dim, modality.vocab_size, bias=False)

    def address(self, positions: Tensor) -> Tensor:
        """Addresses (B, K, D) of positions (B, K); of a sequence, max_positions and above are read as 0."""
        if self.modality.kind is Kind.SEQUENCE:
            positions = positions.masked_fill(positions >= self.modality.max_positions, 0)  # as in training
        return F.embedding(positions, self.pos_emb[0]) + self.mod_emb


class FourM(nn.Module):
    """The encoder-decoder: maps the known tokens of a batch to logits at positions of a target."""

    def __init__(self, config: FourMConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_embeddings = nn.ModuleDict({m.name: Embedding(m, config) for m in config.modalities_in})
        self.decoder_embeddings = nn.ModuleDict({m.name: Head(m, config) for m in config.modalities_out})
        for name in self.shared_names():
            self.decoder_embeddings[name].mod_emb = self.encoder_embeddings[name].mod_emb
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, config.dim))
        blocks = config.blocks
        self.encoder = nn.ModuleList(EncoderBlock(blocks) for _ in range(config.encoder_depth))
        self.encoder_norm = blocks.norm()
        self.decoder_proj_context = nn.Linear(config.dim, config.dim)
        self.decoder = nn.ModuleList(DecoderBlock(blocks) for _ in range(config.decoder_depth))
        self.decoder_norm = blocks.norm()

    def shared_names(self) -> list[str]:
        """Modalities whose `mod_emb` is one parameter of both the encoder and the decoder."""
        if not self.config.share_modality_embeddings:
            return []
        return [name for name in self.decoder_embeddings if name in self.encoder_embeddings]

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Content and address (B, N, D), known (B, N) bool: registers, then all modalities it reads."""
        count = self.config.num_register_tokens
        no_address = self.mask_token.new_zeros(len(batch.keys), count, self.config.dim)
        contents = [self.register_tokens.expand_as(no_address) if count else no_address]
        addresses, known = [no_address], [torch.ones_like(no_address[..., 0], dtype=torch.bool)]
        for name, slot in batch.slots.items():
            if name in self.encoder_embeddings:
                content, address = self.encoder_embeddings[name](slot)
                contents.append(content)
                addresses.append(address.expand_as(content))
                known.append(slot.known)
        return torch.cat(contents, dim=1), torch.cat(addresses, dim=1), torch.cat(known, dim=1)

    def encode(self, batch: Batch, budget: int | None = None, total: int | None = None) -> Context:
        """Run the encoder over all known tokens of the batch.

        Known tokens are moved to the front, in order. `budget` is the number of tokens kept for each row, by
        default the largest count of a row: shorter rows are padded, longer ones are cut. `total` is the
        number of tokens kept in all rows. Neither counts registers. A default waits for the device.
        """
        content, address, known = self.embed(batch)
        registers = self.config.num_register_tokens
        if budget is None:
            budget = int(known.sum(dim=1).max()) - registers if known.shape[1] else 0
        length = registers + budget
        order = (~known).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]  # known first, in order
        padding = length - order.shape[1]
        visible = F.pad(known.gather(1, order), (0, padding))
        total = int(visible.sum()) if total is None else total + registers * len(batch.keys)
        places, hidden = order.unsqueeze(-1), ~visible.unsqueeze(-1)
        content, address = (
            F.pad(part.take_along_dim(places, 1), (0, 0, 0, padding)).masked_fill(hidden, 0)
            for part in (content, address)
        )
        packing = Packing.of(visible, total) if 0 < total < PACKED_BELOW * visible.numel() else None
        mask = visible[:, None, None, :]
        x = packing.pack(content + address) if packing else content + address
        for block in self.encoder:
            x = block(x, mask, packing)
        x = self.decoder_proj_context(self.encoder_norm(x))
        x = packing.unpack(x) if packing else x
        return Context(x + address, visible, packing)

    def start_cache(self, context: Context, max_tokens: int, copies: int = 1) -> DecoderCache:
        """The keys and values of a context, each row `copies` times, and room for max_tokens of each copy."""
        crosses = self._read_context(context)
        if copies > 1:
            crosses = ((k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0)) for k, v in crosses)
        return tuple(KVCache(cross, max_tokens) for cross in crosses)

    def room_for(self, sequence: str) -> int | None:
        """How many tokens of a sequence the encoder reads at most; None if it does not read this modality."""
        if sequence not in self.encoder_embeddings:
            return None
        return cast("Embedding", self.encoder_embeddings[sequence]).pos_emb.shape[1]

    def decode(
        self, target: str, positions: Tensor, ids: Tensor | None, context: Context,
        cache: DecoderCache | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits (B, K, V) of one target at positions (B, K).

        Image tokens are decoded together and attend to each other; `ids` is None. A sequence is decoded
        causally: `ids` (B, K) int64 are its tokens at `positions`, counted from 0, and the logits are those
        of the tokens that follow them. With a cache, only tokens that are not in it yet are passed.
        """
        head = cast("Head", self.decoder_embeddings[target])
        content = self.mask_token if ids is None else head.token_emb(ids)
        y = content + head.address(positions)
        visible = context.visible[:, None, None, :]
        causal = ids is not None and cache is None
        crosses = [past.cross for past in cache] if cache else self._read_context(context)
        for i, (block, cross) in enumerate(zip(self.decoder, crosses, strict=True)):
            y = block(y, cross, visible, None, causal, cache[i] if cache else None)
        return head.to_logits(self.decoder_norm(y))

    def _read_context(self, context: Context) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of the context, one decoder block after the other."""
        tokens = context.packing.pack(context.tokens) if context.packing else context.tokens
        for block in self.decoder:
            yield cast("DecoderBlock", block).read_context(tokens, context.packing)


def _positions(modality: Modality, config: FourMConfig) -> nn.Parameter | nn.Buffer:
    """A table (1, L, D) of positions; whether learned or fixed, it is in the checkpoint."""
    is_sequence = modality.kind in (Kind.SEQUENCE, Kind.EMBEDDING)
    grid = modality.grid or (0, 0)
    table = sincos_1d(SEQUENCE_ROWS, config.dim) if is_sequence else sincos_2d(*grid, config.dim)
    return nn.Parameter(table) if modality.positions == "learned" else nn.Buffer(table)
