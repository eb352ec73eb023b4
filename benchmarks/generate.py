"""Samples/s and decoding steps/s of the embedded model and of a 4M-B with random weights.

    python -m benchmarks.generate [--model demo|4m-b|both] [--batch 1,8] [--device cpu] [--dtype float32]
                                  [--json FILE]

Every row also says how much faster it is than the plain path of the engine (every guided pass alone, no
cache: what the same mathematics costs when written down directly), in the same run, and which share of
the device's matrix-multiply peak (measured right before, in the same dtype) it reached: operations are
counted by torch's own counter, not estimated.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass

import torch

from benchmarks.bundle import random_tensor
from benchmarks.gpu.bench import operation_counter
from benchmarks.tables import Table, add_json
from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.hub.catalogue import CATALOGUE
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED, Kind, Modality, Registry
from fourm.modalities.text import EOS_ID, PAD_ID
from fourm.networks.checkpoint import load_model
from fourm.networks.linears import pack
from fourm.networks.model import FourM, FourMConfig
from fourm.networks.precision import torch_dtype
from fourm.networks.state import Batch, Slot, full_grid, full_pixels, full_sequence
from fourm.schedule.chain import Chain, TargetSpec, make_chain

COLUMNS = {"model": "", "batch": "d", "samples/s": ".2f", "steps/s": ".1f", "share of peak": ".0%",
           "times the plain path": ".1f"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and the chain that it is measured with."""

    name: str
    model: FourM
    registry: Registry
    chain: Chain


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the table."""

    samples_per_second: float
    steps_per_second: float
    peak_share: float  # of the measured matrix-multiply peak, 0..1
    over_plain: float  # plain seconds / fast seconds


def demo_subject(device: str, dtype: torch.dtype) -> Subject:
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
    return Subject("demo", load_model(files, device, dtype), files.registry, chain)


def random_model(config: Mapping[str, object], device: str, dtype: torch.dtype) -> FourM:
    """A transformer with random weights, made on the device."""
    with torch.device("meta"):
        model = FourM(FourMConfig.from_dict(config, RELEASED))
    generator = torch.Generator(device).manual_seed(0)
    state = {
        name: random_tensor(name, like, generator).to(dtype if like.is_floating_point() else like.dtype)
        for name, like in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    pack(model)
    return model.requires_grad_(False).eval()


def base_subject(device: str, dtype: torch.dtype) -> Subject:
    """4M-B, caption -> tok_clip -> tok_rgb: 8 + 8 random-order steps, guidance 3 and 2."""
    specs = [
        TargetSpec("tok_clip@224", 196, "roar", 8, temperature=3.0, guidance=3.0),
        TargetSpec("tok_rgb@224", 196, "roar", 8, temperature=1.0, guidance=2.0),
    ]
    chain = make_chain(specs, ["caption"], top_p=0.8)
    return Subject("4m-b: pictures", random_model(CATALOGUE["4m-7-b"].config, device, dtype), RELEASED, chain)


def text_subject(device: str, dtype: torch.dtype) -> Subject:
    """4M-B, tok_rgb -> caption: 32 tokens one after the other, guidance 2."""
    spec = TargetSpec("caption", 33, "autoregressive", temperature=0.3, guidance=2.0)
    chain = make_chain([spec], ["tok_rgb@224"], top_p=0.8)
    return Subject("4m-b: captions", random_model(CATALOGUE["4m-7-b"].config, device, dtype), RELEASED, chain)


def measure(subject: Subject, batch_size: int, device: str, peak: float) -> Measurement:
    """Count the operations of one run, then time the fast and the plain path."""
    fast, plain = Engine(subject.model), Engine(subject.model, plain=True)
    batch = conditions(subject, batch_size)
    with operation_counter() as counter:
        steps = decode(subject, fast, batch, device)
    seconds = time_of(lambda: decode(subject, fast, batch, device))
    plain_seconds = time_of(lambda: decode(subject, plain, batch, device))
    return Measurement(
        batch_size / seconds,
        steps / seconds,
        counter.get_total_flops() / seconds / peak,
        plain_seconds / seconds,
    )


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=["demo", "4m-b", "both"], default="both")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "tf32", "bfloat16", "float16"), default="float32")
    add_json(parser)
    options = parser.parse_args(arguments)
    dtype = torch_dtype(options.dtype)
    peak = matmul_peak(options.device, dtype)
    threads = torch.get_num_threads()
    print(f"{options.device}, {options.dtype}, {threads} threads: peak {peak / 1e9:,.0f} GFLOP/s\n")
    table = Table(COLUMNS, options.json, **{"GFLOP/s": peak / 1e9})
    makers = {"demo": [demo_subject], "4m-b": [base_subject, text_subject]}
    chosen = makers if options.model == "both" else [options.model]
    for maker in (maker for name in chosen for maker in makers[name]):
        subject = maker(options.device, dtype)
        for batch_size in (int(part) for part in options.batch.split(",")):
            row = measure(subject, batch_size, options.device, peak)
            table.add(subject.name, batch_size, *astuple(row))


if __name__ == "__main__":
    main()
