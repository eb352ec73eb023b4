"""Measures one part in the tree that PYTHONPATH names: a figure for each line of its input.

    python worker.py captions|divae BUNDLE TOKENS

It is started by path, also for trees that are older than it. So it uses only what they all have.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import fourm
from benchmarks.detokenize import seconds_per_picture
from benchmarks.generate import Subject, conditions
from fourm.decoding.engine import Engine
from fourm.decoding.sampling import Noise
from fourm.hub.files import find_model
from fourm.hub.header import TokenizerPart
from fourm.networks.checkpoint import load_model, load_tokenizer
from fourm.networks.precision import arithmetic
from fourm.networks.tokenizers.diffusion import DiVAE
from fourm.schedule.chain import TargetSpec, make_chain

STEPS = 3  # of diffusion; the first is not counted


def captions(bundle: Path, tokens: int) -> Callable[[], float]:
    """Seconds a token: tok_rgb -> caption, guidance 3, batch 1."""
    files = find_model(bundle)
    spec = TargetSpec("caption", tokens, "autoregressive", temperature=0.3, guidance=3.0)
    chain = make_chain([spec], ["tok_rgb@224"], top_p=0.8)
    subject = Subject("captions", load_model(files), files.registry, chain)
    engine, batch = Engine(subject.model), conditions(subject, 1)
    noise = Noise.for_samples(0, [(key, 0) for key in batch.keys])

    def measure() -> float:
        times = [time.perf_counter() for _ in engine.run(batch, chain, noise)]
        return (times[-1] - times[0]) / (len(times) - 1)

    return measure


def divae(bundle: Path, _: int) -> Callable[[], float]:
    """Seconds a step of diffusion, of one picture."""
    path, device = find_model(bundle).tokenizers["rgb"], torch.device("cpu")
    tokenizer = load_tokenizer(path, device, torch.float32, TokenizerPart.DECODER)
    assert isinstance(tokenizer, DiVAE)
    return lambda: seconds_per_picture(tokenizer, 1, STEPS, device) / STEPS


def main() -> None:
    """Command line."""
    part, bundle, tokens = sys.argv[1:]
    if not Path(fourm.__file__).is_relative_to(Path.cwd()):
        sys.exit(f"{Path.cwd()} should be measured, but {fourm.__file__} was imported")
    measure = {"captions": captions, "divae": divae}[part](Path(bundle), int(tokens))
    with arithmetic("float32"):
        for _ in sys.stdin:
            print(measure(), flush=True)


if __name__ == "__main__":
    main()
