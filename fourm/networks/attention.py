"""Attention: its kernels, which keys may be read, rows packed without padding, keys and values of texts."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.errors import UsageError

_ALIGNED = 8  # kernels of GPUs want rows of heads and of masks to begin at multiples of so many numbers
PACKED_BELOW = 0.9  # share of visible tokens below which it is faster on CPUs to leave the padding out
# q (B, H, M, d), k and v (B, H, N, d), bias (broadcastable to (B, H, M, N), see `Mask`), causal.
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """Which keys queries may read, as kernels take it; made once for all blocks that need it."""

    # (B, 1, 1 or M, N) in the dtype of the keys, added to the scores: 0 where a key may be read, else minus
    # infinity. Rows begin at multiples of 8 numbers. A query that may read no key has 0 at key 0.
    bias: Tensor
    seen: Tensor | None  # (B, 1, 1 or M, 1) bool, False for a query that may read no key; None: all read one

    @staticmethod
    def of(visible: Tensor, dtype: torch.dtype, all_see: bool = False) -> "Mask":
        """From visible (B, N) or (B, M, N) bool, True = may be read; all_see: each query may read a key."""
        visible = visible.unsqueeze(1) if visible.ndim == 3 else visible[:, None, None, :]
        seen = None
        if not all_see:
            # A query without a key would be 0/0 in the softmax: it reads key 0, then zeros take its place.
            seen = visible.any(dim=-1, keepdim=True)
            first = torch.zeros_like(visible)
            first[..., :1] = True
            visible = visible | (first & ~seen)
        length = visible.shape[-1]
        room = torch.zeros(
            *visible.shape[:-1], length + -length % _ALIGNED, dtype=dtype, device=visible.device
        )
        return Mask(room[..., :length].masked_fill_(~visible, float("-inf")), seen)

    def repeated(self, copies: int) -> "Mask":
        """The mask for `copies` of each row, which stand side by side."""
        seen = None if self.seen is None else self.seen.repeat_interleave(copies, 0)
        return Mask(self.bias.repeat_interleave(copies, 0), seen)


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """PyTorch's own kernel."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)


