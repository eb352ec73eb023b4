"""What networks are made of: attention and its kernels, positions, layers, transformer blocks."""

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.errors import UsageError
from fourm.networks.state import KVCache, Packing

_ALIGNED = 8  # xFormers wants rows of heads and of masks to begin at multiples of so many numbers
# q (B, H, M, d), k and v (B, H, N, d), mask (broadcastable to (B, H, M, N), True = may be read), causal.
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """PyTorch's own kernel."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The kernel of xFormers (Lefaudeux et al. 2022), for NVIDIA GPUs.

    causal: query i reads the keys 0 to i, as in `sdpa`, also where there are more keys than queries.
    """
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    bias = LowerTriangularMask() if causal else None if mask is None else as_bias(mask, q, k)
    rows, width = [], q.shape[-1]
    for part in (q, k, v):
        x = part.transpose(1, 2)  # (B, N, H, d), with zeros up to the next multiple of 8
        x = F.pad(x, (0, -width % _ALIGNED)) if width % _ALIGNED else x
        rows.append(x if x.stride(-1) == 1 and x.stride(-2) % _ALIGNED == 0 else x.contiguous())
    out = memory_efficient_attention(*rows, attn_bias=bias, scale=width**-0.5)
    return out[..., :width].transpose(1, 2)


def as_bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A mask as numbers that are added to the scores, (B, H, M, N) in the dtype of q: 0 or minus infinity.

    Rows begin at multiples of 8 numbers. Axes of length 1 in the mask are expanded without a copy.
    """
    length = k.shape[2]
    mask = mask.expand(*mask.shape[:-1], length)
    room = q.new_zeros(*mask.shape[:-1], length + -length % _ALIGNED)
    return room[..., :length].masked_fill_(~mask, float("-inf")).expand(*q.shape[:3], length)


_KERNELS: dict[str, Kernel] = {"sdpa": sdpa, "xformers": xformers}


def set_attention(network: nn.Module, name: str, device: torch.device) -> None:
    """Let all attention of a network use "sdpa" or "xformers".

    UsageError: xFormers is not installed, or does not support the device or the network's dtype.
    """
    if name == "xformers":
        if device.type != "cuda":
            raise UsageError(f"`attention=xformers`: runs on NVIDIA GPUs only, not on '{device.type}'")
        if importlib.util.find_spec("xformers") is None:
            raise UsageError("`attention=xformers`: not installed; pip install 'fourm[fast]' does it")
        like = next(network.parameters(), torch.empty(0))
        try:  # which GPUs and dtypes it serves depends on its build
            x = like.new_zeros(1, 1, 8, 64)
            for mask in (None, x.new_ones(1, 1, 1, 8, dtype=torch.bool)):
                xformers(x, x, x, mask, False)
        except (ImportError, OSError) as error:
            what = "cannot be loaded; it was built for another torch"
            raise UsageError(f"`attention=xformers`: {what}") from error
        except NotImplementedError as error:
            what = f"has no kernel for {str(like.dtype).removeprefix('torch.')} on this GPU"
            raise UsageError(f"`attention=xformers`: {what}; leave it out, or try another `dtype`") from error
    for module in network.modules():
        if hasattr(module, "kernel"):
            setattr(module, "kernel", _KERNELS[name])  # noqa: B010 - for the type checker it is a tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, causal: bool = False,
    kernel: Kernel = sdpa,
) -> Tensor:  # fmt: skip
    """Softmax attention over the visible keys.

    q: (B, H, M, d); k, v: (B, H, N, d); visible: bool, broadcastable to (B, H, M, N), True = may be read.
    causal: query i sees the keys 0 to i, of the visible ones. A query that sees no key gets zeros, whatever
    the batch around it. Returns (B, H, M, d). All kernels give the same but for rounding.
    """
    if not (q.shape[2] and k.shape[2]):
        return torch.zeros_like(q)
    if visible is None:
        return kernel(q, k, v, None, causal)
    if causal:
        visible = visible & visible.new_ones(q.shape[2], k.shape[2]).tril()
    # A fully hidden row would be 0/0 in the softmax: let it read key 0, then put zeros in its place.
    seen = visible.any(dim=-1, keepdim=True)
    first = torch.zeros_like(visible)
    first[..., 0] = True
    out = kernel(q, k, v, visible | (first & ~seen), False)
    return torch.where(seen, out, torch.zeros_like(out))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, H * d) -> (B, H, N, d)."""
    return x.view(*x.shape[:2], num_heads, x.shape[2] // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H * d)."""
    return x.transpose(1, 2).flatten(2)


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
        self.q_norm = config.norm(config.dim // config.num_heads) if config.qk_norm else nn.Identity()
        self.k_norm = config.norm(config.dim // config.num_heads) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, visible: Tensor | None, causal: bool = False, past: KVCache | None = None,
        packing: Packing | None = None,
    ) -> Tensor:  # fmt: skip
        """Attend to x and, with `past`, to the tokens before it, whose keys and values it holds.

        x: (B, N, D), or (T, D) when packed (see `Packing`). visible: bool, broadcastable to (B, H, N, keys),
        True where a key may be read; None: all. Returns the shape of x.
        """
        qkv = self.qkv(x) if packing is None else packing.unpack(self.qkv(x))
        q, k, v = (split_heads(part, self.num_heads) for part in qkv.chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        if past is not None:
            k, v = past.append(k, v)
        out = merge_heads(attention(q, k, v, visible, causal, self.kernel))
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
        self.q_norm = config.norm(config.dim // config.num_heads) if config.qk_norm else nn.Identity()
        self.k_norm = config.norm(config.dim // config.num_heads) if config.qk_norm else nn.Identity()

    def keys_values(self, context: Tensor, packing: Packing | None = None) -> tuple[Tensor, Tensor]:
        """context (B, N, D), or (T, D) when packed -> keys and values, (B, H, N, d) each."""
        kv = self.kv(context) if packing is None else packing.unpack(self.kv(context))
        k, v = (split_heads(part, self.num_heads) for part in kv.chunk(2, dim=-1))
        return self.k_norm(k), v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
        """x: (B, K, D); keys and values: (B, H, N, d); visible: (B, 1, 1, N) bool, None = all.

        Returns (B, K, D).
        """
        q = self.q_norm(split_heads(self.q(x), self.num_heads))
        return self.proj(merge_heads(attention(q, keys, values, visible, kernel=self.kernel)))


class EncoderBlock(nn.Module):
    """Pre-norm self-attention and MLP."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        self.norm1, self.attn = config.norm(), SelfAttention(config)
        self.norm2, self.mlp = config.norm(), Mlp(config)

    def forward(self, x: Tensor, visible: Tensor | None = None, packing: Packing | None = None) -> Tensor:
        """x: (B, N, D), or (T, D) when packed; visible: (B, 1, 1, N) bool, None = all.

        Returns the shape of x.
        """
        x = x + self.attn(self.norm1(x), visible, packing=packing)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
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
        self, y: Tensor, cross: tuple[Tensor, Tensor], visible: Tensor, self_visible: Tensor | None = None,
        causal: bool = False, past: KVCache | None = None,
    ) -> Tensor:  # fmt: skip
        """y: (B, K, D). Returns (B, K, D).

        cross: keys and values of the context (see `read_context`). visible: (B, 1, 1, N) bool, of the
        context. self_visible, causal, past: of the self-attention.
        """
        y = y + self.self_attn(self.norm1(y), self_visible, causal, past)
        y = y + self.cross_attn(self.query_norm(y), *cross, visible)
        return y + self.mlp(self.norm2(y))
