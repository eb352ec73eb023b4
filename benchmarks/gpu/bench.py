"""The settings that every part of the benchmark gets, and how one case is run."""

import gc
import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

Values = Mapping[str, float | int | str | None]
Cases = Mapping[str, Callable[[], Values]]  # by name, the most important first


@dataclass(frozen=True, slots=True)
class Bench:
    """The device, folders and deadline of a part."""

    device: str
    quick: bool  # tiny sizes, only to check that everything runs
    out: Path  # results
    work: Path  # large files that several parts use; deleted at the end
    deadline: float  # of the part, as `time.monotonic` counts
    peaks: Mapping[str, float]  # measured operations per second of matrix products, by dtype

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def on_gpu(self) -> bool:
        """True if the device is a CUDA GPU."""
        return self.device.startswith("cuda")

    def rates(self, operations: float, seconds: float, dtype: str) -> Values:
        """Operations per second, and the fraction of the measured peak."""
        rate, peak = operations / seconds, self.peaks.get(dtype)
        return {"TFLOP/s": rate / 1e12, "of peak": rate / peak if peak else None}

    def forget_peak(self) -> None:
        """Restart the measurement of peak memory."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> Values:
        """The most memory that tensors used since `forget_peak`."""
        if not self.on_gpu:
            return {"GB": None}
        return {"GB": torch.cuda.max_memory_allocated() / 1e9}

    def attempt(self, work: Callable[[], Values]) -> tuple[str, Values, str]:
        """Run a case; returns its status, its values, and the reason if there are none."""
        if self.left <= 0:
            return "left out", {}, "no time left"
        try:
            return "ok", work(), ""
        except Exception as error:
            traceback.print_exc()
            return "failed", {}, last_line(error)

    def clean_up(self) -> bool:
        """Free memory; False if CUDA is in an error state, which lasts until the process ends."""
        gc.collect()
        try:
            if self.on_gpu:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except RuntimeError as error:
            print(f"CUDA is in an error state: {last_line(error)}", flush=True)
            return False
        return True


def last_line(error: BaseException) -> str:
    """The line of an error's message that names it, at most 300 characters."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    named = [line for line in lines if line.startswith(type(error).__name__) or "Error" in line]
    return (named or lines or [type(error).__name__])[0].strip()[:300]


def count_operations(work: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions in a call."""
    with operation_counter() as counter:
        work()
    return int(counter.get_total_flops())


def operation_counter() -> FlopCounterMode:
    """Torch's counter, which also knows packed linear layers."""
    packed = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return FlopCounterMode(display=False, custom_mapping={packed: _of_linear} if packed else None)


def _of_linear(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """Operations of x (..., I) times weight (O, I), both given as shapes."""
    return 2 * math.prod(x) * weight[0]
