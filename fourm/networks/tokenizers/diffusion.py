"""Tokenizers that decode by diffusion: noise schedules, timesteps, DDPM and DDIM steps, the loop over steps.

Steps are pure float32 arithmetic on tensors. `a` is always the cumulative product of (1 - beta), the share of
the clean signal in a noisy one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import NoneType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from fourm.errors import CheckpointError, UsageError, near_match
from fourm.hub.header import TokenizerPart
from fourm.modalities.typed import to_type
from fourm.networks.graphs import Graphs
from fourm.networks.state import to_device
from fourm.networks.tokenizers.config import DiVAEConfig, Size
from fourm.networks.tokenizers.solvers import Solver, SolverStep, State, advance, plan_steps
from fourm.networks.tokenizers.unet import UNETS, PatchedUNet, UNetShape
from fourm.networks.tokenizers.uvit import UVITS, UViT, UViTShape
from fourm.networks.tokenizers.vq import Tokenizer

Decoder = PatchedUNet | UViT
Shape = TypeVar("Shape", UNetShape, UViTShape)
SHIFTED_COSINE = "shifted_cosine:"
_TIMES = 64  # timesteps embedded at once: more would take memory. On CPUs one, whose bits know no neighbours
MODES = ("trailing", "leading", "linspace")


def cumulative_alphas(name: str, num_steps: int, zero_terminal_snr: bool = True) -> Tensor:
    """(T,) float32 for a schedule of this name.

    `zero_terminal_snr` rescales it so that nothing of the signal is left at the last step (Lin et al. 2023,
    arXiv:2305.08891). `shifted_cosine:s` ends there anyway; s below 1 is less noisy (Hoogeboom et al. 2023,
    arXiv:2301.11093).
    """
    if name.startswith(SHIFTED_COSINE):
        try:
            shift = float(name.removeprefix(SHIFTED_COSINE))
        except ValueError:
            shift = 0.0
        if not 0 < shift < math.inf:
            raise CheckpointError(f"beta_schedule: '{name}' needs a number above 0 after the colon")
        # Times are rounded to float32 first: the recorded schedules are.
        times = torch.linspace(0, 1, num_steps).double()
        log_snr = -2 * ((torch.pi * times / 2).tan().log() + math.log(shift))
        alphas = log_snr.clamp(-15, 15).float().sigmoid()
        alphas[-1] = 0
        return alphas
    if name not in _BETAS:
        known = f"{', '.join(_BETAS)}, {SHIFTED_COSINE}S{near_match(name, _BETAS)}"
        raise CheckpointError(f"beta_schedule: '{name}' is not one of {known}")
    betas = _BETAS[name](num_steps)
    if zero_terminal_snr:  # shift and stretch the cumulative product to end at 0 and begin as before
        roots = (1 - betas).cumprod(0).sqrt()
        first, last = roots[0].clone(), roots[-1].clone()
        alphas = ((roots - last) * (first / (first - last))) ** 2
        betas = 1 - torch.cat([alphas[:1], alphas[1:] / alphas[:-1]])
    return (1 - betas).cumprod(0)


def _squared_cosine(num_steps: int) -> Tensor:
    times = ((i / num_steps + 0.008) / 1.008 for i in range(num_steps + 1))
    signals = pairwise(math.cos(time * math.pi / 2) ** 2 for time in times)
    return torch.tensor([min(1 - after / before, 0.999) for before, after in signals])


_BETAS: dict[str, Callable[[int], Tensor]] = {
    "linear": lambda n: torch.linspace(1e-4, 0.02, n),
    "scaled_linear": lambda n: torch.linspace(1e-4**0.5, 0.02**0.5, n) ** 2,
    "squaredcos_cap_v2": _squared_cosine,
    "sigmoid": lambda n: torch.linspace(-6, 6, n).sigmoid() * (0.02 - 1e-4) + 1e-4,
}


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
        if self.kind != "dynamic":
            return x if self.kind == "none" else x.clamp(-self.limit, self.limit)
        if self.max_value == 1:
            return x.clamp(-1, 1)
        flat = x.flatten(1)
        bound = flat.abs().quantile(self.ratio, dim=1, keepdim=True).clamp(1, self.max_value)
        return (flat.clamp(-bound, bound) / bound).view_as(x)


class Timestep(NamedTuple):
    """One step of DDPM or DDIM."""

    timestep: int
    previous: int  # the one that it leads to; negative: the clean value


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """One way from noise to a value: DDPM (Ho et al. 2020) or DDIM (Song et al. 2021, arXiv:2010.02502)."""

    kind: str  # "ddpm", "ddim"
    alphas: Tensor  # (T,) cumulative, float32, on the CPU: steps use them as numbers
    prediction: str  # what the network predicts: `prediction_type` of a config
    clipping: Clipping = Clipping()
    mode: str = "trailing"  # of MODES: how DDIM spaces its timesteps; DDPM knows one way

    def timesteps(self, num_steps: int) -> list[Timestep]:
        """The timesteps as the reference has them.

        `trailing` takes more than `num_steps` where this does not divide the steps of training. A timestep at
        which the network's prediction does not determine the clean value is a CheckpointError.
        """
        count = len(self.alphas)
        if not 1 <= num_steps <= count:
            raise UsageError(f"{num_steps} diffusion steps; this tokenizer has from 1 to {count:,}")
        if self.mode not in MODES:
            near = near_match(self.mode, MODES)
            raise UsageError(f"timesteps '{self.mode}' are not one of {', '.join(MODES)}{near}")
        ratio = count // num_steps
        if self.kind == "ddpm" or self.mode == "leading":
            times = [i * ratio for i in reversed(range(num_steps))]
        elif self.mode == "trailing":
            times = list(range(count - 1, -1, -ratio))
        else:
            times = [int(t) - 1 for t in torch.linspace(count, 1, num_steps, dtype=torch.float64).round()]
        self._check_signal(times)
        return [Timestep(t, t - ratio) for t in times]

    def plan(self, solver: Solver, num_steps: int) -> list[SolverStep]:
        """The steps of a solver that takes the place of this sampler's own; errors as of `timesteps`."""
        steps = plan_steps(solver, self.alphas, num_steps)
        self._check_signal([step.timestep for step in steps])
        return steps

    def advance(
        self, output: Tensor, step: Timestep | SolverStep, state: State, draw: Callable[[], Tensor]
    ) -> State:
        """The state after a step of `timesteps` or `plan`; output: the network's for `state.x`, (B, C, H, W).

        draw: gives fresh noise to the steps that take some.
        """
        if isinstance(step, SolverStep):
            signal, noise = step.level.alpha, step.level.sigma
            clean, _ = predict(output.float(), signal, noise, state.x, self.prediction)
            return advance(step, state, self.clipping(clean))
        fresh = draw() if self.draws_at(step.timestep) else None
        return State(self.step(output, step.timestep, step.previous, state.x, fresh)[0])

    def _check_signal(self, times: Sequence[int]) -> None:
        for t in times if self.prediction == "epsilon" else ():
            if self.alphas[t] == 0:
                why = f"says nothing at timestep {t}, where no signal is left (zero_terminal_snr)"
                raise CheckpointError(f"prediction_type: 'epsilon' {why}")

    def draws_at(self, t: int) -> bool:
        """True where a step takes fresh noise."""
        return self.kind == "ddpm" and t > 0

    def step(
        self, output: Tensor, t: int, previous: int, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """From x (B, C, H, W) at timestep t to the previous one: the next x, and the clean value predicted.

        output is the network's; a negative `previous` is the clean value; noise is standard normal, of x's
        shape; without it, steps that take some (`draws_at`) are a ValueError.
        """
        output, x, a = output.float(), x.float(), self.alphas[t]
        b = self.alphas[previous] if previous >= 0 else torch.tensor(1.0)
        clean, predicted = predict(output, a.sqrt(), (1 - a).sqrt(), x, self.prediction)
        clean = self.clipping(clean)
        if self.kind == "ddim":
            return b.sqrt() * clean + (1 - b).sqrt() * predicted, clean
        alpha = a / b
        beta = 1 - alpha
        after = (b.sqrt() * beta / (1 - a)) * clean + (alpha.sqrt() * (1 - b) / (1 - a)) * x
        if t == 0:
            return after, clean
        if noise is None:
            raise ValueError(f"the step from timestep {t} takes fresh noise, and none was given")
        return after + ((1 - b) / (1 - a) * beta).clamp(min=1e-20).sqrt() * noise.float(), clean


def predict(
    output: Tensor, signal: Tensor | float, noise: Tensor | float, x: Tensor, prediction: str
) -> tuple[Tensor, Tensor]:
    """The clean value, and the noise in x = signal * clean + noise * noise, that a network's output means.

    prediction: "sample", "epsilon" or "v_prediction" (Salimans and Ho 2022, arXiv:2202.00512).
    """
    if prediction == "sample":
        return output, (x - signal * output) / noise
    if prediction == "epsilon":
        return (x - noise * output) / signal, output
    return signal * x - noise * output, signal * output + noise * x


class DiVAE(Tokenizer):
    """Decodes by diffusion: tokens -> lookup (B, L, h, w) -> (B, C, H, W), one decoder run a step."""

    config: DiVAEConfig

    def __init__(self, config: DiVAEConfig, part: TokenizerPart = TokenizerPart.WHOLE) -> None:
        if part is TokenizerPart.ENCODER and not config.has_encoder:
            raise CheckpointError("has_encoder: false, so that nothing here turns values into tokens")
        super().__init__(config, part if config.has_encoder else TokenizerPart.DECODER)
        self.sampler = make_sampler(config)
        self.graphs: Graphs | None = None  # where devices have them, the decoder is captured there
        self.decoder: Decoder | None = None
        if part is not TokenizerPart.ENCODER:
            sizes = (config.n_channels, config.latent_dim)
            if "unet_" in config.dec_type:
                self.decoder = PatchedUNet(_shape(UNETS, UNetShape, config), *sizes)
            else:
                self.decoder = UViT(_shape(UVITS, UViTShape, config), *sizes, config.conditioning)

    def converted(self, name: str, tensor: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
        """The decoder is copied, its convolutions with channels last: else each step would reorder them."""
        if not name.startswith("decoder."):
            return super().converted(name, tensor, device, dtype)
        layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        return tensor.to(device, self.dtype_of(name, dtype), copy=True, memory_format=layout)

    def output_shape(self, grid: Size) -> tuple[int, int, int]:
        """(C, H, W) of the value of a grid (h, w) of tokens."""
        height, width = (n * pixels for n, pixels in zip(grid, self.config.patch_size, strict=True))
        return self.config.n_channels, height, width

    def sample(
        self, tokens: Tensor, draws: Callable[[int], Tensor], steps: int, size: Size | None = None,
        solver: Solver | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The running value (B, C, H, W) float32 after every step; the last one is the result.

        tokens (B, h, w) int64, or latents (B, L, h, w) as `lookup` gives them. draws(0) is the noise to begin
        with, (B, C, H, W) standard normal; draws(1), draws(2), ... are those of the DDPM steps that take
        some. size is (H, W) in pixels, by default the grid's. solver replaces the steps of `sampler`. Wrong
        arguments are refused before any draw.
        """
        if (decoder := self.decoder) is None:
            raise ValueError("this tokenizer was built without a decoder")
        planned: Sequence[Timestep | SolverStep] = (
            self.sampler.plan(solver, steps) if solver else self.sampler.timesteps(steps)
        )
        quant = tokens if tokens.ndim == 4 and tokens.is_floating_point() else self.lookup(tokens)
        if (found := quant.shape[1]) != (wanted := self.config.latent_dim):
            raise ValueError(f"latents have {found} channels; this tokenizer has {wanted}")
        channels, *sides = self.output_shape((int(quant.shape[-2]), int(quant.shape[-1])))
        height, width = size or sides
        if min(height, width) < 1 or height % decoder.multiple or width % decoder.multiple:
            raise ValueError(f"sides must be multiples of {decoder.multiple} pixels, not {height} x {width}")
        shape = (len(quant), channels, height, width)

        def draw(index: int) -> Tensor:
            noise = to_device(draws(index).float(), quant.device)
            if noise.shape != shape:
                raise ValueError(f"noise is {tuple(noise.shape)}, not {shape}")
            return noise

        def run() -> Iterator[Tensor]:
            state = State(draw(0))
            times = to_device(torch.tensor([step.timestep for step in planned]), quant.device)
            embedded = _embed_times(decoder, times)
            with torch.no_grad():
                condition = decoder.condition(quant, (height, width))
            for index, step in enumerate(planned):
                with torch.no_grad():
                    output = self._decoded(decoder, state.x, next(embedded), condition)
                    state = self.sampler.advance(output, step, state, partial(draw, index + 1))
                yield state.x

        return run()  # a generator of its own, so that the checks do not wait for the first step

    def _decoded(self, decoder: Decoder, x: Tensor, time: Tensor, condition: Any) -> Tensor:
        """What the decoder predicts; where it pays, as a captured graph."""
        leaves, structure = tree_flatten(condition)
        if self.graphs is None or not all(isinstance(leaf, Tensor | NoneType) for leaf in leaves):
            return decoder(x, time, condition)
        places = [index for index, leaf in enumerate(leaves) if leaf is not None]

        def work(x: Tensor, time: Tensor, *tensors: Tensor) -> Sequence[Tensor]:
            given = dict(zip(places, tensors, strict=True))
            whole = tree_unflatten([given.get(index) for index in range(len(leaves))], structure)
            return [decoder(x, time, whole)]

        tensors = [leaves[index] for index in places]
        shapes = tuple(tuple(one.shape) for one in (x, time, *tensors))
        return self.graphs.run((id(decoder), shapes), work, x, time, *tensors)[0]

    def decode_tokens(
        self, tokens: Tensor, draws: Callable[[int], Tensor], steps: int, size: Size | None = None
    ) -> Tensor:
        """The result of `sample`."""
        *_, last = self.sample(tokens, draws, steps, size)
        return last


def _embed_times(decoder: Decoder, t: Tensor) -> Iterator[Tensor]:
    """(T,) -> what the decoder takes for each timestep, (1, E)."""
    for part in torch.split(t, 1 if t.device.type == "cpu" else _TIMES):
        yield from torch.split(decoder.embed_time(part), 1)


def make_sampler(config: DiVAEConfig) -> Sampler:
    """The steps that a config asks for."""
    clipping = Clipping("dynamic" if config.thresholding else "clamp" if config.clip_sample else "none")
    with torch.device("cpu"):  # also where the network is built without memory
        alphas = cumulative_alphas(config.beta_schedule, config.num_train_timesteps, config.zero_terminal_snr)
    return Sampler("ddpm" if config.scheduler == "ddpm" else "ddim", alphas, config.prediction_type, clipping)


def check_steps(config: DiVAEConfig, steps: int, solver: Solver | None = None) -> None:
    """UsageError: a tokenizer cannot be decoded in this many steps. solver: in place of its own steps."""
    sampler, trained = make_sampler(config), config.num_train_timesteps
    if solver is not None:
        sampler.plan(solver, steps)
        return
    if trained % steps:  # `trailing` would take more steps than are asked for
        divisors = [n for n in range(1, trained + 1) if trained % n == 0]
        near = (*[n for n in divisors if n < steps][-1:], *[n for n in divisors if n > steps][:1])
        what = f"the {trained:,} timesteps of the tokenizer cannot be spaced evenly"
        raise UsageError(f"{what}; {' or '.join(map(str, near))} would do")
    sampler.timesteps(steps)


def _shape(named: Mapping[str, Shape], kind: type[Shape], config: DiVAEConfig) -> Shape:
    """The sizes of a decoder: those that the config lists, else those of its name."""
    if config.dec_structure is None:
        if config.dec_type not in named:
            near = near_match(config.dec_type, (*UNETS, *UVITS))
            raise CheckpointError(f"dec_type: unknown decoder '{config.dec_type}'{near}")
        return named[config.dec_type]
    sizes = dict(config.dec_structure)
    if kind is UViTShape and type(count := sizes.get("layers_per_block", 2)) is int:  # for all levels
        levels = sizes.get("block_out_channels", UViTShape().block_out_channels)
        sizes["layers_per_block"] = [count] * (len(levels) if isinstance(levels, list | tuple) else 1)
    return to_type(kind, sizes, "dec_structure", error=CheckpointError)
