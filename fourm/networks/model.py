"""The 4M transformer: embeddings for each kind of modality, encoder, decoder, heads.

Mizrahi et al. 2023 (arXiv:2312.06647), Bachmann et al. 2024 (arXiv:2406.09406). Parameters are named as in
the released checkpoints. It maps tensors to logits and knows nothing of schedules, files or sampling.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm.errors import CheckpointError
from fourm.modalities.registry import SEQUENCE_ROWS, Kind, Modality, Registry
from fourm.modalities.typed import Limits, to_type
from fourm.networks.attention import KVCache, Mask, Packing, Rows, is_packed
from fourm.networks.layers import (
    BlockConfig,
    DecoderBlock,
    EncoderBlock,
    Past,
    SiLU,
    sincos_1d,
    sincos_2d,
    token_table,
)
from fourm.networks.linears import floats_of
from fourm.networks.state import Batch, Slot

DecoderCache = tuple[KVCache, ...]  # one for each block
# By modality: content (B, L, D), address (B or 1, L, D), known (B, L) bool.
Embedded = Mapping[str, tuple[Tensor, Tensor, Tensor]]
# Whether `torch.mm` takes the dtype of its result: from torch 2.8 on, for CUDA.
_HAS_WIDE_SUMS = torch.version.hip is None and hasattr(torch.ops.aten.mm, "dtype")


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What the decoder attends to."""

    tokens: Tensor  # (B, N, D)
    visible: Tensor  # (B, N) bool, False for padding
    mask: Mask | None  # of the same; None: there is no padding
    packing: Packing | None = None  # None: padding is computed too

    def repeated(self, copies: int) -> "Context":
        """A context for rows whose keys and values are repeated, which do not read its tokens again."""
        mask = None if self.mask is None else self.mask.repeated(copies)
        return Context(self.tokens, self.visible.repeat_interleave(copies, 0), mask)


@dataclass(frozen=True, slots=True, eq=False)
class _Gathered:
    """The known tokens of all modalities, moved to the front."""

    x: Tensor  # (B, N, D), or packed: contents and addresses
    address: Tensor  # (B, N, D)
    visible: Tensor  # (B, N) bool, False for padding
    mask: Mask | None  # of the same; None: there is no padding
    packing: Packing | None  # None: padding is computed too


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
        act: type[nn.Module] = SiLU if self.act_layer == "SiLU" else getattr(nn, self.act_layer)
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

    def logits(self, y: Tensor) -> Tensor:
        """Logits (B, K, V) of the decoder's output (B, K, D).

        NVIDIA GPUs give the sums of 16-bit products in float32, and guidance multiplies what rounding would
        add. CPUs have no such kernel: there logits of 16-bit networks are rounded once.
        """
        if y.device.type != "cuda" or y.dtype == torch.float32 or not _HAS_WIDE_SUMS:
            return self.to_logits(y)
        weight = floats_of(self.to_logits, y.dtype).t()
        return torch.mm(y.flatten(0, 1), weight, out_dtype=torch.float32).view(*y.shape[:2], -1)


