"""Trains the base model: captions, pictures and everything between them at 64 pixels."""

from pathlib import Path

import torch

from demo.optim import Plan, answers_of, initialise, train
from demo.rows import base_config, write_rows
from demo.tasks import BASE_MENU, GRIDS, Example, Tasks, of_objects
from fourm.networks.model import FourM, FourMConfig

PLAN = Plan(steps=9000)


def train_base(folder: Path, plan: Plan = PLAN) -> FourM:
    """Train, or go on training, in this folder; returns the model."""
    folder.mkdir(parents=True, exist_ok=True)
    model = FourM(FourMConfig.from_dict(base_config(), write_rows(folder / "modalities.yaml")))
    initialise(model, plan.seed)
    train(model, plan, lambda seed, size: Tasks(seed, size).draw(BASE_MENU), folder, check)
    return model


@torch.no_grad()
def check(model: FourM) -> str:
    """Shares of right answers on held-out scenes, most likely token; grids: object tokens only."""
    tasks = Tasks(1, 64, held_out=True)
    examples = {
        "caption to": tasks.blank("tok_clip@64"),
        "and": tasks.blank("tok_rgb@64"),
        "picture to": tasks.picture_to_dense(tasks.scenes()),
        "text": tasks.picture_to_text(tasks.scenes()),
    }
    return "; ".join(f"{name} " + " ".join(score(model, e)) for name, e in examples.items())


def score(model: FourM, example: Example) -> list[str]:
    """Share of right answers to each question, most likely token; of image targets the object tokens only."""
    found = []
    for question, (answers, logits) in zip(example.questions, answers_of(model, example), strict=True):
        counted = answers >= 0
        if question.target in GRIDS:
            counted &= of_objects(answers, question.target)
        right = (logits.argmax(-1) == answers)[counted].float().mean().item()
        found.append(f"{question.target.split('@')[0].removeprefix('tok_')} {right:.3f}")
    return found
