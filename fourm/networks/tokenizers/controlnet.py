"""A tokenizer whose tokens steer Stable Diffusion 1.5 by a ControlNet (Zhang et al. 2023, arXiv:2302.05543).

The networks of Stable Diffusion come from diffusers and transformers, an extra that is imported when such a
tokenizer is built. They are built from their sizes alone: nothing is downloaded, and the tokenizer's own file
holds all their weights.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.errors import CheckpointError, MissingError, UsageError
from fourm.networks.tokenizers.config import Size, VQConfig
from fourm.networks.tokenizers.plms import Plms, guide_noise, scaled_linear_signal
from fourm.networks.tokenizers.vq import Part, Tokenizer

Arguments = Mapping[str, Any]  # of a class of the two libraries

# Positions 0, 1, 2, ... that older text encoders store; nothing reads them.
UNREAD = ("decoder.text_encoder.text_model.embeddings.position_ids",)


@dataclass(frozen=True, slots=True)
class VQControlNetConfig(VQConfig):
    """What the `config.json` of a tokenizer with a ControlNet says; training settings are ignored."""

    image_size_sd: Size | None = None  # of the pictures that come out, by default image_size

    def __post_init__(self) -> None:
        VQConfig.__post_init__(self)
        if self.n_labels is not None:
            raise CheckpointError("n_labels: class maps are not decoded by diffusion")

    @property
    def size(self) -> Size:
        """(H, W) of the pictures that come out, whatever the grid of the tokens."""
        return self.image_size_sd or self.image_size


@dataclass(frozen=True, slots=True)
class StableDiffusion:
    """Sizes of the frozen networks, in the words of the libraries that have them."""

    unet: Arguments
    vae: Arguments
    text_encoder: Arguments

    @property
    def factor(self) -> int:
        """Pixels per side of a latent's position."""
        return 2 ** (len(self.vae["block_out_channels"]) - 1)

    def latent_size(self, size: Size) -> Size:
        """(h', w') of the latents of pictures of this size, (H, W) in pixels.

        CheckpointError where the UNet cannot halve it as often as it has to.
        """
        multiple = self.factor * 2 ** (len(self.unet["block_out_channels"]) - 1)
        if size[0] % multiple or size[1] % multiple:
            raise CheckpointError(f"image_size_sd: {size} pixels are not multiples of {multiple}")
        return size[0] // self.factor, size[1] // self.factor


SD15 = StableDiffusion(
    unet={
        "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
        "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    },
    vae={
        "sample_size": 512, "in_channels": 3, "out_channels": 3, "latent_channels": 4, "layers_per_block": 2,
        "block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32, "scaling_factor": 0.18215,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    text_encoder={
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu",
        "projection_dim": 768,
    },
)  # fmt: skip

# Sizes that a ControlNet shares with the UNet that it steers.
_SHARED = (
    "in_channels", "layers_per_block", "block_out_channels", "cross_attention_dim", "attention_head_dim",
    "down_block_types", "norm_num_groups",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Steering:
    """How strongly tokens and prompt act. The defaults are those that the reference decodes with."""

    guidance_scale: float = 2.5  # classifier-free guidance; up to 1 is off and needs half the work
    cond_scale: float = 0.8  # of what the ControlNet adds to the UNet
    guidance_rescale: float = 0.0  # 0..1, see `plms.guide_noise`
    # As in the reference, the ControlNet's share of the innermost block stays on in the unconditional pass.
    keep_middle: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.guidance_scale) and math.isfinite(self.cond_scale)):
            raise UsageError(
                f"guidance scale {self.guidance_scale}, conditioning scale {self.cond_scale}: must be finite"
            )
        if not 0 <= self.guidance_rescale <= 1:
            raise UsageError(f"guidance rescale {self.guidance_rescale} must lie in 0..1")

    @property
    def guided(self) -> bool:
        """True where an unconditional pass is needed."""
        return self.guidance_scale > 1


class Control(NamedTuple):
    """What a ControlNet adds to the UNet: to each skip connection, and to the innermost block."""

    down: tuple[Tensor, ...]
    middle: Tensor

    def off(self, keep_middle: bool) -> "Control":
        """The same without any effect, the innermost block aside where it is kept."""
        middle = self.middle if keep_middle else torch.zeros_like(self.middle)
        return Control(tuple(torch.zeros_like(one) for one in self.down), middle)

    def rows(self, first: int, last: int) -> "Control":
        """Those of some rows of the batch."""
        return Control(tuple(one[first:last] for one in self.down), self.middle[first:last])

    def join(self, other: "Control") -> "Control":
        """Two batches in one."""
        pairs = zip(self.down, other.down, strict=True)
        return Control(tuple(torch.cat(pair) for pair in pairs), torch.cat([self.middle, other.middle]))


