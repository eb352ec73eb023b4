"""What a linear classifier reads from features of the encoder: `python -m demo.probe` prints a table of it.

Features are the means over the tokens of a picture that `model.embed` gives, without a caption. A classifier
learns from pictures of one thing, of combinations that the model was trained on, and is asked about held-out
combinations. Beside it stands a network of the same architecture with the weights that training begins with.
"""

import argparse
import random
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

import fourm
from demo.bundle import BUNDLE
from demo.contradict import traits
from demo.optim import initialise
from demo.patches import tokens_of
from demo.render import render
from demo.world import Scene, sample_scene
from fourm.hub.files import find_model
from fourm.networks.checkpoint import load_model

ASKED = ("colour", "shape", "size")
INPUTS = ("rgb", "tok_rgb")  # pixels; tokens
_PULL = 1.0  # towards zero of the classifier's weights, features having unit variance

Features = NDArray[np.float32]  # (S, D)


def single_scenes(count: int, seed: int, held_out: bool) -> list[Scene]:
    """Different scenes of one thing, of combinations of training or of held-out ones."""
    rng, found = random.Random(seed), dict[Scene, None]()
    while len(found) < count:
        scene = sample_scene(rng, held_out)
        if len(scene.things) == 1:
            found[scene] = None
    return list(found)


def write_untrained(folder: Path, seed: int = 0) -> Path:
    """The bundle with the weights that training begins with."""
    shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("sr", "model.safetensors"))
    shutil.copy(BUNDLE / "model.safetensors", folder)
    network = load_model(find_model(folder))
    initialise(network, seed)
    save_file({name: one.contiguous() for name, one in network.state_dict().items()}, folder / "fresh")
    (folder / "fresh").rename(folder / "model.safetensors")
    return folder


def features_of(model: fourm.Model, scenes: Sequence[Scene], name: str, layer: str) -> Features:
    """(S, D): one vector for each scene."""
    values: Any = [render(one).rgb if name == "rgb" else tokens_of(one, "rgb").reshape(-1) for one in scenes]
    return np.concatenate(model.embed(**{name: values}, layers=layer, progress=False))


def share_named(seen: Features, labels: Sequence[str], asked: Features, truth: Sequence[str]) -> float:
    """Share of right answers about `asked` of the linear classifier that least squares find for `seen`."""
    names, ids = np.unique(labels, return_inverse=True)
    mean, spread = seen.mean(axis=0), seen.std(axis=0) + 1e-6
    x, queries = (np.c_[(part - mean) / spread, np.ones(len(part))] for part in (seen, asked))
    weights = np.linalg.solve(x.T @ x + _PULL * np.eye(x.shape[1]), x.T @ np.eye(len(names))[ids])
    return float(np.mean(names[(queries @ weights).argmax(axis=1)] == truth))


def measure(
    model: fourm.Model, name: str, layer: str, counts: Sequence[int], num_asked: int
) -> dict[int, dict[str, float]]:
    """By number of labelled scenes, the share of held-out scenes whose colour, shape and size is named."""
    seen, asked = single_scenes(max(counts), 1, held_out=False), single_scenes(num_asked, 2, held_out=True)
    known, queries = (features_of(model, scenes, name, layer) for scenes in (seen, asked))
    labels, truth = ([traits(scene) for scene in scenes] for scenes in (seen, asked))
    return {
        count: {
            one: share_named(
                known[:count], [x[one] for x in labels[:count]], queries, [x[one] for x in truth]
            )
            for one in ASKED
        }
        for count in counts
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    warnings.filterwarnings("ignore", message="torch was imported before")  # last bits change no answer
    parser.add_argument("--layers", nargs="+", default=["0", "last"], help="as of `fourm embed`")
    parser.add_argument("--labelled", nargs="+", type=int, default=[200, 1000], help="scenes to learn from")
    parser.add_argument("--asked", type=int, default=500, help="held-out scenes")
    args = parser.parse_args()
    heads = [f"{one}, {count:,}" for count in args.labelled for one in ASKED]
    print("| network | reads | layer | " + " | ".join(heads) + " |")
    print("| --- | --- | --- |" + " ---: |" * len(heads))
    with tempfile.TemporaryDirectory() as folder:
        networks = {"trained": BUNDLE, "fresh weights": write_untrained(Path(folder) / "fresh")}
        for network, where in networks.items():
            with fourm.load(where, device="cpu") as model:
                for name, layer in ((name, layer) for name in INPUTS for layer in args.layers):
                    found = measure(model, name, layer, args.labelled, args.asked)
                    shares = [f"{share:.3f}" for row in found.values() for share in row.values()]
                    print(f"| {network} | {name} | {layer} | " + " | ".join(shares) + " |", flush=True)


if __name__ == "__main__":
    main()
