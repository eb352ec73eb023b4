"""CUDA graphs: a function of tensors that is met again is captured, and its kernels are started at once."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import RLock, get_ident
from typing import Any
from weakref import WeakSet, ref

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
    latest: list[ref[Tensor]]  # what was copied there last; not kept alive
    outputs: Sequence[Tensor]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Graphs:
    """Graphs by key, for several threads. Results are the same with and without them."""

    _met: Counter[tuple[int, Hashable]] = field(default_factory=Counter)  # by thread and key
    _captured: dict[Hashable, _Captured] = field(default_factory=dict)
    _refused: set[Hashable] = field(default_factory=set)  # keys of what cannot be captured
    _held: dict[Hashable, list[Tensor]] = field(default_factory=dict)
    _taken: set[Hashable] = field(default_factory=set)  # keys of memory that is in use
    _pool: Any = None
    _stream: Any = None  # torch.cuda.Stream: that of captures, on the device of the inputs

    def __post_init__(self) -> None:
        _ALL.add(self)

    def run(self, key: Hashable, work: Work, *inputs: Tensor) -> Sequence[Tensor]:
        """`work(*inputs)`, which must depend on nothing but its inputs, the key and memory that stays.

        A tensor that is passed again is the same as before: nobody may have changed its numbers.

        The first call of a key in a thread runs as it is, which also chooses kernels and makes this thread's
        handles of CUDA's libraries; neither can be done in a capture. The second one is captured. Work that
        asks the device for a value cannot be captured and always runs as it is.
        """
        if inputs[0].device.type != "cuda":
            return work(*inputs)
        met = get_ident(), key
        with _LOCK:
            self._met[met] += 1
            if key in self._captured or (self._met[met] > 1 and self._capture(key, work, inputs)):
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

    def clear(self) -> None:
        """Give up all graphs, what keys refer to, and the memory that is held, but for what is in use."""
        with _LOCK:
            self._captured.clear()
            self._met.clear()
            self._refused.clear()
            self._held = {key: held for key, held in self._held.items() if key in self._taken}
            self._pool = None

    def _take(self, key: Hashable, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        with _LOCK:
            if key in self._taken:
                return None
            held = self._held.get(key)
            if held is None:
                self._captured.pop(key, None)  # which reads memory that was given up while it was in use
                while len(self._held) >= MOST_HELD:
                    oldest = next(iter(self._held))
                    self._held.pop(oldest)
                    self._captured.pop(oldest, None)  # which reads that memory
                held = self._held[key] = [one.clone() for one in tensors]
            else:
                for old, new in zip(held, tensors, strict=True):
                    old.copy_(new)
            self._taken.add(key)
            return held

    def _replay(self, captured: _Captured, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        for held, old, new in zip(captured.inputs, captured.latest, inputs, strict=True):
            if new is not old():
                held.copy_(new)
        captured.latest = [*map(ref, inputs)]
        captured.graph.replay()
        return [one.clone() for one in captured.outputs]

    def _capture(self, key: Hashable, work: Work, inputs: Sequence[Tensor]) -> bool:
        """Capture some work; False if it cannot be done, or there is no room."""
        device = inputs[0].device
        if key in self._refused or len(self._captured) >= MOST_GRAPHS:
            return False
        free, total = torch.cuda.mem_get_info(device)
        if free < LEAST_FREE * total:
            return False
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Meanwhile, other threads may tokenize conditions or decode pictures on the same device.
        how = {"stream": self._stream, "capture_error_mode": "thread_local"}
        is_inference = torch.is_inference_mode_enabled()
        # What is made in inference mode cannot be changed outside of it: the inputs, and tensors of torch's
        # generator, which the first capture of a process makes.
        with torch.cuda.device(device), torch.inference_mode(False):
            before = torch.cuda.current_stream()
            try:
                graph, held = torch.cuda.CUDAGraph(), [one.clone() for one in inputs]
                with (
                    torch.cuda.graph(graph, pool=self._pool, **how),
                    torch.inference_mode(is_inference), torch.no_grad(),
                ):  # fmt: skip
                    outputs = work(*held)
            except (RuntimeError, MemoryError):  # it asks for a value, or memory ran out
                self._refused.add(key)
                return False
            finally:
                torch.cuda.set_stream(before)  # torch leaves that of captures where one cannot begin or end
        self._pool = graph.pool() if self._pool is None else self._pool
        self._captured[key] = _Captured(graph, held, [*map(ref, inputs)], outputs)
        return True


_ALL: WeakSet[Graphs] = WeakSet()


def release_graphs() -> None:
    """Give up all graphs, and free the memory that CUDA's allocator keeps.

    Not while a thread captures: torch cannot free memory then, and fails where another thread asks it to.
    """
    with _LOCK:
        for graphs in tuple(_ALL):
            graphs.clear()
        torch.cuda.empty_cache()  # does nothing if CUDA was not used
