"""What a run is asked for, which files it will write, and what its record says."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch

from fourm import __version__
from fourm.codecs import NOT_YET
from fourm.engine import num_tokens_of
from fourm.errors import MissingError, UsageError
from fourm.hub import ModelFiles, weights_of
from fourm.layout import Place, Sample
from fourm.modalities import Kind, Modality
from fourm.preview import PREVIEWS
from fourm.record import Settings, digest_of_samples, now, sha256_of
from fourm.schedule import Chain
from fourm.world import World

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens of a batch, all modalities together, that keep a device busy without filling its memory.
TOKENS_PER_BATCH = {"cpu": 1024, "mps": 8192, "cuda": 65536}


@dataclass(frozen=True, slots=True)
class Request:
    """Everything about one run of `generate`."""

    model: ModelFiles
    chain: Chain
    samples: Sequence[Sample]
    out: Path
    num_variations: int = 1
    seed: int = 0
    batch_size: int | None = None  # None: chosen from the size of the chain
    device: str = "auto"  # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "auto"  # "auto" is float32: the same result everywhere
    decode: bool = True  # also write pictures and other values, not only tokens
    detokenizer_steps: int = 50
    preview: int = 0
    world: World = field(default_factory=World)
    resume: bool = False
    overwrite: bool = False
    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Output:
    """One kind of file that every sample gets."""

    place: Place
    modality: Modality
    form: str  # "ids", "value"
    is_condition: bool


def choose_device(name: str, world: World) -> torch.device:
    """The device of a name; `auto` is CUDA, then Apple's GPU, then the CPU. Processes share several GPUs."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"--device: '{name}' is not a device; known are auto, cpu, cuda, cuda:N and mps"
        ) from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise UsageError(f"--device: '{name}' is not available on this machine")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", world.local_rank % torch.cuda.device_count())
    return device


def plan_outputs(request: Request) -> list[Output]:
    """Every kind of file that a sample of this request gets; what cannot be made is refused here."""
    registry, outputs = request.model.registry, list[Output]()
    for name in request.chain.conditions:
        row = registry.get(name)
        if row.kind is Kind.GRID:
            outputs.append(Output(Place(row.name, ".npy", shared=True), row, "ids", True))
        else:
            outputs.append(Output(Place(row.folder, row.suffix, shared=True), row, "value", True))
    taken = {output.place.folder for output in outputs}
    for name in request.chain.targets:
        row = registry.get(name)
        if row.kind is Kind.GRID:
            outputs.append(Output(Place(row.name, ".npy"), row, "ids", False))
        if row.kind is Kind.SEQUENCE or request.decode:
            folder = row.folder if row.folder not in taken else f"{row.folder}_decoded"
            outputs.append(Output(Place(folder, row.suffix), row, "value", False))
    for output in outputs:
        _check_output(request.model, output)
    return outputs


def _check_output(model: ModelFiles, output: Output) -> None:
    """Refuse a value that needs a tokenizer which is not here."""
    row = output.modality
    if row.codec in NOT_YET:
        raise UsageError(f"{row.name}: reading and writing {row.title or row.name} is not available yet")
    if output.form == "value" and row.tokenizer and row.tokenizer not in model.tokenizers:
        raise MissingError(
            f"{row.name}: the tokenizer '{row.tokenizer}' that decodes it is not here; "
            f"`fourm download {row.tokenizer}` fetches it, --no-decode keeps tokens only"
        )


def make_settings(
    request: Request, outputs: list[Output], device: torch.device, dtype: torch.dtype
) -> Settings:
    """What run.json says of this run."""
    model, samples = request.model, list(request.samples)
    files = {
        "weights": model.weights,
        **{f"tokenizers/{key}": weights_of(model.tokenizers[key]) for key in tokenizers_of(outputs)},
    }
    if model.text_tokenizer is not None:
        files["text_tokenizer"] = model.text_tokenizer
    packages = {name: version(name) for name in ("torch", "numpy", "tokenizers", "pillow")}
    return Settings(
        schedule=request.chain.to_json(),
        model=model.name,
        revision=model.revision,
        files={name: sha256_of(path) for name, path in sorted(files.items())},
        samples=len(samples),
        samples_sha256=digest_of_samples(samples),
        num_variations=request.num_variations,
        seed=request.seed,
        dtype=str(dtype).removeprefix("torch."),
        device_type=device.type,
        decode=request.decode,
        detokenizer_steps=request.detokenizer_steps,
        preview=request.preview,
        places=(*(output.place for output in outputs), *([PREVIEWS] if request.preview else ())),
        device=_device_name(device),
        versions={"fourm": __version__, "python": platform.python_version()}
        | {p: version(p) for p in packages},
        command=request.command,
        created=now(),
    )


def tokenizers_of(outputs: Sequence[Output]) -> list[str]:
    """Tokenizers that are read or written through."""
    return sorted({o.modality.tokenizer for o in outputs if o.form == "value" and o.modality.tokenizer})


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device.type} {platform.processor() or platform.machine()}"


def choose_dtype(name: str) -> torch.dtype:
    """The dtype of a name; `auto` is float32 everywhere, so that a device is no reason for another result."""
    if name == "auto":
        return torch.float32
    if name not in DTYPES:
        raise UsageError(f"--dtype: '{name}' is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def choose_batch_size(request: Request, device: torch.device) -> int:
    """Samples per batch such that all their tokens together suit the device; 1 to 64."""
    registry = request.model.registry
    lengths = [registry.get(name).max_tokens for name in request.chain.conditions]
    tokens = sum(lengths) + sum(num_tokens_of(request.chain).values())
    return max(1, min(64, TOKENS_PER_BATCH.get(device.type, 2048) // max(tokens, 1)))
