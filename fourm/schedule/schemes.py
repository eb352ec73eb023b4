"""The tables of how a target is decoded: schemes, token curves and temperature curves.

A scheme decides which positions a step asks for and which answers it keeps. A curve decides how many tokens
each step fixes, or at which temperature it draws. Curves agree with the released 4M sampler, except `cosine`
where rounding made its last entry negative. Tensors come from the caller: torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from fourm.errors import UsageError, near_match

if TYPE_CHECKING:
    from torch import Tensor

MIN_TEMPERATURE = 1e-9
GREEDY_BELOW = 1e-8  # temperatures at or under this take the most probable token


@dataclass(frozen=True, slots=True)
class Scheme:
    """A row of the table of schemes."""

    name: str
    # unknown (B, L) bool, noise (B, L) -> all positions (B, L) int64; a step asks for those in front
    order: Callable[[Tensor, Tensor], Tensor]
    # confidence and raw_prob (B, K) as in `sampling.Drawn` -> indices (B, K) int64 of the answers, those
    # that a step keeps in front. None: a step asks for as many positions as it fixes, and keeps them all;
    # otherwise it asks for all unknown positions.
    rank: Callable[[Tensor, Tensor], Tensor] | None = None
    causal: bool = False  # True: texts, decoded token after token without `order` and `rank`
    equal_steps: bool = False  # True: all steps fix equally many tokens, whatever token curve is named


def _unknown_first(unknown: Tensor, noise: Tensor) -> Tensor:
    """Unknown positions, ascending, then known ones."""
    return unknown.long().argsort(dim=1, descending=True, stable=True)


def _lowest_noise_first(unknown: Tensor, noise: Tensor) -> Tensor:
    """Unknown positions by their noise, then known ones."""
    return noise.masked_fill(~unknown, float("inf")).argsort(dim=1, stable=True)


def _most_confident_first(confidence: Tensor, raw_prob: Tensor) -> Tensor:
    """Answers by confidence; of equal ones those of higher raw probability, then of lower index, first."""
    # Low temperatures and small nuclei give many answers a confidence of exactly 1.
    order = raw_prob.argsort(dim=1, descending=True, stable=True)
    by_confidence = confidence.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return order.gather(1, by_confidence)


SCHEMES: dict[str, Scheme] = {
    # MaskGIT (Chang et al. 2022, arXiv:2202.04200): ask for everything, keep what the model is surest of.
    "maskgit": Scheme("maskgit", _unknown_first, _most_confident_first),
    # Random order: ask for a few positions drawn at random, keep them all.
    "roar": Scheme("roar", _lowest_noise_first, equal_steps=True),
    "autoregressive": Scheme("autoregressive", _unknown_first, causal=True),
}


def linear_tokens(num_steps: int, total: int) -> list[int]:
    """As even as possible, larger counts first; never more counts than tokens."""
    each, more = divmod(total, num_steps)
    return [count for count in [each + 1] * more + [each] * (num_steps - more) if count]


def cosine_tokens(num_steps: int, total: int) -> list[int]:
    """Few, many, few: `num_steps` counts (zeros possible) that sum to `total`."""
    level = [(1 + math.cos(math.pi * i / num_steps)) / 2 for i in range(num_steps)] + [0.0]
    counts = [round(total * (a - b)) for a, b in pairwise(level)][:-1]
    counts.append(total - sum(counts))
    # The rounding errors can add up to more than the last step: then round the running total instead.
    if counts[-1] < 0:
        counts = [b - a for a, b in pairwise(round(total * (1 - one)) for one in level)]
    return counts


# (steps, tokens) -> the number of tokens of each step
TOKEN_CURVES: dict[str, Callable[[int, int], list[int]]] = {"linear": linear_tokens, "cosine": cosine_tokens}


def linear_temperature(temperature: float, counts: Sequence[int]) -> list[float]:
    """Falls with the share of tokens that earlier steps have fixed."""
    total = sum(counts)
    return [max(temperature * (1 - done / total), MIN_TEMPERATURE) for done in [0, *accumulate(counts)][:-1]]


def onex_temperature(temperature: float, counts: Sequence[int], low: float, power: float) -> list[float]:
    """Falls quickly, then slowly, to `low`: a hyperbola times the share of tokens still to come."""
    total, last = sum(counts), 100.0**-power
    # It has one point per token but is read at the index of the step: so the published settings were tuned.
    points = [(1 + 99 * min(i, total - 1) / max(total - 1, 1)) ** -power for i in range(len(counts))]
    shape = [(point - last) / (1 - last) for point in points]
    left = [1 - done / total for done in accumulate(counts)]
    return [max(low + (temperature - low) * r * y, MIN_TEMPERATURE) for r, y in zip(left, shape, strict=True)]


TemperatureCurve = Callable[..., list[float]]  # (temperature, counts, *arguments) -> that of each count
TEMPERATURE_CURVES: dict[str, tuple[TemperatureCurve, tuple[str, ...]]] = {  # and names of arguments
    "constant": (lambda temperature, counts: [temperature for _ in counts], ()),
    "linear": (linear_temperature, ()),
    "onex": (onex_temperature, ("lowest temperature", "power")),
}


def parse_temperature_curve(text: str) -> tuple[TemperatureCurve, tuple[float, ...]]:
    """The curve of a text such as `linear` or `onex:0.5:0.5`, and its arguments."""
    name, *parts = text.split(":")
    if name not in TEMPERATURE_CURVES:
        known = ", ".join(":".join([n, *names]) for n, (_, names) in TEMPERATURE_CURVES.items())
        close = near_match(name, TEMPERATURE_CURVES) or f"; known are {known}"
        raise UsageError(f"unknown temperature schedule '{text}'{close}")
    curve, names = TEMPERATURE_CURVES[name]
    try:
        arguments = tuple(float(part) for part, _ in zip(parts, names, strict=True))
    except ValueError:
        wanted = f"{' and '.join(names)}, as numbers," if names else "nothing"
        raise UsageError(f"temperature schedule '{text}': {wanted} must stand behind '{name}'") from None
    if not all(math.isfinite(a) and a >= 0 for a in arguments) or any(a < 1e-6 for a in arguments[1:]):
        raise UsageError(f"temperature schedule '{text}': its numbers must be positive")
    return curve, arguments
