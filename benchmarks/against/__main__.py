"""Compares a revision with the working tree: the same work in both, in turns, on the CPU of this machine.

    python -m benchmarks.against REVISION [--parts captions,divae,generate] [--alternations 3] [--threads 2]

captions: 4M-B, rgb tokens -> caption, guidance 3, batch 1: seconds a token. The limit is the time in which
    the weights that a token needs are read once.
divae: the RGB tokenizer's UNet, one picture of 224 pixels: seconds a step. The limit is the time in which
    its operations take place in a large matrix product.
generate: `fourm generate` from Enter to the end, 4 prompts, tok_clip-tok_rgb, with the defaults of both; in
    the working tree also with 10 steps of UniPC.

Weights are random, of the released sizes, in float32, and the same files for both. Each tree has its own
processes, of which one computes at a time. Ratios are those to the revision: below 1 is faster.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.bundle import write_pictures_bundle
from benchmarks.detokenize import evaluate_once, random_detokenizer
from benchmarks.generate import matmul_peak, read_speed
from benchmarks.gpu.bench import count_operations
from benchmarks.revisions import ROOT, checked_out, environment_of
from benchmarks.tables import Table, add_json
from fourm.hub.header import read_header

WORKER = Path(__file__).with_name("worker.py")
PROMPTS = ("a lake house", "a red bus in the rain", "two dogs on a beach", "a bowl of fruit")
COLUMNS = {"what": "", "tree": "", "median, s": ".4g", "smallest, s": ".4g", "ratio": ".2f",
           "of smallest": ".2f", "share of limit": ".0%"}  # fmt: skip
Measure = Callable[[], float]  # seconds


@dataclass(frozen=True, slots=True)
class Setting:
    """What all parts share."""

    trees: Mapping[str, Path]  # by name, the old one first
    bundle: Path  # model and tokenizers
    work: Path  # scratch
    quick: bool  # tiny sizes, only to check that everything runs
    peak: float  # operations per second of a large matrix product
    bandwidth: float  # bytes read from memory per second


@contextmanager
def workers(part: str, setting: Setting) -> Iterator[dict[str, Measure]]:
    """A process for each tree, which has measured once to warm up."""
    with ExitStack() as stack:
        processes = {name: _worker(part, tree, setting) for name, tree in setting.trees.items()}
        found = {name: stack.enter_context(process) for name, process in processes.items()}
        for measure in found.values():
            measure()
        yield found


@contextmanager
def _worker(part: str, tree: Path, setting: Setting) -> Iterator[Measure]:
    command = [sys.executable, str(WORKER), part, str(setting.bundle), "5" if setting.quick else "33"]
    with subprocess.Popen(
        command, cwd=tree, env=environment_of(tree), bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def measure() -> float:
            with suppress(BrokenPipeError):
                stdin.write(b"\n")
            if line := stdout.readline():
                return float(line)
            raise SystemExit(f"{part}: the process in {tree} ended")

        try:
            yield measure
        finally:
            process.kill()


@contextmanager
def commands(setting: Setting) -> Iterator[dict[str, Measure]]:
    """Whole commands, each in a new process."""
    short = ["--steps", "2-2"] if setting.quick else []
    default = ["--detokenizer-steps", "2"] if setting.quick else []
    unipc = ["--detokenizer-solver", "unipc", "--detokenizer-steps", "2" if setting.quick else "10"]
    found = {name: _command(tree, setting, short + default) for name, tree in setting.trees.items()}
    name, tree = [*setting.trees.items()][-1]
    yield found | {f"{name}, {unipc[-1]} steps of UniPC": _command(tree, setting, short + unipc)}


def _command(tree: Path, setting: Setting, options: list[str]) -> Measure:
    prompts = setting.work / "prompts.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS), encoding="utf-8")
    words = [sys.executable, "-m", "fourm_cli", "generate", "--data", str(prompts), "--device", "cpu"]
    words += ["--model", str(setting.bundle), "--targets", "tok_clip-tok_rgb", *options]

    def measure() -> float:
        with tempfile.TemporaryDirectory(dir=setting.work) as work:
            out, started = str(Path(work, "out")), time.perf_counter()
            done = subprocess.run(
                [*words, "--out", out], cwd=tree, env=environment_of(tree), capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(f"generate in {tree}: exit code {done.returncode}: {done.stderr[-500:]}")
            return time.perf_counter() - started

    return measure


def reading(setting: Setting) -> float:
    """Seconds in which all weights are read that a token of a caption needs."""
    wanted = ("decoder.", "decoder_norm.", "decoder_embeddings.caption.to_logits.")
    tensors = read_header(setting.bundle / "model.safetensors").tensors
    # Keys and values of the context are computed once for all tokens.
    read = [name for name in tensors if name.startswith(wanted) and ".cross_attn.kv." not in name]
    return 4 * sum(tensors[name].num_elements for name in read) / setting.bandwidth


def computing(setting: Setting) -> float:
    """Seconds in which a matrix product has as many operations as a step of diffusion."""
    config = json.loads((setting.bundle / "tokenizers/rgb/config.json").read_text(encoding="utf-8"))
    device = torch.device("cpu")
    tokenizer = random_detokenizer(device, config)
    return count_operations(lambda: evaluate_once(tokenizer, device)) / setting.peak


@dataclass(frozen=True, slots=True)
class Part:
    """What one part measures, and the seconds that the machine needs at least."""

    what: str
    start: Callable[[Setting], AbstractContextManager[dict[str, Measure]]]
    limit: Callable[[Setting], float | None]


PARTS = {
    "captions": Part("captions, a token", lambda setting: workers("captions", setting), reading),
    "divae": Part("divae, a step", lambda setting: workers("divae", setting), computing),
    "generate": Part("generate, 4 pictures", commands, lambda _: None),
}


def compare(part: Part, setting: Setting, alternations: int, table: Table) -> None:
    """Measure all trees in turns; a row for each."""
    limit = part.limit(setting)
    with part.start(setting) as measures:
        times = {name: list[float]() for name in measures}
        for _ in range(alternations):
            for name, measure in measures.items():
                times[name].append(measure())
                print(f"{part.what}: {name}: {times[name][-1]:.4g} s", file=sys.stderr, flush=True)
    first = next(iter(times.values()))
    for name, own in times.items():
        ratios = (None, None) if own is first else (median(own) / median(first), min(own) / min(first))
        share = None if limit is None else limit / min(own)
        table.add(part.what, name, median(own), min(own), *ratios, share, times=own, limit=limit)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.against", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("revision", help="a commit, branch or tag, or a folder with its files")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--alternations", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bundle", type=Path, help="the model folder; written unless it holds one")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to check that everything runs")
    add_json(parser)
    args = parser.parse_args()
    chosen = args.parts.split(",")
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # temporary folders are deleted then, too
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    torch.set_num_threads(args.threads)
    with checked_out(args.revision) as old, tempfile.TemporaryDirectory(prefix="fourm-against-") as work:
        bundle = args.bundle or Path(work, "bundle")
        if not (bundle / "tokenizers/clip/config.json").exists():  # written last
            write_pictures_bundle(bundle, args.quick)
        seconds = 0.1 if args.quick else 2.0
        peak, bandwidth = matmul_peak("cpu", torch.float32, seconds=seconds), read_speed(seconds)
        print(f"{args.threads} threads: {peak / 1e9:,.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s\n")
        limits = {"GFLOP/s": peak / 1e9, "GB/s": bandwidth / 1e9}
        table = Table(COLUMNS, args.json, **limits, revision=args.revision)
        trees = {args.revision: old, "working tree": ROOT}
        setting = Setting(trees, bundle, Path(work), args.quick, peak, bandwidth)
        for name in chosen:
            compare(PARTS[name], setting, args.alternations, table)


if __name__ == "__main__":
    main()
