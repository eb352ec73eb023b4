"""A tokenizer that decodes by diffusion: codebook vectors guide a network from noise to a value."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from fourm.errors import CheckpointError, near_match
from fourm.networks.tokenizers.config import DiVAEConfig, Size
from fourm.networks.tokenizers.diffusion import Clipping, Sampler, cumulative_alphas, timesteps
from fourm.networks.tokenizers.unet import UNETS, PatchedUNet, UNetShape
from fourm.networks.tokenizers.uvit import UVITS, UViT
from fourm.networks.tokenizers.uvit_transformer import UViTShape
from fourm.networks.tokenizers.vq import Part, Tokenizer

DECODERS = (*UNETS, *UVITS)
Decoder = PatchedUNet | UViT
_MAX_SIZE, _MAX_LEVELS = 1 << 16, 16  # far beyond any decoder
Shape = TypeVar("Shape", UNetShape, UViTShape)


class DiVAE(Tokenizer):
    """A tokenizer with a diffusion decoder.

    decode:  tokens -> lookup (B, L, h, w) -> (B, C, H, W), one evaluation of the decoder for each step
    """

    config: DiVAEConfig

    def __init__(self, config: DiVAEConfig, part: Part = Part.WHOLE) -> None:
        super().__init__(config, part if config.has_encoder or part is Part.ENCODER else Part.DECODER)
        if part is Part.ENCODER and not config.has_encoder:
            raise CheckpointError("has_encoder: false, so that nothing here turns values into tokens")
        self.sampler = make_sampler(config)
        self.decoder: Decoder | None = None
        if part is not Part.ENCODER:
            self.decoder = build_decoder(config)

    def output_shape(self, grid: Size) -> tuple[int, int, int]:
        """(C, H, W) of the value of a grid (h, w) of tokens."""
        height, width = (n * pixels for n, pixels in zip(grid, self.config.patch_size, strict=True))
        return self.config.n_channels, height, width

    def sample(
        self, tokens: Tensor, draws: Callable[[int], Tensor], steps: int, size: Size | None = None,
        mode: str = "trailing", sampler: Sampler | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The running value (B, C, H, W) float32 after every step; the last one is the result.

        tokens (B, h, w) int64, or latents (B, L, h, w) as `lookup` gives them. draws(0) is the noise to begin
        with, (B, C, H, W) standard normal; draws(1), draws(2), ... are those of the DDPM steps that take
        some. size is (H, W) in pixels, by default the grid's. `mode` spaces the timesteps of DDIM (see
        `timesteps`); `sampler` takes the place of the config's. What cannot be is refused before anything is
        drawn.
        """
        if self.decoder is None:
            raise ValueError("this tokenizer was built without a decoder")
        sampler = sampler or self.sampler
        times = timesteps(sampler.kind, len(sampler.alphas), steps, mode)
        for t in times:
            sampler.check(t)
        quant = self._latents(tokens)
        channels, *sides = self.output_shape((int(quant.shape[-2]), int(quant.shape[-1])))
        height, width = size or sides
        multiple = self.decoder.multiple
        if min(height, width) < 1 or height % multiple or width % multiple:
            raise ValueError(f"sides must be multiples of {multiple} pixels, not {height} x {width}")
        shape = (len(quant), channels, height, width)
        draw, ratio = partial(_draw, draws, shape, quant.device), len(sampler.alphas) // steps
        return self._run(self.decoder, quant, draw, sampler, [(t, t - ratio) for t in times])

    def _latents(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 4 or not tokens.is_floating_point():
            return self.lookup(tokens)
        if tokens.shape[1] != self.config.latent_dim:
            raise ValueError(
                f"latents have {tokens.shape[1]} channels; this tokenizer has {self.config.latent_dim}"
            )
        return tokens

    @staticmethod
    def _run(
        decoder: Decoder,
        quant: Tensor,
        draw: Callable[[int], Tensor],
        sampler: Sampler,
        pairs: list[tuple[int, int]],
    ) -> Iterator[Tensor]:
        x, drawn = draw(0), 0
        with torch.no_grad():
            condition = decoder.condition(quant, (x.shape[-2], x.shape[-1]))
        on_device = torch.tensor([t for t, _ in pairs], device=x.device)
        for index, (t, previous) in enumerate(pairs):
            with torch.no_grad():
                output = decoder(x, on_device[index], condition)
                fresh = None
                if sampler.draws_at(t):
                    drawn += 1
                    fresh = draw(drawn)
                x, _ = sampler.step(output, t, previous, x, fresh)
            yield x

    def decode_tokens(
        self, tokens: Tensor, draws: Callable[[int], Tensor], steps: int, size: Size | None = None
    ) -> Tensor:
        """The result of `sample`."""
        *_, last = self.sample(tokens, draws, steps, size)
        return last


def _draw(draws: Callable[[int], Tensor], shape: tuple[int, ...], device: torch.device, index: int) -> Tensor:
    noise = draws(index).to(device, torch.float32)
    if noise.shape != shape:
        raise ValueError(f"noise is {tuple(noise.shape)}, not {shape}")
    return noise


def make_sampler(config: DiVAEConfig) -> Sampler:
    """The steps that a config asks for."""
    kind = "ddpm" if config.scheduler == "ddpm" else "ddim"
    clip = Clipping("dynamic" if config.thresholding else "clamp" if config.clip_sample else "none")
    with torch.device("cpu"):  # also where the network is built without memory
        alphas = cumulative_alphas(config.beta_schedule, config.num_train_timesteps, config.zero_terminal_snr)
    return Sampler(kind, alphas, config.prediction_type, clip)


def build_decoder(config: DiVAEConfig) -> Decoder:
    """The network that a config names or describes."""
    channels, latent_dim = config.n_channels, config.latent_dim
    if "unet_" in config.dec_type:
        unet = _shape(UNETS.get(config.dec_type), UNetShape, config)
        return PatchedUNet(unet, channels, latent_dim)
    uvit = _shape(UVITS.get(config.dec_type), UViTShape, config)
    return UViT(uvit, channels, latent_dim, config.conditioning)


def _shape(named: Shape | None, kind: type[Shape], config: DiVAEConfig) -> Shape:
    """The sizes of a decoder: those that the config lists, else those of its name."""
    if config.dec_structure is None:
        if named is None:
            near = near_match(config.dec_type, DECODERS)
            raise CheckpointError(f"dec_type: unknown decoder '{config.dec_type}'{near}")
        return named
    return _read_shape(config.dec_structure, kind)


def _read_shape(structure: Mapping[str, object], kind: type[Shape]) -> Shape:
    types = {f.name: f.type for f in fields(kind)}
    values = dict[str, Any]()
    for key, value in structure.items():
        if key not in types:
            raise CheckpointError(f"dec_structure: unknown size '{key}'{near_match(key, types)}")
        if not _is_size(value, types[key]):
            raise CheckpointError(f"dec_structure: '{key}' cannot be {value!r}")
        values[key] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _is_size(value: object, kind: object) -> bool:
    """True for what a field of this type of a decoder's sizes may hold in a `config.json`."""
    if isinstance(value, list):
        numbers = kind in (tuple[int, ...], int | tuple[int, ...])
        return numbers and len(value) <= _MAX_LEVELS and all(_is_size(n, int) for n in value)
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind is float:
        return isinstance(value, int | float) and 0 < value <= _MAX_SIZE
    return isinstance(value, int) and kind in (int, int | tuple[int, ...]) and 0 <= value <= _MAX_SIZE
