"""Tokenizers that decode by diffusion: noise schedules, the steps of a run, and how each of them is made.

Steps are pure float32 arithmetic on tensors. `a` is always the cumulative product of (1 - beta), the share of
the clean signal in a noisy one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fourm.errors import CheckpointError, UsageError, near_match
from fourm.hub.header import TokenizerPart
from fourm.modalities.typed import to_type
from fourm.networks.graphs import Graphs
from fourm.networks.state import to_device
from fourm.networks.tokenizers.config import DiVAEConfig, Size
from fourm.networks.tokenizers.unet import UNETS, PatchedUNet, UNetShape
from fourm.networks.tokenizers.uvit import UVITS, UViT, UViTShape
from fourm.networks.tokenizers.vq import Tokenizer
from fourm.schedule.solvers import Solver, SolverStep, plan_steps

Decoder = PatchedUNet | UViT
Shape = TypeVar("Shape", UNetShape, UViTShape)
SHIFTED_COSINE = "shifted_cosine:"
_TIMES = 64  # timesteps embedded at once: more would take memory. On CPUs one, whose bits know no neighbours


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


class Timestep(NamedTuple):
    """One step of DDPM or DDIM."""

    timestep: int
    previous: int  # the one that it leads to; negative: the clean value


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a run remembers between steps."""

    x: Tensor  # (B, C, H, W)
    start: Tensor | None = None  # of solvers: what the step before began with, corrected
    predictions: tuple[Tensor, ...] = ()  # of solvers: clean values, the newest first


@dataclass(frozen=True, slots=True, eq=False)
class Sampler:
    """One way from noise to a value: DDPM (Ho et al. 2020) or DDIM (Song et al. 2021, arXiv:2010.02502).

    A solver can take the place of its own steps.
    """

    kind: str  # "ddpm", "ddim"
    alphas: Tensor  # (T,) cumulative, float32, on the CPU: steps use them as numbers
    prediction: str  # what the network predicts: `prediction_type` of a config
    clips: bool = False  # whether predicted clean values are clamped to [-1, 1]

    def plan(self, num_steps: int, solver: Solver | None = None) -> Sequence[Timestep | SolverStep]:
        """The steps of a run: those of a solver, or the sampler's own as the reference has them.

        DDIM's own are spaced as `trailing`, and more than `num_steps` where this does not divide the steps of
        training. UsageError: the steps cannot be as many. CheckpointError: the network's prediction does not
        determine the clean value at one of the timesteps.
        """
        count, steps = len(self.alphas), list[Timestep | SolverStep]()
        if not 1 <= num_steps <= count:
            raise UsageError(f"{num_steps} diffusion steps; this tokenizer has from 1 to {count:,}")
        if solver is not None:
            signal = self.alphas.double()
            steps += plan_steps(solver, ((1 - signal) / signal).sqrt().tolist(), num_steps)
        else:
            ratio = count // num_steps
            first = (num_steps - 1) * ratio if self.kind == "ddpm" else count - 1
            steps += [Timestep(t, t - ratio) for t in range(first, -1, -ratio)]
        for t in (step.timestep for step in steps if self.prediction == "epsilon"):
            if self.alphas[t] == 0:
                why = f"says nothing at timestep {t}, where no signal is left (zero_terminal_snr)"
                raise CheckpointError(f"prediction_type: 'epsilon' {why}")
        return steps

    def advance(
        self, output: Tensor, step: Timestep | SolverStep, state: State, draw: Callable[[], Tensor]
    ) -> State:
        """The state after a step of `plan`.

        output is the network's for `state.x`, (B, C, H, W); draw: see `step`.
        """
        if isinstance(step, Timestep):
            return State(self.step(output, step, state.x, draw)[0])
        clean, _ = self._predict(output, step.level.alpha, step.level.sigma, state.x)
        x, predictions = state.x, (clean, *state.predictions[:3])
        if step.corrector is not None and state.start is not None:
            x = step.corrector(state.start, predictions)
        return State(step.predictor(x, predictions), x, predictions)

    def step(
        self, output: Tensor, step: Timestep, x: Tensor, draw: Callable[[], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """From x (B, C, H, W) at a timestep to the previous one: the next x, and the clean value predicted.

        output is the network's. draw: gives fresh noise, standard normal float32 of x's shape, to the steps
        that take some, which are all of DDPM but the last.
        """
        x, a = x.float(), self.alphas[step.timestep]
        b = self.alphas[step.previous] if step.previous >= 0 else torch.tensor(1.0)
        clean, predicted = self._predict(output, a.sqrt(), (1 - a).sqrt(), x)
        if self.kind == "ddim":
            return b.sqrt() * clean + (1 - b).sqrt() * predicted, clean
        alpha = a / b
        beta = 1 - alpha
        after = (b.sqrt() * beta / (1 - a)) * clean + (alpha.sqrt() * (1 - b) / (1 - a)) * x
        if step.timestep == 0:
            return after, clean
        return after + ((1 - b) / (1 - a) * beta).clamp(min=1e-20).sqrt() * draw(), clean

    def _predict(
        self, output: Tensor, signal: Tensor | float, noise: Tensor | float, x: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `predict`, the clean value in range."""
        clean, predicted = predict(output.float(), signal, noise, x, self.prediction)
        return clean.clamp(-1, 1) if self.clips else clean, predicted


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
        return tensor.to(device, dtype, copy=True, memory_format=layout)

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
        planned = self.sampler.plan(steps, solver)
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

    def _decoded(self, decoder: Decoder, x: Tensor, time: Tensor, condition: Sequence[Tensor]) -> Tensor:
        """What the decoder predicts; where devices have them, by a captured graph."""

        def work(x: Tensor, time: Tensor, *condition: Tensor) -> Sequence[Tensor]:
            return [decoder(x, time, condition)]

        if self.graphs is None:
            return decoder(x, time, condition)
        shapes = tuple(one.shape for one in (x, time, *condition))
        return self.graphs.run((decoder, shapes), work, x, time, *condition)[0]


def _embed_times(decoder: Decoder, t: Tensor) -> Iterator[Tensor]:
    """(T,) -> what the decoder takes for each timestep, (1, E)."""
    for part in torch.split(t, 1 if t.device.type == "cpu" else _TIMES):
        yield from torch.split(decoder.embed_time(part), 1)


def make_sampler(config: DiVAEConfig) -> Sampler:
    """The steps that a config asks for."""
    with torch.device("cpu"):  # also where the network is built without memory
        alphas = cumulative_alphas(config.beta_schedule, config.num_train_timesteps, config.zero_terminal_snr)
    # Dynamic thresholding (Saharia et al. 2022, arXiv:2205.11487) with 1 as the largest value is a clamp.
    clips = config.thresholding or config.clip_sample
    return Sampler("ddpm" if config.scheduler == "ddpm" else "ddim", alphas, config.prediction_type, clips)


def check_steps(config: DiVAEConfig, steps: int, solver: Solver | None = None) -> None:
    """UsageError: a tokenizer cannot be decoded in this many steps. solver: in place of its own steps."""
    trained = config.num_train_timesteps
    if solver is None and trained % steps:  # DDIM would take more steps than are asked for
        divisors = [n for n in range(1, trained + 1) if trained % n == 0]
        near = (*[n for n in divisors if n < steps][-1:], *[n for n in divisors if n > steps][:1])
        what = f"the {trained:,} timesteps of the tokenizer cannot be spaced evenly"
        raise UsageError(f"{what}; {' or '.join(map(str, near))} would do")
    make_sampler(config).plan(steps, solver)


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
