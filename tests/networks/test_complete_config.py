"""Tensors decide where a released config may differ from what is published; else the config is held to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fourm.errors import CheckpointError
from fourm.hub.header import TRAINING_BUFFERS, TokenizerPart
from fourm.networks.checkpoint import load_tokenizer
from fourm.networks.tokenizers import build_tokenizer, complete_config
from fourm.networks.tokenizers.config import read_config

VQ = (
    "CLIP-B16_8k_224-448", "DINOv2-B14-global_8k_16_224", "DINOv2-B14_8k_224-448",
    "ImageBind-H14-global_8k_16_224", "ImageBind-H14_8k_224-448", "human-poses_1k_8", "sam-instance_1k_64",
    "semseg_4k_224-448", "rgb_16k_224-448", "depth_8k_224-448", "normal_8k_224-448", "edge_8k_224-512",
)  # fmt: skip
DIVAE = ("rgb_16k_224-448", "depth_8k_224-448", "normal_8k_224-448", "edge_8k_224-512")
# What no shape shows, or a released config surely holds.
NEEDED = ("enc_type", "dec_type", "patch_proj", "patch_size", "prediction_type", "scheduler", "beta_schedule")
SMALL: dict[str, Any] = {
    "image_size": 32, "enc_type": "vit_demo_enc", "dec_type": "vit_demo_dec", "patch_size": 8,
    "codebook_size": 20, "latent_dim": 6,
}  # fmt: skip


def tokenizer_shapes(config: dict[str, Any], part: TokenizerPart) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {n: tuple(t.shape) for n, t in build_tokenizer(read_config(config), part).state_dict().items()}


@pytest.mark.parametrize("name", VQ)
def test_released_vq_configs_may_say_next_to_nothing(golden: Path, name: str) -> None:
    manifest = json.loads((golden / "vq" / "manifests" / f"{name}.json").read_text())
    part = TokenizerPart.WHOLE if manifest["scope"] == "full model" else TokenizerPart.ENCODER
    listed = {n: tuple(row["shape"]) for n, row in manifest["state_dict"].items()}
    little = {key: value for key, value in manifest["config"].items() if key in NEEDED}
    wanted = {n: shape for n, shape in listed.items() if n not in TRAINING_BUFFERS}
    assert tokenizer_shapes(complete_config(little, listed), part) == wanted


@pytest.mark.parametrize("name", DIVAE)
def test_released_divae_configs_may_say_next_to_nothing(golden: Path, name: str) -> None:
    path = golden / "divae" / "manifests" / f"4M_tokenizers_{name}.json"
    manifest = json.loads(path.read_text())
    listed = {n: tuple(row["shape"]) for n, row in manifest["tensors"].items()}
    little = {key: value for key, value in manifest["constructor"].items() if key in NEEDED}
    wanted = {n: shape for n, shape in listed.items() if n not in TRAINING_BUFFERS}
    assert tokenizer_shapes(complete_config(little, listed), TokenizerPart.WHOLE) == wanted


def save(folder: Path, config: dict[str, Any], said: dict[str, Any]) -> Path:
    """A tokenizer of one config on disk under another."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    save_file(build_tokenizer(read_config(config)).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(said))
    return folder


UNET = {"dec_type": "unet_patched", "beta_schedule": "linear",
        "dec_structure": {"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1],
                          "attention_resolutions": []}}  # fmt: skip
UVIT = {"dec_type": "uvit_b_p4_f8", "beta_schedule": "linear",
        "dec_structure": {"block_out_channels": [16, 16], "mid_layers": 1, "mid_dim": 16, "mid_num_heads": 2,
                          "mid_hw_posemb": 4, "norm_num_groups": 4}}  # fmt: skip
BOOKS = {"quant_type": "memcodes", "enc_type": "BottleneckMLP/B_1-Wi_8", "latent_dim": 32,
         "dec_type": "BottleneckMLP/B_1-Wi_8"}  # fmt: skip


@pytest.mark.parametrize(
    ("true", "said"),
    [
        ({"n_channels": 1}, {"n_channels": 2}),  # depth with or without a mask of valid pixels
        ({"n_channels": 4, **UNET}, {"n_channels": 3, **UNET}),  # RGB with one
        ({"n_channels": 3, **UNET}, {"n_channels": 1, **UNET}),  # edges as one or three channels
        ({"image_size": 64}, {"image_size": 56}),  # edges trained up to 448 or 512 pixels
        ({"image_size": 64, **UNET}, {**UNET}),
        ({"n_channels": 1, "has_encoder": False, **UNET}, {"has_encoder": False, **UNET}),
        ({"n_channels": 1, "has_encoder": False, **UVIT}, {"has_encoder": False, **UVIT}),
        ({"post_mlp": True}, {}),  # SAM instances
        ({"post_mlp": False}, {"post_mlp": True}),
        ({"num_codebooks": 16, **BOOKS}, {"num_codebooks": 8, **BOOKS}),  # global features
    ],
)
def test_where_published_facts_are_doubtful_the_tensors_decide(
    tmp_path: Path, true: dict[str, Any], said: dict[str, Any]
) -> None:
    whole, told = {**SMALL, **true}, {**SMALL, **said}
    loaded = load_tokenizer(save(tmp_path / "a", whole, told))
    right = load_tokenizer(save(tmp_path / "b", whole, whole))
    assert loaded.state_dict().keys() == right.state_dict().keys()
    if not whole.get("has_encoder", True):
        assert loaded.config.n_channels == right.config.n_channels == true["n_channels"]
        return
    side = 1 if "num_codebooks" in true else 32
    x = torch.rand(2, loaded.config.n_channels, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.tokenize(x), right.tokenize(x))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"codebook_size": 21}, "codebook_size"),
        ({"latent_dim": 5}, "latent_dim"),
        ({"enc_type": "vit_s_enc"}, "is missing"),
        ({"patch_size": 4}, "patch_size"),
        ({"norm_codes": False}, ""),
        ({"out_conv": True}, "out_conv"),
    ],
)
def test_elsewhere_a_config_that_contradicts_the_tensors_is_an_error(
    tmp_path: Path, said: dict[str, Any], message: str
) -> None:
    folder = save(tmp_path / "a", SMALL, {**SMALL, **said})
    if not message:
        assert load_tokenizer(folder).config.norm_codes is False  # nothing but a trainer's buffers shows it
        return
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder)
