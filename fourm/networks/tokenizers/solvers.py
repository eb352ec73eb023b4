"""Multistep solvers of a diffusion, DPM-Solver++ and UniPC: the noise levels of a run, its steps as sums.

At a level, x = alpha * clean + sigma * noise with alpha^2 + sigma^2 = 1; `ratio` is sigma / alpha, and lambda
-ln(ratio). A step is a weighted sum of x and of the clean values that the network predicted in this step and
those before. The weights depend on the levels alone and are float64. Where no signal is left (alpha = 0,
lambda = -inf: the first timestep of a schedule with zero terminal SNR) the formulas are taken in the limit.

Sources: DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095), UniPC (Zhao et al. 2023, arXiv:2302.04867), spacings
and zero terminal SNR (Lin et al. 2023, arXiv:2305.08891), levels of Karras et al. 2022 (arXiv:2206.00364).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fourm.errors import UsageError

_FEW_STEPS = 15  # with fewer, `lower_order_final` lowers the order of DPM-Solver++ at the end
_KARRAS_RHO = 7  # Karras et al. 2022, equation 5


@dataclass(frozen=True, slots=True)
class Solver:
    """A solver, its order, and the spacing of its timesteps."""

    variant: Literal["midpoint", "heun", "bh1", "bh2"]  # of DPM-Solver++ (order 2), of UniPC
    order: int = 2  # 1 to 3
    spacing: str = "trailing"  # of SPACINGS
    ends_clean: bool = True  # the last level is free of noise, else that of timestep 0
    lower_order_final: bool = True  # lower orders in the last steps are steadier when steps are few
    euler_at_final: bool = False  # order 1 in the last step of DPM-Solver++, whatever level it ends at

    @property
    def is_unipc(self) -> bool:
        """True where steps begin with a correction of the step before."""
        return self.variant.startswith("bh")


SOLVERS = {
    "dpm++": Solver("midpoint"), "dpm++1": Solver("midpoint", 1), "dpm++3": Solver("midpoint", 3),
    "unipc": Solver("bh2"), "unipc3": Solver("bh2", 3),
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


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a run remembers between steps."""

    x: Tensor  # (B, C, H, W)
    start: Tensor | None = None  # what the step before began with, corrected
    predictions: tuple[Tensor, ...] = ()  # clean values, the newest first


def advance(step: SolverStep, state: State, clean: Tensor) -> State:
    """The state after a step; clean: the clean value that the network predicted from `state.x`."""
    x, predictions = state.x, (clean, *state.predictions[:3])
    if step.corrector is not None and state.start is not None:
        x = step.corrector(state.start, predictions)
    return State(step.predictor(x, predictions), x, predictions)


def solver_named(text: str) -> Solver | None:
    """The solver of a name of SOLVERS, or `NAME:SPACING`; None for `ddim`, a tokenizer's own steps.

    KeyError: there is none; a request refuses such names.
    """
    if text == "ddim":
        return None
    name, colon, spacing = text.partition(":")
    solver = SOLVERS[name]
    if colon and spacing not in SPACINGS:
        raise KeyError(spacing)
    return replace(solver, spacing=spacing) if colon else solver


def plan_steps(solver: Solver, alphas: Tensor, count: int) -> list[SolverStep]:
    """The steps of a run of `count` evaluations; alphas: (T,), the cumulative alphas of the schedule.

    UsageError: as many steps cannot be made, because two of them would be at one level of noise.
    """
    if not 1 <= count <= len(alphas):
        raise UsageError(f"{count} diffusion steps; this tokenizer has from 1 to {len(alphas):,}")
    signal = alphas.double()
    all_ratios = ((1 - signal) / signal).sqrt().tolist()
    timesteps, ratios = SPACINGS[solver.spacing](all_ratios, count)
    levels = [Level(ratio) for ratio in (*ratios, 0.0 if solver.ends_clean else all_ratios[0])]
    if any(after.ratio >= before.ratio for before, after in pairwise(levels)):
        raise UsageError(f"{count:,} steps, spaced '{solver.spacing}', repeat a level of noise; take fewer")
    if solver.variant == "bh1" and math.isinf(levels[0].ratio):
        raise UsageError("bh1 has no limit where no signal is left; bh2 has")
    orders = plan_orders(solver, count)
    steps = list[SolverStep]()
    combine = _combine_unipc if solver.is_unipc else _combine_dpm
    for i, timestep in enumerate(timesteps):
        predictor, corrector = combine(solver.variant, levels[i + 1 :: -1], orders[i]), None
        if solver.is_unipc and i > 0:
            corrector = _combine_unipc(solver.variant, levels[i::-1], orders[i - 1], is_corrector=True)
        steps.append(SolverStep(timestep, levels[i], predictor, corrector))
    return steps


