"""What networks are made of: positions, layers, transformer blocks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fourm.networks.attention import Kernel, Mask, Packing, Rows, attention, merge_heads, sdpa, split_heads

Past = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # see `KVCache.put`


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis whose bias may be a constant zero buffer, as 4M checkpoints store it."""

    def __init__(self, width: int, bias: bool, eps: float = 1e-6) -> None:
        super().__init__(width, eps)
        if not bias:
            del self.bias
            self.register_buffer("bias", torch.zeros(width))


def is_meta_default() -> bool:
    """True while a network is built on meta, where computing would load most of torch's compiler."""
    return torch.get_default_device().type == "meta"


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal random numbers of this shape, with standard deviation `scale`; on meta, without values."""
    return torch.empty(shape) if is_meta_default() else torch.randn(shape) * scale


def token_table(count: int, width: int) -> nn.Embedding:
    """(count, width): a vector for each id, initialised with normal random numbers."""
    return nn.Embedding(count, width, _weight=normal(count, width))


def sincos_1d(length: int, width: int) -> Tensor:
    """Sine-cosine positions (1, length, width) float32: [sin(p w), cos(p w)], w_j = 10000^(-2j / width)."""
    if is_meta_default():
        return torch.empty(1, length, width)
    count = width // 2
    angles = torch.arange(length).unsqueeze(1) * torch.exp(torch.arange(count) * (-math.log(10000.0) / count))
    return torch.cat([angles.sin(), angles.cos()], dim=1).unsqueeze(0)


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """(1, height * width, dim) float32: `sincos_1d` of the row, then of the column, dim / 2 each."""
    if is_meta_default():
        return torch.empty(1, height * width, dim)
    rows, columns = sincos_1d(height, dim // 2), sincos_1d(width, dim // 2)
    return torch.cat([rows.repeat_interleave(width, dim=1), columns.repeat(1, height, 1)], dim=2)


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """Sizes and kinds of the layers of transformer blocks."""

    dim: int  # D
    num_heads: int  # H
    hidden: int  # width of the MLPs
    qkv_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    norm_bias: bool = True
    qk_norm: bool = False  # queries and keys are normalised, per head
    gated_mlp: bool = False  # see `Mlp`
    act: type[nn.Module] = nn.GELU  # of the MLPs
    norm_eps: float = 1e-6

    def norm(self, width: int | None = None) -> LayerNorm:
        """A LayerNorm over `width` numbers, by default `dim`."""
        return LayerNorm(width or self.dim, self.norm_bias, self.norm_eps)

    def head_norm(self) -> nn.Module:
        """What the queries, or the keys, of each head pass through."""
        return self.norm(self.dim // self.num_heads) if self.qk_norm else nn.Identity()


def compile_blocks(network: nn.Module) -> None:
    """Compile the transformer blocks of a network with torch's compiler, when they are first used.

    Blocks of a kind share one compilation, for all sizes of their tensors. Last bits of results change.
    """
    for module in network.modules():
        if isinstance(module, Block):
            module.compile(dynamic=True)


class SiLU(nn.SiLU):
    """x / (1 + exp(-x)); in float32 on CPUs a number gives the same bits wherever in a tensor it stands.

    PyTorch's kernel takes another exponential for what fills no vector register: the last numbers of a tensor
    and of the share of each thread, hence of other tokens in another batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As x."""
        if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
            return super().forward(x)
        divisor = x.neg().exp_().add_(1)
        return torch.div(x, divisor, out=divisor)


class Block(nn.Module):
    """A transformer block: marks what `compile_blocks` compiles."""


class Mlp(nn.Module):
    """fc2(act(fc1(x))), or fc2(act(fc1(x)) * fc3(x)) when gated (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.hidden, bias=config.mlp_bias)
        self.act = config.act()
        self.fc2 = nn.Linear(config.hidden, config.dim, bias=config.mlp_bias)
        self.fc3 = nn.Linear(config.dim, config.hidden, config.mlp_bias) if config.gated_mlp else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        hidden = self.act(self.fc1(x))
        return self.fc2(hidden if self.fc3 is None else hidden * self.fc3(x))


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.kernel: Kernel = sdpa
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.proj_bias)
        self.q_norm, self.k_norm = config.head_norm(), config.head_norm()

    def forward(
        self, x: Tensor, mask: Mask | Rows | None = None, causal: bool = False, past: Past | None = None,
        packing: Packing | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend to x and, with `past`, to the tokens before it, whose keys and values it adds.

        x: (B, N, D), or (T, D) when packed (see `Packing`). mask: which keys are read; None: all. Returns the
        shape of x.
        """
        qkv = self.qkv(x) if packing is None else packing.unpack(self.qkv(x))
        q, k, v = (split_heads(part, self.num_heads) for part in qkv.chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        if past is not None:
            k, v = past(k, v)
        out = merge_heads(attention(q, k, v, mask, causal, self.kernel))
        return self.proj(out if packing is None else packing.pack(out))


class CrossAttention(nn.Module):
    """Multi-head attention to a context, which may have a width of its own."""

    def __init__(self, config: BlockConfig, context_width: int | None = None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.kernel: Kernel = sdpa
        self.q = nn.Linear(config.dim, config.dim, bias=config.qkv_bias)
        self.kv = nn.Linear(context_width or config.dim, 2 * config.dim, bias=config.qkv_bias)
        self.proj = nn.Linear(config.dim, config.dim, bias=config.proj_bias)
        self.q_norm, self.k_norm = config.head_norm(), config.head_norm()

    def keys_values(self, context: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """context (B, N, D), or (T, D) when packed -> keys and values, (B, H, N, d) each."""
        kv = self.kv(context) if packing is None else packing.unpack(self.kv(context))
        k, v = (split_heads(part, self.num_heads) for part in kv.chunk(2, dim=-1))
        return self.k_norm(k), v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Mask | Rows | None) -> Tensor:
        """x: (B, K, D); keys and values: (B, H, N, d); mask: which of them are read, None = all.

        Returns (B, K, D).
        """
        q = self.q_norm(split_heads(self.q(x), self.num_heads))
        return self.proj(merge_heads(attention(q, keys, values, mask, kernel=self.kernel)))


class EncoderBlock(Block):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1, self.attn = config.norm(), SelfAttention(config)
        self.norm2, self.mlp = config.norm(), Mlp(config)

    def forward(self, x: Tensor, mask: Mask | Rows | None = None, packing: Packing | None = None) -> Tensor:
        """x: (B, N, D), or (T, D) when packed; mask: which tokens are read, None = all.

        Returns the shape of x.
        """
        x = x + self.attn(self.norm1(x), mask, packing=packing)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(Block):
    """Pre-norm self-attention, cross-attention to the context, MLP."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1, self.self_attn = config.norm(), SelfAttention(config)
        self.query_norm, self.context_norm = config.norm(), config.norm()
        self.cross_attn = CrossAttention(config)
        self.norm2, self.mlp = config.norm(), Mlp(config)

    def read_context(self, context: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, N, d) of the context, (B, N, D) or packed (T, D), for this block."""
        return self.cross_attn.keys_values(self.context_norm(context), packing)

    def forward(
        self, y: Tensor, cross: tuple[Tensor, Tensor], mask: Mask | Rows | None,
        own_mask: Mask | None = None, causal: bool = False, past: Past | None = None,
    ) -> Tensor:  # fmt: skip
        """y: (B, K, D). Returns (B, K, D).

        cross: keys and values of the context (see `read_context`), of which `mask` tells. own_mask, causal,
        past: of the self-attention.
        """
        y = y + self.self_attn(self.norm1(y), own_mask, causal, past)
        y = y + self.cross_attn(self.query_norm(y), *cross, mask)
        return y + self.mlp(self.norm2(y))
