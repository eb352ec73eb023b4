"""Records what the networks of other libraries make of seeded weights: `recorded.json`, which tests read.

`python -m tests.measures.record` in an environment that has torch-fidelity, lpips, torchvision and
transformers, too; tests need none of them.
"""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lpips
import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from fourm.measures.learned import resized
from fourm.measures.networks.clip import CLIP, prepare
from fourm.measures.networks.inception import Inception
from fourm.measures.networks.lpips import LPIPS
from tests.measures.seeded import CLIP_TEXTS, SEEDS, SHOWN, SMALL_CLIP, picture, tensors_of

PACKAGES = ("torch", "torch-fidelity", "torchmetrics", "lpips", "torchvision", "transformers")


def batch(values: Any) -> Tensor:
    return torch.from_numpy(values.transpose(2, 0, 1).copy())[None]


def of_inception(folder: Path) -> dict[str, Any]:
    """Every 128th feature, every 64th logit, and sums; FID of 8 pairs, and the same from its definition."""
    path = str(folder / "inception.pth")
    torch.save(tensors_of(Inception()), path)
    outputs = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3("x", outputs, feature_extractor_weights_path=path)
    rows = []
    for size in SHOWN:
        features, logits = (one.flatten().double() for one in network(batch(picture(*size))))
        sums = {"features_sum": float(features.sum()), "logits_sum": float(logits.abs().sum())}
        rows.append({"features": features[::128].tolist(), "logits": logits[::64].tolist(), **sums})
    fid = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=path)
    sides = []
    for first, is_real in ((0, False), (100, True)):
        found = []
        for seed in SEEDS:
            values = batch(resized(picture(first + seed)))
            fid.update(values, real=is_real)
            found.append(network(values)[0].flatten().double().numpy())
        sides.append(np.stack(found))
    # With centred samples as rows of X1 and X2, tr (C1 C2)^(1/2) is the sum of singular values of X1 X2^T.
    centred = [(one - one.mean(0)) / np.sqrt(len(one) - 1) for one in sides]
    exact = np.square(sides[0].mean(0) - sides[1].mean(0)).sum()
    exact += sum(np.square(one).sum() for one in centred)
    exact -= 2 * np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    return {"inception": rows, "fid": float(exact), "fid_of_torchmetrics": float(fid.compute())}


def of_lpips() -> list[float]:
    """The distances of the pictures 0 and 100, 1 and 101, ..."""
    network = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False).eval()
    tensors = tensors_of(LPIPS())
    for name, parameter in network.named_parameters():
        own = name.replace("lins.", "lin")
        own = f"features.{own.split('.', 2)[2]}" if own.startswith("net.") else own
        nn.Parameter.copy_(parameter.data, tensors[own])
    both = [(batch(picture(seed)), batch(picture(100 + seed))) for seed in SEEDS]
    return [float(network(*(one.float() / 127.5 - 1 for one in pair))) for pair in both]


def of_clip() -> list[list[float]]:
    """The cosines of the pictures 0, 1, ... and texts of token ids."""
    sizes = SMALL_CLIP
    text = CLIPTextConfig(
        vocab_size=sizes.vocab, hidden_size=sizes.text.dim, intermediate_size=sizes.text.hidden,
        num_hidden_layers=sizes.text.depth, num_attention_heads=sizes.text.dim // 64,
        max_position_embeddings=sizes.text.length, eos_token_id=55,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=sizes.vision.dim, intermediate_size=sizes.vision.hidden,
        num_hidden_layers=sizes.vision.depth, num_attention_heads=sizes.vision.dim // 64,
        image_size=sizes.side, patch_size=sizes.patch,
    )  # fmt: skip
    both = {"text_config": text.to_dict(), "vision_config": vision.to_dict()}
    config = CLIPConfig(**both, projection_dim=sizes.shared)
    network = CLIPModel(config).eval()
    network.load_state_dict(tensors_of(CLIP(sizes)) | {"logit_scale": torch.tensor(0.0)})
    pixels = torch.stack([prepare(picture(seed), sizes.side) for seed in SEEDS])
    found = [network(torch.tensor([ids]), pixels).logits_per_image[:, 0].tolist() for ids in CLIP_TEXTS]
    return np.array(found).T.tolist()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        found = {"made_with": {name: version(name) for name in PACKAGES}, **of_inception(Path(folder)),
                 "lpips": of_lpips(), "clip": of_clip()}  # fmt: skip
    Path(__file__).with_name("recorded.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
