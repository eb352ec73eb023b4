"""Local files to networks: strict, from safetensors only, straight onto the target device.

Tensors are converted or moved a few at a time from a mapped file, so that a network never lies in memory
twice. In float32 on a CPU the weights of large linear layers are copied (see `linears.pack`), and diffusion
decoders (see `DiVAE.converted`). All else is the mapped file itself there: several processes share the pages,
and the file must stay as it is while they run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fourm.errors import CheckpointError, near_match
from fourm.hub.files import ModelFiles, weights_of
from fourm.hub.header import FULL, INT8, TRAINING_BUFFERS, TokenizerPart, Weights, config_of, read_header
from fourm.modalities.registry import Kind
from fourm.networks.linears import Int8Linear, copied_weights, packed_layer, set_int8
from fourm.networks.model import FourM, FourMConfig
from fourm.networks.tokenizers import DECIDED_BY_CONFIG, AnyTokenizer, build_tokenizer, complete_config
from fourm.networks.tokenizers.config import VQConfig, read_config

_Network = TypeVar("_Network", bound=nn.Module)
# Bytes of tensors, counted as float32, that are mapped together while they are converted. Tensors that end
# in the same stretch of so many bytes are one group, so a group may have as many bytes and those of its
# first tensor.
_OPEN_BYTES = 32 << 20


def load_model(
    files: ModelFiles, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    weights: Weights = FULL,
) -> FourM:  # fmt: skip
    """The transformer of a model folder or file, ready for inference. weights: one of `WEIGHTS`."""
    model, sources = _fit_model(files)
    exact = set_int8(model) if weights == INT8 else frozenset()

    def convert(name: str, tensor: Tensor) -> Tensor:
        return tensor.to(device, torch.float32 if name in exact else dtype)

    return _filled(model, sources, files.weights, device, convert)


def load_tokenizer(
    path: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    part: TokenizerPart = TokenizerPart.WHOLE,
) -> AnyTokenizer:  # fmt: skip
    """A discrete tokenizer, or half of one, from a folder (config.json, model.safetensors) or one file."""
    tokenizer, sources = _fit_tokenizer(path, part)
    convert = partial(tokenizer.converted, device=device, dtype=dtype)
    return _filled(tokenizer, sources, weights_of(path), device, convert)


def load_strictly(
    network: _Network, path: Path, device: str | torch.device, is_unused: Callable[[str], bool]
) -> _Network:
    """Any other network, given from meta, with the float32 tensors of a file, ready for inference.

    is_unused: by its name, whether a tensor of the file is left out. All others must be those of the network.
    """
    tensors = {name: tensor for name, tensor in _outlines(path).items() if not is_unused(name)}
    with _naming(path):
        _compare(tensors, network, "network")
    sources = {name: name for name in tensors}
    return _filled(network, sources, path, device, lambda _, tensor: tensor.to(device, torch.float32))


def tokenizer_config(path: Path) -> VQConfig:
    """What a tokenizer's folder or file says of itself, completed by its tensors; no weights are read."""
    config, tensors = config_of(path), read_header(weights_of(path)).tensors
    with _naming(path):
        return read_config(complete_config(config, {name: info.shape for name, info in tensors.items()}))


def check_files(files: ModelFiles, tokenizers: Iterable[str] = ()) -> None:
    """Compare a model's and its tokenizers' tensors with their configs, loading none."""
    _fit_model(files)
    for name in tokenizers:
        _fit_tokenizer(files.tokenizers[name], TokenizerPart.WHOLE)


def _fit_model(files: ModelFiles) -> tuple[FourM, dict[str, str]]:
    """The transformer without values, and for each name in it that of its tensor in the file."""
    with _naming(files.name), torch.device("meta"):
        model = FourM(FourMConfig.from_dict(files.config, files.registry))
    tensors, unused = _outlines(files.weights), unused_names(model)
    sources = {name: name for name in tensors if name not in unused}
    for name in model.shared_names():
        # The Hub stores a shared vector once, under either name.
        pair = [f"{side}_embeddings.{name}.mod_emb" for side in ("encoder", "decoder")]
        if len(stored := [one for one in pair if one in sources]) == 1:
            sources |= dict.fromkeys(pair, stored[0])
    with _naming(files.weights):
        _compare({name: tensors[source] for name, source in sources.items()}, model, "model")
    return model, sources


def _fit_tokenizer(path: Path, part: TokenizerPart) -> tuple[AnyTokenizer, dict[str, str]]:
    """The same for a tokenizer, or half of one."""
    config, weights = tokenizer_config(path), weights_of(path)
    tensors = _outlines(weights)
    # This one is judged by its content, which a header does not have.
    tensors |= _read(weights, tensors.keys() & {TRAINING_BUFFERS[0]})
    with _naming(weights):
        return fit_tokenizer(config, tensors, part)