def xformers(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """The kernel of xFormers (Lefaudeux et al. 2022), for NVIDIA GPUs.

    causal: query i reads the keys 0 to i, as in `sdpa`, also where there are more keys than queries.
    """
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    # What the mask says once for all heads or queries is stored once.
    whole = None if bias is None else bias.expand(*q.shape[:3], k.shape[2])
    rows, width = [], q.shape[-1]
    for part in (q, k, v):
        x = part.transpose(1, 2)  # (B, N, H, d), with zeros up to the next multiple of 8
        x = F.pad(x, (0, -width % _ALIGNED)) if width % _ALIGNED else x
        rows.append(x if x.stride(-1) == 1 and x.stride(-2) % _ALIGNED == 0 else x.contiguous())
    out = memory_efficient_attention(
        *rows, attn_bias=LowerTriangularMask() if causal else whole, scale=width**-0.5
    )
    return out[..., :width].transpose(1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Which keys queries may read where rows are packed one after the other: those of their own row.

    Sizes do not depend on the lengths of rows, which only the device has to know: what is behind the last row
    fills up the shape, and its results mean nothing.
    """

    queries: Tensor  # (B + 1,) int32: where the queries of each row begin, then where those of the last end
    keys: Tensor  # (B + 1,) int32: the same of the keys
    most_queries: int  # of a row, at most
    most_keys: int
    seen: Tensor | None = None  # see `Mask`

    def asked(self, count: int, seen: Tensor | None) -> "Rows":
        """The same keys for `count` queries of each row."""
        queries = torch.arange(len(self.keys), dtype=torch.int32, device=self.keys.device) * count
        return Rows(queries, self.keys, count, self.most_keys, seen)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q: (1, H, T, d) packed, or (B, H, K, d) with all K of each row; k, v: (1, H, T, d) packed."""
        from torch.nn.attention.varlen import varlen_attn  # FlashAttention (Dao 2023, arXiv:2307.08691)

        flat = [x.transpose(1, 2).flatten(0, 1) for x in (q, k, v)]
        # Only what torch 2.10 takes, too: it is not causal, and the scale is that of `sdpa`.
        out = varlen_attn(
            flat[0], flat[1], flat[2], self.queries, self.keys, self.most_queries, self.most_keys
        )
        return cast("Tensor", out).view(q.shape[0], q.shape[2], *q.shape[1::2]).transpose(1, 2)


# What does the attention of padded rows.
_KERNELS: dict[str, Kernel] = {"sdpa": sdpa, "xformers": xformers, "varlen": sdpa}


def is_packed(name: str, device: torch.device, share: float) -> bool:
    """Whether rows of which `share` of all places are visible are packed, or padded to the longest one.

    name: the kernel that was asked for; `check_kernel` has refused what is not installed or does not support
    the device and dtype.

    - "varlen": packed wherever rows differ (share < 1), in all layers and in attention (see `Rows`).
    - Else on a CPU: packed below `PACKED_BELOW`, as measured there. Layers skip the padding; for attention,
      rows are padded again.
    - Else: padded. GPUs get there by themselves as soon as a card has shown from which share on "varlen" is
      faster than padded SDPA; part `attention` of benchmarks/gpu measures it.
    """
    if name == "varlen":
        return share < 1
    return device.type == "cpu" and share < PACKED_BELOW


def check_kernel(name: str, device: torch.device, like: Tensor, width: int = 64) -> None:
    """UsageError: a kernel is not installed, or does not support the device, dtype or width of heads.

    like: of the dtype and on the device.
    """
    if name == "sdpa":
        return
    if device.type != "cuda":
        raise UsageError(f"`attention={name}`: runs on NVIDIA GPUs only, not on '{device.type}'")
    if name == "xformers" and importlib.util.find_spec("xformers") is None:
        raise UsageError("`attention=xformers`: not installed; pip install 'fourm[fast]' does it")
    if name == "varlen" and importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise UsageError("`attention=varlen`: needs torch 2.10 or newer")
    if name == "varlen" and width % _ALIGNED:
        raise UsageError(f"`attention=varlen`: heads have {width} numbers here; it takes multiples of 8")
    what = f"has no kernel for {str(like.dtype).removeprefix('torch.')} on this GPU"
    unsupported = UsageError(f"`attention={name}`: {what}; leave it out, or try another `dtype`")
    if name == "varlen" and like.dtype not in (torch.bfloat16, torch.float16):
        raise unsupported
    x = like.new_zeros(1, 1, 8, width)
    try:  # which GPUs and dtypes it serves depends on its build
        if name == "varlen":
            rows = Rows(starts := torch.arange(2, dtype=torch.int32, device=x.device) * 8, starts, 8, 8)
            rows.attend(x, x, x)
        else:
            for bias in (None, x.new_zeros(1, 1, 1, 8)):
                xformers(x, x, x, bias, False)
    except (ImportError, OSError) as error:
        raise UsageError(f"`attention={name}`: cannot be loaded; it was built for another torch") from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise unsupported from error


def set_attention(network: nn.Module, name: str, device: torch.device) -> None:
    """Let all attention of a network use "sdpa", "xformers" or, for packed rows, "varlen".

    UsageError: see `check_kernel`.
    """
    packs = hasattr(network, "attention")
    if name != "varlen" or packs:  # others have rows of one length
        check_kernel(name, device, next(network.parameters()), getattr(network, "head_width", 64))
    if packs:
        setattr(network, "attention", name)  # noqa: B010 - for the type checker it is a tensor
    for module in network.modules():
        if hasattr(module, "kernel"):
            setattr(module, "kernel", _KERNELS[name])  # noqa: B010


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Where the visible tokens of a batch stand: guided passes differ in length, and layers skip padding."""

    taken: Tensor  # (T,) int64, places of the visible tokens in the flattened (B * N), then of any others
    source: Tensor  # (B * N) int64, where each place finds its token; a hidden one finds any
    length: int  # N
    rows: Rows | None  # for attention of packed rows; None: rows are padded again for it

    @staticmethod
    def of(visible: Tensor, total: int, has_rows: bool) -> "Packing":
        """The packing of visible (B, N) bool into `total` places, of which at most so many are True."""
        flat, length = visible.flatten(), visible.shape[1]
        taken = (~flat).to(torch.uint8).argsort(stable=True)[:total]
        source, rows = (flat.cumsum(dim=0) - 1).clamp_min(0), None
        if has_rows:
            starts = F.pad(visible.sum(dim=1).cumsum(dim=0), (1, 0)).to(torch.int32)
            rows = Rows(starts, starts, length, length)
        return Packing(taken, source, length, rows)

    def pack(self, x: Tensor) -> Tensor:
        """(B, N, W) -> (T, W), with `rows` (1, T, W)."""
        x = x.flatten(0, 1).index_select(0, self.taken)
        return x if self.rows is None else x.unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """The opposite of `pack`; what stands at a hidden place is finite and of no meaning."""
        return x.flatten(0, -2).index_select(0, self.source).view(-1, self.length, x.shape[-1])


class KVCache:
    """Keys and values, (B, H, ..., d) each, that decoding token by token computes once for one block."""

    def __init__(self, cross: tuple[Tensor, Tensor], max_tokens: int = 0, held: Tensor | None = None) -> None:
        self.cross, keys = cross, cross[0]  # of the context
        # (2, B, H, max_tokens, d): those of the tokens so far, then zeros
        self.held = keys.new_zeros(2, *keys.shape[:2], max_tokens, keys.shape[3]) if held is None else held

    @property
    def room(self) -> int:
        """The most tokens of a text."""
        return self.held.shape[3]

    def put(self, keys: Tensor, values: Tensor, at: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Write those of tokens, (B, H, K, d), at places (K) int64; return the first `length` of the room."""
        self.held[0].index_copy_(2, at, keys)
        self.held[1].index_copy_(2, at, values)
        return self.held[0, :, :, :length], self.held[1, :, :, :length]


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Mask | Rows | None = None, causal: bool = False,
    kernel: Kernel = sdpa,
) -> Tensor:  # fmt: skip
    """Softmax attention over the keys that a mask lets queries read; None: over all.

    q: (B, H, M, d); k, v: (B, H, N, d); for packed rows see `Rows.attend`. causal: query i reads the keys 0
    to i; then there is no mask. A query that may read no key gets zeros, whatever the batch around it.
    Returns (B, H, M, d). All kernels give the same but for rounding.
    """
    if not (q.shape[2] and k.shape[2]):
        return torch.zeros_like(q)
    if isinstance(mask, Rows):
        out = mask.attend(q, k, v)
    else:
        out = kernel(q, k, v, None if mask is None else mask.bias, causal)
    return out if mask is None or mask.seen is None else out.masked_fill(~mask.seen, 0)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, H * d) -> (B, H, N, d)."""
    return x.view(*x.shape[:2], num_heads, x.shape[2] // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H * d)."""
    return x.transpose(1, 2).flatten(2)
