"""Chooses the device and the batch size of a run, and halves the batches when memory runs out."""

import errno
import gc
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
from fourm.runs.request import Request, TokenizeRequest, World
from fourm.schedule.cost import LIBRARIES, MOST_ROWS, Cost, estimate, tokenizer_bytes

T = TypeVar("T")
# Messages of the allocators of CPUs, Apple GPUs and CUDA libraries, which raise plain RuntimeErrors.
_OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "alloc_failed")
# Tokens of a batch, in all modalities, that use a device well without filling its memory.
TOKENS_PER_BATCH = {"cpu": 1024, "mps": 8192, "cuda": 65536}
# Files of a control group, version 1 and 2: its limit and usage, and the field of memory.stat for file cache.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")
_DOUBT = 0.15  # relative error of an estimate: a run is refused if it does not fit even with so much less
_UNREADABLE = (OSError, StopIteration, ValueError, IndexError)  # of such files, which other kernels lack


@dataclass(slots=True)
class Portions:
    """The group size, and whether it had to be reduced."""

    rows: int
    device: torch.device
    dtype: str
    halved_to: int | None = None  # the group size after memory ran out; None: it did not

    def each(self, rows: Sequence[T], work: Callable[[Sequence[T]], Iterator[Event]]) -> Iterator[Event]:
        """Call `work` on one group of rows after another; repeat in halves what runs out of memory.

        So `work` must be safe to repeat after it stopped at any point.
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
                    raise too_little(self.device, self.dtype, ", even for one sample alone") from error
                self.rows = self.halved_to = len(portion) // 2
                is_halved = True
            if is_halved:  # not before the traceback is gone
                release_memory()


def choose_device(name: str, world: World) -> torch.device:
    """The device with a name. `auto` is CUDA, else an Apple GPU, else the CPU.

    Without a number, the processes of one machine are distributed over its GPUs.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        known = "auto, cpu, cuda, cuda:N and mps"
        raise UsageError(f"--device: '{name}' is not a device; known are {known}") from None
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    counts = {"cpu": 1, "cuda": num_gpus, "mps": int(torch.backends.mps.is_available())}
    count = counts.get(device.type, 0)
    if (device.index or 0) >= count:
        last = ("", "; there is only one", f"; the last one is {device.type}:{count - 1}")[min(count, 2)]
        raise UsageError(f"--device: '{name}' is not available on this machine{last}")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", world.local_rank % count)
    return device


def fit_batch_size(request: Request, device: torch.device) -> int:
    """The requested batch size; without one, 1 to 64 samples: as suits the device and its memory.

    A sample with several texts, which are decoded together, counts that many times.
    """
    if request.batch_size:
        return request.batch_size
    passes = max((step.passes for step in request.chain.steps), default=1)
    size, there = max(1, choose_rows(request, device) // passes), free_memory(device)
    while size > 1 and there is not None and _cost(request, size, device).memory * (1 - _DOUBT) > there:
        size //= 2
    return size


def choose_rows(request: Request, device: torch.device) -> int:
    """Rows, each with all tokens of a sample, that together suit the device; 1 to 64."""
    registry = request.model.registry
    lengths = [registry.get(name).max_tokens for name in request.chain.conditions]
    tokens = sum(lengths) + sum(request.chain.num_tokens.values())
    return max(1, min(MOST_ROWS, TOKENS_PER_BATCH.get(device.type, 2048) // max(tokens, 1)))


def check_memory(request: Request, device: torch.device) -> int:
    """The batch size of a run; UsageError if it needs more memory than the device has, by an estimate."""
    batch_size = fit_batch_size(request, device)
    size = min(batch_size, max(1, len(request.samples) * request.num_variations))
    cost = _cost(request, size, device)
    other = f"--batch-size {size // 2}" if size > 1 else ""
    _refuse(cost.memory, cost.weights, device, request.dtype, request.model.name, other)
    return batch_size


def check_tokenizing_memory(request: TokenizeRequest, device: torch.device) -> None:
    """`check_memory` for a run that only tokenizes."""
    paths = {request.model.tokenizers[row.tokenizer] for row in request.rows}
    width = DTYPES[request.dtype].num_bytes
    weights = sum(tokenizer_bytes(path, width, TokenizerPart.ENCODER) for path in paths)
    other = "one --modalities after the other" if len(paths) > 1 else ""
    _refuse(weights + LIBRARIES, weights, device, request.dtype, "this", other)


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Free bytes of a device; None if unknown. `root` is the folder of /proc and /sys."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits, groups = list[int](), list[tuple[str, str]]()
    with suppress(*_UNREADABLE):
        limits.append(_number_after("MemAvailable:", root / "proc/meminfo") * 1024)  # file cache included
    with suppress(*_UNREADABLE):
        groups = re.findall(r"^[0-9]+:([^:\n]*):(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    for controllers, path in groups:  # control groups of this process; each lies in others, with own limits
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit, usage, cache = _V1 if controllers else _V2
        group = top / path.lstrip("/")
        while group.is_relative_to(top):
            with suppress(*_UNREADABLE):  # so is a group without a limit
                free = int(_text(group / limit)) - int(_text(group / usage))
                free += _number_after(cache, group / "memory.stat")  # file cache can be freed
                limits.append(max(0, free))
            group = group.parent
    return min(limits, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error means that the device or the machine ran out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_told = isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
    return is_told or isinstance(error, MemoryError | torch.OutOfMemoryError)


def too_little(device: torch.device, dtype: str, even: str = "") -> FourMError:
    """The error for a run that does not fit into memory; `even` is added to the message."""
    helps = "a smaller model" if dtype.endswith("16") else "--dtype bfloat16 or a smaller model"
    return FourMError(f"memory ran out on {device}{even}; {helps} needs less")


@contextmanager
def as_fourm_errors(device: torch.device, dtype: str, out: Path) -> Iterator[None]:
    """Turn errors of memory and of the file system into FourMErrors."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise too_little(device, dtype) from error
        if not isinstance(error, OSError):
            raise
        raise FourMError(f"{error.filename or out}: cannot be written ({error.strerror})") from error


def release_memory() -> None:
    """Free unused memory. Tracebacks can keep arrays alive in reference cycles until these are collected."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing if CUDA was not used


def _cost(request: Request, size: int, device: torch.device) -> Cost:
    chain, model, rows = request.chain, request.model, min(size, rows_at_once(device))
    return estimate(chain, model, request.dtype, size, request.decode, rows, choose_rows(request, device))


def _refuse(memory: int, weights: int, device: torch.device, dtype: str, name: str, other: str) -> None:
    """Refuse what needs too much memory; other: what helps besides another dtype."""
    there = free_memory(device)
    if there is not None and memory * (1 - _DOUBT) > there:
        needed, of_weights, free = (f"{count / 1e9:.3g} GB" for count in (memory, weights, there))
        needs = f"needs about {needed} ({of_weights} for weights), but only {free} are free on {device}"
        helps = ["--dtype bfloat16"] if DTYPES[dtype].num_bytes > 2 else []
        helps += [other] if other else []
        raise UsageError(f"{name} {needs}; {' or '.join(helps) or 'a smaller model'} needs less")


def _number_after(name: str, path: Path) -> int:
    return next(int(line.split()[1]) for line in _text(path).splitlines() if line.startswith(f"{name} "))


def _text(path: Path) -> str:
    return read_bytes(path, 1 << 20).decode()
