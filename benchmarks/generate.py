"""Samples/s and decoding steps/s of the embedded model and of a 4M-B with random weights.

    python -m benchmarks.generate [--model demo|4m-b|both] [--batch 1,8] [--device cpu] [--dtype float32]
                                  [--json FILE]
    python -m benchmarks.generate --dtype float32,bfloat16,int8

A row also says how much faster it is than the plain path of the engine (every guided pass alone, no cache:
what the same mathematics costs when written down directly), in the same run, and which share of the device's
matrix-multiply peak (measured right before, in the same dtype) it reached: operations are counted by torch's
own counter, not estimated. Of several dtypes, which are measured in turns, it says how much faster each is
than the first; int8 stands for int8 weights beside float32.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from benchmarks.bundle import random_tensor
from benchmarks.gpu.bench import operation_counter
from benchmarks.tables import Table, add_json
from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.hub.catalogue import CATALOGUE
from fourm.hub.files import find_model
from fourm.hub.header import FULL, INT8, Weights
from fourm.modalities.registry import RELEASED, Kind, Modality, Registry
from fourm.modalities.text import EOS_ID, PAD_ID
from fourm.networks.checkpoint import load_model
from fourm.networks.linears import Int8Linear, pack, set_int8
from fourm.networks.model import FourM, FourMConfig
from fourm.networks.precision import torch_dtype
from fourm.networks.state import Batch, Slot, full_grid, full_pixels, full_sequence
from fourm.schedule.chain import Chain, TargetSpec, make_chain

COLUMNS = {
    "model": "",
    "dtype": "",
    "batch": "d",
    "samples/s": ".2f",
    "steps/s": ".1f",
    "share of peak": ".0%",
}
PLAIN, FIRST = {"times the plain path": ".1f"}, {"times the first": ".2f"}
TURNS = 3


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and the chain that it is measured with."""

    name: str
    model: FourM
    registry: Registry
    chain: Chain


Maker = Callable[[str, str], Subject]


def demo_subject(device: str, dtype: str) -> Subject:
    """The embedded model with its default schedule for caption -> tok_clip -> tok_rgb."""
    files = find_model("demo")
    specs = []
    for name in ("tok_clip@64", "tok_rgb@64"):
        row = files.registry.get(name)
        assert row.defaults is not None
        d = row.defaults
        specs.append(
            TargetSpec(
                name, row.max_tokens, d.scheme, d.num_steps, d.token_curve,
                d.temperature, d.temperature_curve, d.guidance,
            )
        )  # fmt: skip
    chain = make_chain(specs, ["caption"], top_p=0.8)
    weights: Weights = INT8 if dtype == INT8 else FULL
    return Subject("demo", load_model(files, device, dtype_of(dtype), weights), files.registry, chain)


