"""What docs/determinism.md names: kernels that add up alike, padding, and noise of its own for each stage."""

import os
import subprocess
import sys
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from fourm.data.layout import Key, Sample
from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.networks.checkpoint import load_model
from fourm.networks.model import Context, DecoderCache, Embedded, FourM
from fourm.networks.state import Batch, full_sequence
from fourm.runs.pipeline import run
from fourm.schedule.plan import parse_chain
from tests.emulated_gpu import emulated

ROOT = Path(__file__).resolve().parents[2]
# Prints what the variable is at the moment at which torch is looked for, and what the command ends with.
WATCHED = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and self in sys.meta_path:
            sys.meta_path.remove(self)
            print("torch sees", os.environ.get("MKL_CBWR"))

sys.meta_path.insert(0, Watch())
sys.argv = ["fourm", *sys.argv[1:]]
from fourm_cli.app import main
main()
"""


@pytest.mark.parametrize(
    ("words", "own", "seen"),
    [
        (["generate", "a red circle", "--targets", "tok_clip", "--steps", "1"], None, "AUTO,STRICT"),
        (["tokenize", "data"], None, "AUTO,STRICT"),
        (["tokenize", "data"], "COMPATIBLE", "COMPATIBLE"),
    ],
)
def test_commands_ask_for_sums_that_no_shape_changes_before_torch_is_there(
    tmp_path: Path, words: list[str], own: str | None, seen: str
) -> None:
    """The tests' own process has the variable already, so this is another one."""
    (tmp_path / "data/rgb/a").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "data/rgb/a/x.png")
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words, "--out", "o", "--quiet"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": str(ROOT)} | ({} if own is None else {"MKL_CBWR": own}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"torch sees {seen}"


@dataclass
class Watched:
    """A network that notes how many tokens each row is padded to."""

    network: FourM
    budgets: list[int] = field(default_factory=list)
    attention: str = "sdpa"

    @property
    def reads(self) -> Container[str]:
        return self.network.reads

    def embed(self, batch: Batch) -> Embedded:
        return self.network.embed(batch)

    def encode_embedded(
        self, embedded: Embedded, counts: list[int], budget: int, room: int | None
    ) -> Context:
        assert counts == sum(known.sum(dim=1) for _, _, known in embedded.values()).tolist()
        assert budget >= max(counts)
        self.budgets.append(budget)
        return self.network.encode_embedded(embedded, counts, budget, room)

    def decode(self, *args: Any) -> torch.Tensor:
        return self.network.decode(*args)

    def start_cache(self, context: Context, max_tokens: int, copies: int = 1) -> DecoderCache:
        return self.network.start_cache(context, max_tokens, copies)

    def room_for(self, sequence: str) -> int | None:
        return self.network.room_for(sequence)


@pytest.mark.parametrize(("device", "budgets"), [("cpu", [16, 32, 48]), ("cuda", [64, 64, 64])])
def test_rows_are_padded_to_whole_registers_or_tiles(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, device: str, budgets: list[int]
) -> None:
    """Five words, and a picture of 64 tokens in three steps that see more and more of it."""
    model = find_model(tiny)
    chain = parse_chain("--cond caption --targets tok_clip --steps 3 --tokens 64 --cfg 1", model)
    with emulated(monkeypatch):
        network = Watched(load_model(model, device))
        batch = Batch(("a",), {"caption": full_sequence(torch.tensor([[20, 21, 25, 24, 3]]))})
        batch = with_targets(batch, chain, model.registry).to(device)
        for _ in Engine(network).run(batch, chain, Noise.for_samples(0, [("a", 0)]).to(device)):
            pass
    assert network.budgets == budgets


@pytest.mark.parametrize("stage", ["base", "sr"])
def test_each_stage_has_noise_of_its_own(tiny: Path, tmp_path: Path, stage: Literal["base", "sr"]) -> None:
    """The tokens of a run are those that its stage's noise draws, and not those of the other's."""
    model = find_model(tiny)
    chain = parse_chain("--cond none --targets tok_rgb --steps 2 --temps 1", model)
    sample = Sample(Key("a", "b"))
    assert list(
        run(Request(model, chain, (sample,), tmp_path, seed=3, device="cpu", decode=False, stage=stage))
    )
    made = np.load(tmp_path / "tok_rgb@64/a/b.npy").ravel().tolist()
    engine, drawn = Engine(load_model(model)), dict[str, list[int]]()
    for name in ("", "sr"):
        batch = with_targets(Batch(("a/b",), {}), chain, model.registry)
        *_, last = engine.run(batch, chain, Noise.for_samples(3, [("a/b", 0)], name))
        drawn[name] = last.batch.slots["tok_rgb@64"].values[0].tolist()
    assert made == drawn["" if stage == "base" else stage]
    assert drawn[""] != drawn["sr"]
