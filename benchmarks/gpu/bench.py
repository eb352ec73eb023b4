"""What every part of the measurement is given, and how one of its cases runs: values, or a reason."""

import gc
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

Values = Mapping[str, float | int | str | None]
Cases = Mapping[str, Callable[[], Values]]  # by name, in the order of importance


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a part computes, what it may write, and until when."""

    device: str
    quick: bool  # tiny sizes, to see that everything runs
    out: Path  # results
    work: Path  # large files that later parts use; deleted at the end
    deadline: float  # of the part, as `time.monotonic` counts
    peaks: Mapping[str, float]  # operations per second of a matrix product, by name of the dtype

    @property
    def left(self) -> float:
        """Seconds that the part still has."""
        return self.deadline - time.monotonic()

    @property
    def on_gpu(self) -> bool:
        """Whether CUDA is measured."""
        return self.device.startswith("cuda")

    def rates(self, operations: float, seconds: float, dtype: str) -> Values:
        """Operations per second, and their share of the measured peak."""
        rate, peak = operations / seconds, self.peaks.get(dtype)
        return {"TFLOP/s": rate / 1e12, "of peak": rate / peak if peak else None}

    def forget_peak(self) -> None:
        """Let what comes now have a peak of memory of its own."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def peak_memory(self) -> Values:
        """What tensors took at most since then."""
        if not self.on_gpu:
            return {"GB": None}
        return {"GB": torch.cuda.max_memory_allocated() / 1e9}

    def attempt(self, work: Callable[[], Values]) -> tuple[str, Values, str]:
        """The status of a case, its values, and a note where there are none."""
        if self.left <= 0:
            return "left out", {}, "no time left"
        try:
            return "ok", work(), ""
        except Exception as error:
            traceback.print_exc()
            return "failed", {}, last_line(error)

    def clean_up(self) -> bool:
        """Give memory back; False where CUDA answers no more, so that this process can measure nothing."""
        gc.collect()
        try:
            if self.on_gpu:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
        except RuntimeError as error:
            print(f"CUDA answers no more: {last_line(error)}", flush=True)
            return False
        return True


def last_line(error: BaseException) -> str:
    """The last line of a traceback that says something, at most 300 characters."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    named = [line for line in lines if line.startswith(type(error).__name__) or "Error" in line]
    return (named or lines or [type(error).__name__])[0].strip()[:300]


def count_operations(work: Callable[[], object]) -> int:
    """Floating point operations of the matrix products and convolutions of what runs."""
    with FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
