"""Chooses the device and the batch size of a run, and halves the batches when memory runs out."""

import errno
import gc
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from fourm.codecs.images import rows_at_once
from fourm.data.opening import read_bytes
from fourm.errors import FourMError, UsageError
from fourm.hub.header import DTYPES, TokenizerPart
from fourm.runs.events import Event, Halved
from fourm.runs.request import NOWHERE, Request, TokenizeRequest, World
from fourm.schedule.cost import LIBRARIES, MOST_ROWS, Cost, estimate, tokenizer_bytes

T = TypeVar("T")
# Parts of messages of allocators (CPU, Apple GPU, CUDA libraries) that raise plain RuntimeErrors.
_OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "alloc_failed")
# Tokens of a batch, over all modalities and by device type: many enough for speed, few enough for memory.
TOKENS_PER_BATCH = {"cpu": 1024, "mps": 8192, "cuda": 65536}
# Files of a control group, version 1 and 2: limit and usage; and the field of memory.stat for the file cache.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")
_SURE = 0.85  # estimates may be 15 % too high, so a run is refused if 85 % of its estimate does not fit
# Errors of reading these files, which are missing or different in other systems and kernels.
_UNREADABLE = (OSError, StopIteration, ValueError, IndexError)


@dataclass(slots=True)
class Portions:
    """The size of the groups that rows are worked on in; it is halved when memory runs out."""

    rows: int  # of a group, at most
    device: torch.device
    dtype: str

    def each(self, rows: Sequence[T], work: Callable[[Sequence[T]], Iterator[Event]]) -> Iterator[Event]:
        """Yield the events of `work` for each group of rows; repeat a group in halves if memory runs out.

        `work` must be safe to repeat after an error at any point. FourMError if one row alone does not fit.
        """
        at, is_halved = 0, False
        while portion := rows[at : at + self.rows]:
            try:
                yield from work(portion)
                at += len(portion)
                if is_halved:
                    yield Halved(self.rows, str(self.device))
                is_halved = False
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(portion) == 1:
                    raise memory_error(self.device, self.dtype, ", even for one sample alone") from error
                self.rows = len(portion) // 2
                is_halved = True
            if is_halved:  # outside of `except`, whose traceback keeps tensors alive
                release_memory()


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
    except RuntimeError:
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


def fit_batch_size(request: Request, device: torch.device) -> int:
    """The requested batch size, or else 1 to 64 samples, as suits the device and its free memory.

    The independent predictions (`passes`) of a text are decoded together, so a sample counts once for each.
    """
    if request.batch_size:
        return request.batch_size
    passes = max((step.passes for step in request.chain.steps), default=1)
    size = max(1, choose_rows(request, device) // passes)
    free = free_memory(device)
    while size > 1 and _cost(request, size, device).memory * _SURE > free:
        size //= 2
    return size


def choose_rows(request: Request, device: torch.device) -> int:
    """The number of rows that suits a device, 1 to 64. A row has all tokens of one sample."""
    registry = request.model.registry
    lengths = [registry.get(name).max_tokens for name in request.chain.conditions]
    tokens = sum(lengths) + sum(request.chain.num_tokens.values())
    return max(1, min(MOST_ROWS, TOKENS_PER_BATCH.get(device.type, 2048) // max(tokens, 1)))


def check_memory(request: Request, device: torch.device) -> int:
    """The batch size of a run; UsageError if the estimated memory is more than the device has free."""
    batch_size = fit_batch_size(request, device)
    size = min(batch_size, max(1, len(request.samples) * request.num_variations))
    cost = _cost(request, size, device)
    other = f"`batch_size={size // 2}`" if size > 1 else ""
    _refuse(cost.memory, cost.weights, device, request.dtype, request.model.name, other)
    return batch_size


def check_tokenizing_memory(request: TokenizeRequest, device: torch.device) -> None:
    """UsageError if a run that only tokenizes needs more memory than the device has free."""
    keys, width = {row.tokenizer for row in request.rows}, DTYPES[request.dtype].num_bytes
    weights = sum(tokenizer_bytes(request.model, key, width, TokenizerPart.ENCODER) for key in keys)
    other = "one of `modalities` after the other" if len(keys) > 1 else ""
    _refuse(weights + LIBRARIES, weights, device, request.dtype, "this", other)


def free_memory(device: torch.device, root: Path = Path("/")) -> float:
    """Free bytes of a device; infinity if unknown. root: the folder with `proc` and `sys`, for tests."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits, groups = list[int](), list[tuple[str, str]]()
    with suppress(*_UNREADABLE):
        limits.append(_number_after("MemAvailable:", root / "proc/meminfo") * 1024)  # file cache included
    with suppress(*_UNREADABLE):
        groups = re.findall(r"^[0-9]+:([^:\n]*):(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    for controllers, path in groups:  # of this process; the limits of parent groups count too
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit, usage, cache = _V1 if controllers else _V2
        group = top / path.lstrip("/")
        while group.is_relative_to(top):
            with suppress(*_UNREADABLE):  # "max", for a group without a limit, is no number
                free = int(_text(group / limit)) - int(_text(group / usage))
                free += _number_after(cache, group / "memory.stat")  # file cache can be freed
                limits.append(max(0, free))
            group = group.parent
    return min(limits, default=math.inf)


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error means that the device or the machine ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _OUT_OF_MEMORY)


def memory_error(device: torch.device, dtype: str, size: str = "") -> FourMError:
    """The error of a run that does not fit into memory; size: ", even for ..." for the message."""
    helps = "a smaller model" if dtype.endswith("16") else "`dtype=bfloat16` or a smaller model"
    return FourMError(f"memory ran out on {device}{size}; {helps} needs less")


@contextmanager
def as_fourm_errors(device: torch.device, dtype: str, out: Path = NOWHERE) -> Iterator[None]:
    """Turn errors of memory and of the file system into FourMErrors. out: named if an error names no file."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise memory_error(device, dtype) from error
        if not isinstance(error, OSError):
            raise
        raise FourMError(f"{error.filename or out}: cannot be written ({error.strerror})") from error


def release_memory() -> None:
    """Free unused memory: reference cycles, in which tracebacks keep arrays alive, and CUDA's cache."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing if CUDA was not used


def _cost(request: Request, size: int, device: torch.device) -> Cost:
    """The estimated cost of a run with batches of `size` samples."""
    tokenizer_rows = min(size, rows_at_once(device))
    return estimate(
        request.chain, request.model, request.dtype, size, request.decode, tokenizer_rows,
        choose_rows(request, device),
    )  # fmt: skip


def _refuse(memory: int, weights: int, device: torch.device, dtype: str, name: str, other: str) -> None:
    """UsageError if `memory` bytes are more than are free; other: what helps besides another dtype."""
    free = free_memory(device)
    if memory * _SURE > free:
        total, of_weights, left = (f"{count / 1e9:.3g} GB" for count in (memory, weights, free))
        needs = f"needs about {total} ({of_weights} for weights), but only {left} are free on {device}"
        helps = ["`dtype=bfloat16`"] if DTYPES[dtype].num_bytes > 2 else []
        helps += [other] if other else []
        raise UsageError(f"{name} {needs}; {' or '.join(helps) or 'a smaller model'} needs less")


def _number_after(name: str, path: Path) -> int:
    """The number in the line of a file that begins with `name`; StopIteration if there is none."""
    return next(int(line.split()[1]) for line in _text(path).splitlines() if line.startswith(f"{name} "))


def _text(path: Path) -> str:
    return read_bytes(path, 1 << 20).decode()
