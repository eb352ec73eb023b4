"""Stepping of a latent diffusion: pseudo linear multisteps, and guidance with its rescale."""

import torch
from torch import Tensor

from fourm.errors import UsageError
from fourm.networks.tokenizers.diffusion import predict_noise

TRAINED_STEPS = 1000
_OFFSET = 1  # the last evaluation is at timestep 1, not 0
# Adams-Bashforth weights of the newest outputs, by how many there are; each row is divided by its sum.
_WEIGHTS = ((1,), (3, -1), (23, -16, 5), (55, -59, 37, -9))


def scaled_linear_signal(start: float = 0.00085, end: float = 0.012, steps: int = TRAINED_STEPS) -> Tensor:
    """(T,) float32: the share of the clean latent's variance left at each timestep, falling with it.

    The variances are squares of evenly spaced numbers; the defaults are those of Stable Diffusion 1.5.
    """
    betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32, device="cpu") ** 2
    return torch.cumprod(1.0 - betas, dim=0)


def plms_timesteps(steps: int, offset: int = _OFFSET) -> tuple[int, ...]:
    """The timesteps of the `steps + 1` evaluations, falling: the second one comes twice, as a correction.

    A single step is one evaluation. Steps lie in 1..999, else UsageError.
    """
    if not 1 <= steps < TRAINED_STEPS:
        raise UsageError(f"{steps} diffusion steps: must lie in 1..{TRAINED_STEPS - 1}")
    ratio = TRAINED_STEPS // steps
    falling = [i * ratio + offset for i in reversed(range(steps))]
    return tuple(falling[:2] + falling[1:])


class Plms:
    """One run of the pseudo linear multistep method (Liu et al. 2022, arXiv:2202.09778, PLMS).

    Call `step` once for each of `timesteps`, in order. After a first Euler step the second evaluation only
    corrects it (Heun); from the third on the last four outputs predict the next (Adams-Bashforth).
    `signal` is (T,) float32; `last_signal` stands for it behind the last step, by default its first entry.
    What the network predicts is one of `diffusion.PREDICTIONS`.
    """

    def __init__(
        self,
        signal: Tensor,
        steps: int,
        *,
        offset: int = _OFFSET,
        last_signal: float | None = None,
        prediction: str = "epsilon",
    ) -> None:
        self.timesteps = plms_timesteps(steps, offset)
        self._signal = signal
        self._last = signal[0] if last_signal is None else signal.new_tensor(last_signal)
        self._ratio = TRAINED_STEPS // steps
        self._prediction = prediction
        self._evaluation = 0
        self._outputs: list[Tensor] = []  # newest first
        self._start: Tensor | None = None

    def step(self, output: Tensor, x: Tensor) -> Tensor:
        """The sample after one evaluation: the network's output for x, and x itself -> x's shape, float32."""
        t = self.timesteps[self._evaluation]
        output, x = output.float(), x.float()
        if self._evaluation == 0:
            self._start = x
        if self._evaluation == 1 and self._start is not None:
            # The output at the end of the first step improves that step; it is not an output of its own.
            estimate, x, t = (output + self._outputs[0]) / 2, self._start, t + self._ratio
        else:
            self._outputs = [output, *self._outputs[:3]]
            estimate = _extrapolate(self._outputs)
        self._evaluation += 1
        return self._transfer(estimate, x, t)

    def _transfer(self, output: Tensor, x: Tensor, t: int) -> Tensor:
        """x at t -> x one ratio earlier (equation 9 of the paper, rearranged)."""
        now = self._signal[t]
        before = self._signal[t - self._ratio] if t >= self._ratio else self._last
        noise = predict_noise(output, now, x, self._prediction)
        scale = now * (1 - before).sqrt() + (now * (1 - now) * before).sqrt()
        return (before / now).sqrt() * x - (before - now) * noise / scale


def _extrapolate(outputs: list[Tensor]) -> Tensor:
    """One to four outputs, newest first -> what stands for them over the next step."""
    weights = _WEIGHTS[len(outputs) - 1]
    total = weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        total = total + weight * output
    return total * (1 / sum(weights))


def guide_noise(
    conditional: Tensor, unconditional: Tensor, scale: float | Tensor, rescale: float = 0.0
) -> Tensor:
    """Predicted noise (B, C, H, W) pushed away from the unconditional one by `scale`; 1 changes nothing.

    Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598). `rescale` in 0..1 mixes in the result
    with the standard deviation of the conditional one, sample by sample (Lin et al. 2023,
    arXiv:2305.08891, section 3.4).
    """
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0:
        return guided
    sides = tuple(range(1, guided.ndim))
    ratio = conditional.std(dim=sides, keepdim=True) / guided.std(dim=sides, keepdim=True)
    return rescale * (guided * ratio) + (1 - rescale) * guided
