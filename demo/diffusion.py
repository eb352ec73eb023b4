"""Trains the demo's diffusion detokenizer: a small UNet that draws what tokens of `tokenizers/rgb` say."""

import json
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.patches import patch_table, tokens_of
from demo.tokenizers import LATENT_DIM
from demo.world import SIDE, sample_scene
from fourm.networks.tokenizers.diffusion import cumulative_alphas
from fourm.networks.tokenizers.unet import PatchedUNet, UNetShape

NAME = "rgb_divae"  # its folder, beside that of the tokenizer whose tokens it reads
READS = "rgb"
CODEBOOK = "quantize._codebook.embed"

# 64 channels on the lower level, so that a group of the norms has two: a group of one channel would take
# away what the timestep adds to it.
SHAPE = UNetShape(
    patch_size=4,
    model_channels=8,
    num_res_blocks=0,
    attention_resolutions=(4,),  # neither level: attention is in the middle alone
    channel_mult=(4, 8),
)
_TIMESTEPS = 1000
_SCHEDULE = "linear"
_CHANNELS = 3
_SPOILT_RATE = 0.125  # of the pictures have wrong tokens here and there, as a model may draw them
_WRONG_RATE = 0.1  # of the tokens in these
_AVERAGE = 0.999  # of the weights before, in the average that is stored
_ZERO = ("out_layers.3", "proj_out", "out.2")  # last layers of the residual branches and of all


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast the decoder is trained."""

    steps: int = 20_000
    batch_size: int = 16
    learning_rate: float = 4e-3
    warmup: int = 100
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of a step: up in a line, down along a cosine."""
        fall = 0.5 + 0.5 * math.cos(math.pi * step / self.steps)
        return self.learning_rate * min(1.0, (step + 1) / self.warmup) * fall


class Run:
    """A decoder in training: its weights, their running average, the optimizer and the steps done."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        torch.manual_seed(plan.seed)
        self.plan, self.folder, self.done = plan, folder, 0
        self.network = PatchedUNet(SHAPE, _CHANNELS, LATENT_DIM)
        _initialise(self.network)
        self.average = PatchedUNet(SHAPE, _CHANNELS, LATENT_DIM)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
        if (folder / "last.pt").exists():
            state = torch.load(folder / "last.pt", weights_only=True)
            self.done = int(state["step"])
            for name, part in self._parts().items():
                part.load_state_dict(state[name])

    def save(self) -> None:
        """Write a checkpoint beside the last one, then put it in its place."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        torch.save({"step": self.done, **states}, self.folder / "new.pt")
        (self.folder / "new.pt").replace(self.folder / "last.pt")

    def step(self, codes: Tensor, alphas: Tensor) -> float:
        """One step of the optimizer; returns the mean squared error of the predicted pictures."""
        tokens, pictures, t, noise = draw(self.plan, self.done)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy = a.sqrt() * pictures + (1 - a).sqrt() * noise
        with torch.autocast("cpu", torch.bfloat16):
            condition = self.network.condition(F.embedding(tokens, codes).movedim(-1, 1), (SIDE, SIDE))
            predicted = self.network(noisy, self.network.embed_time(t), condition)
            loss = F.mse_loss(predicted, pictures)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.done)
        self.optimizer.step()
        self.done += 1
        share = 1 - min(_AVERAGE, self.done / (self.done + 9))
        for kept, weight in zip(self.average.parameters(), self.network.parameters(), strict=True):
            kept.data.lerp_(weight.data, share)
        return loss.item()

    def _parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"network": self.network, "average": self.average, "optimizer": self.optimizer}


def train_diffusion(
    work: Path, codebook: Path, plan: Plan = Plan(), minutes: float = math.inf, every: int = 500
) -> bool:
    """Train, or go on training, in `work / "diffusion"`; True where the tokenizer's folder was written.

    codebook: weights of the tokenizer whose tokens are read. A checkpoint is written every so many steps; at
    the first one after so many minutes the run stops, and the next call goes on from there to the same end.
    """
    (work / "diffusion").mkdir(parents=True, exist_ok=True)
    run, codes = Run(plan, work / "diffusion"), load_file(codebook)[CODEBOOK].float()
    alphas = cumulative_alphas(_SCHEDULE, _TIMESTEPS)
    since, losses = time.monotonic(), list[float]()
    while run.done < plan.steps:
        losses.append(run.step(codes, alphas))
        if run.done % every == 0 or run.done == plan.steps:
            spent, error = time.monotonic() - since, sum(losses) / len(losses)
            print(f"diffusion: step {run.done}, error {error:.6f}, {spent / 60:.1f} minutes", flush=True)
            losses = []
            run.save()
            if spent >= 60 * minutes:
                break
    if run.done < plan.steps:
        return False
    write_tokenizer(run.average, codes, work / "tokenizers" / NAME)
    return True


def draw(plan: Plan, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens (B, 8, 8), pictures (B, 3, 64, 64) in [-1, 1], timesteps (B,) and noise of a training step."""
    seed = (plan.seed << 32) + step
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    scenes = [sample_scene(rng) for _ in range(plan.batch_size)]
    tokens = torch.from_numpy(np.stack([tokens_of(scene, READS) for scene in scenes]).astype(np.int64))
    rows = torch.from_numpy(patch_table(READS, 1).rows)
    spoilt = torch.rand(plan.batch_size, 1, 1, generator=generator) < _SPOILT_RATE
    wrong = spoilt & (torch.rand(tokens.shape, generator=generator) < _WRONG_RATE)
    tokens = torch.where(wrong, torch.randint(len(rows), tokens.shape, generator=generator), tokens)
    pictures = picture_of(tokens)
    t = torch.randint(_TIMESTEPS, (plan.batch_size,), generator=generator)
    return tokens, pictures, t, torch.randn(pictures.shape, generator=generator)


def picture_of(tokens: Tensor) -> Tensor:
    """(B, h, w) tokens -> (B, 3, 8 h, 8 w) in [-1, 1]: their patches, side by side."""
    rows = torch.from_numpy(patch_table(READS, 1).rows)
    return rearrange(rows[tokens], "b h w c p q -> b c (h p) (w q)").contiguous()


def write_tokenizer(decoder: nn.Module, codes: Tensor, folder: Path) -> None:
    """Decoder and codebook as a tokenizer without an encoder, in float16 like all of the bundle."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"decoder.{name}": tensor for name, tensor in decoder.state_dict().items()} | {CODEBOOK: codes}
    save_file(
        {name: tensor.half().contiguous() for name, tensor in state.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config_of(), indent=2) + "\n")


def config_of() -> dict[str, object]:
    """The constructor arguments, as stored in its config.json."""
    return {
        "image_size": SIDE,
        "n_channels": _CHANNELS,
        "patch_size": 8,
        "codebook_size": len(patch_table(READS, 1).rows),
        "latent_dim": LATENT_DIM,
        "norm_codes": True,
        "has_encoder": False,
        "dec_type": "unet_patched",
        "dec_structure": asdict(SHAPE),
        "num_train_timesteps": _TIMESTEPS,
        "scheduler": "ddim",
        "beta_schedule": _SCHEDULE,
        "prediction_type": "sample",
        "zero_terminal_snr": True,
        "thresholding": True,
        "clip_sample": False,
    }


def _initialise(network: nn.Module) -> None:
    """Residual branches and the last layer begin at zero."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if any(part in name for part in _ZERO):
                parameter.zero_()
