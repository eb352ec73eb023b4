"""Time per picture of the RGB detokenizer at its real size, and what fewer steps of a trained one cost.

    python -m benchmarks.detokenize [--device cuda] [--batch 1,8,32] [--steps 10] [--attention sdpa,xformers]
    python -m benchmarks.detokenize --error [--tokenizer FOLDER]

Timing: random weights, 224 pixels, float32 and bfloat16; the bfloat16 rows also say how far one evaluation of
the network is from float32, relative to its standard deviation. Error: pictures of a trained tokenizer (the
embedded model's by default) after fewer DDIM steps against those after 50, from the same noise and tokens.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.bundle import CONFIGS
from benchmarks.generate import synchronise
from fourm.decoding.sampling import Noise
from fourm.hub.files import find_model
from fourm.hub.header import TokenizerPart
from fourm.networks.attention import set_attention
from fourm.networks.checkpoint import load_tokenizer
from fourm.networks.tokenizers import build_tokenizer
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.diffusion import DiVAE

FEWER = (1, 2, 4, 5, 8, 10, 20, 25, 50)


def random_detokenizer(device: torch.device, config: Mapping[str, object] = CONFIGS["tok-rgb"]) -> DiVAE:
    """The decoder of `tok-rgb` with weights that mean nothing, but keep activations in range."""
    torch.manual_seed(0)
    with device:
        tokenizer = build_tokenizer(read_config(config), TokenizerPart.DECODER)
    assert isinstance(tokenizer, DiVAE)
    torch.nn.init.normal_(tokenizer.state_dict()["quantize._codebook.embed"])
    return tokenizer.requires_grad_(False).eval()


def seconds_per_picture(tokenizer: DiVAE, batch: int, steps: int, device: torch.device) -> float:
    """Mean over a batch, the first step (which chooses kernels) left out."""
    tokens = torch.randint(0, 16384, (batch, 14, 14), device=device)
    noise = torch.randn(batch, 3, 224, 224, device=device)
    running = tokenizer.sample(tokens, lambda _: noise, steps)
    next(running)
    synchronise(device)
    started = time.perf_counter()
    rest = sum(1 for _ in running)
    synchronise(device)
    return (time.perf_counter() - started) / rest * steps / batch


def evaluate_once(tokenizer: DiVAE, device: torch.device) -> Tensor:
    """One call of the network, (1, 3, 224, 224)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 224, 224, generator=generator).to(device)
    tokens = torch.arange(196, device=device).view(1, 14, 14)
    assert tokenizer.decoder is not None
    condition = tokenizer.decoder.condition(tokenizer.lookup(tokens), (224, 224))
    return tokenizer.decoder(x, torch.tensor(500, device=device), condition)


def time_it(args: argparse.Namespace) -> None:
    """The table of times."""
    device = torch.device(args.device)
    print(f"| dtype | attention | batch | s / picture, {args.steps} steps | error of one call |")
    print("| --- | --- | ---: | ---: | ---: |")
    wanted = evaluate_once(random_detokenizer(device), device)
    for dtype in (torch.float32, torch.bfloat16):
        for attention in args.attention.split(","):
            tokenizer = random_detokenizer(device).set_network_dtype(dtype)
            set_attention(tokenizer, attention, device)
            got = evaluate_once(tokenizer, device)
            error = float((got - wanted).std() / wanted.std())
            for batch in map(int, args.batch.split(",")):
                seconds = seconds_per_picture(tokenizer, batch, args.steps, device)
                name = str(dtype).removeprefix("torch.")
                print(f"| {name} | {attention} | {batch} | {seconds:.3f} | {error:.1e} |", flush=True)


def measure_error(folder: Path, samples: int = 16) -> None:
    """The table of errors."""
    tokenizer = load_tokenizer(folder, part=TokenizerPart.DECODER)
    assert isinstance(tokenizer, DiVAE)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, tokenizer.config.codebook_size, (samples, 8, 8), generator=generator)
    noise = Noise.for_samples(0, [(str(i), 0) for i in range(samples)])
    shape = tokenizer.output_shape((8, 8))
    wanted = tokenizer.decode_tokens(tokens, lambda i: noise.normals(i, shape), 50)
    print("| steps | root mean square error | largest | in levels of 255 |\n| ---: | ---: | ---: | ---: |")
    for steps in FEWER:
        error = tokenizer.decode_tokens(tokens, lambda i: noise.normals(i, shape), steps) - wanted
        rms, most = float(error.square().mean().sqrt()), float(error.abs().max())
        print(f"| {steps} | {rms:.4f} | {most:.3f} | {rms * 127.5:.2f} |")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--error", action="store_true")
    parser.add_argument("--tokenizer", type=Path, default=None)
    args = parser.parse_args()
    if args.error:
        measure_error(args.tokenizer or find_model("demo").tokenizers["rgb_divae"])
    else:
        time_it(args)


if __name__ == "__main__":
    main()
