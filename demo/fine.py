"""Trains the super-resolution model: from what a 64-pixel run leaves to tokens at 128 pixels."""

from pathlib import Path

import torch

from demo.base import score
from demo.optim import Plan, initialise, train
from demo.rows import fine_config, write_rows
from demo.tasks import FINE_MENU, Tasks
from fourm.model import FourM, FourMConfig

PLAN = Plan(steps=4200, draws=1, batch_size=16, decay=1.0)


def train_fine(folder: Path, plan: Plan = PLAN) -> FourM:
    """Train, or go on training, in this folder; returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    model = FourM(FourMConfig.from_dict(fine_config(), write_rows(folder / "modalities.yaml")))
    initialise(model, plan.seed)
    train(model, plan, lambda seed, size: Tasks(seed, size).draw(FINE_MENU), folder, check)
    return model


@torch.no_grad()
def check(model: FourM) -> str:
    """Shares of object tokens that are right on held-out scenes, some of them known."""
    tasks = Tasks(1, 32, held_out=True)
    examples = (tasks.coarse_to_clip(tasks.scenes()), tasks.coarse_to_rgb(tasks.scenes()))
    return " ".join(word for example in examples for word in score(model, example))
