"""The table of decoding schemes: which positions a step asks for, and which of its answers it keeps.

Pure functions of a mask and given noise. Tensors come in from the caller, so torch is not imported here and
the table can be read, listed and checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Scheme:
    """A row of the table."""

    name: str
    causal: bool  # True: one token after the other, each seeing the ones before it
    # unknown (B, L) bool with `left` True in each row, n, noise (B, L) -> positions (B, K) int64
    ask: Callable[[Tensor, int, int, Tensor], Tensor]
    # confidence and raw_prob (B, K) as in `sampling.Drawn`, n -> picks (B, K') int64, indices into K
    keep: Callable[[Tensor, Tensor, int], Tensor]
    even: bool = False  # True: steps take equal parts, whatever token schedule is named


def _ask_all(unknown: Tensor, left: int, n: int, noise: Tensor) -> Tensor:
    """Every unknown position, ascending."""
    return unknown.long().argsort(dim=1, descending=True, stable=True)[:, :left]


def _ask_lowest_noise(unknown: Tensor, left: int, n: int, noise: Tensor) -> Tensor:
    """The n unknown positions with the lowest noise, ascending; fewer where fewer are left."""
    order = noise.masked_fill(~unknown, float("inf")).argsort(dim=1, stable=True)
    return order[:, : min(n, left)].sort(dim=1).values


def _ask_first(unknown: Tensor, left: int, n: int, noise: Tensor) -> Tensor:
    """The first unknown position of each row, (B, 1)."""
    return unknown.long().argsort(dim=1, descending=True, stable=True)[:, :1]


def _keep_most_confident(confidence: Tensor, raw_prob: Tensor, n: int) -> Tensor:
    """The n most confident answers, ascending; ties go to the higher raw probability, then the lower index.

    Low temperatures and small nuclei give many answers a confidence of exactly 1.
    """
    order = raw_prob.argsort(dim=1, descending=True, stable=True)
    by_confidence = confidence.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, by_confidence)[:, :n].sort(dim=1).values


def _keep_all(confidence: Tensor, raw_prob: Tensor, n: int) -> Tensor:
    """Every answer."""
    # 0, 1, 2 ... for each row, made without importing torch.
    return confidence.argsort(dim=1).sort(dim=1).values


SCHEMES: dict[str, Scheme] = {
    # MaskGIT (Chang et al. 2022, arXiv:2202.04200): ask for everything, keep what the model is surest of.
    "maskgit": Scheme("maskgit", causal=False, ask=_ask_all, keep=_keep_most_confident),
    # Random order: ask for a few positions drawn at random, keep them all.
    "roar": Scheme("roar", causal=False, ask=_ask_lowest_noise, keep=_keep_all, even=True),
    "autoregressive": Scheme("autoregressive", causal=True, ask=_ask_first, keep=_keep_all),
}
