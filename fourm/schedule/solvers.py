"""Multistep solvers of a diffusion, DPM-Solver++ and UniPC: the noise levels of a run, its steps as sums.

At a level, x = alpha * clean + sigma * noise with alpha^2 + sigma^2 = 1; `ratio` is sigma / alpha, and lambda
-ln(ratio). A step is a weighted sum of x and of the clean values that the network predicted in this step and
those before. The weights depend on the levels alone and are float64. Where no signal is left (alpha = 0,
lambda = -inf: the first timestep of a schedule with zero terminal SNR) the formulas are taken in the limit.
The last level is free of noise. Tensors come from the caller: torch is not imported, and numpy, which takes
0.1 s, only by functions that need it.

Sources: DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), UniPC (Zhao et al. 2023, arXiv:2302.04867), spacings
and zero terminal SNR (Lin et al. 2023, arXiv:2305.08891), levels of Karras et al. 2022 (arXiv:2206.00364).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from fourm.errors import UsageError, check_choice, near_match

if TYPE_CHECKING:
    from torch import Tensor

DDIM = "ddim"  # in place of a solver: a tokenizer's own steps, which are those of DDIM or DDPM
_FEW_STEPS = 15  # with fewer, the order of DPM-Solver++ is lowered at the end, which is steadier
_KARRAS_RHO = 7  # Karras et al. 2022, equation 5


@dataclass(frozen=True, slots=True)
class Solver:
    """A solver, its order, and the spacing of its timesteps."""

    is_unipc: bool  # UniPC with B(h) = exp(-h) - 1 (`bh2`); else DPM-Solver++ (midpoint)
    order: int  # 1 to 3
    spacing: str = "trailing"  # of SPACINGS


SOLVERS = {
    "dpm++": Solver(False, 2), "dpm++1": Solver(False, 1), "dpm++3": Solver(False, 3),
    "unipc": Solver(True, 2), "unipc3": Solver(True, 3),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Level:
    """How much noise there is."""

    ratio: float  # of noise to signal; inf: no signal, 0: no noise

    @property
    def alpha(self) -> float:
        """Factor of the clean value."""
        return 1 / math.hypot(self.ratio, 1)

    @property
    def sigma(self) -> float:
        """Factor of the noise."""
        return 1 / math.hypot(1 / self.ratio, 1) if self.ratio else 0.0

    @property
    def log_ratio(self) -> float:
        """Lambda: ln(alpha / sigma)."""
        return -math.log(self.ratio) if self.ratio else math.inf


@dataclass(frozen=True, slots=True)
class Sum:
    """A weighted sum: `x` of a running value, `predictions` of clean values, the newest first."""

    x: float
    predictions: tuple[float, ...]

    def __call__(self, x: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        """Tensors of one shape, at least as many predictions as weights -> their sum."""
        total = self.x * x
        for weight, prediction in zip(self.predictions, predictions, strict=False):
            total = total + weight * prediction
        return total


@dataclass(frozen=True, slots=True)
class SolverStep:
    """One evaluation of the network, and what becomes of it."""

    timestep: int  # that the network is told
    level: Level  # at which x is
    predictor: Sum  # of x and predictions: x at the next level
    corrector: Sum | None = None  # of the x that the step before began with: a better x at this level


def parse_solver(text: str) -> Solver | None:
    """The solver of a name of SOLVERS, or of NAME:SPACING; None for `ddim`. UsageError: it is neither."""
    name, colon, spacing = text.partition(":")
    check_choice("detokenizer_solver", name, (DDIM, *SOLVERS))
    if colon and name == DDIM:
        raise UsageError(f"`detokenizer_solver={text}`: only {', '.join(SOLVERS)} take a spacing")
    if colon and spacing not in SPACINGS:
        near = near_match(spacing, SPACINGS)
        raise UsageError(f"`detokenizer_solver={text}`: spacings are {', '.join(SPACINGS)}{near}")
    if name == DDIM:
        return None
    return replace(SOLVERS[name], spacing=spacing) if colon else SOLVERS[name]


def plan_steps(solver: Solver, ratios: Sequence[float], count: int) -> list[SolverStep]:
    """The steps of a run of `count` evaluations, from 1 to as many as there are timesteps.

    ratios: of noise to signal at every timestep of training, ascending; the last ones may be infinite.
    UsageError: as many steps cannot be made, because two of them would be at one level of noise.
    """
    timesteps, at = SPACINGS[solver.spacing](ratios, count)
    levels = [Level(ratio) for ratio in (*at, 0.0)]
    if any(after.ratio >= before.ratio for before, after in pairwise(levels)):
        raise UsageError(f"{count:,} steps, spaced '{solver.spacing}', repeat a level of noise; take fewer")
    orders, steps = plan_orders(solver, count), list[SolverStep]()
    combine = _combine_unipc if solver.is_unipc else _combine_dpm
    for i, timestep in enumerate(timesteps):
        predictor, corrector = combine(levels[i + 1 :: -1], orders[i]), None
        if solver.is_unipc and i > 0:
            corrector = _combine_unipc(levels[i::-1], orders[i - 1], is_corrector=True)
        steps.append(SolverStep(timestep, levels[i], predictor, corrector))
    return steps


def plan_orders(solver: Solver, count: int) -> list[int]:
    """The order of each step: what the steps before it allow, and low at the end.

    The last one is 1, for a step to a clean value gives the last prediction itself: formulas of higher order
    have no limit there.
    """
    orders = [min(solver.order, i + 1) for i in range(count)]
    if solver.is_unipc:
        return [min(order, count - i) for i, order in enumerate(orders)]
    if count < _FEW_STEPS:
        orders[-2:-1] = [min(order, 2) for order in orders[-2:-1]]
    return [*orders[:-1], 1]


def _combine_dpm(levels: Sequence[Level], order: int) -> Sum:
    """A step of DPM-Solver++; levels: the one it ends at, the one it starts at, and those before it."""
    end, start = levels[:2]
    known = [level.log_ratio for level in levels[1 : order + 1]]
    h = end.log_ratio - known[0]
    gain = -math.expm1(-h)  # 1 - exp(-h)
    weights = [gain]
    if order > 1:
        # Slopes of the predictions; those over an infinite distance vanish.
        r0 = (known[0] - known[1]) / h
        first = (1 / r0, -1 / r0, 0.0)
        if order == 2:
            weights = [gain + gain / 2 * first[0], gain / 2 * first[1]]
        else:
            r1 = (known[1] - known[2]) / h
            bends = [(a - b / r1) / (r0 + r1) for a, b in zip(first, (0.0, 1.0, -1.0), strict=True)]
            slope, curve = 1 - gain / h, (h - gain) / h**2 - 0.5  # slope: (exp(-h) - 1) / h + 1
            changes = [slope * (a + r0 * bend) - curve * bend for a, bend in zip(first, bends, strict=True)]
            weights = [gain + changes[0], *changes[1:]]
    return Sum(end.sigma / start.sigma, tuple(end.alpha * weight for weight in weights))


def _combine_unipc(levels: Sequence[Level], order: int, is_corrector: bool = False) -> Sum:
    """A step of UniPC; levels: as for DPM-Solver++.

    A corrector also knows a prediction at the end, which comes first among its predictions.
    """
    end, start = levels[:2]
    known = [level.log_ratio for level in levels[1 : order + 1]]
    h = end.log_ratio - known[0]
    change = math.expm1(-h)
    at = [(before - known[0]) / h for before in known[1:]]  # places of predictions, 0 at start, 1 at end
    if is_corrector:
        at.insert(0, 1.0)
    slopes = [weight * change / place for weight, place in zip(_unipc_weights(at, -h), at, strict=True)]
    slopes.insert(int(is_corrector), change - math.fsum(slopes))
    return Sum(end.sigma / start.sigma, tuple(-end.alpha * slope for slope in slopes))


def _unipc_weights(at: Sequence[float], h: float) -> list[float]:
    """Weights of the slopes towards predictions at these places; 0 for places at infinity."""
    import numpy as np

    if len(at) <= 1:
        return [0.5] * len(at)  # exact to the order that one slope can have (Zhao et al., section 3.3)
    places, scale = [place for place in at if math.isfinite(place)], math.expm1(h)
    moment, moments = scale / h - 1, list[float]()
    for k in range(1, len(places) + 1):
        moments.append(math.factorial(k) * moment / scale)
        moment = moment / h - 1 / math.factorial(k + 1)
    found = iter(np.linalg.solve(np.vander(places, increasing=True).T, moments).tolist())
    return [next(found) if math.isfinite(place) else 0.0 for place in at]


def _at(timesteps: Sequence[int], ratios: Sequence[float]) -> tuple[list[int], list[float]]:
    return list(timesteps), [ratios[t] for t in timesteps]


def _trailing(ratios: Sequence[float], count: int) -> tuple[list[int], list[float]]:
    total = len(ratios)
    return _at([round(total - k * total / count) - 1 for k in range(count)], ratios)


def _leading(ratios: Sequence[float], count: int) -> tuple[list[int], list[float]]:
    gap = len(ratios) // (count + 1)
    return _at([(count - k) * gap for k in range(count)], ratios)


def _linspace(ratios: Sequence[float], count: int) -> tuple[list[int], list[float]]:
    import numpy as np

    return _at(np.linspace(0, len(ratios) - 1, count + 1).round().astype(int)[:0:-1].tolist(), ratios)


def _karras(ratios: Sequence[float], count: int) -> tuple[list[int], list[float]]:
    import numpy as np

    first, last = (end ** (1 / _KARRAS_RHO) for end in _ends(ratios))
    return _nearest((np.linspace(first, last, count) ** _KARRAS_RHO).tolist(), ratios)


def _lu(ratios: Sequence[float], count: int) -> tuple[list[int], list[float]]:
    import numpy as np

    first, last = map(math.log, _ends(ratios))
    return _nearest(np.exp(np.linspace(first, last, count)).tolist(), ratios)


def _ends(ratios: Sequence[float]) -> tuple[float, float]:
    """The largest finite ratio and the least."""
    return next(ratio for ratio in reversed(ratios) if math.isfinite(ratio)), ratios[0]


def _nearest(levels: Sequence[float], ratios: Sequence[float]) -> tuple[list[int], list[float]]:
    """The timesteps whose logarithms are nearest, and the levels; the first is the schedule's last."""
    logs = [math.log(ratio) for ratio in ratios if math.isfinite(ratio)]
    timesteps = [len(ratios) - 1]
    for level in levels[1:]:
        log = math.log(level)
        above = min(bisect_left(logs, log), len(logs) - 1)
        below = max(above - 1, 0)
        timesteps.append(above if logs[above] - log < log - logs[below] else below)
    return timesteps, [ratios[-1], *levels[1:]]


# (ratio of every timestep, number of steps) -> timesteps, and their ratios, both from much noise to little.
SPACINGS: dict[str, Callable[[Sequence[float], int], tuple[list[int], list[float]]]] = {
    "trailing": _trailing, "leading": _leading, "linspace": _linspace, "karras": _karras, "lu": _lu,
}  # fmt: skip