def fit_tokenizer(
    config: VQConfig, tensors: Mapping[str, Tensor], part: TokenizerPart = TokenizerPart.WHOLE
) -> tuple[AnyTokenizer, dict[str, str]]:
    """The tokenizer of a config without values, and for each name in it that of its tensor in a checkpoint.

    Buffers of training are dropped, and the tensors of the half that is not built. A missing, left-over or
    misshapen tensor, a codebook that was never trained, or one of the other metric is a CheckpointError.
    """
    initted, counts, averages = (tensors.get(name) for name in TRAINING_BUFFERS)
    if initted is not None and not bool(initted.any()):
        raise CheckpointError(f"the codebook was never trained ({TRAINING_BUFFERS[0]} is 0)")
    # Trainers keep running averages beside Euclidean codebooks only.
    if counts is not None and (averages is None) != config.norm_codes:
        metric = "cosine (norm_codes true)" if averages is None else "Euclidean (norm_codes false)"
        raise CheckpointError(f"norm_codes: is {config.norm_codes}, but the file holds a {metric} codebook")
    with torch.device("meta"):
        tokenizer = build_tokenizer(config, part)
    kept = [name for name in tensors if not name.startswith(TRAINING_BUFFERS + part.value)]
    # UViT files hold one convolution under two names, or under the second alone.
    sources = {name.replace("downsample_mid.Conv2d_0.", "downsample_mid.conv."): name for name in kept}
    _compare({name: tensors[source] for name, source in sources.items()}, tokenizer, "tokenizer")
    return tokenizer, sources


def _compare(found: Mapping[str, Tensor], network: nn.Module, what: str) -> None:
    """CheckpointError for tensors that are missing, left over, of a wrong shape or of whole numbers."""
    wanted, problems = network.state_dict(), list[str]()
    by_config = "" if what == "network" else " that the config describes"
    asker = "the network asks" if what == "network" else "the config asks"
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            problems.append(f"'{name}' is missing{near_match(name, found.keys() - wanted.keys())}")
        elif name not in wanted:
            problems.append(f"'{name}' has no place in the {what}{by_config}")
        elif found[name].shape != wanted[name].shape:
            shapes = f"{tuple(found[name].shape)}, but {asker} for {tuple(wanted[name].shape)}"
            keys = next(keys for part, keys in DECIDED_BY_CONFIG if part in name)
            cause = f" (decided by {keys})" if what == "tokenizer" else ""
            problems.append(f"'{name}' is {shapes}{cause}")
        elif wanted[name].is_floating_point() and not found[name].is_floating_point():
            problems.append(f"'{name}' holds whole numbers, the {what} needs floats")
    if problems:
        raise CheckpointError(f"tensor {_listed(problems, '; tensor ')}")


def _listed(problems: list[str], separator: str) -> str:
    """The first three problems, and how many more there are."""
    return separator.join(problems[:3]) + (f" (and {len(problems) - 3} more)" if len(problems) > 3 else "")


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """Put a path, or a model's name, before the message of a CheckpointError."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _outlines(path: Path) -> dict[str, Tensor]:
    """Tensors without contents, as the header of a file describes them: float32, or int64 for all others."""
    infos = read_header(path).tensors.items()
    dtypes = {True: torch.float32, False: torch.int64}
    return {n: torch.empty(info.shape, dtype=dtypes["F" in info.dtype], device="meta") for n, info in infos}


def _filled(
    module: _Network, sources: Mapping[str, str], path: Path, device: str | torch.device,
    convert: Callable[[str, Tensor], Tensor],
) -> _Network:  # fmt: skip
    """A module from meta with the tensors of a file, by the names in `sources`, in evaluation mode.

    convert: from the name of a tensor of floats, and its values, to those that the module keeps.
    """
    targets = dict[str, list[str]]()
    for name, source in sources.items():
        targets.setdefault(source, []).append(name)
    infos = {name: info for name, info in read_header(path).tensors.items() if name in targets}
    ends = dict(zip(infos, accumulate(4 * info.num_elements for info in infos.values()), strict=True))
    spoilt, copied = list[str](), copied_weights(module)
    # A mapping that is closed takes its pages along. It is closed when nothing of it is kept, so weights that
    # may be packed have mappings of their own.
    groups = {name: (targets[name][0] in copied, ends[name] // _OPEN_BYTES) for name in infos}
    for _, group in groupby(sorted(infos, key=groups.__getitem__), key=groups.__getitem__):
        mapped = _read(path, group)
        for name in tuple(mapped):
            tensor = mapped.pop(name)
            # A sum finds NaN and infinity in one pass and asks for no memory; it may itself be too large.
            if not bool(tensor.sum().isfinite()) and not bool(tensor.isfinite().all()):
                spoilt.append(f"'{name}'")
            is_float = tensor.is_floating_point()
            kept = convert(targets[name][0], tensor) if is_float else tensor.to(device)
            for target in targets[name]:
                _assign(module, target, kept)
            del tensor, kept
    if spoilt:
        raise CheckpointError(f"{path}: not all numbers are finite in tensor {_listed(spoilt, ', ')}")
    return module.requires_grad_(False).eval()


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a module from meta one of its tensors; a linear layer may become a packed one."""
    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(owner, Int8Linear) and own == "weight":
        owner.fill(tensor)
        return
    is_buffer = own in dict(owner.named_buffers(recurse=False))
    setattr(owner, own, tensor if is_buffer else nn.Parameter(tensor, requires_grad=False))
    if own == "weight" and (packed := packed_layer(owner)) is not owner:
        parent, _, child = path.rpartition(".")
        module.get_submodule(parent).register_module(child, packed)


def _read(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Some tensors of a safetensors file, memory-mapped."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def unused_names(model: FourM) -> frozenset[str]:
    """Tensors of a checkpoint that no result depends on: image targets start from the mask token alone."""
    grids = [row.name for row in model.config.modalities_out if row.kind is Kind.GRID]
    return frozenset(f"decoder_embeddings.{name}.token_emb.weight" for name in grids)
