"""How networks compute: dtypes, and torch's global settings for exact, deterministic arithmetic."""

import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from operator import attrgetter
from shutil import which
from threading import Condition
from typing import Any, cast

import torch

from fourm.errors import UsageError
from fourm.hub.header import AUTO, DTYPES, FULL, INT8, Weights

_Switch = tuple[Any, str, Any]  # a global setting of torch: its owner, its name, a value
_EXACT: tuple[_Switch, ...] = (
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_fp16_accumulation", False),
    (torch.backends.cudnn, "benchmark", False),  # it may choose another algorithm in each run
    (torch.backends.cudnn, "deterministic", True),
)
# The settings since torch 2.9, by the one whose value they have if they are unset.
_NEWER = {"cudnn": ("cuda.matmul", "cudnn.conv", "cudnn.rnn"), "mkldnn": ("mkldnn.matmul", "mkldnn.conv")}


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of tensors for a key of `DTYPES`."""
    return cast("torch.dtype", getattr(torch, DTYPES[name].torch_name))


def choose_dtype(name: str, device: torch.device) -> str:
    """The full name of a dtype; UsageError if it is unknown, or not supported by the device.

    `auto` is bfloat16 on NVIDIA GPUs that compute in it (from Ampere on), float32 on all other devices.
    """
    if name not in DTYPES:
        raise UsageError(f"`dtype`: '{name}' is not one of {', '.join(DTYPES)}")
    if name == AUTO:
        return "bfloat16" if device.type == "cuda" and _has_bfloat16(device) else "float32"
    if DTYPES[name].name == "tf32" and device.type != "cuda":
        where = f"only NVIDIA GPUs support it, not '{device.type}'"
        raise UsageError(f"`dtype=tf32`: {where}; use `dtype=float32`")
    return DTYPES[name].name


def _has_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


def check_compiler(device: torch.device, weights: Weights | None = FULL) -> None:
    """UsageError where torch's compiler lacks what it needs: a C++ compiler on CPUs, Triton on GPUs.

    weights: one of `WEIGHTS`, of the transformer if one is compiled.
    """
    if device.type == "cpu" and weights == INT8:
        what = "torch's compiler does not read int8 weights as CPUs keep them; leave out one of the two"
        raise UsageError(f"`compile` and `weights=int8`: {what}")
    if device.type == "cpu" and not any(map(which, (os.environ.get("CXX") or "g++", "clang++", "cl"))):
        raise UsageError("`compile`: needs a C++ compiler on a CPU, and there is none on PATH, such as g++")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UsageError("`compile`: needs Triton on a GPU; pip install triton does it")


@contextmanager
def arithmetic(dtype: str) -> Iterator[None]:
    """Within this context, torch computes in a dtype (a key of `DTYPES`), with deterministic algorithms.

    float32 uses no TF32, neither in matrix products nor in convolutions, and 16-bit products are summed in
    float32. torch's settings are global to the process: several threads can be inside with the same settings,
    with others a thread waits until they have left. The earlier values are restored by the last one. Whatever
    the caller's default device is, new tensors are made on the CPU.
    """
    is_tf32 = dtype == "tf32"
    with _TURN.changed:
        _TURN.changed.wait_for(lambda: not _TURN.users or _TURN.is_tf32 == is_tf32)
        if not _TURN.users:
            _TURN.is_tf32 = is_tf32
            _TURN.restored.enter_context(_settings(is_tf32))
        _TURN.users += 1
    try:
        with nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"):
            yield
    finally:
        with _TURN.changed:
            _TURN.users -= 1
            if not _TURN.users:
                _TURN.restored.close()
                _TURN.changed.notify_all()


@dataclass(slots=True)
class _Turn:
    """Which threads use torch's settings now; all of them use the same ones."""

    changed: Condition = field(default_factory=Condition)
    users: int = 0  # threads inside `arithmetic`
    is_tf32: bool = False  # of the settings in use
    restored: ExitStack = field(default_factory=ExitStack)  # restores the earlier values when it is closed


_TURN = _Turn()


@contextmanager
def _settings(is_tf32: bool) -> Iterator[None]:
    """Set torch's settings for exact arithmetic, or for TF32; the earlier values are restored at the end."""
    newer, wanted = list[_Switch](), list(_EXACT)
    for parent, names in _NEWER.items() if hasattr(torch.backends.cudnn, "fp32_precision") else ():
        above = getattr(torch.backends, parent).fp32_precision
        for owner in (attrgetter(name)(torch.backends) for name in names):
            unset = owner.fp32_precision == above
            newer.append((owner, "fp32_precision", "none" if unset else owner.fp32_precision))
            wanted.append((owner, "fp32_precision", "tf32" if is_tf32 and parent == "cudnn" else "ieee"))
    _set((owner, name, "ieee") for owner, name, _ in newer)  # or the older ones could not be read
    others = list[_Switch]()
    for owner, name, _ in _EXACT:
        split = f"{name}_split_k"  # reduced-precision settings are set as a pair with that of split-K
        if hasattr(owner, name):
            value = getattr(owner, name)
            others.append((owner, name, (value, getattr(owner, split)) if hasattr(owner, split) else value))
    products, convolutions = torch.get_float32_matmul_precision(), True
    with suppress(RuntimeError):  # it is on while the newer ones are off
        convolutions = torch.backends.cudnn.allow_tf32
    try:
        # The settings that every torch has change the newer ones too, so these are set afterwards.
        torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = is_tf32
        _set(switch for switch in wanted if hasattr(*switch[:2]))
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
        _set((*newer, *others))


def _set(switches: Iterable[_Switch]) -> None:
    for owner, name, value in switches:
        setattr(owner, name, value)
