"""The dtype of a run, and torch's settings for TF32 and reduced precision."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fourm.errors import UsageError
from fourm.hub.header import DTYPES

TF32 = "tf32"


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of tensors for a key of `DTYPES`."""
    dtype: torch.dtype = getattr(torch, DTYPES[name].torch_name)
    return dtype


def choose_dtype(name: str, device: torch.device) -> str:
    """The full name of a dtype, "auto" resolved; UsageError where the device does not have it."""
    if name not in DTYPES:
        raise UsageError(f"--dtype: '{name}' is not one of {', '.join(DTYPES)}")
    name = DTYPES[name].name
    if name == TF32 and device.type != "cuda":
        raise UsageError(
            f"--dtype tf32: only NVIDIA GPUs support it, not '{device.type}'; use --dtype float32"
        )
    return name


@contextmanager
def arithmetic(dtype: str) -> Iterator[None]:
    """Within this context, torch computes in a dtype (a key of `DTYPES`), with deterministic algorithms.

    float32 uses no TF32, neither in matrix products nor in convolutions, and 16-bit products are summed in
    float32. torch's settings are global to the process; their earlier values are restored at the end.
    """
    on_gpu, elsewhere = _newer()
    newer = [(owner, "fp32_precision", _own(owner, parent)) for owner, parent in (*on_gpu, *elsewhere)]
    _set((owner, name, "ieee") for owner, name, _ in newer)  # or the older ones could not be read
    products, convolutions = torch.get_float32_matmul_precision(), _convolutions()
    others = [(owner, name, _get(owner, name)) for owner, name, _ in _OTHERS if hasattr(owner, name)]
    is_coarse = dtype == TF32
    try:
        _set_older("high" if is_coarse else "highest", is_coarse)
        _set((owner, "fp32_precision", "tf32" if is_coarse else "ieee") for owner, _ in on_gpu)
        _set((owner, "fp32_precision", "ieee") for owner, _ in elsewhere)
        _set(switch for switch in _OTHERS if hasattr(switch[0], switch[1]))
        yield
    finally:
        _set_older(products, convolutions)
        _set((*newer, *others))


Switch = tuple[Any, str, Any]  # a global setting of torch: its owner, its name, a value
_OTHERS: tuple[Switch, ...] = (
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_fp16_accumulation", False),
    (torch.backends.cudnn, "benchmark", False),  # it may choose another algorithm in each run
    (torch.backends.cudnn, "deterministic", True),
)


def _newer() -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """The settings since torch 2.9, of GPUs and of CPUs, each with the parent whose value it has if unset."""
    backends: Any = torch.backends
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    if not hasattr(cudnn, "fp32_precision"):
        return [], []
    gpu = [(owner, cudnn) for owner in (cuda.matmul, cudnn.conv, cudnn.rnn)]
    return gpu, [(owner, mkldnn) for owner in (mkldnn.matmul, mkldnn.conv)]


def _own(owner: Any, parent: Any) -> str:
    """The value of a newer setting; "none" if it has its parent's value."""
    value: str = owner.fp32_precision
    return "none" if value == parent.fp32_precision else value


def _convolutions() -> bool:
    """The older setting for TF32 in cuDNN. Reading it raises if it is on while the newer ones are off."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return True


def _get(owner: Any, name: str) -> Any:
    """The value of a setting; reduced-precision settings are a pair with that of split-K."""
    split = f"{name}_split_k"
    return (getattr(owner, name), getattr(owner, split)) if hasattr(owner, split) else getattr(owner, name)


def _set(switches: Iterable[Switch]) -> None:
    for owner, name, value in switches:
        setattr(owner, name, value)


def _set_older(products: str, convolutions: bool) -> None:
    """Set the settings that every torch has. They change the newer ones too, so set those afterwards."""
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
