"""What a tokenizer's `config.json` says: the keys of the released format, their defaults and their checks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from fourm.errors import CheckpointError, near_match

Size = tuple[int, int]  # height, width
Structure = Mapping[str, object]

QUANTIZERS = ("lucid", "memcodes")
CONDITIONINGS = ("concat", "xattn")
_MAX_COUNT = 1 << 20  # far beyond any tokenizer


@dataclass(frozen=True, slots=True)
class VQConfig:
    """What a tokenizer's `config.json` says, with the defaults of the released format; sizes in pixels."""

    image_size: Size = (224, 224)
    image_size_enc: Size | None = None
    image_size_dec: Size | None = None
    n_channels: int = 3
    n_labels: int | None = None
    enc_type: str = "vit_b_enc"
    dec_type: str = "vit_b_dec"
    patch_size: Size = (16, 16)
    patch_size_dec: Size | None = None
    patch_proj: bool = True
    post_mlp: bool = False
    out_conv: bool = False
    quant_type: str = "lucid"
    codebook_size: int = 16384
    num_codebooks: int = 1
    latent_dim: int = 32
    norm_codes: bool = True
    norm_latents: bool = False
    undo_std: bool = False

    def __post_init__(self) -> None:
        if self.quant_type not in QUANTIZERS:
            near = near_match(self.quant_type, QUANTIZERS)
            raise CheckpointError(
                f"quant_type: '{self.quant_type}' is not one of {', '.join(QUANTIZERS)}{near}"
            )
        if self.quant_type == "lucid" and self.num_codebooks > 1:
            raise CheckpointError(f"num_codebooks: {self.num_codebooks}, but 'lucid' has one codebook")
        if self.latent_dim % self.num_codebooks:
            raise CheckpointError(
                f"latent_dim: {self.latent_dim} cannot be split over {self.num_codebooks} codebooks evenly"
            )
        if self.undo_std and (self.n_channels != 3 or self.n_labels is not None):
            raise CheckpointError("undo_std: only for tokenizers of RGB pictures (3 channels, no labels)")

    @classmethod
    def from_dict(cls, config: Mapping[str, object]) -> Self:
        """From constructor arguments as stored with a checkpoint; unknown keys are training settings."""
        return cls(**{f.name: _READ[f.type](f.name, config[f.name]) for f in fields(cls) if f.name in config})

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
    def decoder_patch(self) -> Size:
        """Pixels per token side in the output, where it has pixels."""
        return self.patch_size_dec or self.patch_size

    @property
    def decoder_grid(self) -> Size:
        """Grid of the decoder's position table."""
        return _grid(self.image_size_dec or self.image_size, self.decoder_patch, "image_size_dec")


@dataclass(frozen=True, slots=True)
class DiVAEConfig(VQConfig):
    """What the `config.json` of a tokenizer says that decodes by diffusion."""

    dec_type: str = "unet_patched"
    num_train_timesteps: int = 1000
    scheduler: str = "ddpm"  # every other name is DDIM
    beta_schedule: str = "squaredcos_cap_v2"
    prediction_type: str = "v_prediction"
    clip_sample: bool = False
    thresholding: bool = True
    zero_terminal_snr: bool = True
    conditioning: str = "concat"
    dec_structure: Structure | None = None  # sizes of a decoder that no name stands for
    has_encoder: bool = True  # false where a file holds the codebook and the decoder alone

    def __post_init__(self) -> None:
        VQConfig.__post_init__(self)
        if self.conditioning not in CONDITIONINGS:
            near = near_match(self.conditioning, CONDITIONINGS)
            raise CheckpointError(
                f"conditioning: '{self.conditioning}' is not one of {', '.join(CONDITIONINGS)}{near}"
            )
        if self.n_labels is not None:
            raise CheckpointError("n_labels: class maps are not decoded by diffusion")


def _grid(image: Size, patch: Size, key: str) -> Size:
    grid = (image[0] // patch[0], image[1] // patch[1])
    if 0 in grid:
        raise CheckpointError(f"{key}: {image} pixels are less than one patch of {patch}")
    return grid


def _read_count(key: str, value: object) -> int:
    number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 19 else value
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= _MAX_COUNT:
        raise CheckpointError(f"{key}: {value!r} is not a positive whole number up to {_MAX_COUNT}")
    return number


def _read_size(key: str, value: object) -> Size:
    if isinstance(value, list | tuple):
        if len(value) != 2:
            raise CheckpointError(f"{key}: {value!r} is neither one number nor a pair (height, width)")
        return _read_count(key, value[0]), _read_count(key, value[1])
    side = _read_count(key, value)
    return side, side


def _read_flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise CheckpointError(f"{key}: {value!r} is neither true nor false")
    return value


def _read_text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise CheckpointError(f"{key}: {value!r} is not a name")
    return value


def _read_structure(key: str, value: object) -> Structure | None:
    if value is not None and not (isinstance(value, dict) and all(isinstance(k, str) for k in value)):
        raise CheckpointError(f"{key}: {value!r} is not an object of settings")
    return value


# A reader for each type of field.
_READ: dict[object, Callable[[str, object], Any]] = {
    Size: _read_size,
    Size | None: lambda key, value: None if value is None else _read_size(key, value),
    int: _read_count,
    int | None: lambda key, value: None if value is None else _read_count(key, value),
    bool: _read_flag,
    Structure | None: _read_structure,
    str: _read_text,
}
