"""Compares the embedded model's tokens on the device with those on the CPU, for batch sizes and dtypes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from benchmarks.generate import made_up
from benchmarks.gpu.bench import Bench, Cases, Values
from fourm.codecs.texts import encode_texts
from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.hub.files import ModelFiles, find_model
from fourm.modalities.registry import Kind
from fourm.modalities.text import WordPiece
from fourm.networks.checkpoint import load_model
from fourm.networks.graphs import Graphs
from fourm.networks.model import FourM
from fourm.networks.precision import arithmetic, torch_dtype
from fourm.networks.state import Batch
from fourm.schedule.chain import Chain
from fourm.schedule.plan import parse_chain

COLOURS, SHAPES = ("red", "green", "blue", "white"), ("circle", "square", "triangle")
PROMPTS = tuple(f"a small {one} {shape}" for one in COLOURS for shape in SHAPES) + tuple(
    f"a large {one} circle above a small {other} square"
    for one, other in zip(COLOURS, reversed(COLOURS), strict=True)
)  # 16
MAPS = "--cond caption --targets tok_clip-tok_rgb-tok_depth-tok_normal-tok_semseg-tok_canny_edge --top-p 0.9"
TEXT = "--cond rgb --targets caption-tok_depth"
QUICK = "--cond caption --targets tok_clip-tok_rgb --steps 4-4"

Steps = list[tuple[str, list[int]]]  # of one sample, for every step: the target and its ids so far


@dataclass(frozen=True, slots=True)
class _Compared:
    """The embedded model on the CPU and on the device, and the CPU's tokens."""

    bench: Bench
    files: ModelFiles
    networks: dict[tuple[str, torch.dtype], FourM] = field(default_factory=dict)
    kept: dict[str, list[Steps]] = field(default_factory=dict)
    graphs: dict[str, Graphs] = field(default_factory=dict)  # by dtype

    def network(self, device: str, dtype: torch.dtype) -> FourM:
        """The model on a device, loaded once."""
        if (device, dtype) not in self.networks:
            self.networks[device, dtype] = load_model(self.files, device, dtype)
        return self.networks[device, dtype]

    def decode(self, text: str, device: str, dtype: str, size: int) -> list[Steps]:
        """Decode all samples in batches of `size`."""
        network, chain = self.network(device, torch_dtype(dtype)), parse_chain(text, self.files)
        engine = Engine(network, graphs=self.graphs.setdefault(dtype, Graphs()))
        whole = _conditions(self.files, chain, 4 if self.bench.quick else len(PROMPTS))
        found: list[Steps] = []
        for first in range(0, len(whole.keys), size):
            rows = torch.arange(first, min(first + size, len(whole.keys)))
            with arithmetic(dtype):
                found += _decoded(engine, self.files, chain, whole.select(rows), device)
        return found

    def reference(self, text: str) -> list[Steps]:
        """The CPU's tokens in float32."""
        if text not in self.kept:
            self.kept[text] = self.decode(text, "cpu", "float32", len(PROMPTS))
        return self.kept[text]

    def with_cpu(self, text: str, dtype: str, size: int) -> Values:
        """Differences between the device and the CPU."""
        return differences(self.reference(text), self.decode(text, self.bench.device, dtype, size))

    def again(self, text: str, dtype: str, sizes: tuple[int, int]) -> Values:
        """Differences between two runs on the device."""
        one, other = (self.decode(text, self.bench.device, dtype, size) for size in sizes)
        return differences(one, other)


def tokens(bench: Bench) -> Cases:
    """The cases: float32 in several batch sizes, two equal runs, then the other dtypes."""
    torch.set_num_threads(min(4, torch.get_num_threads()))  # more threads slow down such a small model
    compared = _Compared(bench, find_model("demo"))
    maps, most, sizes = (QUICK, 4, (1, 2, 4)) if bench.quick else (MAPS, 16, (1, 2, 4, 8, 16))
    cases = {
        f"pictures, float32, batch {size}: device and CPU": partial(compared.with_cpu, maps, "float32", size)
        for size in sizes
    }
    cases |= {
        f"pictures, float32, batch {most}: twice": partial(compared.again, maps, "float32", (most, most)),
        f"pictures, float32: batch {most} and 3": partial(compared.again, maps, "float32", (most, 3)),
    }
    texts = {
        f"texts, float32, batch {size}: device and CPU": partial(compared.with_cpu, TEXT, "float32", size)
        for size in ((most,) if bench.quick else (1, 4, most))
    }
    others = {
        f"pictures, {dtype}, batch {most}: device and CPU's float32": partial(
            compared.with_cpu, maps, dtype, most
        )
        for dtype in ("tf32", "bfloat16", "float16")
        if bench.on_gpu
    }
    return {**cases, **texts, **others}


def _conditions(files: ModelFiles, chain: Chain, count: int) -> Batch:
    slots = {}
    for name in chain.conditions:
        row = files.registry.get(name)
        slots[name] = made_up(row, len(PROMPTS))
        if row.kind is Kind.SEQUENCE:
            assert files.text_tokenizer is not None
            slots[name] = encode_texts(row, WordPiece.load(files.text_tokenizer), PROMPTS)
    batch = Batch(tuple(str(i) for i in range(len(PROMPTS))), slots)
    return batch.select(torch.arange(count))


def _decoded(engine: Engine, files: ModelFiles, chain: Chain, batch: Batch, device: str) -> list[Steps]:
    noise = Noise.for_samples(0, [(key, 0) for key in batch.keys]).to(device)
    started = with_targets(batch, chain, files.registry).to(device)
    found: list[Steps] = [[] for _ in batch.keys]
    for progress in engine.run(started, chain, noise):
        slot = progress.batch.slots[progress.step.target].to("cpu")
        for steps, values, known in zip(found, slot.values, slot.known, strict=True):
            steps.append((progress.step.target, values[known].tolist()))
    return found


def differences(wanted: Sequence[Steps], got: Sequence[Steps]) -> Values:
    """The numbers of tokens and samples that differ, and the step of the first difference."""
    count = tokens = samples = 0
    first = ""
    for number, (one, other) in enumerate(zip(wanted, got, strict=True)):
        finals, others = dict(one), dict(other)  # the last entry of each target
        wrong = sum(_unlike(ids, others.get(target, [])) for target, ids in finals.items())
        tokens += sum(map(len, finals.values()))
        count, samples = count + wrong, samples + (wrong > 0)
        if wrong and not first:
            at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))
            first = f"sample {number}, {one[min(at, len(one) - 1)][0]}, step {at + 1} of {len(one)}"
    return {
        "samples": len(wanted), "tokens": tokens, "differing tokens": count, "differing samples": samples,
        "first": first,
    }  # fmt: skip


def _unlike(one: list[int], other: list[int]) -> int:
    return sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
