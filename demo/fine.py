"""Trains the super-resolution model: from what a 64-pixel run leaves to tokens at 128 pixels."""

from collections.abc import Sequence
from pathlib import Path

import torch

from demo.base import score
from demo.optim import Plan, initialise, train
from demo.rows import fine_config, write_rows
from demo.tasks import FINE_MENU, Tasks
from fourm.networks.model import FourM, FourMConfig

# Rounds with fresh optimizers and falling rates, each in a folder of its own. After the first, one token in a
# thousand was wrong, which shows at borders of objects; after the last, hardly any.
ROUNDS = (
    Plan(steps=4200, draws=1, batch_size=16, decay=1.0),
    Plan(steps=6000, draws=1, batch_size=16, decay=1.0, learning_rate=4e-3, seed=1),
    Plan(steps=4000, draws=1, batch_size=16, decay=1.0, learning_rate=3e-3, seed=2),
)


def train_fine(folder: Path, rounds: Sequence[Plan] = ROUNDS) -> FourM:
    """Train, or go on training, in this folder; returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    model = FourM(FourMConfig.from_dict(fine_config(), write_rows(folder / "modalities.yaml")))
    initialise(model, rounds[0].seed)
    for plan, where in zip(rounds, round_folders(folder, len(rounds)), strict=True):
        where.mkdir(exist_ok=True)
        train(model, plan, lambda seed, size: Tasks(seed, size).draw(FINE_MENU), where, check)
    return model


def round_folders(folder: Path, count: int = len(ROUNDS)) -> list[Path]:
    """Where the checkpoints of each round lie; the last one's is the model."""
    return [folder / f"round{number}" for number in range(1, count + 1)]


@torch.no_grad()
def check(model: FourM) -> str:
    """Shares of object tokens that are right on held-out scenes, some of them known."""
    tasks = Tasks(1, 32, held_out=True)
    examples = (tasks.coarse_to_clip(tasks.scenes()), tasks.coarse_to_rgb(tasks.scenes()))
    return " ".join(word for example in examples for word in score(model, example))
