"""The demo's modality rows and model configurations, as the bundle stores them."""

from pathlib import Path

import yaml

from demo import text
from demo.patches import patch_table
from demo.world import SHAPES
from fourm.modalities.registry import Registry, load_registry

SEQUENCES = {  # vocabulary, longest text with its end marks
    "caption": (text.CAPTION_SIZE, 32),
    "det": (text.BOX_SIZE, 24),
    "color_palette": (text.PALETTE_SIZE, 23),
    "metadata": (text.METADATA_SIZE, 40),
}
# name -> patch table field, tokenizer folder
GRIDS_64 = {
    "tok_rgb@64": ("rgb", "rgb"),
    "tok_clip@64": ("clip", "clip"),
    "tok_depth@64": ("depth", "depth"),
    "tok_normal@64": ("normal", "normal"),
    "tok_semseg@64": ("semseg", "semseg"),
    "tok_canny_edge@64": ("edge", "edge"),
}
GRIDS_128 = {"tok_rgb@128": ("rgb", "rgb_128"), "tok_clip@128": ("clip", "clip_128")}

_SURE = {"scheme": "roar", "num_steps": 1, "token_curve": "linear", "temperature": 0.01, "guidance": 1.0}
_FREE = {
    "scheme": "roar", "num_steps": 16, "token_curve": "linear", "temperature": 1.0, "guidance": 2.0,
}  # fmt: skip
_CLIP = {
    "scheme": "roar", "num_steps": 24, "token_curve": "linear", "temperature": 3.0,
    "temperature_curve": "onex:0.5:0.5", "guidance": 2.0,
}  # fmt: skip
_RGB = {
    "scheme": "roar", "num_steps": 12, "token_curve": "linear", "temperature": 0.5, "guidance": 2.0,
}  # fmt: skip
_FINE = {"scheme": "maskgit", "num_steps": 8, "token_curve": "cosine", "temperature": 0.1, "guidance": 2.0}

TRUNK: dict[str, object] = {
    "patch_size": 8,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "qkv_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "act_layer": "SiLU",
    "gated_mlp": True,
    "qk_norm": False,
}


def base_config() -> dict[str, object]:
    """config.json of the base model."""
    names = sorted([*SEQUENCES, *GRIDS_64])
    size = {"image_size": 64, "dim": 128, "encoder_depth": 3, "decoder_depth": 3}
    return {"domains_in": ["rgb@64", *names], "domains_out": names, **size, **TRUNK}


def fine_config() -> dict[str, object]:
    """config.json of the super-resolution model."""
    conditions = ["caption", "tok_clip@64", "tok_rgb@64"]
    size = {"image_size": 128, "dim": 64, "encoder_depth": 3, "decoder_depth": 3}
    return {"domains_in": [*conditions, *GRIDS_128], "domains_out": list(GRIDS_128), **size, **TRUNK}


def rows() -> list[dict[str, object]]:
    """One entry for each modality of the two models; what is not said comes from the released row."""
    entries: list[dict[str, object]] = [
        {"name": "rgb@64", "grid": [8, 8], "patch_size": 8, "image_size": 64},
    ]
    for name, (size, longest) in SEQUENCES.items():
        entries.append({"name": name, "vocab_size": size, "max_tokens": longest, "max_positions": longest})
    free = {"tok_clip@64": _CLIP, "tok_rgb@64": _RGB}
    for name in GRIDS_64:
        entries.append(_grid(name, 1, free.get(name, _FREE), _RGB if name == "tok_rgb@64" else _SURE))
    for name in GRIDS_128:
        entries.append(_grid(name, 2, _FINE, _FINE))
    return entries


def write_rows(path: Path) -> Registry:
    """Write modalities.yaml and return it as the package reads it."""
    path.write_text(yaml.safe_dump(rows(), sort_keys=False, width=110))
    return load_registry(path)


def _grid(name: str, scale: int, free: dict[str, object], sure: dict[str, object]) -> dict[str, object]:
    field, tokenizer = {**GRIDS_64, **GRIDS_128}[name]
    entry: dict[str, object] = {
        "name": name,
        "grid": [8 * scale, 8 * scale],
        "vocab_size": len(patch_table(field, scale).rows),
        "patch_size": 8,
        "image_size": 64 * scale,
        "tokenizer": tokenizer,
    }
    if field == "semseg":
        entry["labels"] = list(SHAPES)
    if field == "depth":
        entry["codec"] = "tok_distance"
    if scale == 2:
        entry["folder"] = f"{field}@128"
    return {**entry, "defaults": dict(free), "rgb_defaults": dict(sure)}
