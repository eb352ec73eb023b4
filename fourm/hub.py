"""A model's name, folder or file becomes local files and a configuration, read without torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fourm import __version__
from fourm.errors import CheckpointError, MissingError, near_match
from fourm.header import parse_header_config, read_header
from fourm.modalities import RELEASED, Kind, Registry, load_registry

DEMO = "demo"
_DEMO_FOLDER = Path(__file__).resolve().parent / "demo"
_WORD = r"(?!\S*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,94}(?<![.-])"
_HUB_ID = re.compile(rf"(?:{_WORD}/)?{_WORD}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the parts of one model lie, and what its configuration says."""

    name: str
    revision: str  # "" for a folder or file of the user's own
    weights: Path
    config: Mapping[str, object]
    registry: Registry
    text_tokenizer: Path | None = None
    prompts: Path | None = None
    tokenizers: Mapping[str, Path] = field(default_factory=dict)  # by a modality row's `tokenizer`

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that the encoder takes."""
        return self._domains("domains_in")

    @property
    def writes(self) -> tuple[str, ...]:
        """Modalities that the decoder can produce."""
        return tuple(n for n in self._domains("domains_out") if self.registry.get(n).takes_ids)

    def _domains(self, key: str) -> tuple[str, ...]:
        names = self.config.get(key)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise CheckpointError(f"{self.name}: '{key}' of the model's configuration is not a list of names")
        for name in names:
            if name not in self.registry.rows:
                advice = near_match(name, self.registry.rows) or "; add its row to modalities.yaml"
                raise CheckpointError(f"{self.name}: '{key}' names the unknown modality '{name}'{advice}")
        return tuple(names)


def find_model(name_or_path: str | Path) -> ModelFiles:
    """The files of `demo`, a folder, a `.safetensors` with its configuration inside, or the Hub's cache."""
    if str(name_or_path) == DEMO:
        if not (_DEMO_FOLDER / "config.json").exists():
            raise MissingError("the embedded demo model is missing from this installation; reinstall fourm")
        return _from_folder(_DEMO_FOLDER, DEMO, f"fourm {__version__}")
    path = Path(os.path.expanduser(name_or_path))
    if os.path.isdir(path):  # False, not an error, for a name that no file can have
        return _from_folder(path, str(name_or_path), "")
    if path.suffix == ".safetensors":
        metadata, _ = read_header(path)
        config = parse_header_config(metadata)
        if "domains_in" not in config:
            raise CheckpointError(
                f"{path}: its header holds no model configuration; give the folder with the config.json"
            )
        return _checked(ModelFiles(str(name_or_path), "", path, config, _sized(RELEASED, config)))
    return _from_cache(str(name_or_path))


def find_sr(model: ModelFiles) -> ModelFiles:
    """The super-resolution model in the folder `sr` beside a model's weights; tokenizers are shared."""
    folder = model.weights.parent / "sr"
    if not folder.is_dir():
        raise MissingError(f"{model.name} brings no super-resolution model; name one with --sr-model")
    files = _from_folder(folder, f"{model.name}/sr", model.revision)
    return replace(
        files,
        text_tokenizer=files.text_tokenizer or model.text_tokenizer,
        tokenizers={**model.tokenizers, **files.tokenizers},
    )


def weights_of(path: Path) -> Path:
    """The weights of a tokenizer that is a folder or a file."""
    return path / "model.safetensors" if path.is_dir() else path


def load_config(path: Path) -> dict[str, object]:
    """A `config.json`: one JSON object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: an object of settings was expected, not {type(config).__name__}")
    return config


def _from_folder(folder: Path, name: str, revision: str) -> ModelFiles:
    weights, rows = folder / "model.safetensors", folder / "modalities.yaml"
    if not weights.exists():
        raise MissingError(f"{folder}: no model.safetensors in this folder")
    config = (
        load_config(folder / "config.json")
        if (folder / "config.json").exists()
        else parse_header_config(read_header(weights)[0])
    )
    registry = load_registry(rows) if rows.exists() else RELEASED
    text, prompts = folder / "text_tokenizer.json", folder / "prompts.txt"
    parts = sorted((folder / "tokenizers").iterdir()) if (folder / "tokenizers").is_dir() else []
    return _checked(
        ModelFiles(
            name, revision, weights, config, _sized(registry, config),
            text_tokenizer=text if text.exists() else None,
            prompts=prompts if prompts.exists() else None,
            tokenizers={p.stem: p for p in parts if p.is_dir() or p.suffix == ".safetensors"},
        )
    )  # fmt: skip


def _from_cache(name: str) -> ModelFiles:
    if not _HUB_ID.fullmatch(name):
        raise MissingError(f"{name}: no such file or folder")
    if "/" in name:
        from huggingface_hub import try_to_load_from_cache  # 0.15 s, which no other path has to wait for

        found = [try_to_load_from_cache(name, file) for file in ("config.json", "model.safetensors")]
        if all(isinstance(path, str) for path in found):
            folder = Path(str(found[1])).parent
            return _from_folder(folder, name, folder.name)
    advice = near_match(name, [DEMO]) or f"; `fourm download {name}` fetches it"
    raise MissingError(f"model '{name}' is neither a local folder nor a downloaded model{advice}")


def _checked(files: ModelFiles) -> ModelFiles:
    """The same files, after their lists of modalities were found good."""
    if not files.reads and not files.writes:
        raise CheckpointError(f"{files.name}: the model reads and writes no modality")
    return files


def _sized(registry: Registry, config: Mapping[str, object]) -> Registry:
    """The registry with the grids that depend on the model's `image_size` (rows without their own)."""
    size = config.get("image_size", 224)
    if not isinstance(size, int):
        raise CheckpointError(
            f"'image_size' of the model's configuration must be a whole number, not {size!r}"
        )
    rows = []
    for row in registry.rows.values():
        side = (
            size // row.patch_size if row.kind is Kind.GRID and row.patch_size and not row.image_size else 0
        )
        if side and row.grid != (side, side):
            rows.append(replace(row, grid=(side, side), max_tokens=side * side))
    return registry.extended(rows) if rows else registry
