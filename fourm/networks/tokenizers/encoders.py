"""The networks around a codebook: ViT and bottleneck-MLP stacks, from values to latents and back.

Layout is channels-first, (B, C, H, W) in and (B, D, h, w) out; tokens of a grid are flattened row by row.
Parameter names are those of the released checkpoints.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm.errors import CheckpointError, near_match
from fourm.networks.blocks import EncoderBlock
from fourm.networks.layers import LayerNorm, Mlp, sincos_2d
from fourm.networks.tokenizers.config import Size

_MLP_DESCRIPTOR = re.compile(r"BottleneckMLP/[^_/-]*_(\d+)-[^_/-]*_(\d+)(?:-[^_/-]*_(\d+))?")


@dataclass(frozen=True, slots=True)
class ViTPreset:
    """Width, number of blocks, attention heads, and hidden width of the MLPs as a multiple of the width."""

    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float = 4.0
    qkv_bias: ClassVar[bool] = True
    proj_bias: ClassVar[bool] = True
    qk_norm: ClassVar[bool] = False

    def norm(self, width: int | None = None) -> LayerNorm:
        """A norm of the blocks."""
        return LayerNorm(width or self.dim, bias=True)

    def mlp(self, act: type[nn.Module] = nn.GELU) -> Mlp:
        """An MLP of the blocks, or the one behind them with another activation."""
        return Mlp(self.dim, int(self.mlp_ratio * self.dim), act(), bias=True)


# `b` is what all released tokenizers use; the demo's have no attention, so that equal patches get equal
# tokens wherever they lie, and equal tokens equal patches.
VIT_PRESETS: dict[str, ViTPreset] = {
    "vit_s_enc": ViTPreset(512, 8, 8),
    "vit_s_dec": ViTPreset(512, 8, 8),
    "vit_b_enc": ViTPreset(768, 12, 12),
    "vit_b_dec": ViTPreset(768, 12, 12),
    "vit_l_enc": ViTPreset(1024, 24, 16),
    "vit_l_dec": ViTPreset(1024, 24, 16),
    "vit_demo_enc": ViTPreset(64, 0, 4),
    "vit_demo_dec": ViTPreset(64, 0, 4),
    "vit_demo_rgb_dec": ViTPreset(128, 0, 4),
}


@dataclass(frozen=True, slots=True)
class MlpPreset:
    """Number of blocks, thin width between them, wide width inside them."""

    depth: int
    thin: int
    wide: int


def parse_preset(name: str) -> ViTPreset | MlpPreset:
    """The network that an `enc_type` or `dec_type` names, such as `BottleneckMLP/B_6-Wi_1024`."""
    if match := _MLP_DESCRIPTOR.fullmatch(name):
        depth, thin, expansion = match.groups()
        return MlpPreset(int(depth), int(thin), int(thin) * int(expansion or 4))
    if name in VIT_PRESETS:
        return VIT_PRESETS[name]
    raise CheckpointError(
        f"unknown network '{name}'{near_match(name, VIT_PRESETS)} "
        f"(known: {', '.join(VIT_PRESETS)}, BottleneckMLP/B_<blocks>-Wi_<width>)"
    )


class ViTEncoder(nn.Module):
    """(B, C, H, W) -> (B, D, h, w): patches, positions, blocks, optional tanh MLP. No final norm."""

    def __init__(self, preset: ViTPreset, channels: int, patch: Size, grid: Size, post_mlp: bool) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(channels, preset.dim, kernel_size=patch, stride=patch)
        self.pos_emb = _positions(grid, preset.dim)
        self.blocks = nn.ModuleList(EncoderBlock(preset) for _ in range(preset.depth))
        self.norm_mlp = preset.norm() if post_mlp else None
        self.post_mlp = preset.mlp(nn.Tanh) if post_mlp else None

    def forward(self, x: Tensor) -> Tensor:
        """Any H and W divisible by the patch; positions are resized to the grid at hand."""
        if x.shape[2] % self.patch[0] or x.shape[3] % self.patch[1]:
            raise ValueError(
                f"input is {x.shape[2]} x {x.shape[3]}; both sides must be multiples of the patch, "
                f"{self.patch[0]} x {self.patch[1]}"
            )
        x = self.proj(x.to(self.proj.weight.dtype))
        h, w = x.shape[2:]
        tokens = rearrange(x, "b d h w -> b (h w) d") + _at_grid(self.pos_emb, h, w)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = _add_tanh_mlp(tokens, self.norm_mlp, self.post_mlp)
        return rearrange(tokens, "b (h w) d -> b d h w", h=h)


class ViTDecoder(nn.Module):
    """(B, D, h, w) -> (B, C, h * P, w * P): positions, blocks, tanh MLP, un-patch, ConvNeXt."""

    def __init__(
        self, preset: ViTPreset, channels: int, patch: Size, grid: Size, post_mlp: bool, out_conv: bool
    ) -> None:
        super().__init__()
        self.patch = patch
        self.pos_emb = _positions(grid, preset.dim)
        self.blocks = nn.ModuleList(EncoderBlock(preset) for _ in range(preset.depth))
        self.norm_mlp = preset.norm() if post_mlp else None
        self.post_mlp = preset.mlp(nn.Tanh) if post_mlp else None
        self.out_proj = nn.Linear(preset.dim, channels * patch[0] * patch[1])
        self.out_conv = nn.Sequential(ConvNeXt(channels), ConvNeXt(channels)) if out_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """The grid comes from x, so decoding needs no size argument."""
        h, w = x.shape[2:]
        tokens = rearrange(x, "b d h w -> b (h w) d") + _at_grid(self.pos_emb, h, w)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.out_proj(_add_tanh_mlp(tokens, self.norm_mlp, self.post_mlp))
        rows, cols = self.patch
        image = rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=h, p=rows, q=cols)
        return image if self.out_conv is None else self.out_conv(image)


class BottleneckMlp(nn.Module):
    """(B, dim_in, h, w) -> (B, dim_out, h, w): the same residual MLP at every position."""

    def __init__(self, preset: MlpPreset, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.linear_in = nn.Linear(dim_in, preset.thin)
        self.blocks = nn.ModuleList(WideBlock(preset) for _ in range(preset.depth))
        # 1e-5 here, 1e-6 in the ViT: as the released weights were trained.
        self.layernorms = nn.ModuleList(
            LayerNorm(preset.thin, bias=True, eps=1e-5) for _ in range(preset.depth)
        )
        self.linear_out = nn.Linear(preset.thin, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Channels-first in and out."""
        x = self.linear_in(x.movedim(1, -1).to(self.linear_in.weight.dtype))
        for norm, block in zip(self.layernorms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.linear_out(x).movedim(-1, 1)


class WideBlock(nn.Module):
    """thin -> wide -> thin, as `block.0` and `block.2` of the checkpoints."""

    def __init__(self, preset: MlpPreset) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Linear(preset.thin, preset.wide), nn.GELU(), nn.Linear(preset.wide, preset.thin)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., thin) -> the same shape."""
        return self.block(x)


class ConvNeXt(nn.Module):
    """ConvNeXt block (Liu et al. 2022, arXiv:2201.03545) at full resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = LayerNorm(channels, bias=True)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        y = self.norm(self.dwconv(x).movedim(1, -1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.movedim(-1, 1)


def resize_positions(table: Tensor, h: int, w: int) -> Tensor:
    """(1, D, Nh, Nw) -> (1, D, h, w): bicubic, half-pixel centres, no antialiasing."""
    if table.shape[2:] == (h, w):
        return table
    resized = F.interpolate(table.float(), size=(h, w), mode="bicubic", align_corners=False)
    return resized.to(table.dtype)


def _at_grid(table: Tensor, h: int, w: int) -> Tensor:
    return rearrange(resize_positions(table, h, w), "b d h w -> b (h w) d")


def _positions(grid: Size, dim: int) -> nn.Parameter:
    table = rearrange(sincos_2d(grid[0], grid[1], dim), "b (h w) d -> b d h w", h=grid[0])
    return nn.Parameter(table.contiguous())


def _add_tanh_mlp(x: Tensor, norm: LayerNorm | None, mlp: Mlp | None) -> Tensor:
    """In the precision of the MLP's own weights, which may be higher than that of the blocks."""
    if norm is None or mlp is None:
        return x
    x = x.to(norm.weight.dtype)
    return x + mlp(norm(x))
