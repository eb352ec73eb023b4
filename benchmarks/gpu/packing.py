"""Attention and steps of padded and of packed rows: what `is_packed` should choose between.

Rows are those of a guided step of caption -> tok_clip -> tok_rgb: half of them without their caption, all
with as many tokens as are known early, in the middle and late.
"""

import importlib.util
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.generate import random_model, synchronise
from benchmarks.gpu.bench import Bench, Cases, Values, last_line
from fourm.decoding.steps import shapes_of
from fourm.hub.catalogue import CATALOGUE
from fourm.networks.attention import Mask
from fourm.networks.model import FourM
from fourm.networks.precision import arithmetic
from fourm.networks.state import Batch, full_grid, full_sequence

KNOWN = (16, 196, 376)  # tokens of both pictures
BATCHES = (8, 64)
WORDS = 33  # of the longest caption; the shortest has 5
_DEPTH = 4  # blocks of encoder and decoder
_ASKED = 8  # tokens that a step asks for
_REPEATS = 5  # calls in a CUDA graph
_ROOM = WORDS + 2 * 196


def packing(bench: Bench) -> Cases:
    """The cases: both widths, two batch sizes, three lengths."""
    networks = {name: cache(partial(_build, bench, name)) for name in ("4m-7-b", "4m-7-xl")}
    return {
        f"{name} bfloat16, batch {size}, {known} tokens known": partial(
            _compare, bench, networks[name], size, known
        )
        for name in networks
        for size in ((2,) if bench.quick else BATCHES)
        for known in (KNOWN[1:2] if bench.quick else KNOWN)
    }


def _build(bench: Bench, name: str) -> FourM:
    config = {**CATALOGUE[name].config, "encoder_depth": _DEPTH, "decoder_depth": _DEPTH}
    if bench.quick:
        config |= {"dim": 64, "num_heads": 2}
    return random_model(config, bench.device, torch.bfloat16)


def _compare(bench: Bench, build: Callable[[], FourM], size: int, known: int) -> Values:
    network, batch = build(), _guided(size, known)
    counts = batch.num_known(network.reads).tolist()
    shapes = shapes_of("cuda")
    budget, room = shapes.num_tokens(max(counts), _ROOM), shapes.num_packed(counts, _ROOM)
    kernels = _kernels(network, counts, budget, room, bench.device)
    with arithmetic("bfloat16"), torch.inference_mode():
        steps = {
            f"step, {name}": partial(_step, network, batch.to(bench.device), name, counts, budget, places)
            for name, places in (("padded", None), ("varlen", room))
        }
        found = {name: _milliseconds(bench, work) for name, work in (kernels | steps).items()}
    ratios = {
        f"{name} / padded": _ratio(found[name], found[padded])
        for name, padded in (
            ("varlen", "sdpa, padded"), ("xFormers", "sdpa, padded"), ("step, varlen", "step, padded"),
        )
    }  # fmt: skip
    times = {f"{name}, ms": value for name, value in found.items()}
    visible = sum(counts) / (len(counts) * budget)
    return {
        "padded to": budget,
        "visible": visible,
        "packed": room / (len(counts) * budget),
        **times,
        **ratios,
    }


def _guided(size: int, known: int) -> Batch:
    """Rows without and rows with captions, and the same pictures for both."""
    words = torch.arange(size) * (WORDS - 5) // max(size - 1, 1) + 5
    caption = full_sequence(torch.full((2 * size, WORDS), 30))
    caption.known[:] = torch.arange(WORDS) < torch.cat([torch.zeros_like(words), words]).unsqueeze(1)
    slots = {"caption": caption}
    for name, count in (("tok_clip@224", min(known, 196)), ("tok_rgb@224", max(known - 196, 0))):
        slots[name] = full_grid(torch.arange(2 * size * 196).view(-1, 196) % 1000)
        slots[name].known[:] = torch.arange(196) < count
    return Batch(tuple(map(str, range(2 * size))), slots)


def _step(
    network: FourM, batch: Batch, name: str, counts: list[int], budget: int, room: int | None
) -> Tensor:
    """Encode and ask for some tokens."""
    network.attention = "varlen" if name == "varlen" else "sdpa"
    context = network.encode_embedded(network.embed(batch), counts, budget, room)
    places = torch.arange(_ASKED, device=batch.device).expand(len(counts), _ASKED)
    return network.decode("tok_rgb@224", places, None, context)


def _kernels(
    network: FourM, counts: list[int], budget: int, room: int, device: str
) -> dict[str, Callable[[], Tensor]]:
    """Self-attention of the encoder alone, each kernel in the layout that it wants."""
    heads, width = network.config.num_heads, network.head_width
    padded = torch.randn(len(counts), budget, 3, heads, width, device=device, dtype=torch.bfloat16)
    q, k, v = padded.permute(2, 0, 3, 1, 4)
    flat = padded.flatten(0, 1)[:room].unbind(1)
    visible = torch.arange(budget) < torch.tensor(counts).unsqueeze(1)
    bias = Mask.of(visible.to(device), torch.bfloat16, all_see=True).bias
    starts = torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32)

    def varlen() -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out: Any = varlen_attn(flat[0], flat[1], flat[2], starts, starts, budget, budget)
        return out

    @cache
    def blocks() -> Any:
        from xformers.ops.fmha import BlockDiagonalMask

        return BlockDiagonalMask.from_seqlens(counts, device=torch.device(device))

    def xformers() -> Tensor:
        from xformers.ops import memory_efficient_attention

        rows = [x[: sum(counts)].unsqueeze(0) for x in flat]  # it wants no places behind the last row
        return memory_efficient_attention(*rows, attn_bias=blocks())

    found: dict[str, Callable[[], Tensor]] = {
        "sdpa, padded": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        "sdpa, no mask": lambda: F.scaled_dot_product_attention(q, k, v),
        "varlen": varlen,
    }
    installed = importlib.util.find_spec("xformers") is not None
    return {**found, "xFormers": xformers if installed else _not_installed}


def _not_installed() -> Tensor:
    raise ModuleNotFoundError("not installed")


def _milliseconds(bench: Bench, work: Callable[[], Tensor]) -> float | str:
    """Time of one call, on a GPU without the time to start its kernels; or why there is none."""
    try:
        work()
        if not bench.on_gpu:
            began = time.perf_counter()
            work()
            return (time.perf_counter() - began) * 1e3
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_REPEATS):
                work()
        best = float("inf")
        for _ in range(4):  # the first one warms up
            synchronise(bench.device)
            began = time.perf_counter()
            graph.replay()
            synchronise(bench.device)
            best = min(best, time.perf_counter() - began)
        return best / _REPEATS * 1e3
    except Exception as error:  # the other kernels are measured all the same
        return last_line(error)[:80]


def _ratio(one: float | str, other: float | str) -> float | None:
    return None if isinstance(one, str) or isinstance(other, str) else one / other
