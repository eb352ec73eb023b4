"""Trains the super-resolution model: from what a 64-pixel run leaves to tokens at 128 pixels."""

from pathlib import Path

import torch

from demo.base import score
from demo.optim import Plan, initialise, train
from demo.rows import fine_config, write_rows
from demo.tasks import FINE_MENU, Tasks
from fourm.model import FourM, FourMConfig

PLAN = Plan(steps=4200, draws=1, batch_size=16, decay=1.0)
# A second round with fresh optimizers: of the tokens of a whole picture one in a thousand was wrong after
# the first one, which shows at borders of objects; after the second, one in twenty thousand.
POLISH = Plan(steps=6000, draws=1, batch_size=16, decay=1.0, learning_rate=4e-3, seed=1)
POLISHED = "polished"  # folder of the second round


def train_fine(folder: Path, plan: Plan = PLAN, polish: Plan = POLISH) -> FourM:
    """Train, or go on training, in this folder; returns the model."""
    (folder / POLISHED).mkdir(parents=True, exist_ok=True)
    model = FourM(FourMConfig.from_dict(fine_config(), write_rows(folder / "modalities.yaml")))
    initialise(model, plan.seed)
    for each, where in ((plan, folder), (polish, folder / POLISHED)):
        train(model, each, lambda seed, size: Tasks(seed, size).draw(FINE_MENU), where, check)
    return model


@torch.no_grad()
def check(model: FourM) -> str:
    """Shares of object tokens that are right on held-out scenes, some of them known."""
    tasks = Tasks(1, 32, held_out=True)
    examples = (tasks.coarse_to_clip(tasks.scenes()), tasks.coarse_to_rgb(tasks.scenes()))
    return " ".join(word for example in examples for word in score(model, example))
