"""The transformer in the middle of a UViT, where the tokens' latents come in."""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fourm.errors import CheckpointError
from fourm.networks.blocks import SelfAttention
from fourm.networks.layers import Kernel, LayerNorm, Mlp, attention, merge_heads, sdpa, sincos_2d, split_heads
from fourm.networks.tokenizers.config import Size
from fourm.networks.tokenizers.encoders import resize_positions

_MAX_LAYERS = 1024  # far beyond any decoder


@dataclass(frozen=True, slots=True)
class UViTShape:
    """How large a UViT is; the names are those of the reference. Impossible ones are a CheckpointError."""

    patch_size: int = 4  # pixels per side
    block_out_channels: tuple[int, ...] = (128, 256, 512)  # widths of the convolutional levels
    layers_per_block: int | tuple[int, ...] = 2  # residual blocks, for all levels or for each
    downsample_before_mid: bool = False
    mid_layers: int = 12
    mid_num_heads: int = 12
    mid_dim: int = 768
    mid_mlp_ratio: float = 4
    mid_qkv_bias: bool = True
    mid_hw_posemb: int = 32  # side of the stored map of positions
    mid_use_long_skip: bool = False
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if not numbers or any(number <= 0 and number is not False for number in numbers):
                raise CheckpointError(f"dec_structure: '{field.name}' cannot be {value!r}")
        widths, groups = self.block_out_channels, self.norm_num_groups
        for is_wrong, problem in (
            (self.mid_use_long_skip and self.mid_layers % 2 == 0, "long skips need an odd mid_layers"),
            (len(self.layers) != len(widths), "layers_per_block needs one number per level"),
            (sum(self.layers) + self.mid_layers > _MAX_LAYERS, f"more than {_MAX_LAYERS:,} layers"),
            (self.mid_dim % self.mid_num_heads > 0, "mid_dim must be a multiple of mid_num_heads"),
            (self.mid_dim % 4 > 0, "mid_dim must be a multiple of 4"),
            (self.mid_dim * self.mid_mlp_ratio < 1, "mid_mlp_ratio leaves the MLPs no width"),
            (widths[0] % 2 > 0, "the first width must be even"),
            (any(width % groups for width in widths), "widths must fill the norm's groups"),
        ):
            if is_wrong:
                raise CheckpointError(f"dec_structure: {problem}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Residual blocks of each level."""
        n = self.layers_per_block
        return n if isinstance(n, tuple) else (n,) * len(self.block_out_channels)

    @property
    def dim(self) -> int:
        """Width of the transformer."""
        return self.mid_dim

    @property
    def num_heads(self) -> int:
        """Heads of its attention."""
        return self.mid_num_heads

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.mid_qkv_bias

    @property
    def proj_bias(self) -> bool:
        """Whether attention's output has one: always."""
        return True

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised: never."""
        return False

    def norm(self, width: int | None = None) -> LayerNorm:
        """A norm of the transformer."""
        return LayerNorm(width or self.mid_dim, bias=True, eps=1e-5)

    def mlp(self) -> Mlp:
        """An MLP of the transformer."""
        return Mlp(self.mid_dim, int(self.mid_dim * self.mid_mlp_ratio), nn.GELU(), bias=True)


@dataclass(frozen=True, slots=True)
class UViTCondition:
    """What the transformer needs at every step and no step changes."""

    added: Tensor  # (1 or B, N, D): positions, and the projected latents where these are added
    contexts: tuple[tuple[Tensor, Tensor], ...] = ()  # xattn: keys and values (B, H, M, d) for each block
    visible: Tensor | None = None  # xattn: (B, 1, 1, M), False = no query reads it


class Transformer(nn.Module):
    """Blocks over the positions of a map, which they replace."""

    def __init__(self, shape: UViTShape, width: int, wide: int, latent_dim: int, conditioning: str) -> None:
        super().__init__()
        self.shape, dim, side = shape, shape.mid_dim, shape.mid_hw_posemb
        self.is_cross = conditioning == "xattn"
        table = rearrange(sincos_2d(side, side, dim), "b (h w) d -> b d h w", h=side)
        self.mid_pos_emb = nn.Parameter(table.contiguous())
        self.mid_proj_in = nn.Linear(width, dim)
        self.mid_proj_out = nn.Linear(dim, width)
        if not self.is_cross:
            self.mask_token = nn.Parameter(torch.zeros(dim))
            self.mid_cond_proj = nn.Linear(latent_dim, dim)
        half = shape.mid_layers // 2
        self.mid_block = nn.ModuleList(
            Block(shape, wide, latent_dim if self.is_cross else 0, shape.mid_use_long_skip and index > half)
            for index in range(shape.mid_layers)
        )

    def condition(self, quant: Tensor, grid: Size, cond_mask: Tensor | None) -> UViTCondition:
        """Latents (B, D', h, w) for a map of this grid; cond_mask (B, h, w), True = hidden."""
        height, width = grid
        if self.is_cross:
            table = F.interpolate(self.mid_pos_emb.float(), size=grid, mode="nearest")
            return self._as_context(quant, table, cond_mask)
        positions = rearrange(
            resize_positions(self.mid_pos_emb.float(), height, width), "b d h w -> b (h w) d"
        )
        latents = F.interpolate(quant.float(), size=grid, mode="nearest").to(quant.dtype)
        added = self.mid_cond_proj(rearrange(latents, "b d h w -> b (h w) d"))
        if cond_mask is not None:
            mask = F.interpolate(cond_mask.float().unsqueeze(1), size=grid, mode="nearest") > 0.5
            added = torch.where(rearrange(mask, "b 1 h w -> b (h w) 1"), self.mask_token, added)
        return UViTCondition((added + positions).to(quant.dtype))

    def _as_context(self, quant: Tensor, table: Tensor, cond_mask: Tensor | None) -> UViTCondition:
        positions = rearrange(table, "b d h w -> b (h w) d").to(quant.dtype)
        context, visible = rearrange(quant, "b d h w -> b (h w) d"), None
        contexts = tuple(block.read_context(context) for block in self.mid_block)  # type: ignore[operator]
        if cond_mask is not None:
            hidden = rearrange(cond_mask, "b h w -> b 1 1 (h w)")
            nothing = hidden.all(dim=-1, keepdim=True)
            # A row that sees nothing reads the mean of all values: equal scores for all keys.
            contexts = tuple((keys.masked_fill(nothing, 0), values) for keys, values in contexts)
            visible = ~hidden | nothing
        return UViTCondition(positions, contexts, visible)

    def forward(self, x: Tensor, time: Tensor, condition: UViTCondition) -> Tensor:
        """x (B, C, h, w), time (1 or B, E) after its activation -> (B, C, h, w)."""
        grid = x.shape[2]
        y = self.mid_proj_in(rearrange(x, "b c h w -> b (h w) c")) + condition.added
        skips, half = list[Tensor](), len(self.mid_block) // 2
        for index, block in enumerate(self.mid_block):
            skip = skips.pop() if self.shape.mid_use_long_skip and index > half else None
            y = block(y, time, condition.contexts[index] if self.is_cross else None, condition.visible, skip)
            if index < half:
                skips.append(y)
        return rearrange(self.mid_proj_out(y), "b (h w) c -> b c h w", h=grid)


class Block(nn.Module):
    """Attention to the map, perhaps to the latents, and an MLP, led by the time (Peebles and Xie 2022)."""

    def __init__(self, shape: UViTShape, wide: int, context_width: int, has_skip: bool) -> None:
        super().__init__()
        dim, parts = shape.mid_dim, 3 if context_width else 2
        self.norm1, self.norm2, self.mlp = shape.norm(), shape.norm(), shape.mlp()
        self.cross_attn: LatentAttention | None = None
        if context_width:
            self.self_attn = SelfAttention(shape)
            self.cross_attn = LatentAttention(shape, context_width)
            self.query_norm, self.context_norm = shape.norm(), shape.norm(context_width)
        else:
            self.attn = SelfAttention(shape)
        self.adaLN_modulation = nn.Linear(wide, 2 * parts * dim)
        self.adaLN_gate = nn.Linear(wide, parts * dim)
        self.skip_linear = nn.Linear(2 * dim, dim) if has_skip else None

    def read_context(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, M, d) of latents (B, M, D')."""
        assert self.cross_attn is not None
        return self.cross_attn.keys_values(self.context_norm(context))

    def forward(
        self, x: Tensor, time: Tensor, context: tuple[Tensor, Tensor] | None, visible: Tensor | None,
        skip: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """x (B, N, D), time (1 or B, E), keys and values of the latents, an earlier block's result."""
        changes = self.adaLN_modulation(time).unsqueeze(1).chunk(4 if context is None else 6, dim=-1)
        gates = self.adaLN_gate(time).unsqueeze(1).chunk(2 if context is None else 3, dim=-1)
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        look = self.attn if context is None else self.self_attn
        x = x + gates[0] * look(_changed(self.norm1(x), changes[:2]), None)
        if context is not None and self.cross_attn is not None:
            x = x + gates[1] * self.cross_attn(_changed(self.query_norm(x), changes[2:4]), *context, visible)
        return x + gates[-1] * self.mlp(_changed(self.norm2(x), changes[-2:]))


class LatentAttention(nn.Module):
    """Attention from the map to the latents, which have a width of their own."""

    def __init__(self, shape: UViTShape, context_width: int) -> None:
        super().__init__()
        self.num_heads = shape.mid_num_heads
        self.kernel: Kernel = sdpa
        self.q = nn.Linear(shape.mid_dim, shape.mid_dim, bias=shape.mid_qkv_bias)
        self.kv = nn.Linear(context_width, 2 * shape.mid_dim, bias=shape.mid_qkv_bias)
        self.proj = nn.Linear(shape.mid_dim, shape.mid_dim)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, D') -> keys and values (B, H, M, d)."""
        k, v = (split_heads(part, self.num_heads) for part in self.kv(context).chunk(2, dim=-1))
        return k, v

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
        """x (B, N, D), visible (B, 1, 1, M) -> (B, N, D)."""
        q = split_heads(self.q(x), self.num_heads)
        return self.proj(merge_heads(attention(q, keys, values, visible, kernel=self.kernel)))


def _changed(x: Tensor, change: tuple[Tensor, ...]) -> Tensor:
    shift, scale = change
    return x * (1 + scale) + shift
