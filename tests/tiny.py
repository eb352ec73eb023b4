"""A whole model folder in the released form: two narrow layers with random weights, quick to make and run.

What it generates means nothing, but it is always the same, and depends on every weight.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import WhitespaceSplit

from fourm.hub.files import find_model
from fourm.modalities.registry import load_registry
from fourm.networks.checkpoint import unused_names
from fourm.networks.model import FourM, FourMConfig
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.vq import VQTokenizer

WORDS = [
    "a",
    "the",
    "red",
    "green",
    "blue",
    "small",
    "large",
    "circle",
    "square",
    "triangle",
    "left",
    "right",
    "of",
    "on",
    "white",
    "background",
]
SPECIAL = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", *(f"[S_{i}]" for i in range(16))]
GRIDS = {"tok_rgb@64": 64, "tok_clip@64": 32, "tok_depth@64": 32}  # modality -> vocabulary
CONFIG = {
    "domains_in": ["caption", "rgb@64", *GRIDS],
    "domains_out": ["caption", *GRIDS],
    "image_size": 64,
    "patch_size": 8,
    "dim": 32,
    "num_heads": 4,
    "encoder_depth": 2,
    "decoder_depth": 2,
    "mlp_ratio": 4,
    "act_layer": "SiLU",
    "gated_mlp": True,
    "norm_bias": False,
    "qkv_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
}
TOKENIZER = {
    "image_size": 64,
    "patch_size": 8,
    "enc_type": "vit_demo_enc",
    "dec_type": "vit_demo_dec",
    "latent_dim": 8,
}
TOKENIZERS = {
    "rgb": {**TOKENIZER, "n_channels": 3, "codebook_size": 64},
    "clip": {**TOKENIZER, "n_channels": 14, "codebook_size": 32, "patch_size": 1, "image_size": 8},
    "depth": {**TOKENIZER, "n_channels": 1, "codebook_size": 32},
}


def build_tiny(folder: Path, seed: int = 0) -> Path:
    """Write config.json, model.safetensors, modalities.yaml, text_tokenizer.json, prompts.txt, tokenizers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (folder / "modalities.yaml").write_text(yaml.safe_dump(_rows(), sort_keys=False))
    (folder / "prompts.txt").write_text(
        "a red circle\na blue square on a white background\na green triangle\n"
    )
    _tokenizer().save(str(folder / "text_tokenizer.json"))
    generator = torch.Generator().manual_seed(seed)
    for name, config in TOKENIZERS.items():
        save(VQTokenizer(read_config(config)), folder / "tokenizers" / name, generator, ())
        (folder / "tokenizers" / name / "config.json").write_text(json.dumps(config))
    model = FourM(FourMConfig.from_dict(CONFIG, load_registry(folder / "modalities.yaml")))
    save(model, folder, generator, unused_names(model))
    find_model(folder)
    return folder


def write_config(folder: Path, config: Mapping[str, object]) -> None:
    """The config.json of a model or tokenizer."""
    (folder / "config.json").write_text(json.dumps(dict(config), indent=1))


def save(
    module: torch.nn.Module, folder: Path, generator: torch.Generator, extra: tuple[str, ...] | frozenset[str]
) -> None:
    """Random weights in place of a network's own, with some more names, as model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {}
    for name, tensor in module.state_dict().items():
        is_table = "pos_emb" in name or not tensor.is_floating_point()
        noise = torch.randn(tensor.shape, generator=generator)
        state[name] = (tensor if is_table else noise * 0.3).contiguous().clone()
    state |= {name: torch.zeros(1) for name in extra}
    save_file(state, folder / "model.safetensors")


def _rows() -> list[dict[str, object]]:
    words = len(SPECIAL) + len(WORDS)
    rows: list[dict[str, object]] = [
        {"name": "caption", "max_tokens": 16, "vocab_size": words},
        {"name": "rgb@64", "grid": [8, 8], "patch_size": 8, "image_size": 64},
    ]
    for name, vocab_size in GRIDS.items():
        key = name.removeprefix("tok_").partition("@")[0]
        rows.append({"name": name, "grid": [8, 8], "patch_size": 8, "image_size": 64,
                     "vocab_size": vocab_size, "tokenizer": key, "folder": key,
                     "defaults": {"scheme": "roar", "num_steps": 4, "guidance": 2.0}})  # fmt: skip
    return rows


def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer
