"""The UViT decoder of diffusion tokenizers: convolutions around a transformer (Hoogeboom et al. 2023)."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm.errors import CheckpointError
from fourm.modalities.typed import Limits
from fourm.networks.layers import Block, BlockConfig, CrossAttention, Mlp, SelfAttention
from fourm.networks.tokenizers.config import PositiveInt, PositiveInts, Size
from fourm.networks.tokenizers.unet import GroupNorm, downsample, timestep_embedding, upsample
from fourm.networks.tokenizers.vq import position_map, positions_at

_MAX_LAYERS = 1024  # far beyond any decoder
PositiveFloat = Annotated[float, Limits(1e-9, 1 << 16)]


@dataclass(frozen=True, slots=True)
class UViTShape:
    """How large a UViT is; the names are those of the reference. Impossible ones are a CheckpointError."""

    patch_size: PositiveInt = 4  # pixels per side
    block_out_channels: PositiveInts = (128, 256, 512)  # widths of the convolutional levels
    layers_per_block: PositiveInts = (2, 2, 2)  # residual blocks; a config may give one number for all levels
    downsample_before_mid: bool = False
    mid_layers: PositiveInt = 12
    mid_num_heads: PositiveInt = 12
    mid_dim: PositiveInt = 768
    mid_mlp_ratio: PositiveFloat = 4
    mid_qkv_bias: bool = True
    mid_hw_posemb: PositiveInt = 32  # side of the stored map of positions
    mid_use_long_skip: bool = False
    norm_num_groups: PositiveInt = 32
    norm_eps: PositiveFloat = 1e-5

    def __post_init__(self) -> None:
        widths, groups = self.block_out_channels, self.norm_num_groups
        for is_wrong, problem in (
            (self.mid_use_long_skip and self.mid_layers % 2 == 0, "long skips need an odd mid_layers"),
            (len(self.layers_per_block) != len(widths), "layers_per_block needs one number per level"),
            (sum(self.layers_per_block) + self.mid_layers > _MAX_LAYERS, f"more than {_MAX_LAYERS:,} layers"),
            (self.mid_dim % self.mid_num_heads > 0, "mid_dim must be a multiple of mid_num_heads"),
            (self.mid_dim % 4 > 0, "mid_dim must be a multiple of 4"),
            (self.mid_dim * self.mid_mlp_ratio < 1, "mid_mlp_ratio leaves the MLPs no width"),
            (widths[0] % 2 > 0, "the first width must be even"),
            (any(width % groups for width in widths), "widths must fill the norm's groups"),
        ):
            if is_wrong:
                raise CheckpointError(f"dec_structure: {problem}")


_B = UViTShape(block_out_channels=(128, 256), layers_per_block=(2, 2), downsample_before_mid=True)
_L = replace(_B, mid_layers=24, mid_num_heads=16, mid_dim=1024)
UVITS = {
    "uvit_b_p4_f16": _B,
    "uvit_l_p4_f16": _L,
    "uvit_h_p4_f16": replace(_L, mid_layers=32, mid_dim=1280),
    "uvit_b_p4_f16_longskip": replace(_B, mid_layers=13, mid_use_long_skip=True),
    "uvit_l_p4_f16_longskip": replace(_L, mid_layers=25, mid_use_long_skip=True),
    "uvit_b_p4_f8": replace(_B, downsample_before_mid=False),
    "uvit_l_p4_f8": replace(_L, downsample_before_mid=False),
    "uvit_b_p4_f16_extraconv": UViTShape(),
    "uvit_l_p4_f16_extraconv": UViTShape(mid_layers=24, mid_num_heads=16, mid_dim=1024),
}


class UViT(nn.Module):
    """Patches, convolutional levels down, a transformer that sees the latents, the levels back up."""

    def __init__(self, shape: UViTShape, channels: int, latent_dim: int, conditioning: str) -> None:
        super().__init__()
        self.shape, widths = shape, shape.block_out_channels
        first, wide = widths[0], 4 * widths[0]
        extra = shape.downsample_before_mid
        self.multiple = shape.patch_size * 2 ** (len(widths) - 1 + extra)
        self.conv_in = nn.Conv2d(channels, first, shape.patch_size, stride=shape.patch_size)
        layers = OrderedDict(linear_1=nn.Linear(first, wide), act=nn.SiLU(), linear_2=nn.Linear(wide, wide))
        self.time_embedding = nn.Sequential(layers)
        self.down_blocks, width, skips = nn.ModuleList(), first, [first]
        for level, (out, count) in enumerate(zip(widths, shape.layers_per_block, strict=True)):
            down = level < len(widths) - 1
            samplers = nn.ModuleList([downsample(out, "conv")] if down else [])
            inputs = [width, *[out] * (count - 1)]
            resnets = nn.ModuleList(UViTResBlock(shape, each, out, wide) for each in inputs)
            self.down_blocks.append(nn.ModuleDict({"resnets": resnets, "downsamplers": samplers}))
            skips += [out] * (count + down)
            width = out
        # Files hold it as `downsample_mid.Conv2d_0` too, or under that name alone.
        self.downsample_mid = downsample(width, "conv") if extra else nn.Identity()
        self.upsample_mid = upsample(width) if extra else nn.Identity()
        self.mid_block = Transformer(shape, width, wide, latent_dim, conditioning)
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            out, count = widths[level], shape.layers_per_block[level] + 1
            inputs = [(width if index == 0 else out) + skips.pop() for index in range(count)]
            samplers = nn.ModuleList([upsample(out)] if level > 0 else [])
            resnets = nn.ModuleList(UViTResBlock(shape, each, out, wide) for each in inputs)
            self.up_blocks.append(nn.ModuleDict({"resnets": resnets, "upsamplers": samplers}))
            width = out
        self.conv_norm_out = _norm(shape, first)
        self.conv_out = nn.ConvTranspose2d(first, channels, shape.patch_size, stride=shape.patch_size)

    def condition(self, quant: Tensor, size: Size) -> Sequence[Tensor]:
        """What no step changes, see `Transformer.condition`; quant (B, D, h, w), size in pixels (H, W)."""
        grid = (size[0] // self.multiple, size[1] // self.multiple)
        return self.mid_block.condition(quant.to(self.conv_in.weight.dtype), grid)

    def embed_time(self, t: Tensor) -> Tensor:
        """What all blocks need to know of timesteps t, () or (T,) -> (1 or T, sum of their widths)."""
        time = timestep_embedding(t, self.shape.block_out_channels[0]).to(self.conv_in.weight.dtype)
        emb = F.silu(self.time_embedding(time))
        return torch.cat([block.embed_time(emb) for block in self._timed_blocks()], dim=1)

    def forward(self, x: Tensor, time: Tensor, condition: Sequence[Tensor]) -> Tensor:
        """x (B, C, H, W), time (1 or B, E) from `embed_time`, from `condition` -> (B, C, H, W) float32."""
        dtype = self.conv_in.weight.dtype
        times = iter(torch.split(time, [block.time_width for block in self._timed_blocks()], dim=1))
        x = self.conv_in(x.to(dtype).contiguous(memory_format=torch.channels_last))
        skips = [x]
        for level in self.down_blocks:
            for block in level.get_submodule("resnets").children():
                skips.append(x := block(x, next(times)))
            for sampler in level.get_submodule("downsamplers").children():
                skips.append(x := sampler(x))
        x = self.upsample_mid(self.mid_block(self.downsample_mid(x), times, condition))
        for level in self.up_blocks:
            for block in level.get_submodule("resnets").children():
                x = block(torch.cat([x, skips.pop()], dim=1), next(times))
            for sampler in level.get_submodule("upsamplers").children():
                x = sampler(x)
        return self.conv_out(F.silu(self.conv_norm_out(x))).float()

    def _timed_blocks(self) -> list["UViTResBlock | TransformerBlock"]:
        """In the order of their work."""
        return [block for block in self.modules() if isinstance(block, UViTResBlock | TransformerBlock)]


class UViTResBlock(nn.Module):
    """Two convolutions with the time added between them, beside a shortcut."""

    def __init__(self, shape: UViTShape, width: int, out: int, wide: int) -> None:
        super().__init__()
        self.time_width = out
        self.norm1, self.conv1 = _norm(shape, width), nn.Conv2d(width, out, 3, padding=1)
        self.time_emb_proj = nn.Linear(wide, out)
        self.norm2, self.conv2 = _norm(shape, out), nn.Conv2d(out, out, 3, padding=1)
        self.conv_shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def embed_time(self, emb: Tensor) -> Tensor:
        """(T, E) after its activation -> (T, C')."""
        return self.time_emb_proj(emb)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (B, C, h, w), time (1 or B, C') from `embed_time` -> (B, C', h, w)."""
        h = self.conv1(F.silu(self.norm1(x))) + time[:, :, None, None]
        return self.conv_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


def _norm(shape: UViTShape, width: int) -> GroupNorm:
    return GroupNorm(width, shape.norm_num_groups, shape.norm_eps)


class Transformer(nn.Module):
    """Blocks over the positions of a map, which they replace."""

    def __init__(self, shape: UViTShape, width: int, wide: int, latent_dim: int, conditioning: str) -> None:
        super().__init__()
        self.shape, dim, self.is_cross = shape, shape.mid_dim, conditioning == "xattn"
        self.mid_pos_emb = position_map((shape.mid_hw_posemb, shape.mid_hw_posemb), dim)
        self.mid_proj_in, self.mid_proj_out = nn.Linear(width, dim), nn.Linear(dim, width)
        if not self.is_cross:
            self.mask_token = nn.Parameter(torch.zeros(dim))  # which only training uses
            self.mid_cond_proj = nn.Linear(latent_dim, dim)
        sizes, half = (wide, latent_dim if self.is_cross else 0), shape.mid_layers // 2
        skips = (shape.mid_use_long_skip and index > half for index in range(shape.mid_layers))
        self.mid_block = nn.ModuleList(TransformerBlock(shape, *sizes, has_skip) for has_skip in skips)

    def condition(self, quant: Tensor, grid: Size) -> Sequence[Tensor]:
        """What no step changes, of latents (B, D', h, w) for a map of this grid of N places.

        Positions, (1, N, D), with the projected latents where these are added, (B, N, D). Where blocks attend
        to latents, the keys and the values of these follow, (B, H, M, d), for one block after the other.
        """
        if not self.is_cross:
            latents = F.interpolate(quant.float(), size=grid, mode="nearest").to(quant.dtype)
            added = self.mid_cond_proj(rearrange(latents, "b d h w -> b (h w) d"))
            return [(added + positions_at(self.mid_pos_emb.float(), *grid)).to(quant.dtype)]
        table = F.interpolate(self.mid_pos_emb.float(), size=grid, mode="nearest").to(quant.dtype)
        context = rearrange(quant, "b d h w -> b (h w) d")
        read = [block.read_context(context) for block in self.mid_block]  # type: ignore[operator]
        return [rearrange(table, "b d h w -> b (h w) d"), *chain.from_iterable(read)]

    def forward(self, x: Tensor, times: Iterator[Tensor], condition: Sequence[Tensor]) -> Tensor:
        """x (B, C, h, w), of which blocks take the next time each -> (B, C, h, w)."""
        y = self.mid_proj_in(rearrange(x, "b c h w -> b (h w) c")) + condition[0]
        contexts = zip(condition[1::2], condition[2::2], strict=True)
        skips, half = list[Tensor](), len(self.mid_block) // 2
        for index, block in enumerate(self.mid_block):
            skip = skips.pop() if block.skip_linear is not None else None
            y = block(y, next(times), next(contexts, None), skip)
            if index < half:
                skips.append(y)
        return rearrange(self.mid_proj_out(y), "b (h w) c -> b c h w", h=x.shape[2])


class TransformerBlock(Block):
    """Attention to the map, perhaps to the latents, and an MLP, led by the time (Peebles and Xie 2022)."""

    def __init__(self, shape: UViTShape, wide: int, context_width: int, has_skip: bool) -> None:
        super().__init__()
        dim, parts = shape.mid_dim, 3 if context_width else 2
        self.time_width = 3 * parts * dim
        sizes = (dim, shape.mid_num_heads, int(dim * shape.mid_mlp_ratio))
        blocks = BlockConfig(*sizes, qkv_bias=shape.mid_qkv_bias, norm_eps=1e-5)
        self.norm1, self.norm2, self.mlp = blocks.norm(), blocks.norm(), Mlp(blocks)
        if context_width:
            self.self_attn = SelfAttention(blocks)
            self.cross_attn = CrossAttention(blocks, context_width)
            self.query_norm, self.context_norm = blocks.norm(), blocks.norm(context_width)
        else:
            self.attn = SelfAttention(blocks)
        self.adaLN_modulation = nn.Linear(wide, 2 * parts * dim)
        self.adaLN_gate = nn.Linear(wide, parts * dim)
        self.skip_linear = nn.Linear(2 * dim, dim) if has_skip else None

    def read_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, M, d) of latents (B, M, D')."""
        return self.cross_attn.keys_values(self.context_norm(context))

    def embed_time(self, emb: Tensor) -> Tensor:
        """(T, E) after its activation -> (T, `time_width`): shifts and scales, then gates."""
        return torch.cat([self.adaLN_modulation(emb), self.adaLN_gate(emb)], dim=1)

    def forward(
        self, x: Tensor, time: Tensor, context: tuple[Tensor, Tensor] | None, skip: Tensor | None
    ) -> Tensor:
        """x (B, N, D), time from `embed_time`, keys and values of the latents, an earlier block's result."""
        parts, look = (2, self.attn) if context is None else (3, self.self_attn)
        both = time.unsqueeze(1).chunk(3 * parts, dim=-1)
        changes, gates = both[: 2 * parts], both[2 * parts :]
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + gates[0] * look(_changed(self.norm1(x), *changes[:2]), None)
        if context is not None:
            x = x + gates[1] * self.cross_attn(_changed(self.query_norm(x), *changes[2:4]), *context, None)
        return x + gates[-1] * self.mlp(_changed(self.norm2(x), *changes[-2:]))


def _changed(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift
