"""Describes the machine and measures its peak speed: matrix products, copies, kernel launches."""

import shutil
import subprocess
import time
from functools import partial

import torch

from benchmarks.generate import matmul_peak, synchronise
from benchmarks.gpu.bench import Bench, Cases, Values
from benchmarks.tables import machine
from fourm.networks.precision import arithmetic, torch_dtype

_SMI = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]


def facts(bench: Bench) -> Cases:
    """The cases: the machine, then its peak speeds."""
    peaks = {
        f"matmul {name}": partial(_matmul, bench, name)
        for name in ("bfloat16", "tf32", "float32", "float16")
        if bench.on_gpu or name in ("bfloat16", "float32")
    }
    return {
        "machine": partial(_machine, bench),
        **peaks,
        "copy on the device": partial(_copy, bench, bench.device),
        "copy to the device": partial(_copy, bench, "cpu"),
        "start of a kernel": partial(_launch, bench),
    }


def _machine(bench: Bench) -> Values:
    card = driver = capability = ""
    memory = 0.0
    if bench.on_gpu:
        card = torch.cuda.get_device_name()
        memory = torch.cuda.get_device_properties(0).total_memory / 1e9
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
    if bench.on_gpu and shutil.which(_SMI[0]):
        driver = subprocess.run(_SMI, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    return {
        "card": card, "GB": memory, "compute capability": capability, "driver, power limit, clock": driver,
        "CUDA": str(torch.version.cuda), "cuDNN": _cudnn(), **machine(),
    }  # fmt: skip


def _cudnn() -> int | None:
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def _matmul(bench: Bench, name: str) -> Values:
    side = 256 if bench.quick else 8192
    with arithmetic(name):
        rate = matmul_peak(bench.device, torch_dtype(name), side, 0.1 if bench.quick else 1.5)
    return {"side": side, "TFLOP/s": rate / 1e12}


def _copy(bench: Bench, source: str) -> Values:
    """Speed of a copy: bytes read plus written on one device, bytes moved between two devices."""
    count = (1 << 18) if bench.quick else (1 << 28)
    a = torch.rand(count, device=source)
    b = torch.empty_like(a, device=bench.device)
    best = 0.0
    moved = 4 * count * (2 if source == bench.device else 1)
    for _ in range(5):
        started = time.perf_counter()
        b.copy_(a)
        synchronise(bench.device)
        best = max(best, moved / (time.perf_counter() - started))
    return {"GB": moved / 1e9, "GB/s": best / 1e9}


def _launch(bench: Bench) -> Values:
    """Mean time per launch of a tiny kernel, the minimum for every operation of a network."""
    x = torch.zeros(1, device=bench.device)
    count = 100 if bench.quick else 10_000
    for _ in range(2):
        started = time.perf_counter()
        for _ in range(count):
            x.add_(1)
        synchronise(bench.device)
        seconds = time.perf_counter() - started
    return {"µs": seconds / count * 1e6}
