"""Puts the trained parts together as `fourm/demo/`: float16 safetensors and the files that describe them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from demo.diffusion import NAME
from demo.fine import round_folders
from demo.rows import base_config, fine_config, write_rows
from demo.text import write_tokenizer
from demo.tokenizers import RECIPES

BUNDLE = Path(__file__).resolve().parent.parent / "fourm" / "demo"
LIMIT = 10_000_000  # bytes of the whole bundle

PROMPTS = (
    "a large red circle at the center on a white background",
    "a small blue square left of a large yellow triangle on a black background",
    "a large green triangle above a small purple circle on a tan background",
    "a small orange circle at the top right on a gray background",
    "a large purple square right of a large orange circle on a white background",
    "a small yellow triangle below a large blue square on a gray background",
    "a large blue circle at the bottom left on a black background",
    "a small red square above a small green square on a white background",
    "a large yellow circle left of a small red triangle on a tan background",
    "a small green circle below a small orange triangle on a black background",
    "a large purple triangle at the bottom on a gray background",
    "a small red circle above a blue square",
)


def write_bundle(work: Path, folder: Path = BUNDLE) -> int:
    """Write all files of the bundle from the working folder; returns their size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_model(folder, base_config(), work / "base")
    finished = round_folders(work / "fine")[-1]
    if (finished / "last.pt").exists():
        _write_model(folder / "sr", fine_config(), finished)
    write_tokenizer(folder / "text_tokenizer.json")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    for name in (*(recipe.name for recipe in RECIPES), NAME):
        shutil.copytree(work / "tokenizers" / name, folder / "tokenizers" / name, dirs_exist_ok=True)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # the library that writes them lets their owner alone read
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise SystemExit(f"{folder}: {size} bytes, more than {LIMIT}")
    return size


def _write_model(folder: Path, config: Mapping[str, object], work: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = torch.load(work / "last.pt", weights_only=True)["model"]
    save_file(
        {name: tensor.half().contiguous() for name, tensor in state.items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_rows(folder / "modalities.yaml")
