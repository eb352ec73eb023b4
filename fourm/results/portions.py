"""Works on rows in groups, which are halved when memory runs out; what such an error is to users."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from fourm.errors import FourMError
from fourm.inputs.request import NOWHERE
from fourm.networks.memory import is_out_of_memory, memory_error, release_memory
from fourm.results.events import Event, Halved

T = TypeVar("T")


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
        num_done, is_halved = 0, False
        while portion := rows[num_done : num_done + self.rows]:
            try:
                yield from work(portion)
                num_done += len(portion)
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
