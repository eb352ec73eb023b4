"""An emulated GPU for tests on a CPU: tensors that claim to be on `cuda:0` (or `mps`).

Calls that a GPU refuses fail here too: tensors of two devices, `.numpy()`, attention between dtypes, float64
on `mps`. So do sums that are not deterministic on CUDA. Every synchronization of the host with the device is
counted, with the line of the library that causes it: reading a value, a boolean mask, copies. A CUDA graph
is the list of calls that were made while it was captured; a replay makes them again, in the same memory.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from threading import local
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

READS = {"item", "tolist", "__int__", "__bool__", "__float__", "__index__", "__contains__", "equal",
         "allclose", "nonzero", "masked_select", "unique", "bincount", "is_nonzero"}  # fmt: skip
# Not deterministic on CUDA, from the documentation of `use_deterministic_algorithms`.
OPEN_ORDER = {"scatter_add", "scatter_add_", "scatter_reduce", "index_add", "index_add_", "index_put", "put_",
              "histc", "kthvalue", "bincount"}  # fmt: skip
# Not deterministic for floats only.
CUMULATIVE = {"cumsum", "cumsum_", "cumprod", "logcumsumexp"}
TAKES_BOTH = {"copy_", "expand_as", "view_as", "type_as", "reshape_as"}  # values from a tensor on any device


class GpuError(RuntimeError):
    """An operation that CUDA refuses, or that is not deterministic there."""


class GpuTensor(Tensor):
    """A tensor whose device is the emulated one; `held` has the values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device) -> "GpuTensor":
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return Gpu.active().call(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, *rest: Any) -> Any:
        raise GpuError(f"{func} reached the device without being seen")


def real(x: Any) -> Any:
    """The CPU tensor of an emulated tensor; other values unchanged."""
    return x.held if isinstance(x, GpuTensor) else x


