"""A tokenizer that decodes by diffusion: codebook vectors guide a network from noise to a value."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from fourm.errors import CheckpointError, near_match
from fourm.tokenizers.config import DiVAEConfig, Size
from fourm.tokenizers.diffusion import Clipping, Sampler, cumulative_alphas, timesteps
from fourm.tokenizers.unet import UNETS, PatchedUNet, UNetShape
from fourm.tokenizers.uvit import UVITS, UViT
from fourm.tokenizers.uvit_transformer import UViTShape
from fourm.tokenizers.vq import Part, Tokenizer

DECODERS = (*UNETS, *UVITS)
Decoder = PatchedUNet | UViT
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
        mode: str = "trailing",
    ) -> Iterator[Tensor]:  # fmt: skip
        """The running value (B, C, H, W) float32 after every step; the last one is the result.

        tokens (B, h, w) int64. draws(0) is the noise to begin with, (B, C, H, W) standard normal; draws(1),
        draws(2), ... are those of the DDPM steps that take some. size is (H, W) in pixels, by default the
        grid's. `mode` spaces the timesteps of DDIM (see `timesteps`).
        """
        if self.decoder is None:
            raise ValueError("this tokenizer was built without a decoder")
        config, decoder, sampler = self.config, self.decoder, self.sampler
        times = timesteps(sampler.kind, config.num_train_timesteps, steps, mode)
        ratio = config.num_train_timesteps // steps
        _, *sides = self.output_shape((int(tokens.shape[-2]), int(tokens.shape[-1])))
        height, width = size or sides
        if height % decoder.multiple or width % decoder.multiple:
            raise ValueError(f"sides must be multiples of {decoder.multiple} pixels, not {height} x {width}")
        with torch.no_grad():
            condition = decoder.condition(self.lookup(tokens), (height, width))
        x = draws(0).to(tokens.device, torch.float32)
        if x.shape != (len(tokens), config.n_channels, height, width):
            raise ValueError(
                f"noise is {tuple(x.shape)}, not {(len(tokens), config.n_channels, height, width)}"
            )
        on_device = torch.tensor(times, device=tokens.device)
        drawn = 0
        for index, t in enumerate(times):
            with torch.no_grad():
                output = decoder(x, on_device[index], condition)
                fresh = None
                if sampler.draws_at(t):
                    drawn += 1
                    fresh = draws(drawn).to(x.device)
                x, _ = sampler.step(output, t, t - ratio, x, fresh)
            yield x

    def decode_tokens(
        self, tokens: Tensor, draws: Callable[[int], Tensor], steps: int, size: Size | None = None
    ) -> Tensor:
        """The result of `sample`."""
        *_, last = self.sample(tokens, draws, steps, size)
        return last


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
    names = [f.name for f in fields(kind)]
    values = dict[str, Any]()
    for key, value in structure.items():
        if key not in names:
            raise CheckpointError(f"dec_structure: unknown size '{key}'{near_match(key, names)}")
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(n, int | float) and 0 <= n <= 1 << 16 for n in numbers):
            raise CheckpointError(f"dec_structure: '{key}' cannot be {value!r}")
        values[key] = tuple(value) if isinstance(value, list) else value
    try:
        return kind(**values)
    except TypeError as error:
        raise CheckpointError(f"dec_structure: {error}") from None
