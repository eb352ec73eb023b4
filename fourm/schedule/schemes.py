"""The tables of how a target is decoded: schemes, and curves of tokens, temperature and guidance.

A scheme decides which positions a step asks for and which answers it keeps. A curve decides how many tokens
each step fixes, at which temperature it draws, or how strongly it is guided. Where the released 4M sampler
has a curve of the same name, they agree, except `cosine` where rounding made its last entry negative. Tensors
come from the caller: torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
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
    # rows and columns of a target's grid -> a number for each position, which is the noise that `order` gets;
    # None: that is random
    ranks: Callable[[int, int], tuple[int, ...]] | None = None


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


@lru_cache
def halton_order(rows: int, columns: int) -> tuple[int, ...]:
    """All positions of a grid, spread evenly from the first on: the cells of the Halton sequence.

    The radical inverses of 1, 2, 3, ... in base 2 and 3 are the row and the column; a cell counts once.
    """
    cells, index = dict[int, None](), 0
    while len(cells) < rows * columns:
        index += 1
        cells[_radical_inverse(index, 2, rows) * columns + _radical_inverse(index, 3, columns)] = None
    return tuple(cells)


def _radical_inverse(index: int, base: int, side: int) -> int:
    """The digits of an index, mirrored at the point, times a side, rounded down; exact."""
    mirrored, scale = 0, 1
    while index:
        index, digit = divmod(index, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * side // scale


@lru_cache
def halton_ranks(rows: int, columns: int) -> tuple[int, ...]:
    """The place of each position in the order."""
    order = halton_order(rows, columns)
    return tuple(sorted(range(len(order)), key=order.__getitem__))


SCHEMES: dict[str, Scheme] = {
    # MaskGIT (Chang et al. 2022, arXiv:2202.04200): ask for everything, keep what the model is surest of.
    "maskgit": Scheme("maskgit", _unknown_first, _most_confident_first),
    # Random order: ask for a few positions drawn at random, keep them all.
    "roar": Scheme("roar", _lowest_noise_first, equal_steps=True),
    # A fixed order (Besnier et al. 2025, arXiv:2503.17076). There, later steps draw decided positions again;
    # a 4M decoder predicts hidden positions only.
    "halton": Scheme("halton", _lowest_noise_first, ranks=halton_ranks),
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


def arccos_tokens(num_steps: int, total: int) -> list[int]:
    """Few tokens for most of the steps, very many in the last ones; zeros where there are too many steps."""
    shares = [1 - math.acos(i / num_steps) * 2 / math.pi for i in range(1, num_steps + 1)]
    done = [min(max(i, math.floor(total * share)), total) for i, share in enumerate(shares, 1)]
    return [b - a for a, b in pairwise([0, *done])]


# (steps, tokens) -> the number of tokens of each step
TOKEN_CURVES: dict[str, Callable[[int, int], list[int]]] = {
    "linear": linear_tokens,
    "cosine": cosine_tokens,
    "arccos": arccos_tokens,
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A row of a table of curves over the steps of a target."""

    values: Callable[..., list[float]]  # (value of the setting, tokens of each step, *arguments) -> of each
    arguments: tuple[str, ...] = ()  # their names
    rule: str = ""  # what they must be, and whether they are
    is_kept: Callable[..., bool] = bool


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


def _constant(value: float, counts: Sequence[int]) -> list[float]:
    return [value for _ in counts]


TEMPERATURE_CURVES = {
    "constant": Curve(_constant),
    "linear": Curve(linear_temperature),
    "onex": Curve(
        onex_temperature, ("lowest temperature", "power"), "positive",
        lambda low, power: low >= 0 and power >= 1e-6,
    ),
}  # fmt: skip


def linear_guidance(scale: float, counts: Sequence[int]) -> list[float]:
    """Goes in equal parts from 1, no guidance, in the first step to `scale` in the last."""
    return [scale * share + (1 - share) for share in _shares(counts)]


def interval_guidance(scale: float, counts: Sequence[int], first: float, last: float) -> list[float]:
    """`scale` in the steps whose share of the way is in [first, last]; no guidance in the others.

    Kynkäänniemi et al. 2024, arXiv:2404.07724.
    """
    return [scale if first <= share <= last else 1.0 for share in _shares(counts)]


def _shares(counts: Sequence[int]) -> list[float]:
    """How far along each step is: 0 for the first, 1 for the last; a single step is the last."""
    last = len(counts) - 1
    return [i / last for i in range(last + 1)] if last else [1.0]


GUIDANCE_CURVES = {
    "constant": Curve(_constant),
    "linear": Curve(linear_guidance),
    "interval": Curve(
        interval_guidance, ("first share", "last share"), "from 0 to 1, the smaller one first",
        lambda first, last: 0 <= first <= last <= 1,
    ),
}  # fmt: skip
CURVES = {"temperature": TEMPERATURE_CURVES, "guidance": GUIDANCE_CURVES}


def parse_curve(text: str, of: str) -> Callable[[float, Sequence[int]], list[float]]:
    """The curve of a text such as `linear` or `onex:0.5:0.5`; of: a key of `CURVES`.

    It maps the value of the setting and the tokens of each step to a value for each step.
    """
    table, (name, *parts) = CURVES[of], text.split(":")
    if name not in table:
        known = ", ".join(":".join([n, *curve.arguments]) for n, curve in table.items())
        close = near_match(name, table) or f"; known are {known}"
        raise UsageError(f"unknown {of} schedule '{text}'{close}")
    curve = table[name]
    try:
        arguments = tuple(float(part) for part, _ in zip(parts, curve.arguments, strict=True))
    except ValueError:
        wanted = f"{' and '.join(curve.arguments)}, as numbers," if curve.arguments else "nothing"
        raise UsageError(f"{of} schedule '{text}': {wanted} must stand behind '{name}'") from None
    if arguments and not (all(map(math.isfinite, arguments)) and curve.is_kept(*arguments)):
        raise UsageError(f"{of} schedule '{text}': its numbers must be {curve.rule}")
    return lambda value, counts: curve.values(value, counts, *arguments)
