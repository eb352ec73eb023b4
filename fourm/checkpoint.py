"""Local files to networks: strict, from safetensors only, straight onto the target device."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fourm.errors import CheckpointError, near_match
from fourm.header import TensorInfo, parse_header_config, read_header
from fourm.hub import ModelFiles, load_config, weights_of
from fourm.modalities import Kind
from fourm.model import FourM, FourMConfig
from fourm.tokenizers.build import AnyTokenizer, build_tokenizer, fit_state, read_config
from fourm.tokenizers.config import VQConfig
from fourm.tokenizers.vq import TRAINING_BUFFERS, Part

Network = TypeVar("Network", bound=nn.Module)


def load_model(
    files: ModelFiles, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> FourM:
    """The transformer of a model folder or file, ready for inference."""
    config = FourMConfig.from_dict(files.config, files.registry)
    with torch.device("meta"):
        model = FourM(config)
    state = _fit_model(model, _read_tensors(files.weights), files.weights)
    return _filled(model, state, device, dtype)


def load_tokenizer(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    part: Part = Part.WHOLE,
) -> AnyTokenizer:
    """A discrete tokenizer, or half of one, from a folder (config.json, model.safetensors) or one file."""
    config, weights = _tokenizer_config(path)
    state = _fit_tokenizer(config, _read_tensors(weights), weights, part)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config, part)
    _filled(tokenizer, state, device, torch.float32)
    return tokenizer if dtype == torch.float32 else tokenizer.set_network_dtype(dtype)


def tokenizer_config(path: Path) -> VQConfig:
    """What a tokenizer's folder or file says of itself; no weights are read."""
    return _tokenizer_config(path)[0]


def check_files(files: ModelFiles, tokenizers: Iterable[str] = ()) -> None:
    """Compare names and shapes of a model's and its tokenizers' tensors with their configs, loading none."""
    config = FourMConfig.from_dict(files.config, files.registry)
    with torch.device("meta"):
        model = FourM(config)
    _fit_model(model, _tensor_shapes(files.weights), files.weights)
    for name in tokenizers:
        config_of, weights = _tokenizer_config(files.tokenizers[name])
        # Training buffers are judged by their contents, which a header does not have.
        shapes = {n: t for n, t in _tensor_shapes(weights).items() if n not in TRAINING_BUFFERS}
        _fit_tokenizer(config_of, shapes, weights)


def _tensor_shapes(path: Path) -> dict[str, Tensor]:
    """Tensors without contents, as the header of a file describes them."""
    tensors = read_header(path)[1].items()
    return {n: torch.empty(info.shape, dtype=_kind_of(info), device="meta") for n, info in tensors}


def _kind_of(info: TensorInfo) -> torch.dtype:
    """A dtype that stands for all floating point ones, or for all others."""
    return torch.float32 if "F" in info.dtype else torch.int64


def _tokenizer_config(path: Path) -> tuple[VQConfig, Path]:
    """The config of a tokenizer's folder or file, and where its weights are."""
    weights = weights_of(path)
    beside = weights.parent / "config.json"
    if path.is_dir() and beside.exists():
        config = load_config(beside)
    else:
        config = parse_header_config(read_header(weights)[0])
    try:
        return read_config(config), weights
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _fit_tokenizer(
    config: VQConfig, state: dict[str, Tensor], path: Path, part: Part = Part.WHOLE
) -> dict[str, Tensor]:
    try:
        return fit_state(config, state, part)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, memory-mapped."""
    read_header(path)  # says what is wrong with a malformed file in words
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _filled(
    module: Network, state: dict[str, Tensor], device: str | torch.device, dtype: torch.dtype
) -> Network:
    """A module from the meta device with these tensors as its own, in evaluation mode."""
    moved = {n: t.to(device=device, dtype=dtype if t.is_floating_point() else None) for n, t in state.items()}
    module.load_state_dict(moved, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def _fit_model(model: FourM, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors that the transformer loads: every one of them, nothing left over, all shapes right."""
    wanted = model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if name not in unused_names(model)}
    for name in model.shared_names():
        # The Hub stores a shared vector once, under either name.
        pair = [f"{side}_embeddings.{name}.mod_emb" for side in ("encoder", "decoder")]
        for one, other in (pair, reversed(pair)):
            if one not in kept and other in kept:
                kept[one] = kept[other]
    problems = [
        f"'{name}' is missing{near_match(name, kept.keys() - wanted.keys())}"
        for name in wanted
        if name not in kept
    ]
    problems += [f"'{name}' has no place in the model" for name in kept if name not in wanted]
    problems += [
        f"'{name}' is {tuple(kept[name].shape)}, the config asks for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in kept and kept[name].shape != tensor.shape
    ]
    problems += [
        f"'{name}' holds whole numbers, the model needs fractions"
        for name, tensor in wanted.items()
        if name in kept and tensor.is_floating_point() and not kept[name].is_floating_point()
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise CheckpointError(f"{path}: tensor {'; tensor '.join(problems[:3])}{more}")
    return kept


def unused_names(model: FourM) -> frozenset[str]:
    """Tensors of a checkpoint that no result depends on: image targets start from the mask token alone."""
    return frozenset(
        f"decoder_embeddings.{m.name}.token_emb.weight"
        for m in model.config.modalities_out
        if m.kind is Kind.GRID
    )
