"""A discrete tokenizer: values to token ids and back, and what a checkpoint of one must hold."""

from collections.abc import Mapping
from enum import Enum
from typing import Self

import torch
from torch import Tensor, nn

from fourm.errors import CheckpointError
from fourm.networks.layers import TokenTable
from fourm.networks.tokenizers.config import VQConfig
from fourm.networks.tokenizers.encoders import (
    BottleneckMlp,
    MlpPreset,
    ViTDecoder,
    ViTEncoder,
    parse_preset,
)
from fourm.networks.tokenizers.quantizers import MemCodes, NearestCode

# Statistics of the codebook that only training reads.
INITTED = "quantize._codebook.initted"
TRAINING_BUFFERS = (
    INITTED,
    "quantize._codebook.cluster_size",
    "quantize._codebook.embed_avg",
)
_IN_FLOAT32 = ("quant", "encoder.norm_mlp", "encoder.post_mlp")
IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))  # mean, standard deviation of R, G, B in [0, 1]


class Part(Enum):
    """How much of a tokenizer is built: one direction needs half of it."""

    WHOLE = "whole"
    ENCODER = "encoder"  # with the codebook
    DECODER = "decoder"  # with the codebook

    @property
    def leaves_out(self) -> tuple[str, ...]:
        """Beginnings of the names of tensors that it does without."""
        return {
            Part.WHOLE: (),
            Part.ENCODER: ("decoder.", "post_quant_proj."),
            Part.DECODER: ("encoder.", "quant_proj.", "cls_emb."),
        }[self]


# Which keys of the config decide the shape of a tensor, by a part of its name.
_DECIDED_BY = {
    "encoder.pos_emb": "image_size, image_size_enc, patch_size",
    "decoder.pos_emb": "image_size, image_size_dec, patch_size_dec",
    "encoder.proj": "enc_type, n_channels, patch_size, patch_proj",
    "decoder.out_proj": "dec_type, n_channels, n_labels, patch_size, patch_size_dec, patch_proj",
    "decoder.input_blocks.0.0": "n_channels, latent_dim, dec_type, dec_structure",
    "decoder.out.2": "n_channels, dec_type, dec_structure",
    "_codebook.embed": "codebook_size, latent_dim",
    "quantize.": "codebook_size, num_codebooks, latent_dim",
    "cls_emb": "n_labels, n_channels",
    "mlp.": "post_mlp, enc_type, dec_type",
    "out_conv": "out_conv, n_channels",
    "quant_proj": "latent_dim, enc_type, dec_type",
}