def random_model(
    config: Mapping[str, object], device: str, dtype: torch.dtype, weights: Weights = FULL
) -> FourM:
    """A transformer with random weights, made on the device."""
    with torch.device("meta"):
        model = FourM(FourMConfig.from_dict(config, RELEASED))
    if weights == INT8:
        set_int8(model)
    generator = torch.Generator(device).manual_seed(0)
    state = {
        name: random_tensor(name, like, generator).to(dtype if like.is_floating_point() else like.dtype)
        for name, like in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    for layer in model.modules():
        if isinstance(layer, Int8Linear):
            layer.fill(layer.weight)
    pack(model)
    return model.requires_grad_(False).eval()


def base_subject(device: str, dtype: str) -> Subject:
    """4M-B, caption -> tok_clip -> tok_rgb: 8 + 8 random-order steps, guidance 3 and 2."""
    specs = [
        TargetSpec("tok_clip@224", 196, "roar", 8, temperature=3.0, guidance=3.0),
        TargetSpec("tok_rgb@224", 196, "roar", 8, temperature=1.0, guidance=2.0),
    ]
    chain = make_chain(specs, ["caption"], top_p=0.8)
    return Subject("4m-b: pictures", _random_base(device, dtype), RELEASED, chain)


def text_subject(device: str, dtype: str) -> Subject:
    """4M-B, tok_rgb -> caption: 32 tokens one after the other, guidance 2."""
    spec = TargetSpec("caption", 33, "autoregressive", temperature=0.3, guidance=2.0)
    chain = make_chain([spec], ["tok_rgb@224"], top_p=0.8)
    return Subject("4m-b: captions", _random_base(device, dtype), RELEASED, chain)


def _random_base(device: str, dtype: str) -> FourM:
    weights: Weights = INT8 if dtype == INT8 else FULL
    return random_model(CATALOGUE["4m-7-b"].config, device, dtype_of(dtype), weights)


def dtype_of(name: str) -> torch.dtype:
    """What a model of a named dtype computes in."""
    return torch_dtype("float32" if name == INT8 else name)


def measure(
    subject: Subject, batch_size: int, device: str, peak: float, plain: bool = False
) -> tuple[float, float, float, float]:
    """Seconds of a batch, samples/s, steps/s, share of peak."""
    engine, batch = Engine(subject.model, plain=plain), conditions(subject, batch_size)
    with operation_counter() as counter:
        steps = decode(subject, engine, batch, device)
    seconds = time_of(lambda: decode(subject, engine, batch, device))
    share = counter.get_total_flops() / seconds / peak
    return seconds, batch_size / seconds, steps / seconds, share


def time_of(work: Callable[[], object]) -> float:
    """Seconds of the fastest of the runs that fit into three seconds, at least two."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < 3.0:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def conditions(subject: Subject, batch_size: int) -> Batch:
    """A batch of made-up conditions and pending targets, on the host."""
    keys = tuple(str(i) for i in range(batch_size))
    slots = {name: made_up(subject.registry.get(name), batch_size) for name in subject.chain.conditions}
    return with_targets(Batch(keys, slots), subject.chain, subject.registry)


def decode(subject: Subject, engine: Engine, batch: Batch, device: str) -> int:
    """Decode one batch; returns the number of decoding steps (for a text, tokens)."""
    noise = Noise.for_samples(0, [(key, 0) for key in batch.keys]).to(device)
    steps = sum(report.fixed > 0 for report in engine.run(batch.to(device), subject.chain, noise))
    synchronise(device)
    return steps


def synchronise(device: str | torch.device) -> None:
    """Wait until all work that was given to the device is done."""
    match torch.device(device).type:
        case "cuda":
            torch.cuda.synchronize(device)
        case "mps":
            torch.mps.synchronize()


def made_up(row: Modality, batch_size: int) -> Slot:
    """A condition with any content: 14 words, a full grid of tokens, or noise as pixels."""
    if row.kind is Kind.PIXELS:
        generator = torch.Generator().manual_seed(0)
        size = (batch_size, 3, row.image_size, row.image_size)
        return full_pixels(torch.randn(size, generator=generator), row.patch_size)
    if row.kind is Kind.GRID:
        return full_grid(torch.arange(batch_size * row.max_tokens).view(batch_size, -1) % row.vocab_size)
    ids = torch.full((batch_size, row.max_tokens), PAD_ID)
    ids[:, :14] = 20
    ids[:, 13] = EOS_ID
    return full_sequence(ids)


def matmul_peak(device: str, dtype: torch.dtype, side: int = 2048, seconds: float = 2.0) -> float:
    """Operations per second of a large square matrix product: the best of all runs in these seconds."""
    a, best = torch.randn(side, side, device=device).to(dtype), 0.0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        a @ a
        synchronise(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def read_speed(seconds: float = 2.0) -> float:
    """Bytes of the CPU's memory read per second (the largest number of 512 MiB): the best run."""
    a, best = torch.ones(1 << 27), 0.0
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        a.max()
        best = max(best, a.nbytes / (time.perf_counter() - started))
    return best


def compare_plain(
    subject: Subject, dtype: str, sizes: Sequence[int], device: str, table: Table, peak: float
) -> None:
    """A row for each batch size, beside the plain path."""
    for size in sizes:
        seconds, *found = measure(subject, size, device, peak)
        plain, *_ = measure(subject, size, device, peak, plain=True)
        table.add(subject.name, dtype, size, *found, plain / seconds)


def compare_dtypes(
    maker: Maker,
    dtypes: Sequence[str],
    sizes: Sequence[int],
    device: str,
    table: Table,
    peaks: Mapping[str, float],
) -> None:
    """A row for each dtype and batch size: the fastest of three turns."""
    subjects = {dtype: maker(device, dtype) for dtype in dtypes}
    for size in sizes:
        turns = [
            {dtype: measure(subject, size, device, peaks[dtype]) for dtype, subject in subjects.items()}
            for _ in range(TURNS)
        ]
        best = {dtype: min(turn[dtype] for turn in turns) for dtype in dtypes}
        for dtype, (seconds, *speeds, share) in best.items():
            counted = None if dtype == INT8 else share  # torch does not count products of integers
            table.add(subjects[dtype].name, dtype, size, *speeds, counted, best[dtypes[0]][0] / seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=["demo", "4m-b", "both"], default="both")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype", default="float32", help="float32, tf32, bfloat16, float16, int8; several: in turns"
    )
    add_json(parser)
    options = parser.parse_args(arguments)
    dtypes, sizes = options.dtype.split(","), [int(part) for part in options.batch.split(",")]
    peaks = {dtype: matmul_peak(options.device, dtype_of(dtype)) for dtype in dtypes}
    shown = ", ".join(f"{dtype} {peak / 1e9:,.0f} GFLOP/s" for dtype, peak in peaks.items())
    print(f"{options.device}, {torch.get_num_threads()} threads, peaks: {shown}\n")
    table = Table(
        COLUMNS | (PLAIN if len(dtypes) == 1 else FIRST), options.json,
        **{f"GFLOP/s, {dtype}": peak / 1e9 for dtype, peak in peaks.items()},
    )  # fmt: skip
    makers: dict[str, list[Maker]] = {"demo": [demo_subject], "4m-b": [base_subject, text_subject]}
    chosen = makers if options.model == "both" else [options.model]
    for maker in (maker for name in chosen for maker in makers[name]):
        if len(dtypes) == 1:
            subject = maker(options.device, dtypes[0])
            compare_plain(subject, dtypes[0], sizes, options.device, table, peaks[dtypes[0]])
        else:
            compare_dtypes(maker, dtypes, sizes, options.device, table, peaks)


if __name__ == "__main__":
    main()