def plan_orders(solver: Solver, count: int) -> list[int]:
    """The order of each step: what the steps before it allow, and low at the end."""
    orders = [min(solver.order, i + 1) for i in range(count)]
    if solver.is_unipc and solver.lower_order_final:
        orders = [min(order, count - i) for i, order in enumerate(orders)]
    is_lowered = solver.lower_order_final and count < _FEW_STEPS and not solver.is_unipc
    if is_lowered:
        orders[-2:-1] = [min(order, 2) for order in orders[-2:-1]]
    # A step to a clean value gives the last prediction itself; formulas of higher order have no limit there.
    if solver.ends_clean or solver.euler_at_final or is_lowered:
        orders[-1] = 1
    return orders


def _combine_dpm(variant: str, levels: Sequence[Level], order: int) -> Sum:
    """A step of DPM-Solver++; levels: the one it ends at, the one it starts at, and those before it."""
    end, start = levels[:2]
    known = [level.log_ratio for level in levels[1 : order + 1]]
    h = end.log_ratio - known[0]
    gain = -math.expm1(-h)  # 1 - exp(-h)
    weights = np.array([gain, 0.0, 0.0])
    if order > 1:
        # Slopes of the predictions; those over an infinite distance vanish.
        r0 = (known[0] - known[1]) / h
        first = np.array([1.0, -1.0, 0.0]) / r0
        curved = 1 - gain / h  # (exp(-h) - 1) / h + 1
        if order == 2:
            weights += (gain / 2 if variant == "midpoint" else curved) * first
        else:
            r1 = (known[1] - known[2]) / h
            bend = (first - np.array([0.0, 1.0, -1.0]) / r1) / (r0 + r1)
            weights += curved * (first + r0 * bend) - ((h - gain) / h**2 - 0.5) * bend
    return Sum(end.sigma / start.sigma, tuple((end.alpha * weights).tolist()[:order]))


def _combine_unipc(variant: str, levels: Sequence[Level], order: int, is_corrector: bool = False) -> Sum:
    """A step of UniPC; levels: as for DPM-Solver++.

    A corrector also knows a prediction at the end, which comes first among its predictions.
    """
    end, start = levels[:2]
    known = [level.log_ratio for level in levels[1 : order + 1]]
    h = end.log_ratio - known[0]
    change = math.expm1(-h)
    scale = change if variant == "bh2" else -h
    at = [(before - known[0]) / h for before in known[1:]]  # places of predictions, 0 at start, 1 at end
    if is_corrector:
        at.insert(0, 1.0)
    slopes = [w * scale / place for w, place in zip(_unipc_weights(at, -h, scale), at, strict=True)]
    slopes.insert(int(is_corrector), change - math.fsum(slopes))
    return Sum(end.sigma / start.sigma, tuple(-end.alpha * slope for slope in slopes))


def _unipc_weights(at: Sequence[float], h: float, scale: float) -> list[float]:
    """Weights of the slopes towards predictions at these places; 0 for places at infinity."""
    if len(at) <= 1:
        return [0.5] * len(at)  # exact to the order that one slope can have (Zhao et al., section 3.3)
    near, moment, moments = [place for place in at if math.isfinite(place)], math.expm1(h) / h - 1, []
    for k in range(1, len(near) + 1):
        moments.append(math.factorial(k) * moment / scale)
        moment = moment / h - 1 / math.factorial(k + 1)
    found = iter(np.linalg.solve(np.vander(near, increasing=True).T, moments).tolist())
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
    return _at(np.linspace(0, len(ratios) - 1, count + 1).round().astype(int)[:0:-1].tolist(), ratios)


def _karras(ratios: Sequence[float], count: int) -> tuple[list[int], list[float]]:
    first, last = (end ** (1 / _KARRAS_RHO) for end in _ends(ratios))
    return _nearest(np.linspace(first, last, count) ** _KARRAS_RHO, ratios)


def _lu(ratios: Sequence[float], count: int) -> tuple[list[int], list[float]]:
    first, last = map(math.log, _ends(ratios))
    return _nearest(np.exp(np.linspace(first, last, count)), ratios)


def _ends(ratios: Sequence[float]) -> tuple[float, float]:
    """The largest finite ratio and the least."""
    return next(ratio for ratio in reversed(ratios) if math.isfinite(ratio)), ratios[0]


def _nearest(levels: NDArray[np.float64], ratios: Sequence[float]) -> tuple[list[int], list[float]]:
    """The timesteps nearest to levels, and the levels; the first is the schedule's last, signal or not."""
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    timesteps = np.interp(np.log(levels), np.log(finite), np.arange(len(finite))).round().astype(int)
    return [len(ratios) - 1, *timesteps.tolist()[1:]], [ratios[-1], *levels.tolist()[1:]]


# (ratio of every timestep, number of steps) -> timesteps, and their ratios, both from much noise to little.
SPACINGS: dict[str, Callable[[Sequence[float], int], tuple[list[int], list[float]]]] = {
    "trailing": _trailing, "leading": _leading, "linspace": _linspace, "karras": _karras, "lu": _lu,
}  # fmt: skip
