"""The UViT decoder of diffusion tokenizers: convolutions around a transformer (Hoogeboom et al. 2023)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.networks.tokenizers.diffusion import timestep_embedding
from fourm.networks.tokenizers.unet import GroupNorm, Upsample
from fourm.networks.tokenizers.uvit_transformer import Transformer, UViTCondition, UViTShape

_B = UViTShape(block_out_channels=(128, 256), downsample_before_mid=True)
_L = replace(_B, mid_layers=24, mid_num_heads=16, mid_dim=1024)
_WIDTHS = (128, 256, 512)
UVITS = {
    "uvit_b_p4_f16": _B,
    "uvit_l_p4_f16": _L,
    "uvit_h_p4_f16": replace(_L, mid_layers=32, mid_dim=1280),
    "uvit_b_p4_f16_longskip": replace(_B, mid_layers=13, mid_use_long_skip=True),
    "uvit_l_p4_f16_longskip": replace(_L, mid_layers=25, mid_use_long_skip=True),
    "uvit_b_p4_f8": replace(_B, downsample_before_mid=False),
    "uvit_l_p4_f8": replace(_L, downsample_before_mid=False),
    "uvit_b_p4_f16_extraconv": replace(_B, block_out_channels=_WIDTHS, downsample_before_mid=False),
    "uvit_l_p4_f16_extraconv": replace(_L, block_out_channels=_WIDTHS, downsample_before_mid=False),
}


class UViT(nn.Module):
    """Patches, convolutional levels down, a transformer that sees the latents, the levels back up."""

    def __init__(self, shape: UViTShape, channels: int, latent_dim: int, conditioning: str) -> None:
        super().__init__()
        self.shape, widths = shape, shape.block_out_channels
        first, wide = widths[0], 4 * widths[0]
        levels = len(widths) - 1 + shape.downsample_before_mid
        self.multiple = shape.patch_size * 2**levels
        self.conv_in = nn.Conv2d(channels, first, shape.patch_size, stride=shape.patch_size)
        self.time_embedding = TimeEmbedding(first, wide)
        self.down_blocks, width = nn.ModuleList(), first
        skips = [first]
        for level, (out, count) in enumerate(zip(widths, shape.layers, strict=True)):
            down = level < len(widths) - 1
            self.down_blocks.append(Down(shape, [width, *[out] * (count - 1)], out, wide, down))
            skips += [out] * (count + down)
            width = out
        if shape.downsample_before_mid:
            self.downsample_mid = Downsample(width)
            self.upsample_mid = Upsample(width)
        self.mid_block = Transformer(shape, width, wide, latent_dim, conditioning)
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            out, count = widths[level], shape.layers[level] + 1
            inputs = [(width if index == 0 else out) + skips.pop() for index in range(count)]
            self.up_blocks.append(Up(shape, inputs, out, wide, level > 0))
            width = out
        self.conv_norm_out = _norm(shape, first)
        self.conv_out = nn.ConvTranspose2d(first, channels, shape.patch_size, stride=shape.patch_size)

    def condition(
        self, quant: Tensor, size: tuple[int, int], cond_mask: Tensor | None = None
    ) -> UViTCondition:
        """What is constant over the steps.

        quant (B, D, h, w); size (H, W) in pixels; cond_mask (B, h, w), True = hidden.
        """
        grid = (size[0] // self.multiple, size[1] // self.multiple)
        return self.mid_block.condition(quant.to(self.conv_in.weight.dtype), grid, cond_mask)

    def forward(self, x: Tensor, t: Tensor, condition: UViTCondition) -> Tensor:
        """x (B, C, H, W), t () or (B,) -> (B, C, H, W) float32."""
        dtype = self.conv_in.weight.dtype
        time = F.silu(self.time_embedding(timestep_embedding(t, self.shape.block_out_channels[0]).to(dtype)))
        x = self.conv_in(x.to(dtype).contiguous(memory_format=torch.channels_last))
        skips = [x]
        for block in self.down_blocks:
            x = block(x, time, skips)
        if self.shape.downsample_before_mid:
            x = self.downsample_mid(x)
        x = self.mid_block(x, time, condition)
        if self.shape.downsample_before_mid:
            x = self.upsample_mid(x)
        for block in self.up_blocks:
            x = block(x, time, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x))).float()


class TimeEmbedding(nn.Module):
    """Two layers over the timestep's sines and cosines."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, wide)
        self.linear_2 = nn.Linear(wide, wide)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width) -> (B, wide)."""
        return self.linear_2(F.silu(self.linear_1(x)))


class Down(nn.Module):
    """Residual blocks of a level, then half the size; everything on the way is a skip."""

    def __init__(self, shape: UViTShape, inputs: Sequence[int], out: int, wide: int, resample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(shape, width, out, wide) for width in inputs])
        self.downsamplers = nn.ModuleList([Downsample(out)] if resample else [])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        """x (B, C, h, w), time (1 or B, E); adds to the skips."""
        for block in self.resnets:
            skips.append(x := block(x, time))
        for sampler in self.downsamplers:
            skips.append(x := sampler(x))
        return x


class Up(nn.Module):
    """Residual blocks of a level, each with a skip beside its input, then twice the size."""

    def __init__(self, shape: UViTShape, inputs: Sequence[int], out: int, wide: int, resample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResBlock(shape, width, out, wide) for width in inputs])
        self.upsamplers = nn.ModuleList([Upsample(out)] if resample else [])

    def forward(self, x: Tensor, time: Tensor, skips: list[Tensor]) -> Tensor:
        """x (B, C, h, w), time (1 or B, E); takes from the skips."""
        for block in self.resnets:
            x = block(torch.cat([x, skips.pop()], dim=1), time)
        for sampler in self.upsamplers:
            x = sampler(x)
        return x


class ResBlock(nn.Module):
    """Two convolutions with the time added between them, beside a shortcut."""

    def __init__(self, shape: UViTShape, width: int, out: int, wide: int) -> None:
        super().__init__()
        self.norm1 = _norm(shape, width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(wide, out)
        self.norm2 = _norm(shape, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, C, h, w), time (1 or B, E) after its activation -> (B, C', h, w)."""
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb_proj(time)[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class Downsample(nn.Module):
    """Half the size, by a convolution.

    The one before the transformer is stored under two names, `downsample_mid.conv` and, as in every file
    that drops shared tensors, `downsample_mid.Conv2d_0`; `build.fit_state` reads either.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h / 2, w / 2)."""
        return self.conv(x)


def _norm(shape: UViTShape, width: int) -> GroupNorm:
    return GroupNorm(width, shape.norm_num_groups, shape.norm_eps)
