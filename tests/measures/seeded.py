"""Networks with seeded weights, as files, for the published ones are not at hand; and values to measure."""

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn

from fourm.measures.networks.clip import CLIP, CLIPSizes, Tower
from fourm.measures.networks.inception import Inception
from fourm.measures.networks.lpips import LPIPS
from fourm.modalities.facts import FIELDS, Fact, Metadata
from fourm.modalities.figures import People
from fourm.modalities.registry import RELEASED
from tests.codecs.test_figures import SOMEBODY
from tests.codecs.test_parts import POSE_CONFIG, random_tokenizer
from tests.tiny import save

RGB = RELEASED.get("rgb@224")
SHOWN = [(1,), (2, 100, 331), (3, 299, 299)]  # pictures of which the outputs of Inception are recorded
SEEDS = range(8)  # of pictures whose distances are recorded; their partners have 100 more
CLIP_TEXTS = [[54, 53, 0, 27, 55], [54, 55], [54, *[2] * 10, 55]]  # token ids
SMALL_CLIP = CLIPSizes(Tower(128, 2, 96, 5), Tower(64, 2, 80, 12), patch=8, vocab=64, shared=16)


def seeded(name: str, shape: tuple[int, ...]) -> Tensor:
    """The values of a tensor, by its name: NumPy's `RandomState` gives the same in every version."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = random.uniform(0.5, 1.5, shape)
    elif name.startswith("lin"):  # of LPIPS: not negative
        values = random.uniform(0, 1, shape)
    elif len(shape) < 2:
        values = 0.1 * random.standard_normal(shape) + (name.endswith("weight"))
    else:
        values = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Seeded values for all tensors of a network."""
    return {name: seeded(name, tuple(one.shape)) for name, one in network.state_dict().items()}


def write_weights(path: Path, build: Callable[[], nn.Module], more: Mapping[str, Tensor]) -> Path:
    """A safetensors file with the tensors of a network, and with some that are not read."""
    with torch.device("meta"):
        network = build()
    save_file({**tensors_of(network), **more}, path)
    return path


def write_inception(folder: Path) -> Path:
    """The network of FID."""
    counter = {"Mixed_5b.branch1x1.bn.num_batches_tracked": torch.tensor(0)}
    return write_weights(folder / "inception.safetensors", Inception, counter)


def write_lpips(folder: Path) -> Path:
    """The network of LPIPS, with a layer of AlexNet that it does not use."""
    return write_weights(folder / "lpips.safetensors", LPIPS, {"classifier.1.weight": torch.ones(2, 2)})


def write_clip(folder: Path) -> Path:
    """A small CLIP in a folder, with its tokenizer."""
    folder.mkdir(exist_ok=True)
    more = {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None] for tower in ("text", "vision")}
    write_weights(
        folder / "model.safetensors", partial(CLIP, SMALL_CLIP), {**more, "logit_scale": torch.tensor(4.6)}
    )
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [
        *letters,
        *(f"{one}</w>" for one in letters),
        "re",
        "red</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {word: number for number, word in enumerate(words)}
    model = models.BPE(vocab=vocabulary, merges=[("r", "e"), ("re", "d</w>")], end_of_word_suffix="</w>",
                       unk_token="<|endoftext|>")  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def picture(seed: int, height: int = 64, width: int = 64) -> NDArray[Any]:
    """A picture with large and small structures."""
    random = np.random.RandomState(seed)
    coarse = np.kron(random.uniform(0, 255, (height // 8 + 1, width // 8 + 1, 3)), np.ones((8, 8, 1)))
    noisy = 0.7 * coarse[:height, :width] + 0.3 * random.uniform(0, 255, (height, width, 3))
    return noisy.astype(np.uint8)


def write_poses(folder: Path) -> Path:
    """The tokenizer of poses."""
    save(random_tokenizer(POSE_CONFIG), folder, torch.Generator().manual_seed(0), ())
    (folder / "config.json").write_text(json.dumps(asdict(POSE_CONFIG)))
    return folder


def moved(metres: float) -> People:
    """Somebody further to the right; a metre is 90 pixels, and the box has a side of 200."""
    scale, x, y = SOMEBODY.camera
    return (replace(SOMEBODY, camera=(scale, x + metres, y)),)


def facts(**values: float) -> Metadata:
    fields = {field.name: field for field in FIELDS}
    return tuple(Fact(fields[name], value) for name, value in values.items())
