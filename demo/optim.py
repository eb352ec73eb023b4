"""The training loop of both models: Muon and AdamW, half products, checkpoints that resume exactly."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo.tasks import Example
from fourm.networks.model import FourM


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast a model is trained."""

    steps: int
    draws: int = 2  # examples per step, their gradients added
    batch_size: int = 32
    learning_rate: float = 6e-3
    warmup: int = 60
    decay: float = 0.5  # share of the steps, the last ones, in which the rate falls to nothing
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        left = (self.steps - step) / (self.decay * self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, left)


def train(
    model: FourM, plan: Plan, draw: Callable[[int, int], Example], folder: Path, check: Callable[[FourM], str]
) -> None:
    """Train from the last checkpoint in the folder, if any; draw(seed, batch size) gives one example."""
    optimizers = build_optimizers(model)
    done = _resume(model, optimizers, folder)
    use_half_products(model)
    since, losses = time.monotonic(), list[float]()
    for step in range(done, plan.steps):
        losses += _train_step(model, plan, optimizers, draw, step)
        if (step + 1) % 100 == 0:
            pace = (time.monotonic() - since) / 100
            mean = sum(losses) / len(losses)
            print(f"step {step + 1}/{plan.steps}, loss {mean:.3f}, {pace:.2f} s/step", flush=True)
            since, losses = time.monotonic(), []
        if (step + 1) % 500 == 0 or step + 1 == plan.steps:
            print(f"  {check(model)}", flush=True)
            _save(model, optimizers, step + 1, folder)


def _train_step(
    model: FourM,
    plan: Plan,
    optimizers: tuple[torch.optim.Optimizer, ...],
    draw: Callable[[int, int], Example],
    step: int,
) -> list[float]:
    """One step of the optimizers; returns the loss of each example."""
    losses = []
    for index in range(plan.draws):
        loss = loss_of(model, draw((plan.seed << 32) + step * plan.draws + index, plan.batch_size))
        torch.autograd.backward(loss)
        losses.append(loss.item())
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def loss_of(model: FourM, example: Example) -> Tensor:
    """Sum over the questions of the mean cross-entropy of their answers."""
    total = torch.zeros(())
    for answers, logits in answers_of(model, example):
        total = total + F.cross_entropy(logits.float().flatten(0, 1), answers.flatten(), ignore_index=-100)
    return total


def answers_of(model: FourM, example: Example) -> Iterator[tuple[Tensor, Tensor]]:
    """(right answers (B, K), logits (B, K, V)) of each question."""
    context = model.encode(example.batch)
    for question in example.questions:
        logits = model.decode(question.target, question.positions, question.inputs, context)
        yield question.answers, logits


def initialise(model: FourM, seed: int) -> None:
    """Fresh weights: wide token embeddings, narrow heads, the rest as torch makes it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("token_emb.weight"):
                parameter.normal_(0, 0.5, generator=generator)
            elif name.endswith(("mod_emb", "mask_token")):
                parameter.normal_(0, 0.2, generator=generator)
            elif name.endswith("to_logits.weight"):
                parameter.normal_(0, 0.02, generator=generator)
            elif parameter.ndim == 2:
                parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)


def build_optimizers(model: FourM) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan et al. 2024) for the matrices inside, AdamW for embeddings, heads and norms."""
    inside, rest = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in model.named_parameters():
        is_inside = parameter.ndim == 2 and name.startswith(("encoder.", "decoder.", "decoder_proj_context"))
        (inside if is_inside else rest).append(parameter)
    return (
        torch.optim.Muon(inside, weight_decay=0.02, adjust_lr_fn="match_rms_adamw", ns_steps=4),
        torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.02),
    )


def use_half_products(model: FourM) -> None:
    """Let every linear layer multiply in bfloat16 and return float32; all else stays in float32.

    Plain autocast would also run attention in bfloat16, whose backward pass is slow on CPUs.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = partial(_half_product, module)  # type: ignore[method-assign]


def _half_product(layer: nn.Linear, x: Tensor) -> Tensor:
    bias = None if layer.bias is None else layer.bias.bfloat16()
    return F.linear(x.bfloat16(), layer.weight.bfloat16(), bias).float()


def _save(model: FourM, optimizers: tuple[torch.optim.Optimizer, ...], step: int, folder: Path) -> None:
    """Write a checkpoint beside the last one, then put it in its place."""
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, folder / "new.pt")
    (folder / "new.pt").replace(folder / "last.pt")


def _resume(model: FourM, optimizers: tuple[torch.optim.Optimizer, ...], folder: Path) -> int:
    """Load the last checkpoint; returns the number of steps done."""
    if not (folder / "last.pt").exists():
        return 0
    state = torch.load(folder / "last.pt", weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
