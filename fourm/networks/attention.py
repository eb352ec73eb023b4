"""Attention: its kernels, which keys may be read, where padding is left out, keys and values of texts."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.errors import UsageError

_ALIGNED = 8  # xFormers wants rows of heads and of masks to begin at multiples of so many numbers
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
            for bias in (None, x.new_zeros(1, 1, 1, 8)):
                xformers(x, x, x, bias, False)
        except (ImportError, OSError) as error:
            what = "cannot be loaded; it was built for another torch"
            raise UsageError(f"`attention=xformers`: {what}") from error
        except NotImplementedError as error:
            what = f"has no kernel for {str(like.dtype).removeprefix('torch.')} on this GPU"
            raise UsageError(f"`attention=xformers`: {what}; leave it out, or try another `dtype`") from error
    for module in network.modules():
        if hasattr(module, "kernel"):
            setattr(module, "kernel", _KERNELS[name])  # noqa: B010 - for the type checker it is a tensor


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Where the visible tokens of a batch stand: guided passes differ in length, and layers skip padding."""

    taken: Tensor  # (T,) int64, places of the visible tokens in the flattened (B * N)
    source: Tensor  # (B * N) int64, where each place finds its token; a hidden one finds any
    length: int  # N

    @staticmethod
    def of(visible: Tensor, total: int) -> "Packing":
        """The packing of visible (B, N) bool, of which `total` are True (known to the host beforehand)."""
        flat = visible.flatten()
        taken = (~flat).to(torch.uint8).argsort(stable=True)[:total]
        return Packing(taken, (flat.cumsum(dim=0) - 1).clamp_min(0), visible.shape[1])

    def pack(self, x: Tensor) -> Tensor:
        """(B, N, W) -> (T, W)."""
        return x.flatten(0, 1).index_select(0, self.taken)

    def unpack(self, x: Tensor) -> Tensor:
        """(T, W) -> (B, N, W); what stands at a hidden place is finite and of no meaning."""
        return x.index_select(0, self.source).view(-1, self.length, x.shape[-1])


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
    q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None, causal: bool = False, kernel: Kernel = sdpa
) -> Tensor:
    """Softmax attention over the keys that a mask lets queries read; None: over all.

    q: (B, H, M, d); k, v: (B, H, N, d). causal: query i reads the keys 0 to i; then there is no mask. A query
    that may read no key gets zeros, whatever the batch around it. Returns (B, H, M, d). All kernels give the
    same but for rounding.
    """
    if not (q.shape[2] and k.shape[2]):
        return torch.zeros_like(q)
    out = kernel(q, k, v, None if mask is None else mask.bias, causal)
    return out if mask is None or mask.seen is None else out.masked_fill(~mask.seen, 0)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, H * d) -> (B, H, N, d)."""
    return x.view(*x.shape[:2], num_heads, x.shape[2] // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H * d)."""
    return x.transpose(1, 2).flatten(2)