def _mm(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
    """`torch.mm`, whose `out_dtype` CPUs do not have."""
    return torch.mm(a.to(out_dtype or a.dtype), b.to(out_dtype or b.dtype))


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")


class Graph:
    """A CUDA graph."""

    captures = 0  # of all graphs
    replays = 0

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def pool(self) -> str:
        """All have one."""
        return "pool"

    def replay(self) -> None:
        """Make all calls again."""
        Graph.replays += 1
        with torch._C.DisableTorchFunction(), torch.inference_mode():  # a graph knows no modes
            for func, args, kwargs, out in self.calls:
                new = func(*tree_map(real, args), **tree_map(real, kwargs))
                new = list(new) if not isinstance(new, Tensor) else [new]
                for old, now in zip(tree_flatten(out)[0], tree_flatten(new)[0], strict=True):
                    if isinstance(old, GpuTensor) and old.held.data_ptr() != now.data_ptr():
                        old.held.copy_(now)


class Stream:
    """A CUDA stream; without a device, it is on the first one."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cuda:0")


@contextmanager
def capture(graph: Graph, pool: str | None, stream: Stream, capture_error_mode: str) -> Iterator[None]:
    """Capture what is called within this context; like torch, leave the stream where that fails."""
    assert pool in (None, "pool")
    assert stream.device == Gpu.active().device  # what another device does is not captured
    assert capture_error_mode == "thread_local"  # other threads may use the device
    assert not torch.is_inference_mode_enabled()  # where torch would make what it changes outside of it, too
    Graph.captures += 1
    own, before = Gpu.active().own, torch.cuda.current_stream()
    own.graph, own.stream = graph, stream
    try:
        yield
        own.stream = before
    finally:
        own.graph = None


class Gpu(TorchFunctionMode):
    """The emulated device: intercepts every call of torch, counts synchronizations, can run out of memory."""

    _active: "list[Gpu]" = []  # noqa: RUF012 - the devices in use, the newest last

    def __init__(self, name: str = "cuda:0") -> None:
        super().__init__()
        self.device = torch.device(name)
        self.waits = Counter[str]()
        self.most_bytes: int | None = None  # a larger tensor raises an out-of-memory error
        self.largest = 0  # bytes of the largest tensor so far
        self.own = local()  # of each thread: `graph`, which it captures, and `stream`

    @staticmethod
    def active() -> "Gpu":
        """The device that is in use."""
        return Gpu._active[-1]

    @property
    def graph(self) -> Graph | None:
        """The graph that is being captured by this thread."""
        return getattr(self.own, "graph", None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Carry out a call of torch on the CPU tensors, unless a GPU would refuse it."""
        func = _mm if func is torch.mm else func
        out = self._call(func, args, kwargs)
        if self.graph is not None and any(isinstance(x, GpuTensor) for x in tree_flatten(out)[0]):
            kwargs = {**kwargs, "device": "cpu"} if kwargs.get("device") is not None else kwargs
            self.graph.calls.append((func, args, kwargs, out))
        return out

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        with torch._C.DisableTorchFunction():
            name = getattr(func, "__name__", "")
            tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
            mine = [x for x in tensors if isinstance(x, GpuTensor)]
            if name == "__get__":
                return self._get(func, args)
            if name == "pin_memory":
                out = args[0].clone()
                out.is_page_locked = True
                return out
            if name in ("to", "cpu", "cuda"):
                return self._move(name, args[0], args[1:], kwargs)
            if kwargs.get("device") is not None:
                return self._make(func, name, args, kwargs)
            if not mine:
                return func(*args, **kwargs)
            self._check(name, mine, [x for x in tensors if not isinstance(x, GpuTensor)])
            if name in ("__getitem__", "__setitem__"):
                self._index(args[1])
            if name in READS or (name == "where" and len(tensors) == 1):
                self._wait(name)
            out = func(*tree_map(real, args), **tree_map(real, kwargs))
            if isinstance(args[0], GpuTensor) and (out is args[0].held or _is_in_place(name)):
                return args[0]
            return iter(map(self.wrap, out)) if name == "__iter__" else tree_map(self.wrap, out)

    def wrap(self, x: Any) -> Any:
        """Put a tensor on this device; other values are returned unchanged."""
        if not isinstance(x, Tensor) or isinstance(x, GpuTensor):
            return x
        if self.device.type == "mps" and x.dtype == torch.float64:
            raise TypeError(
                "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"
            )
        self.largest = max(self.largest, x.numel() * x.element_size())
        if self.most_bytes is not None and x.numel() * x.element_size() > self.most_bytes:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
        return GpuTensor(x, self.device)

    def _get(self, func: Any, args: Any) -> Any:
        """Read a property of a tensor."""
        if isinstance(args[0], GpuTensor):
            properties: Any = Tensor
            own = {properties.device.__get__: self.device, properties.is_cpu.__get__: False,
                   properties.is_cuda.__get__: self.device.type == "cuda",
                   properties.is_mps.__get__: self.device.type == "mps"}  # fmt: skip
            return own[func] if func in own else self.wrap(func(args[0].held))
        return func(*args)

    def _move(self, name: str, x: Tensor, args: Any, kwargs: dict[str, Any]) -> Any:
        """`to`, `cpu` and `cuda`; a copy between devices synchronizes."""
        was_here = isinstance(x, GpuTensor)
        if name == "to":
            if args and isinstance(args[0], Tensor):
                args = (args[0].device if not isinstance(args[0], GpuTensor) else self.device, args[0].dtype)
            is_new, rest = kwargs.get("copy", False), {k: v for k, v in kwargs.items() if k != "copy"}
            device, dtype, is_async, form = torch._C._nn._parse_to(*args, **rest)
        else:
            is_new, device, dtype, is_async, form = False, torch.device(name), None, False, None
        is_here = was_here if device is None else device.type == self.device.type
        if was_here != is_here and not (is_async and getattr(x, "is_page_locked", False)):
            self._wait(f"copy from {'GPU' if was_here else 'CPU'}")
        if device is not None and device.type == "meta":
            return x.to(*args, **kwargs)
        form = form or torch.preserve_format
        out = real(x).to(dtype=dtype or x.dtype, memory_format=form, copy=is_new)
        if not is_here:
            return out.clone() if was_here and out is real(x) else out
        return x if was_here and out is real(x) else self.wrap(out)

    def _make(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Create a tensor on the device in `kwargs`."""
        if torch.device(kwargs["device"]).type != self.device.type:
            return func(*tree_map(real, args), **kwargs)
        if name in ("tensor", "as_tensor", "asarray"):
            self._wait("copy from CPU")
        return self.wrap(func(*tree_map(real, args), **{**kwargs, "device": "cpu"}))

    def _check(self, name: str, mine: list[GpuTensor], others: list[Tensor]) -> None:
        """Raise an error for calls that a GPU refuses."""
        shapes = [tuple(x.shape) for x in others if x.ndim]
        if shapes and name not in TAKES_BOTH:
            raise GpuError(f"{name}: tensors on {self.device} and on cpu, of shapes {shapes}")
        if shapes:
            self._wait("copy from CPU")
        if name in ("numpy", "__array__"):
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        dtypes = {x.dtype for x in mine if x.dtype != torch.bool}
        if name == "scaled_dot_product_attention" and len(dtypes) > 1:
            raise GpuError(f"attention between {dtypes}")
        if name in OPEN_ORDER or (name in CUMULATIVE and mine[0].dtype.is_floating_point):
            raise GpuError(f"{name}: the order of its sums is open on CUDA")

    def _index(self, index: Any) -> None:
        """Count boolean masks, which synchronize because their result has an unknown shape."""
        for each in tree_flatten(index)[0]:
            if isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8):
                self._wait("boolean mask")

    def _wait(self, what: str) -> None:
        if self.graph is not None:
            raise GpuError(f"{what}: not permitted while a graph is captured")
        frame: Any = sys._getframe(1)
        while frame and "/fourm/" not in frame.f_code.co_filename:
            frame = frame.f_back
        where = f"{frame.f_code.co_filename.rpartition('/fourm/')[2]}:{frame.f_lineno}" if frame else "a test"
        self.waits[f"{what} at {where}"] += 1


@contextmanager
def emulated(monkeypatch: pytest.MonkeyPatch, name: str = "cuda:0") -> Iterator[Gpu]:
    """Emulate a GPU in this process, including its threads, within this context."""
    gpu, submit = Gpu(name), ThreadPoolExecutor.submit

    def submit_with_gpu(pool: ThreadPoolExecutor, work: Callable[..., Any], *args: Any) -> Any:
        def seen(*args: Any) -> Any:
            with gpu:
                return work(*args)

        return submit(pool, seen, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ThreadPoolExecutor, "submit", submit_with_gpu)
        patch.setattr(torch.cuda, "is_available", lambda: gpu.device.type == "cuda")
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "device", nullcontext)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", capture)
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "current_stream", lambda: getattr(gpu.own, "stream", None))
        patch.setattr(torch.cuda, "set_stream", lambda stream: setattr(gpu.own, "stream", stream))
        patch.setattr(torch.cuda, "get_device_name", lambda _=None: "emulated")
        patch.setattr(torch.cuda, "mem_get_info", lambda _=None: (80 << 30, 80 << 30))
        patch.setattr(torch.backends.mps, "is_available", lambda: gpu.device.type == "mps")
        patch.setattr(Gpu, "_active", [gpu])
        with gpu:
            yield gpu
