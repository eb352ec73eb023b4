"""The transformer blocks of 4M and of its tokenizers, and what decoding remembers from token to token."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fourm.networks.layers import Kernel, LayerNorm, Mlp, attention, merge_heads, sdpa, split_heads
from fourm.networks.state import Packing


class BlockConfig(Protocol):
    """What a block needs to know of its network: a model's config, or a tokenizer's preset."""

    @property
    def dim(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def qkv_bias(self) -> bool: ...
    @property
    def proj_bias(self) -> bool: ...
    @property
    def qk_norm(self) -> bool: ...
    def norm(self, width: int | None = None) -> LayerNorm: ...
    def mlp(self) -> Mlp: ...


class SelfMemory:
    """Keys and values of the tokens decoded so far, in space reserved beforehand."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.length = 0
        self.keys: Tensor | None = None  # (B, H, max_tokens, d)
        self.values: Tensor | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, H, K, d) and return all keys and values so far, (B, H, length, d)."""
        if self.keys is None or self.values is None:
            batch, heads, _, width = keys.shape
            self.keys = keys.new_empty(batch, heads, self.max_tokens, width)
            self.values = torch.empty_like(self.keys)
        end = self.length + keys.shape[2]
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


@dataclass(frozen=True, slots=True)
class DecoderCache:
    """What stays the same while a sequence is decoded token by token, for each decoder block."""

    cross: tuple[tuple[Tensor, Tensor], ...]  # keys and values of the context, (B, H, N, d)
    memory: tuple[SelfMemory, ...]

    def repeated(self, count: int) -> "DecoderCache":
        """The same before any token, for `count` texts in place of each."""
        cross = ((k.repeat_interleave(count, 0), v.repeat_interleave(count, 0)) for k, v in self.cross)
        return DecoderCache(tuple(cross), self.memory)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.kernel: Kernel = sdpa
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.proj_bias)
        self.q_norm = config.norm(config.dim // config.num_heads) if config.qk_norm else nn.Identity()
        self.k_norm = config.norm(config.dim // config.num_heads) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        visible: Tensor | None,
        causal: bool = False,
        memory: SelfMemory | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """x: (B, N, D), or (T, D) when packed; visible: bool, broadcastable to (B, H, N, N). As x."""
        qkv = self.qkv(x) if packing is None else packing.unpack(self.qkv(x))
        q, k, v = (split_heads(part, self.num_heads) for part in qkv.chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        if memory is not None:
            k, v = memory.append(k, v)
        out = merge_heads(attention(q, k, v, visible, causal, self.kernel))
        return self.proj(out if packing is None else packing.pack(out))


class CrossAttention(nn.Module):
    """Multi-head attention from decoder queries to the context."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.kernel: Kernel = sdpa
        self.q = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)
        self.kv = nn.Linear(config.dim, 2 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.proj_bias)
        self.q_norm = config.norm(config.dim // config.num_heads) if config.qk_norm else nn.Identity()
        self.k_norm = config.norm(config.dim // config.num_heads) if config.qk_norm else nn.Identity()

    def keys_values(self, context: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """(B, N, D), or (T, D) when packed -> keys and values (B, H, N, d)."""
        kv = self.kv(context) if packing is None else packing.unpack(self.kv(context))
        k, v = (split_heads(part, self.num_heads) for part in kv.chunk(2, dim=-1))
        return self.k_norm(k), v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor) -> Tensor:
        """x: (B, K, D); visible: (B, 1, 1, N) bool. Returns (B, K, D)."""
        q = self.q_norm(split_heads(self.q(x), self.num_heads))
        return self.proj(merge_heads(attention(q, keys, values, visible, kernel=self.kernel)))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1, self.attn = config.norm(), SelfAttention(config)
        self.norm2, self.mlp = config.norm(), config.mlp()

    def forward(self, x: Tensor, visible: Tensor | None = None, packing: Packing | None = None) -> Tensor:
        """x: (B, N, D), or (T, D) when packed; visible: (B, 1, 1, N) bool, None = all. As x."""
        x = x + self.attn(self.norm1(x), visible, packing=packing)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the context, MLP."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1, self.self_attn = config.norm(), SelfAttention(config)
        self.query_norm, self.context_norm = config.norm(), config.norm()
        self.cross_attn = CrossAttention(config)
        self.norm2, self.mlp = config.norm(), config.mlp()

    def read_context(self, context: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, N, d) of the context, (B, N, D) or packed (T, D), for this block."""
        return self.cross_attn.keys_values(self.context_norm(context), packing)

    def forward(
        self,
        y: Tensor,
        cross: tuple[Tensor, Tensor],
        visible: Tensor,
        self_visible: Tensor | None = None,
        causal: bool = False,
        memory: SelfMemory | None = None,
    ) -> Tensor:
        """y: (B, K, D); cross: keys and values of the context; visible: (B, 1, 1, N); returns (B, K, D)."""
        y = y + self.self_attn(self.norm1(y), self_visible, causal, memory)
        y = y + self.cross_attn(self.query_norm(y), *cross, visible)
        return y + self.mlp(self.norm2(y))
