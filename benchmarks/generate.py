"""Samples/s and decoding steps/s of the embedded model and of a 4M-B with random weights.

    python -m benchmarks.generate [--model demo|4m-b|both] [--batch 1,8] [--device cpu] [--dtype float32]

Every row also says which share of the device's matrix-multiply peak (measured right before, in the same
dtype) the run reached: operations are counted by torch's own counter, not estimated.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from fourm.checkpoint import load_model
from fourm.engine import Engine, with_targets
from fourm.hub import find_model
from fourm.modalities import RELEASED, Registry
from fourm.model import FourM, FourMConfig
from fourm.request import DTYPES
from fourm.sampling import Noise
from fourm.schedule import Chain, TargetSpec, make_chain
from fourm.state import Batch, full_sequence
from fourm.wordpiece import EOS_ID, PAD_ID

NAMES_4M7 = [
    "caption",
    "det",
    "tok_clip@224",
    "tok_depth@224",
    "tok_normal@224",
    "tok_rgb@224",
    "tok_semseg@224",
]
CONFIG_4M_B = {
    "domains_in": [*NAMES_4M7, "rgb@224"], "domains_out": NAMES_4M7, "image_size": 224, "patch_size": 16,
    "dim": 768, "encoder_depth": 12, "decoder_depth": 12, "num_heads": 12, "mlp_ratio": 4.0,
    "norm_bias": False, "qkv_bias": False, "proj_bias": False, "mlp_bias": False, "gated_mlp": True,
    "act_layer": "SiLU",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Subject:
    """A model and the chain that it is measured with."""

    name: str
    model: FourM
    registry: Registry
    chain: Chain
    caption_length: int  # tokens of each prompt, its end mark included


@dataclass(frozen=True, slots=True)
class Measurement:
    """One row of the table."""

    samples_per_second: float
    steps_per_second: float
    peak_share: float  # of the measured matrix-multiply peak, 0..1


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
    return Subject("demo", load_model(files, device, dtype), files.registry, chain, 14)


def base_subject(device: str, dtype: torch.dtype) -> Subject:
    """A 4M-7 B with random weights: 8 + 8 random-order steps, guidance 3 and 2."""
    model = FourM(FourMConfig.from_dict(CONFIG_4M_B, RELEASED)).to(device=device, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.02).to(device, dtype)
    chain = make_chain(
        [
            TargetSpec("tok_clip@224", 196, "roar", 8, temperature=3.0, guidance=3.0),
            TargetSpec("tok_rgb@224", 196, "roar", 8, temperature=1.0, guidance=2.0),
        ],
        ["caption"],
        top_p=0.8,
    )
    return Subject("4m-b (random weights)", model.requires_grad_(False).eval(), RELEASED, chain, 20)


def measure(subject: Subject, batch_size: int, device: str, peak: float) -> Measurement:
    """Run the chain until two seconds have passed, at least once, after one run to warm up and count."""
    with FlopCounterMode(display=False) as counter:
        decode(subject, batch_size, device)
    operations = counter.get_total_flops()
    runs, started = 0, time.perf_counter()
    while runs == 0 or time.perf_counter() - started < 2.0:
        decode(subject, batch_size, device)
        runs += 1
    seconds = (time.perf_counter() - started) / runs
    return Measurement(batch_size / seconds, len(subject.chain.steps) / seconds, operations / seconds / peak)


def decode(subject: Subject, batch_size: int, device: str) -> None:
    """Decode one batch of made-up prompts."""
    ids = torch.full((batch_size, subject.registry.get("caption").max_tokens), PAD_ID)
    ids[:, : subject.caption_length] = 20
    ids[:, subject.caption_length - 1] = EOS_ID
    keys = tuple(str(i) for i in range(batch_size))
    batch = with_targets(Batch(keys, {"caption": full_sequence(ids)}), subject.chain, subject.registry)
    noise = Noise.for_samples(0, [(key, 0) for key in keys]).to(device)
    for _ in Engine(subject.model).run(batch.to(device), subject.chain, noise):
        pass
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large square matrix product, the best of five runs."""
    a = torch.randn(2048, 2048, device=device).to(dtype)
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        for _ in range(4):
            a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = max(best, 4 * 2 * 2048**3 / (time.perf_counter() - started))
    return best


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=["demo", "4m-b", "both"], default="both")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32")
    options = parser.parse_args(arguments)
    dtype = DTYPES[options.dtype]
    peak = matmul_peak(options.device, dtype)
    threads = torch.get_num_threads()
    print(f"{options.device}, {options.dtype}, {threads} threads: peak {peak / 1e9:,.0f} GFLOP/s\n")
    print("| model | batch | samples/s | steps/s | share of peak |\n| --- | ---: | ---: | ---: | ---: |")
    makers = {"demo": demo_subject, "4m-b": base_subject}
    for name in makers if options.model == "both" else [options.model]:
        subject = makers[name](options.device, dtype)
        for batch_size in (int(part) for part in options.batch.split(",")):
            row = measure(subject, batch_size, options.device, peak)
            print(
                f"| {subject.name} | {batch_size} | {row.samples_per_second:.2f} "
                f"| {row.steps_per_second:.1f} | {row.peak_share:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
