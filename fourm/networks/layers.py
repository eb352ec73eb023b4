"""Attention, MLPs, norms and position tables: what every 4M network is made of."""

import importlib
import importlib.util
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.errors import UsageError

# xFormers wants rows of heads and of masks to begin at multiples of so many numbers.
_ALIGNED = 8

# q (B, H, M, d), k and v (B, H, N, d), mask (broadcastable to (B, H, M, N), True = may be read), causal.
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """PyTorch's own kernel."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The kernel of xFormers (Lefaudeux et al. 2022), for NVIDIA GPUs; a causal query reads from key 0 on."""
    from xformers.ops import LowerTriangularMask, memory_efficient_attention

    bias = LowerTriangularMask() if causal else None if mask is None else as_bias(mask, q, k)
    width = q.shape[-1]
    rows = (_as_rows(part) for part in (q, k, v))
    out = memory_efficient_attention(*rows, attn_bias=bias, scale=width**-0.5)
    return out[..., :width].transpose(1, 2)


def _as_rows(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H, d'): d' is the next multiple of 8, filled up with zeros, and contiguous."""
    x = x.transpose(1, 2)
    if x.shape[-1] % _ALIGNED:
        x = F.pad(x, (0, -x.shape[-1] % _ALIGNED))
    return x if x.stride(-1) == 1 and x.stride(-2) % _ALIGNED == 0 else x.contiguous()


def as_bias(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    """A mask as what is added to the scores, (B, H, M, N) in the dtype of q: 0 or minus infinity.

    Rows begin at multiples of 8 numbers in memory. What the mask says once for all heads or queries is
    stored once.
    """
    length = k.shape[2]
    mask = mask.expand(*mask.shape[:-1], length)
    room = q.new_zeros(*mask.shape[:-1], length + -length % _ALIGNED)
    bias = room[..., :length].masked_fill_(~mask, float("-inf"))
    return bias.expand(*q.shape[:3], length)


_KERNELS: dict[str, Kernel] = {"sdpa": sdpa, "xformers": xformers}


def set_attention(network: nn.Module, name: str, device: torch.device) -> None:
    """Let every attention of a network use the kernel of this name, "sdpa" or "xformers".

    A kernel that cannot run on this device, or not in the dtype of the network, is a UsageError.
    """
    if name == "xformers":
        _check_xformers(device, next(network.parameters(), None))
    for module in network.modules():
        if hasattr(module, "kernel"):
            setattr(module, "kernel", _KERNELS[name])  # noqa: B010 - for the type checker it is a tensor


def _check_xformers(device: torch.device, like: Tensor | None) -> None:
    """Whether xFormers is here and computes with such numbers: which GPUs it serves depends on its build."""
    if device.type != "cuda":
        raise UsageError(f"--attention xformers: runs on NVIDIA GPUs only, not on '{device.type}'")
    if importlib.util.find_spec("xformers") is None:
        raise UsageError("--attention xformers: not installed; pip install 'fourm[fast]' does it")
    try:
        importlib.import_module("xformers.ops")
        if like is not None:
            x = like.new_zeros(1, 1, 8, 64)
            for mask in (None, x.new_ones(1, 1, 1, 8, dtype=torch.bool)):
                xformers(x, x, x, mask, False)
    except (ImportError, OSError) as error:
        raise UsageError("--attention xformers: cannot be loaded; it was built for another torch") from error
    except NotImplementedError as error:
        kind = "" if like is None else f" for {str(like.dtype).removeprefix('torch.')}"
        raise UsageError(
            f"--attention xformers: has no kernel{kind} on this GPU; leave it out, or try another --dtype"
        ) from error


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    causal: bool = False,
    kernel: Kernel = sdpa,
) -> Tensor:
    """Softmax attention over the visible keys.

    q: (B, H, M, d); k, v: (B, H, N, d); visible: bool, broadcastable to (B, H, M, N), True = may be read.
    causal: query i sees the keys 0 to i, of the visible ones. A query that sees no key at all gets zeros,
    whatever the batch around it. Returns (B, H, M, d). All kernels give the same but for rounding.
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
    batch, length, width = x.shape
    return x.view(batch, length, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, N, d) -> (B, N, H * d)."""
    batch, heads, length, width = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * width)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis whose bias may be a constant zero buffer, as 4M checkpoints store it."""

    def __init__(self, width: int, bias: bool, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        if bias:
            self.bias = nn.Parameter(torch.zeros(width))
        else:
            self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape; statistics over the last axis, biased variance."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Mlp(nn.Module):
    """fc2(act(fc1(x))), or fc2(act(fc1(x)) * fc3(x)) when gated (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, width: int, hidden: int, act: nn.Module, bias: bool, gated: bool = False) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden, bias=bias)
        self.act = act
        self.fc2 = nn.Linear(hidden, width, bias=bias)
        self.fc3 = nn.Linear(width, hidden, bias=bias) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape."""
        hidden = self.act(self.fc1(x))
        if self.fc3 is not None:
            hidden = hidden * self.fc3(x)
        return self.fc2(hidden)


class TokenTable(nn.Embedding):
    """A vector for each id; a network that is built without contents draws no random ones."""

    def reset_parameters(self) -> None:
        """Standard normal numbers."""
        if not self.weight.is_meta:
            super().reset_parameters()


def has_contents() -> bool:
    """False while a network is built on the meta device, to be filled from a file.

    Its tables and random numbers would be computed for nothing, and most of torch's compiler loaded for it.
    """
    return torch.get_default_device().type != "meta"


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    """Normal numbers with this standard deviation, where there are any (see `has_contents`)."""
    return torch.randn(shape) * scale if has_contents() else torch.empty(shape)


def sincos_1d(length: int, width: int) -> Tensor:
    """Sine-cosine positions (1, length, width) float32: [sin(p w), cos(p w)], w_j = 10000^(-2j / width)."""
    if not has_contents():
        return torch.empty(1, length, width)
    angles = torch.arange(length).unsqueeze(1) * _frequencies(width // 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).unsqueeze(0)


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """Sine-cosine positions (1, height * width, dim) float32, row-major.

    [sin(row w), cos(row w), sin(col w), cos(col w)], w_j = 10000^(-4j / dim); dim is divisible by 4.
    """
    if not has_contents():
        return torch.empty(1, height * width, dim)
    w = _frequencies(dim // 4)
    rows = torch.arange(height).repeat_interleave(width).unsqueeze(1) * w
    cols = torch.arange(width).repeat(height).unsqueeze(1) * w
    return torch.cat([rows.sin(), rows.cos(), cols.sin(), cols.cos()], dim=1).unsqueeze(0)


def _frequencies(count: int) -> Tensor:
    """(count,) geometric frequencies from 1 towards 1/10000."""
    return torch.exp(torch.arange(count) * (-math.log(10000.0) / count))
