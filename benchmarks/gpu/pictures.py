"""4M-B and 4M-XL with random weights: caption -> tok_clip -> tok_rgb as published, and rgb -> caption."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial

from benchmarks.bundle import NARROW_MODEL
from benchmarks.generate import Subject, conditions, decode, random_model
from benchmarks.gpu.bench import Bench, Cases, Values, count_operations
from fourm.decoding.engine import Engine
from fourm.hub.catalogue import CATALOGUE
from fourm.modalities.registry import RELEASED
from fourm.networks.graphs import Graphs
from fourm.networks.model import FourM
from fourm.networks.precision import arithmetic, torch_dtype
from fourm.schedule.chain import Chain, TargetSpec, make_chain

BATCHES = (1, 8, 64)
STEPS = (49, 25)  # like the settings below, of cfgs/generation/settings_base/T2CR_roar49-25_cfg3_t6-0.5.yaml
FEWER = (12, 6)  # if all steps would take too long; the same number of tokens
_TINY = {"4m-7-b": 64, "4m-7-xl": 96}  # width with --quick
_TOKENS = 33  # of a caption, with its start token


def base(bench: Bench) -> Cases:
    """The smallest released size in bfloat16."""
    return _cases(bench, "4m-7-b", "bfloat16", BATCHES)


def xl(bench: Bench) -> Cases:
    """The largest released size in bfloat16."""
    return _cases(bench, "4m-7-xl", "bfloat16", BATCHES)


def precision(bench: Bench) -> Cases:
    """The smallest size in float32 and TF32, with fewer steps."""
    names = ("tf32", "float32") if bench.on_gpu else ("float32",)
    found: dict[str, Callable[[], Values]] = {}
    for name in names:
        found |= _cases(bench, "4m-7-b", name, BATCHES[:2], few=True)
    return found


def _cases(bench: Bench, model: str, dtype: str, batches: Iterable[int], few: bool = False) -> Cases:
    batches = (1,) if bench.quick else batches
    clock = _Clock(bench, dtype, cache(partial(build, bench, model, dtype)), few or bench.quick, {}, Graphs())
    named = {f"{model} {dtype}, pictures, batch {size}": partial(clock.pictures, size) for size in batches}
    if few:
        return named
    texts = {f"{model} {dtype}, captions, batch {size}": partial(clock.captions, size) for size in batches}
    eager = partial(replace(clock, graphs=None).pictures, 1)
    return {**named, **texts, f"{model} {dtype}, pictures, batch 1, without graphs": eager}


def build(bench: Bench, name: str, dtype: str) -> FourM:
    """A released size on the device; with --quick a very narrow network of the same modalities."""
    config = dict(CATALOGUE[name].config)
    if bench.quick:
        config |= {**NARROW_MODEL, "dim": _TINY[name]}
    return random_model(config, bench.device, torch_dtype(dtype))


def picture_chain(steps: tuple[int, int]) -> Chain:
    """The published settings, with the given numbers of steps."""
    specs = [
        TargetSpec("tok_clip@224", 196, "roar", steps[0], "linear", 6.0, "onex:0.5:0.5", 3.0),
        TargetSpec("tok_rgb@224", 196, "roar", steps[1], "linear", 0.5, "constant", 3.0),
    ]
    return make_chain(specs, ["caption"], top_p=0.9)


def caption_chain(tokens: int) -> Chain:
    """A picture's caption, without guidance."""
    return make_chain([TargetSpec("caption", tokens, "autoregressive", temperature=0.3)], ["rgb@224"])


@dataclass(frozen=True, slots=True)
class _Clock:
    """Measures chains on one network."""

    bench: Bench
    dtype: str
    build: Callable[[], FourM]
    few: bool
    counted: dict[str, int]  # operations per sample, by the text of the chain
    graphs: Graphs | None  # None: steps are not captured

    def pictures(self, size: int) -> Values:
        """Measure tokens of pictures, with all steps or fewer."""
        short, full = picture_chain((2, 2)), picture_chain(STEPS)
        if self.bench.quick:
            return self._measure(size, short, picture_chain((3, 2)), full)
        return self._measure(size, short, picture_chain(FEWER) if self.few else full, full)

    def captions(self, size: int) -> Values:
        """Measure autoregressive decoding of a caption."""
        chain = caption_chain(4 if self.bench.quick else _TOKENS)
        return self._measure(size, caption_chain(4), chain, chain)

    def _measure(self, size: int, short: Chain, chain: Chain, full: Chain) -> Values:
        """Warm up with the short chain, then take the best of three runs; fewer steps if time is short."""
        model, bench, total = self.build(), self.bench, _count(full)
        bench.forget_peak()
        if not bench.quick:
            self._run(model, short, size)
        seconds, steps = (0.0, 1) if bench.quick else self._run(model, short, size)
        if chain is full and len(full.steps) > 1 and seconds / steps * total > bench.left / 3:
            chain = picture_chain(FEWER)
        key = chain.to_text()
        if key not in self.counted:
            eager = replace(self, graphs=None)  # operations in graphs are not seen
            self.counted[key] = count_operations(lambda: eager._run(model, chain, 1))
        runs = [self._run(model, chain, size)]
        while len(runs) < (1 if bench.quick else 3) and sum(s for s, _ in runs) < min(3.0, bench.left / 4):
            runs.append(self._run(model, chain, size))
        seconds, steps = min(runs)
        whole = seconds / steps * total if chain is not full else seconds
        return {
            "s / batch": whole, "samples/s": size / whole, "ms / step": seconds / steps * 1e3,
            "steps": total, "steps timed": steps, "runs": len(runs),
            "graphs": 0 if self.graphs is None else self.graphs.count,
            **bench.rates(self.counted[key] * size, seconds, self.dtype), **bench.peak_memory(),
        }  # fmt: skip

    def _run(self, model: FourM, chain: Chain, size: int) -> tuple[float, int]:
        """Seconds and number of steps of one batch, from conditions on the host to tokens on the device."""
        subject = Subject("", model, RELEASED, chain)
        batch = conditions(subject, size)
        with arithmetic(self.dtype):
            started = time.perf_counter()
            steps = decode(subject, Engine(model, graphs=self.graphs), batch, self.bench.device)
            return time.perf_counter() - started, steps


def _count(chain: Chain) -> int:
    """The number of steps; for a caption, its tokens after the start token."""
    return len(chain.steps) if len(chain.steps) > 1 else chain.steps[0].num_tokens - 1
