"""The UNet decoder of diffusion tokenizers (Ho et al. 2020; Dhariwal and Nichol 2021), working on patches."""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.errors import CheckpointError
from fourm.modalities.typed import Limits
from fourm.networks.attention import Kernel, attention, sdpa
from fourm.networks.tokenizers.config import PositiveInt, PositiveInts, Size

_GROUPS = 32


@dataclass(frozen=True, slots=True)
class UNetShape:
    """How large a UNet is."""

    patch_size: PositiveInt = 4  # pixels per side
    model_channels: PositiveInt = 256  # width that channel_mult multiplies
    num_res_blocks: Annotated[int, Limits(0, 64)] = 3  # per level
    attention_resolutions: tuple[int, ...] = (4, 8)  # downsampling factors of levels with attention
    channel_mult: PositiveInts = (1, 2, 2, 2)  # one per level

    def __post_init__(self) -> None:
        if self.model_channels % 2:
            raise CheckpointError(f"dec_structure: model_channels: {self.model_channels} is not even")
        if any(width % _GROUPS for width in self.widths):
            raise CheckpointError(f"dec_structure: widths {self.widths} are not all multiples of {_GROUPS}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.model_channels * factor for factor in self.channel_mult)


UNETS = {"unet_patched": UNetShape()}


class PatchedUNet(nn.Module):
    """A UNet on patches of pixels; the tokens' latents join its input as further channels."""

    def __init__(self, shape: UNetShape, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.shape, widths, pixels = shape, shape.widths, channels * shape.patch_size**2
        base, wide = shape.model_channels, 4 * shape.model_channels
        self.multiple = shape.patch_size * 2 ** (len(widths) - 1)
        self.time_embed = nn.Sequential(nn.Linear(base, wide), nn.SiLU(), nn.Linear(wide, wide))
        first = nn.Conv2d(pixels + latent_dim, widths[0], 3, padding=1)
        self.input_blocks = nn.ModuleList([TimedLayers([first])])
        skips, width, factor = [widths[0]], widths[0], 1
        for level, out in enumerate(widths):
            for _ in range(shape.num_res_blocks):
                self.input_blocks.append(TimedLayers(_layers(shape, width, out, wide, factor)))
                skips.append(width := out)
            if level < len(widths) - 1:
                self.input_blocks.append(TimedLayers([downsample(width, "op")]))
                skips.append(width)
                factor *= 2
        middle = [UNetResBlock(width, width, wide), AttentionBlock(width), UNetResBlock(width, width, wide)]
        self.middle_block = TimedLayers(middle)
        self.output_blocks = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for index in range(shape.num_res_blocks + 1):
                layers = list(_layers(shape, width + skips.pop(), out, wide, factor))
                width = out
                if level and index == shape.num_res_blocks:
                    layers.append(upsample(width))
                    factor //= 2
                self.output_blocks.append(TimedLayers(layers))
        self.out = nn.Sequential(GroupNorm(width), nn.SiLU(), nn.Conv2d(width, pixels, 3, padding=1))

    def condition(self, quant: Tensor, size: Size) -> Sequence[Tensor]:
        """The latents' share of the first convolution, (B, width, H / P, W / P): it is linear.

        quant (B, D, h, w); size (H, W) in pixels.
        """
        first, patch = self._first, self.shape.patch_size
        latents = F.interpolate(quant.to(first.weight.dtype), (size[0] // patch, size[1] // patch))
        weight = first.weight[:, -quant.shape[1] :]
        latents = latents.contiguous(memory_format=torch.channels_last)
        return [F.conv2d(latents, weight, first.bias, padding=1)]

    def embed_time(self, t: Tensor) -> Tensor:
        """What all residual blocks add at timesteps t, () or (T,) -> (1 or T, sum of their widths)."""
        time = timestep_embedding(t, self.shape.model_channels).to(self._first.weight.dtype)
        emb = F.silu(self.time_embed(time))
        return torch.cat([block.emb_layers(emb) for block in self._residual_blocks()], dim=1)

    def forward(self, x: Tensor, time: Tensor, condition: Sequence[Tensor]) -> Tensor:
        """x (B, C, H, W), time (1 or B, E) from `embed_time`, from `condition` -> (B, C, H, W) float32."""
        first, patch = self._first, self.shape.patch_size
        patches = F.pixel_unshuffle(x.to(first.weight.dtype), patch)
        patches = patches.contiguous(memory_format=torch.channels_last)  # which convolutions prefer
        widths = [block.width for block in self._residual_blocks()]
        shifts = iter(torch.split(time[:, :, None, None], widths, dim=1))
        h = condition[0] + F.conv2d(patches, first.weight[:, : patches.shape[1]], padding=1)
        skips = [h]
        for block in list(self.input_blocks)[1:]:
            skips.append(h := block(h, shifts))
        h = self.middle_block(h, shifts)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), shifts)
        return F.pixel_shuffle(self.out(h), patch).float()

    @property
    def _first(self) -> nn.Conv2d:
        return cast("nn.Conv2d", cast("TimedLayers", self.input_blocks[0])[0])

    def _residual_blocks(self) -> list["UNetResBlock"]:
        """In the order of their work."""
        return [module for module in self.modules() if isinstance(module, UNetResBlock)]


class TimedLayers(nn.ModuleList):
    """Layers in a row, some of which look at the time."""

    def forward(self, x: Tensor, shifts: Iterator[Tensor]) -> Tensor:
        """x (B, C, h, w), of which residual blocks take the next shift each -> (B, C', h', w')."""
        for layer in self:
            x = layer(x, next(shifts)) if isinstance(layer, UNetResBlock) else layer(x)
        return x


class UNetResBlock(nn.Module):
    """Two convolutions with the time added between them, beside a skip connection."""

    def __init__(self, width: int, out: int, wide: int) -> None:
        super().__init__()
        self.width = out
        self.in_layers = nn.Sequential(GroupNorm(width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.Identity(), nn.Linear(wide, out))
        conv = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(GroupNorm(out), nn.SiLU(), nn.Identity(), conv)
        self.skip_connection = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        """x (B, C, h, w), shift (1 or B, C', 1, 1) from `emb_layers` -> (B, C', h, w)."""
        h = self.in_layers(x) + shift
        return self.skip_connection(x) + self.out_layers(h)


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions: (B, C, h, w) -> the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.kernel: Kernel = sdpa
        self.norm = GroupNorm(width)
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x).flatten(2))
        q, k, v = (part.transpose(1, 2).unsqueeze(1) for part in qkv.chunk(3, dim=1))
        out = attention(q, k, v, kernel=self.kernel).squeeze(1).transpose(1, 2)
        return x + self.proj_out(out).view_as(x)


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 whatever the dtype of the network, which the result has."""

    def __init__(self, width: int, groups: int = _GROUPS, eps: float = 1e-5) -> None:
        super().__init__(groups, width, eps)

    def forward(self, x: Tensor) -> Tensor:
        affine = self.weight.float(), self.bias.float()
        return F.group_norm(x.float(), self.num_groups, *affine, self.eps).to(x.dtype)


def downsample(width: int, name: str) -> nn.Module:
    """(B, C, h, w) -> (B, C, h / 2, w / 2), by a convolution that checkpoints call by this name."""
    return nn.Sequential(OrderedDict({name: nn.Conv2d(width, width, 3, stride=2, padding=1)}))


def upsample(width: int) -> nn.Module:
    """(B, C, h, w) -> (B, C, 2 h, 2 w): every position repeated, then a convolution."""
    conv = nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(OrderedDict(repeat=nn.Upsample(scale_factor=2.0), conv=conv))


def _layers(shape: UNetShape, width: int, out: int, wide: int, factor: int) -> Iterator[nn.Module]:
    yield UNetResBlock(width, out, wide)
    if factor in shape.attention_resolutions:
        yield AttentionBlock(out)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """t () or (B,) -> (1 or B, dim) float32: cosines, then sines, of t at dim / 2 frequencies."""
    exponents = torch.arange(dim // 2, dtype=torch.float32, device=t.device) / (dim // 2)
    angles = t.reshape(-1, 1).float() * (-math.log(10000) * exponents).exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
