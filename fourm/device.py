"""On what a run computes: device, dtype, and how many samples at once."""

import platform

import torch

from fourm.errors import UsageError
from fourm.request import Request
from fourm.world import World

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Tokens of a batch, all modalities together, that keep a device busy without filling its memory.
TOKENS_PER_BATCH = {"cpu": 1024, "mps": 8192, "cuda": 65536}


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
    tokens = sum(lengths) + sum(request.chain.num_tokens.values())
    return max(1, min(64, TOKENS_PER_BATCH.get(device.type, 2048) // max(tokens, 1)))


def name_device(device: torch.device) -> str:
    """The device and its make, for the record."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"{device.type} {platform.processor() or platform.machine()}"
