"""Profiles decoding steps: time in kernels of the device, and synchronizations of the host with it."""

import time
import warnings
from collections.abc import Callable
from functools import cache, partial

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.detokenize import random_detokenizer, seconds_per_picture
from benchmarks.generate import Subject, conditions, decode, synchronise
from benchmarks.gpu.bench import Bench, Cases, Values
from benchmarks.gpu.pictures import FEWER, build, caption_chain, picture_chain
from benchmarks.gpu.tokenizers import config
from fourm.decoding.engine import Engine
from fourm.modalities.registry import RELEASED
from fourm.networks.graphs import Graphs
from fourm.networks.model import FourM
from fourm.networks.precision import arithmetic
from fourm.schedule.chain import Chain

_NAMED = 6  # kernels named in a row, those with the most time


def where(bench: Bench) -> Cases:
    """The cases: batches of 1 and 64 for both sizes of the model, in bfloat16."""
    networks = {name: cache(partial(build, bench, name, "bfloat16")) for name in ("4m-7-b", "4m-7-xl")}
    pictures, sizes = picture_chain(FEWER), () if bench.quick else (1, 64)
    cases = {
        f"{name} bfloat16, pictures, batch {size}": partial(_decoding, bench, networks[name], pictures, size)
        for size in sizes
        for name in networks
    }
    texts = partial(_decoding, bench, networks["4m-7-b"], caption_chain(9), 1)
    size = 1 if bench.quick else 8
    return {
        **cases,
        "4m-7-b bfloat16, captions, batch 1": texts,
        f"tok-rgb bfloat16, pictures by diffusion, batch {size}": partial(_diffusion, bench, size),
    }


def _decoding(bench: Bench, network: Callable[[], FourM], chain: Chain, size: int) -> Values:
    model = network()
    subject = Subject("", model, RELEASED, chain)
    batch = conditions(subject, size).to(bench.device)
    engine = Engine(model, graphs=Graphs())
    with arithmetic("bfloat16"):
        return _profiled(bench, lambda: decode(subject, engine, batch, bench.device))


def _diffusion(bench: Bench, size: int) -> Values:
    device = torch.device(bench.device)
    tokenizer = random_detokenizer(device, config(bench), torch.bfloat16)
    steps = 2 if bench.quick else 10

    def work() -> int:
        seconds_per_picture(tokenizer, size, steps, device)
        return steps

    with arithmetic("bfloat16"):
        return _profiled(bench, work)


def _profiled(bench: Bench, work: Callable[[], int]) -> Values:
    """Wall time without the profiler, kernels with it, and synchronizations in a third run; all per step."""
    work()
    started = time.perf_counter()
    steps = work()
    wall = time.perf_counter() - started
    if not bench.on_gpu:
        return {"ms / step": wall / steps * 1e3, "waits / step": None}
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        synchronise(bench.device)
    seconds, counts = dict[str, float](), 0
    for event in profiler.key_averages():
        spent = float(event.self_device_time_total) / 1e6
        if spent:
            seconds[str(event.key)] = seconds.get(str(event.key), 0.0) + spent
            counts += event.count
    total = sum(seconds.values())
    most = sorted(seconds, key=lambda name: -seconds[name])[:_NAMED]
    return {
        "ms / step": wall / steps * 1e3, "kernels / step": counts / steps,
        "kernels, ms / step": total / steps * 1e3, "of wall": total / wall,
        "waits / step": _waits(work) / steps,
        "most": "; ".join(f"{seconds[name] / total:.0%} {name[:60]}" for name in most),
    }  # fmt: skip


def _waits(work: Callable[[], object]) -> int:
    """The number of synchronizations, without the one at the end."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in caught)
