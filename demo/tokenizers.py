"""Trains the demo's tokenizers: autoencoders over all patches of the world, one code for each patch."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from demo.patches import patch_table
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.vq import VQTokenizer

LATENT_DIM = 16
_NOISE = 0.05  # added to the codes while training: codes keep apart, the decoder forgives rounding
_LEARNING_RATE = 3e-3
_POSITIONS = ("encoder.pos_emb", "decoder.pos_emb")
_CODEBOOK = "quantize._codebook.embed"


@dataclass(frozen=True, slots=True)
class Recipe:
    """One tokenizer: its folder, the map and scale that it reads, and how long it is trained."""

    name: str
    field: str
    scale: int
    steps: int
    channels: int
    labels: int | None = None


RECIPES = (
    Recipe("rgb", "rgb", 1, 3000, 3),
    Recipe("clip", "clip", 1, 1500, 14),
    Recipe("depth", "depth", 1, 1500, 1),
    Recipe("normal", "normal", 1, 1500, 3),
    Recipe("semseg", "semseg", 1, 800, 8, labels=4),
    Recipe("edge", "edge", 1, 1500, 1),
    Recipe("rgb_128", "rgb", 2, 4000, 3),
    Recipe("clip_128", "clip", 2, 1500, 14),
)


def train_tokenizer(recipe: Recipe, folder: Path, seed: int = 0) -> float:
    """Train one tokenizer and write its folder; returns the share of patches that have their own code."""
    torch.manual_seed(seed)
    config = config_of(recipe)
    tokenizer = VQTokenizer(read_config(config))
    weights = dict(tokenizer.named_parameters())
    with torch.no_grad():  # a patch means the same wherever it lies
        for name in _POSITIONS:
            weights[name].zero_()
    patches = torch.from_numpy(patch_table(recipe.field, recipe.scale).rows)
    _fit(tokenizer, recipe, patches)
    _set_codebook(tokenizer, patches)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in tokenizer.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokens = tokenizer.tokenize(patches).flatten()
    return float((tokens == torch.arange(len(patches))).float().mean())


def _fit(tokenizer: VQTokenizer, recipe: Recipe, patches: Tensor) -> None:
    """Autoencoder training with unit-length latents; the table is one batch."""
    weights = [
        p for name, p in tokenizer.named_parameters() if "pos_emb" not in name and "quantize" not in name
    ]
    optimizer = torch.optim.AdamW(weights, lr=_LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, recipe.steps, pct_start=0.1)
    for step in range(recipe.steps):
        codes = F.normalize(tokenizer.encode(patches), dim=1)
        output = tokenizer.decode(codes + _NOISE * torch.randn_like(codes) * (1 - step / recipe.steps))
        loss = _loss(output, patches) + 0.1 * _crowding(codes.flatten(1))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == recipe.steps - 1:
            print(f"tokenizer {recipe.name}: step {step}, loss {loss.item():.5f}", flush=True)


def _loss(output: Tensor, patches: Tensor) -> Tensor:
    if not patches.is_floating_point():
        return F.cross_entropy(output, patches)
    return F.l1_loss(output, patches) + 2 * F.mse_loss(output, patches)


def _crowding(codes: Tensor) -> Tensor:
    """How close each code (K, L) has its nearest neighbour, beyond a cosine of 0.9."""
    cosine = codes @ codes.T - 2 * torch.eye(len(codes))
    return F.relu(cosine.amax(dim=1) - 0.9).mean() * 10


@torch.no_grad()
def _set_codebook(tokenizer: VQTokenizer, patches: Tensor) -> None:
    """Round the weights to what is stored, then make each patch's latent its code."""
    for parameter in tokenizer.parameters():
        parameter.copy_(parameter.half())
    codes = F.normalize(tokenizer.encode(patches).flatten(1), dim=1)
    dict(tokenizer.named_parameters())[_CODEBOOK].copy_(codes.half())


def config_of(recipe: Recipe) -> dict[str, object]:
    """The constructor arguments, as stored in its config.json."""
    return {
        "image_size": 64,
        "n_channels": recipe.channels,
        "n_labels": recipe.labels,
        "enc_type": "vit_demo_enc",
        "dec_type": "vit_demo_rgb_dec" if recipe.field == "rgb" else "vit_demo_dec",
        "patch_size": 8,
        "patch_proj": recipe.field != "clip",
        "post_mlp": True,
        "codebook_size": len(patch_table(recipe.field, recipe.scale).rows),
        "latent_dim": LATENT_DIM,
        "norm_codes": True,
    }