class Tokenizer(nn.Module):
    """Encoder and codebook of one kind of value; how tokens become a value is for subclasses to say.

    encode:  x -> prepare (B, C, H, W) -> encoder (B, E, h, w) -> latents (B, L, h, w) -> tokens
    Tokens are (B, h, w), or (B, N, h, w) where N > 1 codebooks share the latent; L is `latent_dim`.
    """

    def __init__(self, config: VQConfig, part: Part = Part.WHOLE) -> None:
        super().__init__()
        self.config = config
        self.encoder: nn.Module | None = None
        if part is not Part.DECODER:
            if config.n_labels is not None:
                self.cls_emb = TokenTable(config.n_labels, config.n_channels)
            self.encoder, width = build_encoder(config)
            self.quant_proj = nn.Conv2d(width, config.latent_dim, kernel_size=1)
        self.quantize = build_quantizer(config)

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
        return _undo_imagenet(x) if config.undo_std else x

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
        config = self.config
        if tokens.ndim != config.token_rank or tokens.is_floating_point():
            form = "(B, h, w)" if config.token_rank == 3 else f"(B, {config.num_codebooks}, h, w)"
            raise ValueError(f"tokens are {form} integers, not {tuple(tokens.shape)} {tokens.dtype}")
        if config.token_rank == 4 and tokens.shape[1] != config.num_codebooks:
            raise ValueError(
                f"tokens have {tokens.shape[1]} codebooks; this tokenizer has {config.num_codebooks}"
            )
        _check_range(tokens, config.codebook_size, "tokens")
        return self.quantize.lookup(tokens.long())

    def dtype_of(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype of a tensor in a network of this one: the search and what leads to it are float32."""
        return torch.float32 if name.startswith(_IN_FLOAT32) else dtype

    def set_network_dtype(self, dtype: torch.dtype) -> Self:
        """Encoder and decoder in dtype, as `dtype_of` says."""
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(self.dtype_of(name, dtype))
        return self


class VQTokenizer(Tokenizer):
    """A tokenizer whose decoder is a network that runs once.

    decode:  tokens -> lookup (B, L, h, w) -> (B, E', h, w) -> decoder -> output
    """

    def __init__(self, config: VQConfig, part: Part = Part.WHOLE) -> None:
        super().__init__(config, part)
        self.decoder: nn.Module | None = None
        if part is not Part.ENCODER:
            self.decoder, width = build_decoder(config)
            self.post_quant_proj = nn.Conv2d(config.latent_dim, width, kernel_size=1)

    def decode(self, quant: Tensor) -> Tensor:
        """Latents (B, L, h, w) -> output (B, C, h * P, w * P) float32, as the decoder leaves it."""
        if self.decoder is None:
            raise ValueError("this tokenizer was built without a decoder")
        return self.decoder(self.post_quant_proj(quant.to(self.post_quant_proj.weight.dtype))).float()

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens -> output, as in `decode`."""
        return self.decode(self.lookup(tokens))


def build_encoder(config: VQConfig) -> tuple[nn.Module, int]:
    """The encoder and the number of channels it gives."""
    preset = parse_preset(config.enc_type)
    if isinstance(preset, MlpPreset):
        return BottleneckMlp(preset, config.n_channels, preset.thin), preset.thin
    patch = config.patch_size if config.patch_proj else (1, 1)
    return ViTEncoder(preset, config.n_channels, patch, config.encoder_grid, config.post_mlp), preset.dim


def build_decoder(config: VQConfig) -> tuple[nn.Module, int]:
    """The decoder and the number of channels it takes."""
    preset = parse_preset(config.dec_type)
    if isinstance(preset, MlpPreset):
        return BottleneckMlp(preset, preset.thin, config.out_channels), preset.thin
    patch = config.decoder_patch if config.patch_proj else (1, 1)
    shape = (config.out_channels, patch, config.decoder_grid)
    return ViTDecoder(preset, *shape, config.post_mlp, config.out_conv), preset.dim


def build_quantizer(config: VQConfig) -> NearestCode | MemCodes:
    """The codebook or codebooks."""
    if config.quant_type == "memcodes":
        return MemCodes(config.num_codebooks, config.codebook_size, config.latent_dim)
    return NearestCode(config.codebook_size, config.latent_dim, config.norm_codes, config.norm_latents)


def check_codebook(config: VQConfig, state: Mapping[str, Tensor]) -> None:
    initted, counts, averages = (state.get(name) for name in TRAINING_BUFFERS)
    if initted is not None and not bool(initted.any()):
        raise CheckpointError("the codebook was never trained (quantize._codebook.initted is 0)")
    # Trainers keep running averages beside Euclidean codebooks only.
    if counts is not None and (averages is None) != config.norm_codes:
        metric = "cosine (norm_codes true)" if averages is None else "Euclidean (norm_codes false)"
        raise CheckpointError(f"norm_codes: is {config.norm_codes}, but the file holds a {metric} codebook")


def decided_by(name: str) -> str:
    keys = next((keys for part, keys in _DECIDED_BY.items() if part in name), "enc_type, dec_type")
    return f" (decided by {keys})"


def _check_range(ids: Tensor, count: int, what: str) -> None:
    if ids.numel() == 0:
        return
    low, high = torch.stack(ids.aminmax()).tolist()
    if low < 0 or high >= count:
        raise ValueError(f"{what} must lie in 0..{count - 1}; found {low if low < 0 else high}")


def _undo_imagenet(x: Tensor) -> Tensor:
    """(B, 3, H, W) ImageNet-standardised -> [-1, 1], with constants rounded like the reference's."""
    shift = torch.tensor([-mean / std for mean, std in IMAGENET], dtype=x.dtype, device=x.device)
    scale = torch.tensor([1 / std for _, std in IMAGENET], dtype=x.dtype, device=x.device)
    return 2 * ((x - shift.view(3, 1, 1)) / scale.view(3, 1, 1)) - 1