class VQControlNet(Tokenizer):
    """A tokenizer that decodes by Stable Diffusion 1.5, steered by the map of codebook vectors.

    decode:  tokens -> lookup (B, D, h, w) -> latent (B, 4, h', w'), step by step -> picture (B, 3, H, W)
    """

    config: VQControlNetConfig

    def __init__(
        self, config: VQControlNetConfig, part: Part = Part.WHOLE, networks: StableDiffusion | None = None
    ) -> None:
        super().__init__(config, part)
        networks = networks or SD15
        latent_size = networks.latent_size(config.size)
        self.noise_shape = (int(networks.vae["latent_channels"]), *latent_size)  # (4, h', w')
        self.scaling_factor = float(networks.vae["scaling_factor"])
        self.decoder: ControlledDenoiser | None = None
        if part is not Part.ENCODER:
            self.decoder = ControlledDenoiser(networks, config.latent_dim, latent_size)
            self.vae = _build("diffusers", "AutoencoderKL", networks.vae)

    def sample(
        self,
        tokens: Tensor,
        draws: Callable[[int], Tensor],
        steps: int = 25,
        steering: Steering | None = None,
        context: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The running latent (B, 4, h', w') float32 after each evaluation; the last one is the result.

        There are as many as `plms_timesteps(steps)`. tokens (B, h, w) int64, any grid. draws(0) is the noise
        to begin with, (B, *noise_shape) standard normal; no more is drawn. context (1 or B, 77, 768) is a
        prompt as `decoder.encode_text` gives it; without one the stored empty prompt is used, and the
        ControlNet runs once for both passes of guidance. What cannot be is refused before anything is drawn.
        """
        decoder, plms = self._need_decoder(), Plms(scaled_linear_signal(), steps)
        quant = self.lookup(tokens)
        context = None if context is None else decoder.context(context, len(tokens))
        x = draws(0).to(quant.device, torch.float32)
        if x.shape != (len(tokens), *self.noise_shape):
            raise ValueError(f"noise is {tuple(x.shape)}, not {(len(tokens), *self.noise_shape)}")
        return self._run(decoder, quant, x, plms, steering or Steering(), context)

    @staticmethod
    def _run(
        decoder: "ControlledDenoiser", quant: Tensor, x: Tensor, plms: Plms, steering: Steering,
        context: Tensor | None,
    ) -> Iterator[Tensor]:  # fmt: skip
        with torch.no_grad():
            condition = decoder.condition(quant)
        for t in torch.tensor(plms.timesteps, device=x.device):
            with torch.no_grad():
                if steering.guided:
                    pair = decoder.both(x, t, condition, context, steering)
                    noise = guide_noise(*pair, steering.guidance_scale, steering.guidance_rescale)
                else:
                    noise = decoder(x, t, condition, context, cond_scale=steering.cond_scale)
                x = plms.step(noise, x)
            yield x

    @torch.no_grad()
    def vae_decode(self, latent: Tensor, clip: bool = True) -> Tensor:
        """Latent (B, 4, h', w') -> picture (B, 3, H, W) float32, in [-1, 1] where clipped."""
        self._need_decoder()
        scaled = (latent / self.scaling_factor).to(self.vae.decoder.conv_in.weight.dtype)
        picture: Tensor = self.vae.decode(scaled, return_dict=False)[0].float()
        return picture.clamp(-1, 1) if clip else picture

    def decode_tokens(
        self,
        tokens: Tensor,
        draws: Callable[[int], Tensor],
        steps: int = 25,
        steering: Steering | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """The picture (B, 3, H, W) in [-1, 1] of the result of `sample`."""
        *_, latent = self.sample(tokens, draws, steps, steering, context)
        return self.vae_decode(latent)

    def _need_decoder(self) -> "ControlledDenoiser":
        if self.decoder is None:
            raise ValueError("this tokenizer was built without a decoder")
        return self.decoder


class ControlledDenoiser(nn.Module):
    """The noise in a latent, predicted by a UNet that a ControlNet steers."""

    def __init__(self, networks: StableDiffusion, latent_dim: int, latent_size: Size) -> None:
        super().__init__()
        self.latent_size = latent_size
        shared = {key: networks.unet[key] for key in _SHARED if key in networks.unet}
        self.unet = _build("diffusers", "UNet2DConditionModel", networks.unet)
        self.controlnet = _build("diffusers", "ControlNetModel", shared)
        width = networks.unet["block_out_channels"][0]
        self.controlnet.controlnet_cond_embedding = ConditionEmbedding(latent_dim, width)
        text = networks.text_encoder
        self.text_encoder = TextEncoder(text)
        self.empty_str_encoding = nn.Parameter(
            torch.zeros(1, text["max_position_embeddings"], text["hidden_size"])
        )

    def condition(self, quant: Tensor, cond_mask: Tensor | None = None) -> Tensor:
        """The map that steers, at the latent's size: (B, D, h, w) -> (B, D, h', w').

        cond_mask (B, h, w), True = the vector is left out.
        """
        if cond_mask is not None:
            quant = quant.masked_fill(cond_mask.unsqueeze(1), 0)
        return F.interpolate(quant.to(self._dtype), size=self.latent_size, mode="nearest")

    def encode_text(self, ids: Tensor) -> Tensor:
        """Ids of CLIP's text tokenizer, padded to 77: (B, 77) int64 -> context (B, 77, 768)."""
        return self.text_encoder(ids)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        context: Tensor | None = None,
        cond_scale: float = 1.0,
        unconditional: bool = False,
        keep_middle: bool = True,
    ) -> Tensor:
        """Noise (B, 4, h', w') float32 in the latent x at timestep t ().

        condition is from `condition`, context (1 or B, 77, 768) from `encode_text`. An unconditional pass has
        the empty prompt and lets the ControlNet act on the innermost block alone, or nowhere.
        """
        text = self.context(None if unconditional else context, len(x))
        control = self._control(x, t, text, condition, cond_scale)
        return self._denoise(x, t, text, control.off(keep_middle) if unconditional else control)

    def both(
        self, x: Tensor, t: Tensor, condition: Tensor, context: Tensor | None, steering: Steering
    ) -> tuple[Tensor, Tensor]:
        """The conditional and the unconditional noise, in one pass of the UNet over (2B, ...)."""
        batch, twice = len(x), torch.cat([x, x])
        empty = self.context(None, batch)
        if context is None:
            text = torch.cat([empty, empty])
            on = off = self._control(x, t, empty, condition, steering.cond_scale)
        else:
            text = torch.cat([self.context(context, batch), empty])
            controls = self._control(twice, t, text, torch.cat([condition, condition]), steering.cond_scale)
            on, off = controls.rows(0, batch), controls.rows(batch, 2 * batch)
        conditional, unconditional = self._denoise(
            twice, t, text, on.join(off.off(steering.keep_middle))
        ).chunk(2)
        return conditional, unconditional

    def context(self, context: Tensor | None, batch: int) -> Tensor:
        """A prompt's context for every row, (batch, 77, 768): from (1 or batch, 77, 768); None is empty."""
        if context is None:
            context = self.empty_str_encoding
        expected = (batch, *self.empty_str_encoding.shape[1:])
        if context.ndim != 3 or context.shape[1:] != expected[1:] or len(context) not in (1, batch):
            raise ValueError(f"context is {tuple(context.shape)}, not {expected}")
        return context.to(self._dtype).expand(batch, -1, -1)

    def _control(self, x: Tensor, t: Tensor, text: Tensor, condition: Tensor, scale: float) -> Control:
        down, middle = self.controlnet(
            x.to(self._dtype), t, text, controlnet_cond=condition, conditioning_scale=scale, return_dict=False
        )
        return Control(tuple(down), middle)

    def _denoise(self, x: Tensor, t: Tensor, text: Tensor, control: Control) -> Tensor:
        noise: Tensor = self.unet(
            x.to(self._dtype), t, text,
            down_block_additional_residuals=control.down, mid_block_additional_residual=control.middle,
            return_dict=False,
        )[0]  # fmt: skip
        return noise.float()

    @property
    def _dtype(self) -> torch.dtype:
        return self.empty_str_encoding.dtype


