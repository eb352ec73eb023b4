"""Work on groups of rows; when memory runs out, the group size is halved for the rest of the run."""

import errno
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from fourm.errors import FourMError
from fourm.runs.events import Event, Halved

T = TypeVar("T")
# Messages of the allocators of CPUs, Apple GPUs and CUDA libraries, which raise plain RuntimeErrors.
_SAID = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """True if the error means that the device or the machine ran out of memory."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)


def too_little(device: torch.device, dtype: str, even: str = "") -> FourMError:
    """The error for a run that does not fit into memory; `even` is added to the message."""
    helps = "a smaller model" if dtype.endswith("16") else "--dtype bfloat16 or a smaller model"
    return FourMError(f"memory ran out on {device}{even}; {helps} needs less")


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
        at, told = 0, self.halved_to
        while at < len(rows):
            portion = rows[at : at + self.rows]
            try:
                yield from work(portion)
                at += len(portion)
            except (RuntimeError, MemoryError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(portion) == 1:
                    raise too_little(self.device, self.dtype, ", even for one sample alone") from error
                self.rows = self.halved_to = len(portion) // 2
            else:
                if told != self.halved_to:
                    yield Halved(self.rows, str(self.device))
                told = self.halved_to
                continue
            free()


def free() -> None:
    """Free unused memory. Tracebacks can keep arrays alive in reference cycles until these are collected."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing if CUDA was not used
