"""How much memory a device has and has free, and the errors that say that it ran out."""

import errno
import gc
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from fourm.errors import FourMError
from fourm.files.opening import read_bytes
from fourm.networks.graphs import release_graphs

# Parts of messages of allocators (CPU, Apple GPU, CUDA libraries) that raise plain RuntimeErrors.
_OUT_OF_MEMORY = ("allocate memory", "not enough memory", "out of memory", "alloc_failed")
# Files of a control group, version 1 and 2: limit and usage; and the field of memory.stat for the file cache.
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = ("memory.max", "memory.current", "inactive_file")
# Errors of reading these files, which are missing or different in other systems and kernels.
_UNREADABLE = (OSError, StopIteration, ValueError, IndexError)


def free_memory(device: torch.device, root: Path = Path("/")) -> float:
    """Free bytes of a CUDA device, or of the host for any other; infinity if that is unknown.

    On the host, the limits of control groups count, too. root: the folder with `proc` and `sys`, for tests.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [max(0, limit - used) for limit, used in _group_limits(root)]
    with suppress(*_UNREADABLE):
        limits.append(_number_after("MemAvailable:", root / "proc/meminfo") * 1024)  # file cache included
    return min(limits, default=math.inf)


def total_memory(device: torch.device, root: Path = Path("/")) -> float:
    """All bytes that a device has, whoever uses them; as `free_memory` otherwise."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    limits = [limit for limit, _ in _group_limits(root)]
    with suppress(*_UNREADABLE):
        limits.append(_number_after("MemTotal:", root / "proc/meminfo") * 1024)
    return min(limits, default=math.inf)


def _group_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each control group of this process; those of parent groups count too."""
    groups = list[tuple[str, str]]()
    with suppress(*_UNREADABLE):
        groups = re.findall(r"^[0-9]+:([^:\n]*):(.*)$", _text(root / "proc/self/cgroup"), re.MULTILINE)
    for controllers, path in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit, usage, cache = _V1 if controllers else _V2
        group = top / path.lstrip("/")
        while group.is_relative_to(top):
            with suppress(*_UNREADABLE):  # "max", for a group without a limit, is no number
                used = int(_text(group / usage)) - _number_after(cache, group / "memory.stat")  # can be freed
                yield int(_text(group / limit)), used
            group = group.parent


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error means that the device or the machine ran out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in message for words in _OUT_OF_MEMORY)


def memory_error(device: torch.device, dtype: str, size: str = "") -> FourMError:
    """The error of a run that does not fit into memory; size: for the message, such as ", even for ..."."""
    advice = "a smaller model" if dtype.endswith("16") else "`dtype=bfloat16` or a smaller model"
    return FourMError(f"memory ran out on {device}{size}; {advice} needs less")


def release_memory() -> None:
    """Free unused memory: reference cycles, in which tracebacks keep arrays alive, and what graphs hold."""
    gc.collect()
    release_graphs()


def _number_after(name: str, path: Path) -> int:
    """The number in the first line that begins with `name` and a blank; StopIteration if there is none."""
    return next(int(line.split()[1]) for line in _text(path).splitlines() if line.startswith(f"{name} "))


def _text(path: Path) -> str:
    return read_bytes(path, 1 << 20).decode()
