"""Time per picture of the RGB detokenizer at its real size, and what fewer steps of a trained one cost.

    python -m benchmarks.detokenize [--device cuda] [--batch 1,8,32] [--steps 10] [--attention sdpa,xformers]
    python -m benchmarks.detokenize --error [--tokenizer NAME] [--pictures FOLDER [--encoder NAME]]

Both take `--json FILE`.

Timing: random weights, 224 pixels, float32 and bfloat16; the bfloat16 rows also say how far one evaluation of
the network is from float32, relative to its standard deviation. Error: values of a trained tokenizer (the
embedded model's by default) by each solver, spacing and number of steps, against those of 250 DDIM steps from
the same tokens and noise, and against the pictures that the tokens were made of.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.bundle import CONFIGS
from benchmarks.generate import matmul_peak, synchronise
from benchmarks.gpu.bench import count_operations
from benchmarks.tables import Table, add_json
from fourm.data.dataset import PICTURE_SUFFIXES
from fourm.decoding.sampling import Noise
from fourm.errors import UsageError
from fourm.hub.files import find_model, resolve_tokenizer
from fourm.hub.header import TokenizerPart
from fourm.networks.attention import set_attention
from fourm.networks.checkpoint import load_tokenizer
from fourm.networks.tokenizers import AnyTokenizer, build_tokenizer
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.diffusion import DiVAE, check_steps
from fourm.schedule.solvers import DDIM, SPACINGS, Solver, parse_solver

FEWER, FEW = (5, 10, 25, 50), (5, 10, 25)  # steps of DDIM, of other solvers
BEST = 250  # steps of DDIM that all are compared with


def random_detokenizer(
    device: torch.device, config: Mapping[str, object] = CONFIGS["tok-rgb"],
    dtype: torch.dtype = torch.float32,
) -> DiVAE:  # fmt: skip
    """The decoder of `tok-rgb` with weights that mean nothing, but keep activations in range."""
    torch.manual_seed(0)
    with device:
        tokenizer = build_tokenizer(read_config(config), TokenizerPart.DECODER)
    assert isinstance(tokenizer, DiVAE)
    torch.nn.init.normal_(tokenizer.state_dict()["quantize._codebook.embed"])
    convert(tokenizer, dtype)
    return tokenizer


def convert(tokenizer: AnyTokenizer, dtype: torch.dtype) -> None:
    """Keep the weights of a tokenizer as if they were loaded in this dtype, for inference."""
    for name, parameter in tokenizer.named_parameters():
        parameter.data = tokenizer.converted(name, parameter.data, parameter.device, dtype)
    tokenizer.requires_grad_(False).eval()


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
    return tokenizer.decoder(x, tokenizer.decoder.embed_time(torch.tensor(500, device=device)), condition)


def time_it(args: argparse.Namespace) -> None:
    """The table of times."""
    device = torch.device(args.device)
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    peaks = {name: matmul_peak(args.device, dtype) for name, dtype in dtypes.items()}
    columns = {"dtype": "", "attention": "", "batch": "d", f"s / picture, {args.steps} steps": ".3f",
               "share of peak": ".0%", "error of one call": ".1e"}  # fmt: skip
    table = Table(columns, args.json, **{f"GFLOP/s, {name}": peak / 1e9 for name, peak in peaks.items()})
    exact = random_detokenizer(device)
    wanted, operations = evaluate_once(exact, device), count_operations(lambda: evaluate_once(exact, device))
    for name, dtype in dtypes.items():
        for attention in args.attention.split(","):
            tokenizer = random_detokenizer(device, dtype=dtype)
            set_attention(tokenizer, attention, device)
            got = evaluate_once(tokenizer, device)
            error = float((got - wanted).std() / wanted.std())
            for batch in map(int, args.batch.split(",")):
                seconds = seconds_per_picture(tokenizer, batch, args.steps, device)
                share = args.steps * operations / seconds / peaks[name]
                table.add(name, attention, batch, seconds, share, error)


def measure_error(args: argparse.Namespace) -> None:
    """The table of errors: each solver, spacing and number of steps, from the same tokens and noise."""
    device = torch.device(args.device)
    tokenizer = load_tokenizer(_folder(args.tokenizer), device, part=TokenizerPart.DECODER)
    assert isinstance(tokenizer, DiVAE)
    pictures = read_pictures(args.pictures, tokenizer) if args.pictures else None
    if pictures is None:
        generator, shape = torch.Generator().manual_seed(0), (args.samples, *tokenizer.config.encoder_grid)
        tokens = torch.randint(0, tokenizer.config.codebook_size, shape, generator=generator)
    else:
        encoder = load_tokenizer(_folder(args.encoder or args.tokenizer), device, part=TokenizerPart.ENCODER)
        with torch.no_grad():
            tokens = torch.cat([encoder.tokenize(one[None].to(device)).cpu() for one in pictures])
    noise = Noise.for_samples(0, [(str(index), 0) for index in range(len(tokens))])
    wanted, _ = decode_all(tokenizer, tokens, noise, BEST, None)
    kind, more = ("pictures", ["to the pictures"]) if args.pictures else ("grids of random tokens", [])
    print(f"{len(tokens)} {kind}; PSNR in dB, values from -1 to 1\n")
    errors = dict.fromkeys([f"to DDIM {BEST}", *more], ".2f")
    table = Table({"solver": "", "spacing": "", "steps": "d", **errors, "s / picture": ".3f"}, args.json)
    for name, solver, steps in listed_runs(args.solvers.split(","), args.spacings.split(",")):
        try:
            check_steps(tokenizer.config, steps, solver)
        except UsageError:
            continue  # these steps cannot be made by this one
        made, seconds = decode_all(tokenizer, tokens, noise, steps, solver)
        found = [psnr(made, one) for one in (wanted, pictures) if one is not None]
        table.add(name, "trailing" if solver is None else solver.spacing, steps, *found, seconds)


def listed_runs(names: Sequence[str], spacings: Sequence[str]) -> list[tuple[str, Solver | None, int]]:
    """Name, solver and number of steps of each row of the table of errors."""
    rows = list[tuple[str, Solver | None, int]]()
    for name in names:
        solvers = [None] if name == DDIM else [parse_solver(f"{name}:{spacing}") for spacing in spacings]
        rows += [(name, solver, steps) for solver in solvers for steps in (FEWER if solver is None else FEW)]
    return rows


def decode_all(
    tokenizer: DiVAE, tokens: Tensor, noise: Noise, steps: int, solver: Solver | None
) -> tuple[Tensor, float]:
    """Values (B, C, H, W) of tokens (B, h, w), decoded one by one, and the seconds that each took."""
    device, values = next(tokenizer.parameters()).device, list[Tensor]()
    shape = tokenizer.output_shape((tokens.shape[-2], tokens.shape[-1]))
    started = time.perf_counter()
    for row in range(len(tokens)):
        own = noise.select(torch.tensor([row]))
        *_, value = tokenizer.sample(
            tokens[row : row + 1].to(device), partial(own.normals, shape=shape), steps, solver=solver
        )
        values.append(value.cpu())
    return torch.cat(values), (time.perf_counter() - started) / len(tokens)


def psnr(values: Tensor, wanted: Tensor) -> float:
    """Mean over pictures of the peak signal-to-noise ratio in dB; values from -1 to 1."""
    errors = (values.clamp(-1, 1) - wanted.clamp(-1, 1)).square().flatten(1).mean(1)
    return float((10 * (4 / errors.clamp(min=1e-12)).log10()).mean())


def read_pictures(folder: Path, tokenizer: DiVAE) -> Tensor:
    """The central squares of all pictures of a folder, (B, 3, H, W) from -1 to 1, at the tokenizer's size."""
    side, found = tokenizer.config.image_size[0], list[Tensor]()
    for path in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURE_SUFFIXES):
        with Image.open(path) as picture:
            square = ImageOps.fit(picture.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
        found.append(torch.tensor(list(square.tobytes())).view(side, side, 3).permute(2, 0, 1) / 127.5 - 1)
    if not found or tokenizer.config.n_channels != 3:
        raise SystemExit(f"{folder}: no pictures, or a tokenizer of something else; leave out --pictures")
    return torch.stack(found)


def _folder(name: str) -> Path:
    """A tokenizer of the embedded model by its key, or one by name, folder or file."""
    return find_model("demo").tokenizers.get(name) or resolve_tokenizer(name)


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
    parser.add_argument("--tokenizer", default="rgb_divae", help="name, folder, or key of the demo model")
    parser.add_argument("--pictures", type=Path, help="folder of pictures; else tokens are random")
    parser.add_argument("--encoder", help="another tokenizer, which makes tokens of the pictures")
    parser.add_argument("--samples", type=int, default=8, help="grids of random tokens")
    parser.add_argument("--solvers", default="ddim,dpm++,unipc")
    parser.add_argument("--spacings", default=",".join(SPACINGS))
    add_json(parser)
    args = parser.parse_args()
    if args.error:
        measure_error(args)
    else:
        time_it(args)


if __name__ == "__main__":
    main()
