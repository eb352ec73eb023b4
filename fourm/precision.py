"""In which numbers a run computes: the names of `--dtype`, and torch's switches for coarser arithmetic."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from fourm.errors import UsageError

# TF32 is no dtype of tensors: the units of NVIDIA GPUs round the factors of float32 products to 10 bits.
TF32 = "tf32"
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32, TF32: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
}  # fmt: skip


def choose_dtype(name: str, device: torch.device) -> str:
    """The key of `DTYPES` for a name; `auto` is float32 everywhere, so that no device changes a result."""
    if name == "auto":
        return "float32"
    if name not in DTYPES:
        raise UsageError(f"--dtype: '{name}' is not one of auto, {', '.join(DTYPES)}")
    if name == TF32 and device.type != "cuda":
        raise UsageError(
            f"--dtype tf32: only NVIDIA GPUs compute so, not '{device.type}'; take --dtype float32"
        )
    return name


@contextmanager
def arithmetic(dtype: str) -> Iterator[None]:
    """Inside, torch computes as a key of `DTYPES` says, by algorithms that always give the same sums.

    float32 is float32 in products and in convolutions; sums of 16-bit products are kept in float32. The
    switches belong to the whole process: what a program had set is back afterwards.
    """
    on_gpu, elsewhere = _newer()
    newer = [(owner, "fp32_precision", _own(owner, parent)) for owner, parent in (*on_gpu, *elsewhere)]
    _set((owner, name, "ieee") for owner, name, _ in newer)  # now the older ones can be read
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


Switch = tuple[Any, str, Any]  # what it belongs to, its name, a value
_OTHERS: tuple[Switch, ...] = (
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_fp16_accumulation", False),
    (torch.backends.cudnn, "benchmark", False),  # which is fastest differs from run to run
    (torch.backends.cudnn, "deterministic", True),
)


def _newer() -> tuple[list[tuple[Any, Any]], list[tuple[Any, Any]]]:
    """The switches since torch 2.9, of GPUs and of CPUs, each with the one that it follows if unset."""
    backends: Any = torch.backends
    cuda, cudnn, mkldnn = backends.cuda, backends.cudnn, backends.mkldnn
    if not hasattr(cudnn, "fp32_precision"):
        return [], []
    gpu = [(owner, cudnn) for owner in (cuda.matmul, cudnn.conv, cudnn.rnn)]
    return gpu, [(owner, mkldnn) for owner in (mkldnn.matmul, mkldnn.conv)]


def _own(owner: Any, parent: Any) -> str:
    """What a newer switch is set to; "none" where it follows its parent."""
    value: str = owner.fp32_precision
    return "none" if value == parent.fp32_precision else value


def _convolutions() -> bool:
    """The older switch for TF32 in cuDNN; reading it fails where it is on and the newer ones are off."""
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return True


def _get(owner: Any, name: str) -> Any:
    """A switch with all that it carries: sums of 16-bit products may be split as well as rounded."""
    split = f"{name}_split_k"
    return (getattr(owner, name), getattr(owner, split)) if hasattr(owner, split) else getattr(owner, name)


def _set(switches: Iterable[Switch]) -> None:
    for owner, name, value in switches:
        setattr(owner, name, value)


def _set_older(products: str, convolutions: bool) -> None:
    """The switches that every torch has. Those that are newer follow them, and are set afterwards."""
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions
