"""What there is and what of it is here: every model and tokenizer that is known, or all about one."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fourm.hub import catalogue
from fourm.hub.cache import find_cached
from fourm.hub.catalogue import TEXT_TOKENIZER, Entry, find_entry, tokenizer_entry
from fourm.hub.files import DEMO, DEMO_SR, ModelFiles, find_model, weights_of
from fourm.hub.header import DTYPES, config_of, read_header
from fourm.modalities.registry import RELEASED, Kind, Modality

_POSITIONS = re.compile(r"(?:encoder|decoder)_embeddings\.(.+)\.pos_emb")
_UNUSED = re.compile(r"decoder_embeddings\.(.+)\.token_emb\.weight")
_NORM_BIAS = re.compile(r"(?:.*[._])?(?:norm\d?|\w+_norm)\.bias")
_BUILT_IN = {DEMO: "The built-in model", DEMO_SR: "The built-in model for super-resolution"}


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model, tokenizer or file, and whether it is here; from `rows` on only where it is shown whole."""

    entry: Entry  # with the figures of the file that is here; a tokenizer writes the modalities that it codes
    path: Path | None  # of the file with the weights; None = not here
    revision: str = ""
    rows: tuple[Modality, ...] = ()  # its modalities
    config: Mapping[str, object] = field(default_factory=dict)
    # By key: the name that is fetched, and where it is.
    tokenizers: Mapping[str, tuple[str, Path | None]] = field(default_factory=dict)
    text_tokenizer: Path | None = None
    memory: Mapping[str, int] = field(default_factory=dict)  # dtype -> bytes of the weights as loaded
    missing: tuple[str, ...] = ()  # what `fourm download` fetches for it

    def uses(self, row: Modality) -> tuple[bool, bool]:
        """Whether a modality is read, and whether it is written."""
        one = self.entry
        return (row.name in one.reads, row.name in one.writes) if one.is_model else (True, True)

    def to_json(self, is_whole: bool = False) -> dict[str, object]:
        """The information as plain data."""
        one = self.entry
        facts: dict[str, object] = {
            "name": one.name, "hub_id": one.hub_id, "kind": one.kind, "title": one.title,
            "licence": catalogue.LICENCES[one.licence], "bytes": one.num_bytes, "parameters": one.num_params,
            "reads": list(one.reads), "writes": list(one.writes), "cached": self.path is not None,
            "revision": self.revision, "path": self.path and str(self.path),
        }  # fmt: skip
        if not is_whole:
            return facts
        return facts | {
            "memory": dict(self.memory), "config": dict(self.config),
            "text_tokenizer": self.text_tokenizer and str(self.text_tokenizer),
            "tokenizers": {key: {"name": name, "path": path and str(path)}
                           for key, (name, path) in self.tokenizers.items()},
            "modalities": [
                {"name": row.name, "tokens": row.max_tokens, "vocabulary": row.vocab_size,
                 "reads": self.uses(row)[0], "writes": self.uses(row)[1], "tokenizer": row.tokenizer}
                for row in self.rows
            ],
        }  # fmt: skip


def list_models() -> list[ModelInfo]:
    """The built-in models and everything in the catalogue."""
    known = catalogue.CATALOGUE.values()
    return [*(_local_info(find_model(name)) for name in _BUILT_IN), *map(_known_info, known)]


def describe(name_or_path: str) -> ModelInfo:
    """All about a model, tokenizer or file: one of the catalogue, of the Hub's cache, or a path."""
    path = Path(os.path.expanduser(name_or_path))
    is_path, weights = os.path.exists(path), weights_of(path)
    if is_path and weights.is_file() and "codebook_size" in (config := config_of(path)):
        count = sum(info.num_elements for info in read_header(weights).tensors.values())
        own = Entry(name_or_path, "", "tokenizer", "Tokenizer", "", weights.stat().st_size, count)
        return ModelInfo(own, weights, config=config, memory=_memory(count))
    entry = None if is_path else find_entry(name_or_path)
    if entry is None or entry.is_model:
        files = find_model(entry.hub_id if entry else name_or_path, needs_weights=entry is None)
        return _all_about(files, entry)
    info = _known_info(entry)
    return replace(
        info, rows=_rows_of(entry.key), memory=_memory(entry.num_params) if entry.key else {},
        config=config_of(info.path.parent) if entry.key and info.path else {},
        missing=() if info.path else (entry.name,),
    )  # fmt: skip


