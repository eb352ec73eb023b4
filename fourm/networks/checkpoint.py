"""Local files to networks: strict, from safetensors only, straight onto the target device.

Tensors are read one after the other from a mapped file, a few at a time where they are converted or moved, so
that a network never lies in memory twice. Where nothing changes (float32 on a CPU), the network's parameters
are the mapped file itself: pages come as they are used, several processes share them, and the file must
stay as it is while they run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fourm.errors import CheckpointError, near_match
from fourm.hub.files import ModelFiles, weights_of
from fourm.hub.header import TensorInfo, config_of, read_header
from fourm.modalities.registry import Kind
from fourm.networks.model import FourM, FourMConfig
from fourm.networks.tokenizers.build import AnyTokenizer, build_tokenizer, fit_state, read_config
from fourm.networks.tokenizers.config import VQConfig
from fourm.networks.tokenizers.shapes import settle
from fourm.networks.tokenizers.vq import INITTED, TRAINING_BUFFERS, Part

Network = TypeVar("Network", bound=nn.Module)
_OPEN_BYTES = 32 << 20  # of a file that is being converted and still mapped
_NAMED = 3  # problems that a message lists


def load_model(
    files: ModelFiles, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> FourM:
    """The transformer of a model folder or file, ready for inference."""
    config = FourMConfig.from_dict(files.config, files.registry)
    with torch.device("meta"):
        model = FourM(config)
    shapes = _tensor_shapes(files.weights)
    plan = _plan(_fit_model(model, shapes, files.weights), shapes)
    return _filled(model, plan, files.weights, device, lambda _: dtype)


def load_tokenizer(
    path: Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    part: Part = Part.WHOLE,
) -> AnyTokenizer:
    """A discrete tokenizer, or half of one, from a folder (config.json, model.safetensors) or one file."""
    config, weights = _tokenizer_config(path)
    shapes = _tensor_shapes(weights)
    if INITTED in shapes:  # it is judged by its content, which a header does not have
        shapes |= _read(weights, [INITTED])
    plan = _plan(_fit_tokenizer(config, shapes, weights, part), shapes)
    with torch.device("meta"):
        tokenizer = build_tokenizer(config, part)
    return _filled(tokenizer, plan, weights, device, lambda name: tokenizer.dtype_of(name, dtype))


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
    """The config of a tokenizer's folder or file, as its tensors complete it, and where its weights are."""
    weights = weights_of(path)
    config, tensors = config_of(path), read_header(weights)[1]
    try:
        return read_config(settle(config, {name: info.shape for name, info in tensors.items()})), weights
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _fit_tokenizer(
    config: VQConfig, state: dict[str, Tensor], path: Path, part: Part = Part.WHOLE
) -> dict[str, Tensor]:
    try:
        return fit_state(config, state, part)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _filled(
    module: Network, plan: Mapping[str, str], path: Path, device: str | torch.device,
    dtype_of: Callable[[str], torch.dtype],
) -> Network:  # fmt: skip
    """A module from the meta device with a file's tensors as its own, in evaluation mode.

    plan: for each name of the module, the name of its tensor in the file.
    """
    targets = dict[str, list[str]]()
    for name, source in plan.items():
        targets.setdefault(source, []).append(name)
    state, spoilt = dict[str, Tensor](), list[str]()
    for source, tensor, is_finite in _stream(path, targets, torch.device(device), dtype_of):
        if not is_finite:
            spoilt.append(source)
        state |= dict.fromkeys(targets[source], tensor)
    if spoilt:
        more = f" (and {len(spoilt) - _NAMED} more)" if len(spoilt) > _NAMED else ""
        names = ", ".join(f"'{name}'" for name in spoilt[:_NAMED])
        raise CheckpointError(f"{path}: not all numbers are finite in tensor {names}{more}")
    module.load_state_dict(state, strict=True, assign=True)
    return module.requires_grad_(False).eval()


def _stream(
    path: Path, targets: Mapping[str, list[str]], device: torch.device, dtype_of: Callable[[str], torch.dtype]
) -> Iterator[tuple[str, Tensor, bool]]:
    """The tensors of a file where they are wanted, in the order of their bytes, and whether all is finite.

    The file is opened anew for every few of them: a mapping that is closed takes its pages along.
    """
    groups, size = [list[str]()], 0
    for name, info in read_header(path)[1].items():
        if name in targets:
            size += 4 * info.num_elements
            if size > _OPEN_BYTES and groups[-1]:
                groups.append([])
                size = 4 * info.num_elements
            groups[-1].append(name)
    for group in groups:
        mapped = _read(path, group)
        for name in group:
            tensor = mapped.pop(name)
            dtype = dtype_of(targets[name][0]) if tensor.is_floating_point() else tensor.dtype
            yield name, tensor.to(device, dtype), _is_finite(tensor)


def _read(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a safetensors file, memory-mapped."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _is_finite(tensor: Tensor) -> bool:
    """False where a number is NaN or infinite; a sum finds them in one pass and asks for no memory."""
    if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
        return True
    return bool(tensor.isfinite().all())  # the sum itself may be too large


def _plan(fitted: Mapping[str, Tensor], shapes: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name of a module the name of its tensor in the file."""
    stored = {id(tensor): name for name, tensor in shapes.items()}
    return {name: stored[id(tensor)] for name, tensor in fitted.items()}


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
