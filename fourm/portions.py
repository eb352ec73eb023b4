"""As many rows at once as memory has room for: where it runs out, half as many from then on."""

import errno
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from fourm.errors import FourMError
from fourm.events import Event, Halved

T = TypeVar("T")
# What the allocators of CPUs, Apple's GPUs and CUDA's libraries say; they have no error class of their own.
_SAID = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "cannot allocate memory",
    "alloc_failed",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID)


def too_little(device: torch.device, dtype: str, even: str = "") -> FourMError:
    """What is said where not even one row fits."""
    helps = "a smaller model" if dtype.endswith("16") else "--dtype bfloat16 or a smaller model"
    return FourMError(f"memory ran out on {device}{even}; {helps} needs less")


@dataclass(slots=True)
class Portions:
    """How many rows are worked on together, and what became of that."""

    rows: int
    device: torch.device
    dtype: str
    halved_to: int | None = None  # where memory ran out

    def each(self, rows: Sequence[T], work: Callable[[Sequence[T]], Iterator[Event]]) -> Iterator[Event]:
        """Do work on all rows, portion after portion; one for which memory ran out is done again in halves.

        That work is given up before it is done must do no harm.
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
    """Give back what arrays that nobody needs any more have held; errors keep such in their frames."""
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA was not used
