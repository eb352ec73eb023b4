"""The RGB tokenizer at its real size with random weights: tokens to pictures, pictures to tokens."""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch

from benchmarks.bundle import CONFIGS, NARROW_TOKENIZERS
from benchmarks.detokenize import convert, evaluate_once, random_detokenizer, seconds_per_picture
from benchmarks.generate import synchronise
from benchmarks.gpu.bench import Bench, Cases, Values, count_operations
from fourm.hub.header import TokenizerPart
from fourm.networks.precision import arithmetic, torch_dtype
from fourm.networks.tokenizers import AnyTokenizer, build_tokenizer
from fourm.networks.tokenizers.config import read_config

STEPS = 50  # the default number of diffusion steps
_TIMED = 10


def config(bench: Bench) -> Mapping[str, object]:
    """The configuration of the RGB tokenizer; with --quick, a very narrow one of the same kind."""
    return {**CONFIGS["tok-rgb"], **NARROW_TOKENIZERS["tok-rgb"]} if bench.quick else CONFIGS["tok-rgb"]


def detokenize(bench: Bench) -> Cases:
    """Tokens to pictures of 224 pixels."""
    plan = {"bfloat16": (1, 8, 32), "tf32": (8,), "float32": (1, 8)}
    if not bench.on_gpu:
        plan = {"bfloat16": (1,), "float32": (1, 2)}
    return {
        f"tok-rgb {dtype}, batch {size}": partial(_detokenize, bench, dtype, size)
        for dtype, sizes in plan.items()
        for size in sizes
    }


def _detokenize(bench: Bench, dtype: str, size: int) -> Values:
    device, timed = torch.device(bench.device), 2 if bench.quick else _TIMED
    tokenizer = random_detokenizer(device, config(bench), torch_dtype(dtype))
    bench.forget_peak()
    with arithmetic(dtype):
        operations = count_operations(lambda: evaluate_once(tokenizer, device))
        seconds_per_picture(tokenizer, size, 2, device)
        each = seconds_per_picture(tokenizer, size, timed, device) / timed
    return {
        "s / picture": each * STEPS, "pictures/s": 1 / (each * STEPS), "ms / step": each * size * 1e3,
        "steps timed": timed - 1, **bench.rates(operations, each, dtype), **bench.peak_memory(),
    }  # fmt: skip


def encode(bench: Bench) -> Cases:
    """Pictures of 224 pixels to tokens."""
    build = cache(partial(_encoder, bench))
    sizes = (1, 2) if bench.quick else (1, 8, 64)
    return {
        f"tok-rgb {dtype}, batch {size}": partial(_encode, bench, build, dtype, size)
        for dtype in ("bfloat16", "float32")
        for size in sizes
    }


def _encoder(bench: Bench, dtype: str) -> AnyTokenizer:
    torch.manual_seed(0)
    with torch.device(bench.device):
        tokenizer = build_tokenizer(read_config(config(bench)), TokenizerPart.ENCODER)
        torch.nn.init.normal_(tokenizer.state_dict()["quantize._codebook.embed"])
    convert(tokenizer, torch_dtype(dtype))
    return tokenizer


def _encode(bench: Bench, build: Callable[[str], AnyTokenizer], dtype: str, size: int) -> Values:
    tokenizer, best = build(dtype), float("inf")
    pictures = torch.randn(size, 3, 224, 224, device=bench.device)
    with arithmetic(dtype):
        operations = count_operations(lambda: tokenizer.tokenize(pictures))
        for _ in range(2 if bench.quick else 10):
            started = time.perf_counter()
            tokenizer.tokenize(pictures)
            synchronise(bench.device)
            best = min(best, time.perf_counter() - started)
    return {"ms / batch": best * 1e3, "pictures/s": size / best, **bench.rates(operations, best, dtype)}
