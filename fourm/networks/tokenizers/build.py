"""From what a checkpoint says to the tokenizer that it means, and what its file must hold."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fourm.errors import CheckpointError, near_match
from fourm.networks.tokenizers.config import DiVAEConfig, VQConfig
from fourm.networks.tokenizers.divae import DiVAE
from fourm.networks.tokenizers.vq import TRAINING_BUFFERS, Part, VQTokenizer, check_codebook, decided_by

AnyTokenizer = VQTokenizer | DiVAE
_DIFFUSION_DECODERS = ("unet_", "uvit_")
_DIFFUSION_KEYS = ("beta_schedule", "num_train_timesteps")


def read_config(config: Mapping[str, object]) -> VQConfig:
    """The config of a tokenizer: of diffusion where its decoder, or else a noise schedule, says so."""
    decoder = config.get("dec_type")
    by_name = isinstance(decoder, str) and any(part in decoder for part in _DIFFUSION_DECODERS)
    if by_name or (decoder is None and not config.keys().isdisjoint(_DIFFUSION_KEYS)):
        return DiVAEConfig.from_dict(config)
    return VQConfig.from_dict(config)


def build_tokenizer(config: VQConfig, part: Part = Part.WHOLE) -> AnyTokenizer:
    """The tokenizer of a config, with random weights."""
    if isinstance(config, DiVAEConfig):
        return DiVAE(config, part)
    return VQTokenizer(config, part)


def fit_state(config: VQConfig, state: Mapping[str, Tensor], part: Part = Part.WHOLE) -> dict[str, Tensor]:
    """The tensors of a checkpoint that `build_tokenizer(config, part)` loads, all of them and no others.

    Buffers of training are dropped, and the tensors of the half that is not built. A missing, left-over or
    misshapen tensor, a codebook that was never trained, or one of the other metric is a CheckpointError.
    """
    check_codebook(config, state)
    dropped = TRAINING_BUFFERS + part.leaves_out
    kept = {_first_name(name): t for name, t in state.items() if not name.startswith(dropped)}
    with torch.device("meta"):
        wanted = build_tokenizer(config, part).state_dict()
    for name in sorted(wanted.keys() | kept.keys()):
        if name not in kept:
            raise CheckpointError(
                f"tensor '{name}' is missing{near_match(name, kept.keys() - wanted.keys())}"
            )
        if name not in wanted:
            raise CheckpointError(f"tensor '{name}' has no place in the tokenizer that the config describes")
        if kept[name].shape != wanted[name].shape:
            raise CheckpointError(
                f"tensor '{name}' is {tuple(kept[name].shape)}, "
                f"but the config asks for {tuple(wanted[name].shape)}"
                f"{decided_by(name)}"
            )
        if wanted[name].is_floating_point() and not kept[name].is_floating_point():
            raise CheckpointError(f"tensor '{name}' holds whole numbers, the tokenizer needs fractions")
    return kept


def _first_name(name: str) -> str:
    """UViT files hold one convolution under two names, or under the second alone."""
    return name.replace("downsample_mid.Conv2d_0.", "downsample_mid.conv.")
