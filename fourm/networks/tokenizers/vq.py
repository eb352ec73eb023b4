"""Tokenizers whose decoder is a network that runs once: ViTs and MLPs around a codebook.

A network maps (B, C, H, W) to (B, D, h, w) or back. Parameter names are those of the released checkpoints.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm.errors import CheckpointError, near_match
from fourm.hub.header import IN_FLOAT32, LABELS_IN_FLOAT32, TokenizerPart
from fourm.networks.layers import BlockConfig, EncoderBlock, LayerNorm, Mlp, sincos_2d, token_table
from fourm.networks.tokenizers.config import Size, VQConfig
from fourm.networks.tokenizers.quantizers import QUANTIZERS

IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))  # mean, standard deviation of R, G, B in [0, 1]
_MLP_DESCRIPTOR = re.compile(r"BottleneckMLP/[^_/-]*_(\d+)-[^_/-]*_(\d+)(?:-[^_/-]*_(\d+))?")


class Tokenizer(nn.Module):
    """Encoder and codebook of one kind of value; how tokens become a value is for subclasses to say.

    encode:  x -> prepare (B, C, H, W) -> encoder (B, E, h, w) -> latents (B, L, h, w) -> tokens
    Tokens are (B, h, w), or (B, N, h, w) where N > 1 codebooks share the latent; L is `latent_dim`.
    """

    def __init__(self, config: VQConfig, part: TokenizerPart = TokenizerPart.WHOLE) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module | None = None
        if part is not TokenizerPart.DECODER:
            if config.n_labels is not None:
                self.cls_emb = token_table(config.n_labels, config.n_channels)
            preset = parse_preset(config.enc_type)
            if isinstance(preset, MlpPreset):
                self.encoder = BottleneckMlp(preset, config.n_channels, preset.dim)
            else:
                self.encoder = ViT(preset, config, decodes=False)
            self.quant_proj = nn.Conv2d(preset.dim, config.latent_dim, kernel_size=1)
        if config.quant_type not in QUANTIZERS:
            known = f"{', '.join(QUANTIZERS)}{near_match(config.quant_type, QUANTIZERS)}"
            raise CheckpointError(f"quant_type: '{config.quant_type}' is not one of {known}")
        self.quantize = QUANTIZERS[config.quant_type](config)

    def prepare(self, x: Tensor) -> Tensor:
        """What the encoder reads, (B, C, H, W): label maps (B, H, W) embedded, ImageNet statistics undone."""
        config = self.config
        if config.n_labels is not None:
            if x.ndim != 3 or x.is_floating_point():
                raise ValueError(f"label maps are (B, H, W) integers, not {tuple(x.shape)} {x.dtype}")
            _check_range(x, config.n_labels, "labels")
            return self.cls_emb(x.long()).movedim(-1, 1)
        if x.ndim != 4 or x.shape[1] != config.n_channels or not x.is_floating_point():
            raise ValueError(f"input is (B, {config.n_channels}, H, W) float, not {tuple(x.shape)} {x.dtype}")
        if not config.undo_std:
            return x
        # From ImageNet's statistics to [-1, 1], with constants rounded like the reference's.
        shift, scale = x.new_tensor([(-mean / std, 1 / std) for mean, std in IMAGENET]).T.view(2, 3, 1, 1)
        return 2 * ((x - shift) / scale) - 1

    def encode(self, x: Tensor) -> Tensor:
        """x as in `prepare` -> latents (B, L, h, w), before the search."""
        if self.encoder is None:
            raise ValueError("this tokenizer was built without an encoder")
        return self.quant_proj(self.encoder(self.prepare(x)).to(self.quant_proj.weight.dtype))

    def tokenize(self, x: Tensor) -> Tensor:
        """x as in `prepare` -> tokens, int64."""
        return self.quantize.indices(self.encode(x))

    def lookup(self, tokens: Tensor) -> Tensor:
        """Tokens -> quantized latents (B, L, h, w) float32."""
        rank, books = self.config.token_rank, self.config.num_codebooks
        if tokens.ndim != rank or tokens.is_floating_point():
            form = "(B, h, w)" if rank == 3 else f"(B, {books}, h, w)"
            raise ValueError(f"tokens are {form} integers, not {tuple(tokens.shape)} {tokens.dtype}")
        if rank == 4 and tokens.shape[1] != books:
            raise ValueError(f"tokens have {tokens.shape[1]} codebooks; this tokenizer has {books}")
        _check_range(tokens, self.config.codebook_size, "tokens")
        return self.quantize.lookup(tokens.long())

    def converted(self, name: str, tensor: Tensor, device: str | torch.device, dtype: torch.dtype) -> Tensor:
        """A tensor of floats as a network of this dtype keeps it: the search and what leads to it in float32.

        So is all of the encoder of label maps: maps of few classes have embeddings of small differences.
        """
        exact = IN_FLOAT32 if self.config.n_labels is None else LABELS_IN_FLOAT32
        return tensor.to(device, torch.float32 if name.startswith(exact) else dtype)


class VQTokenizer(Tokenizer):
    """Decodes by one network run: tokens -> lookup (B, L, h, w) -> (B, E', h, w) -> decoder -> output."""

    def __init__(self, config: VQConfig, part: TokenizerPart = TokenizerPart.WHOLE) -> None:
        super().__init__(config, part)
        self.decoder: nn.Module | None = None
        if part is not TokenizerPart.ENCODER:
            preset = parse_preset(config.dec_type)
            if isinstance(preset, MlpPreset):
                self.decoder = BottleneckMlp(preset, preset.dim, config.out_channels)
            else:
                self.decoder = ViT(preset, config, decodes=True)
            self.post_quant_proj = nn.Conv2d(config.latent_dim, preset.dim, kernel_size=1)

    def decode(self, quant: Tensor) -> Tensor:
        """Latents (B, L, h, w) -> output (B, C, h * P, w * P) float32, as the decoder leaves it."""
        if self.decoder is None:
            raise ValueError("this tokenizer was built without a decoder")
        return self.decoder(self.post_quant_proj(quant.to(self.post_quant_proj.weight.dtype))).float()

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens -> output, as in `decode`."""
        return self.decode(self.lookup(tokens))


def _check_range(ids: Tensor, count: int, what: str) -> None:
    low, high = torch.stack(ids.aminmax()).tolist() if ids.numel() else (0, 0)
    if low < 0 or high >= count:
        raise ValueError(f"{what} must lie in 0..{count - 1}; found {low if low < 0 else high}")


@dataclass(frozen=True, slots=True)
class ViTPreset:
    """The sizes of a ViT."""

    dim: int
    depth: int  # blocks
    num_heads: int
    mlp_ratio: float = 4.0  # hidden width of the MLPs, as a multiple of the width


# All released tokenizers use `b`. The demo's have no attention: a patch has the same token wherever it lies.
VIT_PRESETS: dict[str, ViTPreset] = {
    **dict.fromkeys(("vit_s_enc", "vit_s_dec"), ViTPreset(512, 8, 8)),
    **dict.fromkeys(("vit_b_enc", "vit_b_dec"), ViTPreset(768, 12, 12)),
    **dict.fromkeys(("vit_l_enc", "vit_l_dec"), ViTPreset(1024, 24, 16)),
    **dict.fromkeys(("vit_demo_enc", "vit_demo_dec"), ViTPreset(64, 0, 4)),
    "vit_demo_rgb_dec": ViTPreset(128, 0, 4),
}


@dataclass(frozen=True, slots=True)
class MlpPreset:
    """Number of blocks, thin width between them, wide width inside them."""

    depth: int
    dim: int
    wide: int


def parse_preset(name: str) -> ViTPreset | MlpPreset:
    """The network that an `enc_type` or `dec_type` names, such as `BottleneckMLP/B_6-Wi_1024`."""
    if match := _MLP_DESCRIPTOR.fullmatch(name):
        depth, thin, expansion = match.groups()
        return MlpPreset(int(depth), int(thin), int(thin) * int(expansion or 4))
    if name in VIT_PRESETS:
        return VIT_PRESETS[name]
    known = f"{', '.join(VIT_PRESETS)}, BottleneckMLP/B_<blocks>-Wi_<width>"
    raise CheckpointError(f"unknown network '{name}'{near_match(name, VIT_PRESETS)} (known: {known})")


class ViT(nn.Module):
    """Blocks with positions, and a tanh MLP after them if the config says so; there is no final norm.

    An encoder cuts patches first, (B, C, H, W) -> (B, D, h, w); a decoder puts them together last,
    (B, D, h, w) -> (B, C, h * P, w * P). Positions are resized to the grid at hand.
    """

    def __init__(self, preset: ViTPreset, config: VQConfig, decodes: bool) -> None:
        super().__init__()
        dim, channels, patch = preset.dim, config.out_channels, config.patch_size_dec or config.patch_size
        self.patch = (patch if decodes else config.patch_size) if config.patch_proj else (1, 1)
        self.proj = None if decodes else nn.Conv2d(config.n_channels, dim, self.patch, stride=self.patch)
        self.pos_emb = position_map(config.decoder_grid if decodes else config.encoder_grid, dim)
        blocks = BlockConfig(dim, preset.num_heads, int(preset.mlp_ratio * dim))
        self.blocks = nn.ModuleList(EncoderBlock(blocks) for _ in range(preset.depth))
        self.norm_mlp = blocks.norm() if config.post_mlp else None
        self.post_mlp = Mlp(replace(blocks, act=nn.Tanh)) if config.post_mlp else None
        self.out_proj = nn.Linear(dim, channels * self.patch[0] * self.patch[1]) if decodes else None
        has_conv = decodes and config.out_conv
        self.out_conv = nn.Sequential(ConvNeXt(channels), ConvNeXt(channels)) if has_conv else None

    def forward(self, x: Tensor) -> Tensor:
        rows, cols = self.patch
        if self.proj is not None:
            if x.shape[2] % rows or x.shape[3] % cols:
                rule = f"both sides must be multiples of the patch, {rows} x {cols}"
                raise ValueError(f"input is {x.shape[2]} x {x.shape[3]}; {rule}")
            x = self.proj(x.to(self.proj.weight.dtype))
        height, width = x.shape[2:]
        tokens = rearrange(x, "b d h w -> b (h w) d") + positions_at(self.pos_emb, height, width)
        for block in self.blocks:
            tokens = block(tokens)
        if self.norm_mlp is not None and self.post_mlp is not None:
            tokens = tokens.to(self.norm_mlp.weight.dtype)  # which may be float32 in a network of 16 bits
            tokens = tokens + self.post_mlp(self.norm_mlp(tokens))
        if self.out_proj is None:
            return rearrange(tokens, "b (h w) d -> b d h w", h=height)
        tokens = self.out_proj(tokens)
        image = rearrange(tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height, p=rows, q=cols)
        return image if self.out_conv is None else self.out_conv(image)


class BottleneckMlp(nn.Module):
    """(B, dim_in, h, w) -> (B, dim_out, h, w): the same residual MLP at every position."""

    def __init__(self, preset: MlpPreset, dim_in: int, dim_out: int) -> None:
        super().__init__()
        width, wide, count = preset.dim, preset.wide, range(preset.depth)
        self.linear_in = nn.Linear(dim_in, width)
        blocks = (nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width)) for _ in count)
        self.blocks = nn.ModuleList(nn.Sequential(OrderedDict(block=block)) for block in blocks)
        # 1e-5 here, 1e-6 in the ViT: as the released weights were trained.
        self.layernorms = nn.ModuleList(LayerNorm(width, bias=True, eps=1e-5) for _ in count)
        self.linear_out = nn.Linear(width, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear_in(x.movedim(1, -1).to(self.linear_in.weight.dtype))
        for norm, block in zip(self.layernorms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.linear_out(x).movedim(-1, 1)


class ConvNeXt(nn.Module):
    """ConvNeXt block (Liu et al. 2022, arXiv:2201.03545): (B, C, H, W) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = LayerNorm(channels, bias=True)
        self.pwconv1 = nn.Linear(channels, 4 * channels)
        self.pwconv2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))  # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).movedim(1, -1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        return x + y.movedim(-1, 1)


def positions_at(table: Tensor, h: int, w: int) -> Tensor:
    """(1, D, Nh, Nw) -> (1, h * w, D), resized: bicubic, half-pixel centres, no antialiasing."""
    if table.shape[2:] != (h, w):
        table = F.interpolate(table.float(), size=(h, w), mode="bicubic").to(table.dtype)
    return rearrange(table, "b d h w -> b (h w) d")


def position_map(grid: Size, dim: int) -> nn.Parameter:
    """Sine-cosine positions (1, D, Nh, Nw), as checkpoints store them."""
    return nn.Parameter(rearrange(sincos_2d(*grid, dim), "b (h w) d -> b d h w", h=grid[0]).contiguous())
