"""CUDA graphs: a function of tensors that is met again is captured, and its kernels are started at once."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from torch import Tensor

Work = Callable[..., Sequence[Tensor]]
MOST_GRAPHS = 256  # each holds its inputs and results; what is between them lies in one pool for all
MOST_HELD = 8  # sets of tensors that captured work keeps
LEAST_FREE = 0.1  # share of the device's memory that must be free for one more
# Of all graphs: a process can capture one at a time; and a replay overwrites what others left in their pool,
# so its results are copied before the next one.
_LOCK = RLock()


@dataclass(slots=True)
class _Captured:
    graph: Any  # torch.cuda.CUDAGraph
    inputs: list[Tensor]  # memory that the graph reads
    latest: list[Tensor]  # what was copied there last
    outputs: Sequence[Tensor]


@dataclass(slots=True)
class Graphs:
    """Graphs by key, for several threads. Results are the same with and without them."""

    _met: Counter[Hashable] = field(default_factory=Counter)
    _captured: dict[Hashable, _Captured] = field(default_factory=dict)
    _refused: set[Hashable] = field(default_factory=set)  # keys of what cannot be captured
    _held: dict[Hashable, list[Tensor]] = field(default_factory=dict)
    _taken: set[Hashable] = field(default_factory=set)  # keys of memory that is in use
    _pool: Any = None
    _stream: Any = None  # torch.cuda.Stream: that of captures, on the device of the inputs

    def run(self, key: Hashable, work: Work, *inputs: Tensor) -> Sequence[Tensor]:
        """`work(*inputs)`, which must depend on nothing but its inputs, the key and memory that stays.

        A tensor that is passed again is the same as before: nobody may have changed its numbers.

        The first call of a key runs as it is, which also chooses kernels; the second one is captured. Work
        that asks the device for a value cannot be captured and always runs as it is.
        """
        if inputs[0].device.type != "cuda":
            return work(*inputs)
        with _LOCK:
            self._met[key] += 1
            if key in self._captured or (self._met[key] > 1 and self._capture(key, work, inputs)):
                return self._replay(self._captured[key], inputs)
        return work(*inputs)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._captured)

    @contextmanager
    def hold(self, key: Hashable, tensors: Sequence[Tensor]) -> Iterator[list[Tensor] | None]:
        """The same values in memory that stays for this key, for captured work that reads or changes them.

        None while somebody else holds it: then the work has to use its own memory, and is not captured.
        """
        if (held := self._take(key, tensors)) is None:
            yield None
            return
        try:
            yield held
        finally:
            self._taken.discard(key)

    def _take(self, key: Hashable, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        with _LOCK:
            if key in self._taken:
                return None
            self._taken.add(key)
            held = self._held.get(key)
            if held is None:
                while len(self._held) >= MOST_HELD:
                    oldest = next(iter(self._held))
                    self._held.pop(oldest)
                    self._captured.pop(oldest, None)  # which reads that memory
                held = self._held[key] = [one.clone() for one in tensors]
            else:
                for old, new in zip(held, tensors, strict=True):
                    old.copy_(new)
            return held

    def _replay(self, captured: _Captured, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        for held, old, new in zip(captured.inputs, captured.latest, inputs, strict=True):
            if new is not old:
                held.copy_(new)
        captured.latest = [*inputs]
        captured.graph.replay()
        return [one.clone() for one in captured.outputs]

    def _capture(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> bool:
        """Capture some work; False if it cannot be done, or there is no room."""
        device = inputs[0].device
        free, total = torch.cuda.mem_get_info(device)
        if key in self._refused or len(self._captured) >= MOST_GRAPHS or free < LEAST_FREE * total:
            return False
        graph, held = torch.cuda.CUDAGraph(), [one.clone() for one in inputs]
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        try:
            # Meanwhile, other threads may tokenize conditions or decode pictures on the same device.
            how = {"stream": self._stream, "capture_error_mode": "thread_local"}
            with torch.cuda.device(device), torch.cuda.graph(graph, pool=self._pool, **how):
                outputs = work(*held)
        except (RuntimeError, MemoryError):  # it asks for a value, or memory ran out
            self._refused.add(key)
            return False
        self._pool = graph.pool() if self._pool is None else self._pool
        self._captured[key] = _Captured(graph, held, [*inputs], outputs)
        return True