class ConditionEmbedding(nn.Module):
    """The first layers of a ControlNet for a map that has the latent's size already: no strides."""

    def __init__(self, latent_dim: int, out: int) -> None:
        super().__init__()
        widths = (latent_dim, 32, 96, 256)
        self.conv_in = _conv3x3(latent_dim, latent_dim)
        self.blocks = nn.ModuleList(
            _conv3x3(width, to) for width, wider in pairwise(widths) for to in (width, wider)
        )
        self.conv_out = _conv3x3(widths[-1], out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h', w') -> (B, out, h', w')."""
        x = F.silu(self.conv_in(x))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class TextEncoder(nn.Module):
    """The text half of CLIP (Radford et al. 2021, arXiv:2103.00020), without its pooled output."""

    def __init__(self, sizes: Arguments) -> None:
        super().__init__()
        model = _build("transformers", "CLIPTextModel", _build("transformers", "CLIPTextConfig", sizes))
        # Versions before 5 wrap the network that newer ones are.
        self.text_model = getattr(model, "text_model", model)
        # Built without memory, the model would keep positions without contents: no file fills them.
        positions = torch.arange(sizes["max_position_embeddings"], device="cpu").unsqueeze(0)
        self.text_model.embeddings.position_ids = positions

    def forward(self, ids: Tensor) -> Tensor:
        """(B, 77) int64 -> (B, 77, 768)."""
        positions = torch.arange(ids.shape[-1], device=ids.device).unsqueeze(0)
        return self.text_model(input_ids=ids, position_ids=positions).last_hidden_state


def _conv3x3(width: int, to: int) -> nn.Conv2d:
    return nn.Conv2d(width, to, kernel_size=3, padding=1)


def _build(library: str, name: str, arguments: Any) -> Any:
    """An object of an optional library: from keywords, or from another object."""
    try:
        kind = getattr(import_module(library), name)
    except (ImportError, RuntimeError) as error:  # the libraries wrap some import errors
        raise MissingError(
            "ControlNet tokenizers need the libraries diffusers and transformers: "
            "pip install 'fourm[controlnet]'"
        ) from error
    return kind(**arguments) if isinstance(arguments, Mapping) else kind(arguments)
