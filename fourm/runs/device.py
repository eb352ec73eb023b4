"""Chooses the device, the dtype and the batch size of a run, and refuses what does not fit into memory."""

import torch

from fourm.codecs.images import rows_at_once
from fourm.errors import UsageError
from fourm.hub.header import AUTO, DTYPES, FULL, TokenizerPart, Weights
from fourm.inputs.request import Request, TokenizeRequest
from fourm.inputs.world import World
from fourm.networks.memory import free_memory, total_memory
from fourm.networks.precision import choose_dtype
from fourm.schedule.cost import LIBRARIES, MOST_ROWS, Cost, advise_bfloat16, estimate, tokenizer_bytes

# Tokens of a batch, over all modalities and by device type: many enough for speed, few enough for memory.
TOKENS_PER_BATCH = {"cpu": 1024, "mps": 8192, "cuda": 65536}
_SURE = 0.85  # estimates may be 15 % too high, so a run is refused only if 85 % of its estimate does not fit


def choose_device(name: str, world: World) -> torch.device:
    """The device of a name. `auto` is CUDA if available, else an Apple GPU, else the CPU.

    For `cuda` without a number, the processes of one machine are distributed over its GPUs. UsageError if the
    device does not exist.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = {"cuda": num_gpus, "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        name = next(kind for kind, count in counts.items() if count)
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        known = "auto, cpu, cuda, cuda:N and mps"
        raise UsageError(f"`device`: '{name}' is not a device; known are {known}") from None
    count = counts.get(device.type, 0)
    if (device.index or 0) >= count:
        last = f"; the last one is {device.type}:{count - 1}"
        there_is = {0: "", 1: "; there is only one"}.get(count, last)
        raise UsageError(f"`device`: '{name}' is not available on this machine{there_is}")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", world.local_rank % count)
    return device


def resolve_dtype(request: Request, device: torch.device) -> str:
    """The full name of the dtype of a run; UsageError if the device does not support it.

    `auto` is that of the run that is joined or continued; that of the run before super-resolution; or what
    suits the device.
    """
    name = request.dtype
    if name == AUTO and (before := request.joined_record()) is not None:
        name = before.dtype
    elif name == AUTO and request.origin is not None:
        name = request.origin.dtype
    return choose_dtype(name, device)


def advise_dtype(request: Request | TokenizeRequest) -> str:
    """A sentence where another dtype would be faster for a run that may still have any; else ""."""
    if isinstance(request, TokenizeRequest):
        return ""
    is_bound = request.dtype != AUTO or request.origin is not None or request.joined_record() is not None
    is_cpu = choose_device(request.device, request.world).type == "cpu"
    return advise_bfloat16(request.model, request.chain) if is_cpu and not is_bound else ""


def resolve_weights(request: Request) -> Weights:
    """How the weights of a run are kept: as asked, of the run that it continues or follows, or full."""
    if request.weights is not None:
        return request.weights
    before = request.joined_record() or request.origin
    return FULL if before is None else before.weights


def fit_batch_size(request: Request, device: torch.device) -> int:
    """The batch size that is asked for; that of the run that is joined or continued; or a power of two.

    That one is at most what still gains speed and what fits in all the memory of the device: it does not
    depend on who else uses it now. The independent predictions (`passes`) of a text are decoded together, so
    a sample counts once for each.
    """
    if request.batch_size:
        return request.batch_size
    if (before := request.joined_record()) is not None and before.batch_size:
        return before.batch_size
    passes = max((step.passes for step in request.chain.steps), default=1)
    size, total = _power_of_two(choose_rows(request, device) // passes), total_memory(device)
    while size > 1 and _cost(request, size, device).memory * _SURE > total:
        size //= 2
    return size


def choose_rows(request: Request, device: torch.device) -> int:
    """The number of rows that suits a device, a power of two up to 64. A row has all tokens of one sample."""
    registry = request.model.registry
    lengths = [registry.get(name).max_tokens for name in request.chain.conditions]
    tokens = sum(lengths) + sum(request.chain.num_tokens.values())
    return _power_of_two(min(MOST_ROWS, TOKENS_PER_BATCH.get(device.type, 2048) // max(tokens, 1)))


def checked_batch_size(request: Request, device: torch.device) -> int:
    """The batch size of a run; UsageError if the estimated memory is more than the device has free.

    On a GPU a batch that nobody asked for may be too large, as it is halved when memory runs out; a system
    without memory ends processes instead.
    """
    batch_size = fit_batch_size(request, device)
    size = min(batch_size, max(1, len(request.samples) * request.num_variations))
    size = 1 if device.type == "cuda" and request.batch_size is None else size
    cost = _cost(request, size, device)
    other = f"`batch_size={size // 2}`" if size > 1 else ""
    _check_free(cost.memory, cost.weights, device, request.dtype, request.model.name, other)
    return batch_size


def check_tokenizing_memory(request: TokenizeRequest, device: torch.device) -> None:
    """UsageError if a run that only tokenizes needs more memory than the device has free."""
    keys, width = {row.tokenizer for row in request.rows}, DTYPES[request.dtype].num_bytes
    weights = sum(tokenizer_bytes(request.model, key, width, TokenizerPart.ENCODER) for key in keys)
    other = "one of `modalities` after the other" if len(keys) > 1 else ""
    _check_free(weights + LIBRARIES, weights, device, request.dtype, "this", other)


def _cost(request: Request, size: int, device: torch.device) -> Cost:
    """The estimated cost of a run with batches of `size` samples."""
    tokenizer_rows = min(size, rows_at_once(device))
    return estimate(
        request.chain, request.model, request.dtype, size, request.decode, tokenizer_rows,
        choose_rows(request, device), request.weights or FULL,
    )  # fmt: skip


def _power_of_two(number: int) -> int:
    """The largest one that is not above a number, at least 1."""
    return 1 << max(number, 1).bit_length() - 1


def _check_free(memory: int, weights: int, device: torch.device, dtype: str, name: str, other: str) -> None:
    """UsageError if `memory` bytes are more than are free. other: what helps besides another dtype, or ""."""
    free = free_memory(device)
    if memory * _SURE > free:
        total, of_weights, left = (f"{count / 1e9:.3g} GB" for count in (memory, weights, free))
        needs = f"needs about {total} ({of_weights} for weights), but only {left} are free on {device}"
        helps = ["`dtype=bfloat16`"] if DTYPES[dtype].num_bytes > 2 else []
        helps += [other] if other else []
        raise UsageError(f"{name} {needs}; {' or '.join(helps) or 'a smaller model'} needs less")
