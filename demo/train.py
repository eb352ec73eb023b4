"""Rebuilds the embedded model: `python -m demo.train` trains every part and writes `fourm/demo/`.

Each stage goes on from what an earlier, interrupted run left in the working folder.
"""

import argparse
import math
from pathlib import Path

import torch

from demo.base import train_base
from demo.bundle import BUNDLE, write_bundle
from demo.diffusion import train_diffusion
from demo.fine import train_fine
from demo.tokenizers import RECIPES, train_tokenizer

STAGES = ("tokenizers", "diffusion", "base", "sr", "bundle")


def main() -> None:
    """Run the stages asked for, in their order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", nargs="*", default=STAGES, help=f"some of {STAGES}; all if none")
    parser.add_argument("--work", type=Path, default=Path("demo/work"), help="folder for checkpoints")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is the most efficient")
    parser.add_argument("--minutes", type=float, default=math.inf, help="time for the stage `diffusion`")
    options = parser.parse_args()
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages: {', '.join(sorted(unknown))}")
    torch.set_num_threads(options.threads)
    work: Path = options.work
    if "tokenizers" in options.stages:
        for recipe in RECIPES:
            if not (work / "tokenizers" / recipe.name / "config.json").exists():
                share = train_tokenizer(recipe, work / "tokenizers" / recipe.name)
                print(f"tokenizer {recipe.name}: {share:.4f} of the patches have their own code", flush=True)
    if "diffusion" in options.stages:
        trained = work / "tokenizers" / "rgb"
        reads = trained if trained.exists() else BUNDLE / "tokenizers" / "rgb"
        train_diffusion(work, reads / "model.safetensors", minutes=options.minutes)
    if "base" in options.stages:
        train_base(work / "base")
    if "sr" in options.stages:
        train_fine(work / "fine")
    if "bundle" in options.stages:
        print(f"bundle: {write_bundle(work) / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
