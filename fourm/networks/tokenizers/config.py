"""What a tokenizer's `config.json` says: the keys of the released format, their defaults and their checks."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from fourm.errors import CheckpointError
from fourm.hub.header import diffuses
from fourm.modalities.typed import Limits, to_type

# Up to far beyond any tokenizer, and any decoder.
_Count = Annotated[int, Limits(1, 1 << 20)]
PositiveInt = Annotated[int, Limits(1, 1 << 16)]
PositiveInts = Annotated[tuple[PositiveInt, ...], Limits(1, 16)]
Size = tuple[_Count, _Count]  # height, width


@dataclass(frozen=True, slots=True)
class VQConfig:
    """What a tokenizer's `config.json` says, with the defaults of the released format; sizes in pixels."""

    image_size: Size = (224, 224)
    image_size_enc: Size | None = None
    image_size_dec: Size | None = None
    n_channels: _Count = 3
    n_labels: _Count | None = None
    enc_type: str = "vit_b_enc"
    dec_type: str = "vit_b_dec"
    patch_size: Size = (16, 16)
    patch_size_dec: Size | None = None
    patch_proj: bool = True
    post_mlp: bool = False
    out_conv: bool = False
    quant_type: str = "lucid"
    codebook_size: _Count = 16384
    num_codebooks: _Count = 1
    latent_dim: _Count = 32
    norm_codes: bool = True
    norm_latents: bool = False
    undo_std: bool = False

    def __post_init__(self) -> None:
        if self.undo_std and (self.n_channels != 3 or self.n_labels is not None):
            raise CheckpointError("undo_std: only for tokenizers of RGB pictures (3 channels, no labels)")

    @property
    def out_channels(self) -> int:
        """Channels of the decoder's output: one per label, or those of the input."""
        return self.n_channels if self.n_labels is None else self.n_labels

    @property
    def token_rank(self) -> int:
        """3 for tokens (B, h, w), 4 for (B, N, h, w)."""
        return 3 if self.num_codebooks == 1 else 4

    @property
    def encoder_grid(self) -> Size:
        """Grid of the encoder's position table."""
        return _grid(self.image_size_enc or self.image_size, self.patch_size, "image_size")

    @property
    def decoder_grid(self) -> Size:
        """Grid of the decoder's position table."""
        patch = self.patch_size_dec or self.patch_size
        return _grid(self.image_size_dec or self.image_size, patch, "image_size_dec")


@dataclass(frozen=True, slots=True)
class DiVAEConfig(VQConfig):
    """What the `config.json` of a tokenizer says that decodes by diffusion."""

    dec_type: str = "unet_patched"
    num_train_timesteps: _Count = 1000
    scheduler: str = "ddpm"  # every other name is DDIM
    beta_schedule: str = "squaredcos_cap_v2"
    prediction_type: Literal["sample", "epsilon", "v_prediction"] = "v_prediction"
    clip_sample: bool = False
    thresholding: bool = True
    zero_terminal_snr: bool = True
    conditioning: Literal["concat", "xattn"] = "concat"
    dec_structure: Mapping[str, Any] | None = None  # sizes of a decoder that no name stands for
    has_encoder: bool = True  # false where a file holds the codebook and the decoder alone

    def __post_init__(self) -> None:
        VQConfig.__post_init__(self)
        if self.n_labels is not None:
            raise CheckpointError("n_labels: class maps are not decoded by diffusion")


def read_config(config: Mapping[str, object]) -> VQConfig:
    """The config of a tokenizer, which may be one of diffusion (see `diffuses`).

    Unknown keys are settings of training. A text of digits is its number, one number a size on both axes.
    """
    kind, values = DiVAEConfig if diffuses(config) else VQConfig, dict(config)
    for key, value in config.items():
        if isinstance(value, str) and value.isdecimal() and len(value) < 19:
            values[key] = int(value)
    for field in fields(kind):
        if field.type in (Size, Size | None) and type(values.get(field.name)) is int:
            values[field.name] = [values[field.name]] * 2
    return to_type(kind, values, "config", strict=False, error=CheckpointError)


def _grid(image: Size, patch: Size, key: str) -> Size:
    grid = (image[0] // patch[0], image[1] // patch[1])
    if 0 in grid:
        raise CheckpointError(f"{key}: {image} pixels are less than one patch of {patch}")
    return grid
