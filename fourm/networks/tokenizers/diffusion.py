"""Gaussian diffusion: noise schedules, timesteps, and the DDPM and DDIM steps from noise to a value.

Pure float32 arithmetic on tensors; networks come from elsewhere. `a` is always the cumulative product of
(1 - beta), the share of the clean signal in a noisy one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fourm.errors import CheckpointError, UsageError, near_match

BETA_START, BETA_END = 1e-4, 0.02
SHIFTED_COSINE = "shifted_cosine:"
PREDICTIONS = ("sample", "epsilon", "v_prediction")
MODES = ("trailing", "leading", "linspace")
_MAX_LOG_SNR = 15.0


# ---- noise schedules


def cumulative_alphas(name: str, num_steps: int, zero_terminal_snr: bool = True) -> Tensor:
    """(T,) float32 for a schedule of this name.

    `zero_terminal_snr` rescales it so that nothing of the signal is left at the last step (Lin et al. 2023,
    arXiv:2305.08891). `shifted_cosine:s` ends there anyway; s below 1 is less noisy (Hoogeboom et al. 2023,
    arXiv:2301.11093).
    """
    if name.startswith(SHIFTED_COSINE):
        return _shifted_cosine(name, num_steps)
    if name not in _BETAS:
        near = near_match(name, _BETAS)
        raise CheckpointError(
            f"beta_schedule: '{name}' is not one of {', '.join(_BETAS)}, {SHIFTED_COSINE}S{near}"
        )
    betas = _BETAS[name](num_steps)
    return (1 - (_without_terminal_signal(betas) if zero_terminal_snr else betas)).cumprod(0)


def _shifted_cosine(name: str, num_steps: int) -> Tensor:
    text = name.removeprefix(SHIFTED_COSINE)
    try:
        shift = float(text)
    except ValueError:
        shift = 0.0
    if not 0 < shift < math.inf:
        raise CheckpointError(f"beta_schedule: '{name}' needs a number above 0 after the colon")
    # Times are rounded to float32 first: the recorded schedules are.
    times = torch.linspace(0, 1, num_steps).double()
    log_snr = -2 * ((torch.pi * times / 2).tan().log() + math.log(shift))
    alphas = log_snr.clamp(-_MAX_LOG_SNR, _MAX_LOG_SNR).float().sigmoid()
    alphas[-1] = 0
    return alphas


def _without_terminal_signal(betas: Tensor) -> Tensor:
    """Betas whose cumulative product is shifted and stretched to end at 0 and begin as before."""
    roots = (1 - betas).cumprod(0).sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    alphas = ((roots - last) * (first / (first - last))) ** 2
    return 1 - torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])


def _squared_cosine(num_steps: int) -> Tensor:
    def signal(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    ratios = (signal((i + 1) / num_steps) / signal(i / num_steps) for i in range(num_steps))
    return torch.tensor([min(1 - ratio, 0.999) for ratio in ratios])


_BETAS: dict[str, Callable[[int], Tensor]] = {
    "linear": lambda n: torch.linspace(BETA_START, BETA_END, n),
    "scaled_linear": lambda n: torch.linspace(BETA_START**0.5, BETA_END**0.5, n) ** 2,
    "squaredcos_cap_v2": _squared_cosine,
    "sigmoid": lambda n: torch.linspace(-6, 6, n).sigmoid() * (BETA_END - BETA_START) + BETA_START,
}


# ---- timesteps


def timesteps(
    kind: str, num_train_steps: int, num_steps: int, mode: str = "trailing", offset: int = 0
) -> list[int]:
    """The timesteps of a run, from noise to value, as the reference has them.

    `ddpm` knows one spacing; `ddim` has three modes. `trailing` takes more than `num_steps` where this does
    not divide the steps of training.
    """
    if not 1 <= num_steps <= num_train_steps:
        raise UsageError(f"{num_steps} diffusion steps; this tokenizer has from 1 to {num_train_steps:,}")
    if mode not in MODES:
        raise UsageError(f"timesteps '{mode}' are not one of {', '.join(MODES)}{near_match(mode, MODES)}")
    ratio = num_train_steps // num_steps
    if kind == "ddpm" or mode == "leading":
        spaced = [i * ratio for i in reversed(range(num_steps))]
    elif mode == "trailing":
        spaced = list(range(num_train_steps - 1, -1, -ratio))
    else:
        points = torch.linspace(num_train_steps, 1, num_steps, dtype=torch.float64)
        spaced = [int(t) - 1 for t in points.round()]
    return [t + (0 if kind == "ddpm" else offset) for t in spaced]


# ---- single steps


@dataclass(frozen=True, slots=True)
class Clipping:
    """How a predicted clean value is kept in range: not at all, clamped, or by dynamic thresholds.

    The latter (Saharia et al. 2022, arXiv:2205.11487) is a clamp to [-1, 1] as long as `max_value` is 1.
    """

    kind: str = "none"  # "none", "clamp", "dynamic"
    limit: float = 1.0  # of a clamp
    ratio: float = 0.995  # of the values that a dynamic threshold leaves inside
    max_value: float = 1.0  # of a dynamic threshold

    def __call__(self, x: Tensor) -> Tensor:
        """(B, ...) -> the same, in range."""
        if self.kind == "none":
            return x
        if self.kind == "clamp" or self.max_value == 1:
            limit = self.limit if self.kind == "clamp" else 1.0
            return x.clamp(-limit, limit)
        flat = x.flatten(1)
        bound = flat.abs().quantile(self.ratio, dim=1, keepdim=True).clamp(1, self.max_value)
        return (flat.clamp(-bound, bound) / bound).view_as(x)


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """One way from noise to a value: DDPM (Ho et al. 2020) or DDIM (Song et al. 2021, arXiv:2010.02502)."""

    kind: str  # "ddpm", "ddim"
    alphas: Tensor  # (T,) cumulative, float32, on the CPU: steps use them as numbers
    prediction: str  # one of PREDICTIONS
    clipping: Clipping = Clipping()
    eta: float = 0.0  # DDIM: share of fresh noise
    reuse_clipped: bool = False  # DDIM: the noise is that of the clipped prediction
    ends_clean: bool = True  # DDIM: before the first timestep lies the clean value, not the first alpha
    variance: str = "fixed_small"  # DDPM: "fixed_small", "fixed_small_log", "fixed_large"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise CheckpointError(
                f"prediction_type: '{self.prediction}' is not one of {', '.join(PREDICTIONS)}"
                f"{near_match(self.prediction, PREDICTIONS)}"
            )

    def check(self, t: int) -> None:
        """Refuse a timestep at which the network's prediction does not determine the clean value."""
        if self.prediction == "epsilon" and self.alphas[t] == 0:
            raise CheckpointError(
                f"prediction_type: 'epsilon' says nothing at timestep {t}, where no signal is left "
                "(zero_terminal_snr)"
            )

    def draws_at(self, t: int) -> bool:
        """True where a step takes fresh noise."""
        return t > 0 if self.kind == "ddpm" else self.eta > 0

    def step(
        self, output: Tensor, t: int, previous: int, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """From x (B, C, H, W) at timestep t to the previous one: the next x, and the clean value predicted.

        output is the network's; a negative `previous` is the clean value; noise is standard normal, of x's
        shape, for steps that take some (`draws_at`), which are a ValueError without it.
        """
        output, x = output.float(), x.float()
        a = self.alphas[t]
        self.check(t)
        clean = self.clipping(predict_clean(output, a, x, self.prediction))
        step = self._ddpm if self.kind == "ddpm" else self._ddim
        after, spread = step(output, clean, a, t, previous, x)
        if spread is None:
            return after, clean
        if noise is None:
            raise ValueError(f"the step from timestep {t} takes fresh noise, and none was given")
        return after + spread * noise.float(), clean

    def _ddim(
        self, output: Tensor, clean: Tensor, a: Tensor, t: int, previous: int, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        b = self._alpha(previous, 1.0 if self.ends_clean else float(self.alphas[0]))
        if self.reuse_clipped:
            noise = (x - a.sqrt() * clean) / (1 - a).sqrt()
        else:
            noise = predict_noise(output, a, x, self.prediction)
        sigma = self.eta * ((1 - b) / (1 - a) * (1 - a / b)).sqrt()
        after = b.sqrt() * clean + (1 - b - sigma**2).sqrt() * noise
        return after, sigma if self.eta > 0 else None

    def _ddpm(
        self, output: Tensor, clean: Tensor, a: Tensor, t: int, previous: int, x: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        b = self._alpha(previous, 1.0)
        alpha = a / b
        beta = 1 - alpha
        after = (b.sqrt() * beta / (1 - a)) * clean + (alpha.sqrt() * (1 - b) / (1 - a)) * x
        if t == 0:
            return after, None
        if self.variance == "fixed_large":
            return after, beta.sqrt()
        variance = ((1 - b) / (1 - a) * beta).clamp(min=1e-20)
        return after, (0.5 * variance.log()).exp() if self.variance == "fixed_small_log" else variance.sqrt()

    def _alpha(self, t: int, before_first: float) -> Tensor:
        return self.alphas[t] if t >= 0 else torch.tensor(before_first)


def predict_clean(output: Tensor, a: Tensor, x: Tensor, prediction: str) -> Tensor:
    """The clean value that a network's output stands for; a broadcasts over x (B, C, H, W)."""
    if prediction == "sample":
        return output
    if prediction == "epsilon":
        return (x - (1 - a).sqrt() * output) / a.sqrt()
    return a.sqrt() * x - (1 - a).sqrt() * output


def predict_noise(output: Tensor, a: Tensor, x: Tensor, prediction: str) -> Tensor:
    """The noise in x that a network's output stands for."""
    if prediction == "epsilon":
        return output
    if prediction == "sample":
        return (x - a.sqrt() * output) / (1 - a).sqrt()
    return a.sqrt() * output + (1 - a).sqrt() * x


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """t () or (B,) -> (1 or B, dim) float32: cosines, then sines, of t at dim / 2 frequencies."""
    half = dim // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.reshape(-1, 1).float() * (-math.log(10000) * exponents).exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