def count_parameters(files: ModelFiles) -> int:
    """Trained numbers of a model, counted from its file's header: fixed tables, and twins, are none."""
    tensors, rows, count = read_header(files.weights).tensors, files.registry.rows, 0
    for name, info in tensors.items():
        if (match := _POSITIONS.fullmatch(name)) and match[1] in rows:
            is_fixed = rows[match[1]].positions != "learned"
        elif name.endswith(".mod_emb") and name.startswith("decoder_"):
            is_fixed = name.replace("decoder_", "encoder_", 1) in tensors
        else:
            is_fixed = files.config.get("norm_bias") is False and _NORM_BIAS.fullmatch(name) is not None
        count += 0 if is_fixed else info.num_elements
    return count


def _known_info(entry: Entry) -> ModelInfo:
    """What the catalogue knows, with the file in the cache."""
    path, revision = find_cached(entry) or (None, "")
    size = path.stat().st_size if path is not None else entry.num_bytes
    writes = entry.writes or tuple(row.name for row in _rows_of(entry.key))
    return ModelInfo(replace(entry, num_bytes=size, writes=writes), path, revision)


def _local_info(files: ModelFiles) -> ModelInfo:
    """A model that is here."""
    title, size = _BUILT_IN.get(files.name, "Model"), files.weights.stat().st_size
    entry = find_entry(files.name) or Entry(files.name, "", "model", title, "", size)
    count = count_parameters(files)
    entry = replace(entry, num_bytes=size, num_params=count, reads=files.reads, writes=files.writes)
    return ModelInfo(entry, files.weights, files.revision)


def _all_about(files: ModelFiles, entry: Entry | None = None) -> ModelInfo:
    """All about a model. One of the catalogue (`entry`) need not be here."""
    if entry is None or find_cached(entry):
        info, tensors = _local_info(files), read_header(files.weights).tensors
        loaded = sum(one.num_elements for name, one in tensors.items() if not is_unused(name, files))
    else:
        info, dim = _known_info(entry), entry.config["dim"]
        grids = [row for row in files.rows if row.kind is Kind.GRID and row.name in entry.writes]
        unused = sum(row.vocab_size for row in grids)
        loaded = entry.num_bytes // 4 - unused * (dim if isinstance(dim, int) else 0)
    tokenizers = {}
    for key in dict.fromkeys(row.tokenizer for row in files.rows if row.tokenizer):
        released = tokenizer_entry(key)
        tokenizers[key] = (released.name if released else key, files.tokenizers.get(key))
    parts = [(info.entry.name, info.path), *tokenizers.values()]
    if files.reads and any(row.vocab_size and row.kind is not Kind.GRID for row in files.rows):
        parts.append((TEXT_TOKENIZER, files.text_tokenizer))
    missing = (name for name, path in parts if path is None and find_entry(name) is not None)
    return replace(
        info, rows=files.rows, config=files.config, tokenizers=tokenizers, memory=_memory(loaded),
        text_tokenizer=files.text_tokenizer, missing=tuple(missing),
    )  # fmt: skip


def is_unused(name: str, files: ModelFiles) -> bool:
    """True for tensors that are not loaded: embeddings of tokens that the decoder never gets."""
    match = _UNUSED.fullmatch(name)
    row = files.registry.rows.get(match[1]) if match else None
    return row is not None and row.kind is Kind.GRID


def _memory(num_loaded: int) -> dict[str, int]:
    return {d.name: num_loaded * d.num_bytes for d in DTYPES.values() if d.name == d.torch_name}


def _rows_of(key: str) -> tuple[Modality, ...]:
    """The released modalities of a tokenizer."""
    return tuple(row for row in RELEASED.rows.values() if key and row.tokenizer == key)