class FourM(nn.Module):
    """The encoder-decoder: maps the known tokens of a batch to logits at positions of a target."""

    def __init__(self, config: FourMConfig) -> None:
        super().__init__()
        self.config, self.attention = config, "sdpa"  # see `set_attention`
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

    @property
    def head_width(self) -> int:
        """Numbers of each head of attention."""
        return self.config.dim // self.config.num_heads

    @property
    def reads(self) -> frozenset[str]:
        """Names of the modalities that the encoder reads."""
        return frozenset(self.encoder_embeddings)

    def embed(self, batch: Batch) -> Embedded:
        """The embeddings of all modalities that it reads, of known and unknown places."""
        slots = {name: slot for name, slot in batch.slots.items() if name in self.encoder_embeddings}
        return {name: (*self.encoder_embeddings[name](slot), slot.known) for name, slot in slots.items()}

    def _joined(self, embedded: Embedded, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Content and address (B, N, D), known (B, N) bool: registers, then all modalities."""
        count = self.config.num_register_tokens
        no_address = self.mask_token.new_zeros(rows, count, self.config.dim)
        contents = [self.register_tokens.expand_as(no_address)] if count else []
        addresses = [no_address] if count or not embedded else []
        contents += [content for content, _, _ in embedded.values()]
        addresses += [address.expand_as(content) for content, address, _ in embedded.values()]
        known = [torch.ones_like(no_address[..., 0], dtype=torch.bool)] if count or not embedded else []
        known += [one for _, _, one in embedded.values()]
        return torch.cat(contents or [no_address], 1), torch.cat(addresses, 1), torch.cat(known, 1)

    def encode(self, batch: Batch, budget: int | None = None) -> Context:
        """Run the encoder over all known tokens of the batch; see `encode_embedded`.

        The device is asked for their numbers, which makes the host wait.
        """
        counts = batch.num_known(self.reads).tolist()
        budget = max(counts, default=0) if budget is None else budget
        total = sum(min(count, budget) for count in counts)
        packs = is_packed(self.attention, batch.device, total / (len(counts) * budget or 1))
        return self.encode_embedded(self.embed(batch), counts, budget, total if packs else None)

    def encode_embedded(
        self, embedded: Embedded, counts: Sequence[int], budget: int, room: int | None = None
    ) -> Context:
        """Run the encoder over the known tokens of all modalities.

        Known tokens are moved to the front, in order. `counts` are the numbers of known tokens of each row,
        without registers. `budget` is the number of tokens kept for each row: shorter rows are padded, longer
        ones are cut. room: rows are packed into so many places for tokens, see `is_packed`; None: padded. The
        sizes of tensors depend on `budget` and `room` alone.
        """
        given = self._gather(embedded, counts, budget, room)
        x = self.decoder_proj_context(deque(self._outputs(given), maxlen=1).pop())
        x = given.packing.unpack(x) if given.packing else x
        return Context(x + given.address, given.visible, given.mask, given.packing)

    def encode_layers(
        self, embedded: Embedded, counts: Sequence[int], budget: int, layers: Sequence[int],
        room: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Outputs (len(layers), B, N, D) of encoder blocks, without registers; see `encode_embedded`.

        layers: numbers of blocks from 0; -1 is the output of the encoder: of the last block, after the norm.
        The first tokens of each row are its known ones; what padding holds is of no meaning.
        """
        given, count = self._gather(embedded, counts, budget, room), len(self.encoder) + 1
        wanted, found = [layer % count for layer in layers], dict[int, Tensor]()
        for number, x in enumerate(self._outputs(given)):
            if number in wanted:
                found[number] = given.packing.unpack(x) if given.packing else x
        return torch.stack([found[number] for number in wanted])[:, :, self.config.num_register_tokens :]

    def _gather(
        self, embedded: Embedded, counts: Sequence[int], budget: int, room: int | None
    ) -> "_Gathered":
        """What the first block reads; see `encode_embedded`."""
        content, address, known = self._joined(embedded, len(counts))
        registers = self.config.num_register_tokens
        length, kept = registers + budget, [min(count, budget) for count in counts]
        order = (~known).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]  # known first, in order
        padding = length - order.shape[1]
        visible = F.pad(known.gather(1, order), (0, padding))
        places, hidden = order.unsqueeze(-1), ~visible.unsqueeze(-1)
        content, address = (
            F.pad(part.take_along_dim(places, 1), (0, 0, 0, padding)).masked_fill(hidden, 0)
            for part in (content, address)
        )
        mask, packing = None, None
        if any(count < budget for count in kept):
            mask = Mask.of(visible, content.dtype, all_see=registers + min(kept) > 0)
            if room is not None and registers + room > 0:
                has_rows = self.attention == "varlen"
                packing = Packing.of(visible, registers * len(kept) + room, has_rows)
        x = packing.pack(content + address) if packing else content + address
        return _Gathered(x, address, visible, mask, packing)

    def _outputs(self, given: "_Gathered") -> Iterator[Tensor]:
        """The output of each encoder block, then that of the encoder: of the last block, after the norm."""
        x, rows = given.x, given.packing.rows if given.packing else None
        for block in self.encoder:
            x = block(x, rows or given.mask, None if rows else given.packing)
            yield x
        yield self.encoder_norm(x)

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
        cache: DecoderCache | None = None, length: int | None = None, asked: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Logits (B, K, V) of one target at positions (B, K).

        Image tokens are decoded together and attend to each other; `ids` is None. A sequence is decoded
        causally: `ids` (B, K) int64 are its tokens at `positions`, counted from 0, and the logits are those
        of the tokens that follow them. With a cache, only the next token is passed, at the same position in
        all rows; `length` tokens of the cache's room are read, this one included, or by default all of it.

        asked: (B, K) bool, True for one position of each row at least; the others only fill up the shape, and
        their logits mean nothing.
        """
        head = cast("Head", self.decoder_embeddings[target])
        content = self.mask_token if ids is None else head.token_emb(ids)
        y = content + head.address(positions)
        own_mask = None if asked is None else Mask.of(asked, y.dtype, all_see=True)
        causal = ids is not None and cache is None
        mask: Mask | Rows | None = context.mask
        rows = context.packing.rows if context.packing and not cache else None
        if rows and mask:
            mask = rows.asked(y.shape[1], mask.seen)
        crosses = [one.cross for one in cache] if cache else self._read_context(context, rows is not None)
        pasts: list[Past | None] = [None] * len(self.decoder)
        if cache:
            at, room = positions[0], cache[0].room
            if length is None and room > 1:
                places = torch.arange(room, device=at.device)
                own_mask = Mask.of((places <= at).unsqueeze(0), y.dtype, all_see=True)
            pasts = [partial(one.put, at=at, length=length or room) for one in cache]
        for block, cross, past in zip(self.decoder, crosses, pasts, strict=True):
            y = block(y, cross, mask, own_mask, causal, past)
        return head.logits(self.decoder_norm(y))

    def _read_context(self, context: Context, packed: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of the context, one decoder block after the other; packed: for its `Rows`."""
        tokens = context.packing.pack(context.tokens) if context.packing else context.tokens
        for block in self.decoder:
            yield cast("DecoderBlock", block).read_context(tokens, None if packed else context.packing)


def _positions(modality: Modality, config: FourMConfig) -> nn.Parameter | nn.Buffer:
    """A table (1, L, D) of positions; whether learned or fixed, it is in the checkpoint."""
    is_sequence = modality.kind in (Kind.SEQUENCE, Kind.EMBEDDING)
    grid = modality.grid or (0, 0)
    table = sincos_1d(SEQUENCE_ROWS, config.dim) if is_sequence else sincos_2d(*grid, config.dim)
    return nn.Parameter(table) if modality.positions == "learned" else nn.Buffer(table)
