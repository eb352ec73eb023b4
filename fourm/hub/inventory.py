"""What there is and what of it is here: a summary of every known model and tokenizer, or all about one."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fourm.hub.cache import find_cached
from fourm.hub.catalogue import (
    CATALOGUE,
    TEXT_TOKENIZER,
    UNKNOWN,
    Entry,
    EntryKind,
    find_entry,
    tokenizer_entry,
)
from fourm.hub.files import DEMO, DEMO_SR, ModelFiles, find_model, resolve_tokenizer, weights_of
from fourm.hub.header import CONFIG_FILE, DTYPES, TensorInfo, load_config, parse_header_config, read_header
from fourm.modalities.registry import RELEASED, Kind, Modality

_POSITIONS = re.compile(r"(?:encoder|decoder)_embeddings\.(.+)\.pos_emb")
_UNUSED = re.compile(r"decoder_embeddings\.(.+)\.token_emb\.weight")
_NORM_BIAS = re.compile(r"(?:.*[._])?(?:norm\d?|\w+_norm)\.bias")
_BUILT_IN = {DEMO: "The built-in model", DEMO_SR: "The built-in model for super-resolution"}


@dataclass(frozen=True, slots=True)
class Summary:
    """One model, tokenizer or file, and whether it is here."""

    name: str
    hub_id: str
    kind: str
    title: str
    licence: str
    num_bytes: int  # of the file that is here, else as published
    num_params: int
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()  # of a tokenizer: the modalities that it codes
    path: Path | None = None  # of the file with the weights; None = not here
    revision: str = ""

    def to_json(self) -> dict[str, object]:
        """The summary as plain data."""
        return {"name": self.name, "hub_id": self.hub_id, "kind": self.kind, "title": self.title,
                "licence": self.licence, "bytes": self.num_bytes, "parameters": self.num_params,
                "reads": list(self.reads), "writes": list(self.writes), "cached": self.path is not None,
                "revision": self.revision, "path": _text_of(self.path)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModalityUse:
    """One modality of a model or tokenizer."""

    name: str
    tokens: int
    vocabulary: int
    reads: bool
    writes: bool
    tokenizer: str  # key; "" = none


@dataclass(frozen=True, slots=True)
class Details:
    """All about one model, tokenizer or file."""

    summary: Summary
    uses: tuple[ModalityUse, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    # By key: the name that is fetched, and where it is.
    tokenizers: Mapping[str, tuple[str, Path | None]] = field(default_factory=dict)
    text_tokenizer: Path | None = None
    memory: Mapping[str, int] = field(default_factory=dict)  # dtype -> bytes of the weights as loaded
    missing: tuple[str, ...] = ()  # what `fourm download` fetches for it

    def to_json(self) -> dict[str, object]:
        """The details as plain data."""
        tokenizers = {key: {"name": name, "path": _text_of(path)}
                      for key, (name, path) in self.tokenizers.items()}  # fmt: skip
        return {**self.summary.to_json(), "memory": dict(self.memory), "tokenizers": tokenizers,
                "text_tokenizer": _text_of(self.text_tokenizer), "modalities": list(map(asdict, self.uses)),
                "config": dict(self.config)}  # fmt: skip


def list_models() -> list[Summary]:
    """The built-in models and everything in the catalogue."""
    built_in = [_summary_of(find_model(name)) for name in _BUILT_IN]
    return [*built_in, *map(_summary_of_entry, CATALOGUE.values())]


def describe(name_or_path: str) -> Details:
    """All about a model, tokenizer or file: one of the catalogue, of the Hub's cache, or a path."""
    path = Path(os.path.expanduser(name_or_path))
    is_path = os.path.exists(path)
    weights = weights_of(path)
    if is_path and weights.is_file() and "codebook_size" in (config := _tokenizer_config(weights)):
        weights = weights_of(resolve_tokenizer(name_or_path))
        count = sum(info.num_elements for info in read_header(weights).tensors.values())
        kind, size = EntryKind.TOKENIZER.value, weights.stat().st_size
        summary = Summary(name_or_path, "", kind, "Tokenizer", "", size, count, path=weights)
        return Details(summary, config=config, memory=_memory(count))
    entry = None if is_path else find_entry(name_or_path)
    if entry is None:
        return _details_of(find_model(name_or_path))
    if entry.is_model:
        return _details_of(find_model(entry.hub_id, needs_weights=False), entry)
    summary = _summary_of_entry(entry)
    config = _tokenizer_config(summary.path) if entry.key and summary.path is not None else {}
    return Details(
        summary, tuple(_use(row, True, True) for row in _rows_of(entry.key)), config,
        memory=_memory(entry.num_params) if entry.key else {},
        missing=() if summary.path else (entry.name,),
    )  # fmt: skip


def count_parameters(files: ModelFiles) -> int:
    """Trained numbers of a model, counted from its file's header: fixed tables, and twins, are none."""
    tensors = read_header(files.weights).tensors
    return sum(info.num_elements for name, info in tensors.items() if not _is_fixed(name, tensors, files))


def _is_fixed(name: str, tensors: Mapping[str, TensorInfo], files: ModelFiles) -> bool:
    if (match := _POSITIONS.fullmatch(name)) and match[1] in files.registry.rows:
        return files.registry.rows[match[1]].positions != "learned"
    if name.endswith(".mod_emb") and name.startswith("decoder_"):
        return name.replace("decoder_", "encoder_", 1) in tensors
    return files.config.get("norm_bias") is False and _NORM_BIAS.fullmatch(name) is not None


def _summary_of_entry(entry: Entry) -> Summary:
    """What the catalogue knows, with the file in the cache."""
    path, revision = find_cached(entry) or (None, "")
    coded = tuple(row.name for row in _rows_of(entry.key))
    return Summary(
        entry.name, entry.hub_id, entry.kind.value, entry.title, entry.licence.sentence,
        path.stat().st_size if path is not None else entry.num_bytes, entry.num_params,
        entry.reads, entry.writes or coded, path, revision,
    )  # fmt: skip


def _summary_of(files: ModelFiles) -> Summary:
    """A model that is here."""
    title = _BUILT_IN.get(files.name, "Model")
    entry = find_entry(files.name) or Entry(files.name, "", EntryKind.MODEL, title, UNKNOWN, 0)
    return Summary(
        entry.name, entry.hub_id, entry.kind.value, entry.title, entry.licence.sentence,
        files.weights.stat().st_size, count_parameters(files),
        files.reads, files.writes, files.weights, files.revision,
    )  # fmt: skip


def _details_of(files: ModelFiles, entry: Entry | None = None) -> Details:
    """All about a model. One of the catalogue (`entry`) need not be here."""
    if entry is None or find_cached(entry):
        summary, tensors = _summary_of(files), read_header(files.weights).tensors
        loaded = sum(info.num_elements for name, info in tensors.items() if not is_unused(name, files))
    else:
        summary, dim = _summary_of_entry(entry), entry.config["dim"]
        grids = [row for row in files.rows if row.kind is Kind.GRID and row.name in entry.writes]
        unused = sum(row.vocab_size for row in grids)
        loaded = entry.num_bytes // 4 - unused * (dim if isinstance(dim, int) else 0)
    tokenizers = {}
    for key in dict.fromkeys(row.tokenizer for row in files.rows if row.tokenizer):
        released = tokenizer_entry(key)
        tokenizers[key] = (released.name if released else key, files.tokenizers.get(key))
    parts = [(summary.name, summary.path), *tokenizers.values()]
    if files.reads and any(row.vocab_size and row.kind is not Kind.GRID for row in files.rows):
        parts.append((TEXT_TOKENIZER, files.text_tokenizer))
    return Details(
        summary,
        tuple(_use(row, row.name in files.reads, row.name in files.writes) for row in files.rows),
        files.config,
        tokenizers,
        files.text_tokenizer,
        _memory(loaded),
        tuple(name for name, path in parts if path is None and find_entry(name) is not None),
    )


def is_unused(name: str, files: ModelFiles) -> bool:
    """True for tensors that are not loaded: embeddings of tokens that the decoder never gets."""
    match = _UNUSED.fullmatch(name)
    row = files.registry.rows.get(match[1]) if match else None
    return row is not None and row.kind is Kind.GRID


def _memory(num_loaded: int) -> dict[str, int]:
    return {d.name: num_loaded * d.num_bytes for d in DTYPES.values() if d.name == d.torch_name}


def _rows_of(key: str) -> list[Modality]:
    """The released modalities of a tokenizer."""
    return [row for row in RELEASED.rows.values() if key and row.tokenizer == key]


def _use(row: Modality, reads: bool, writes: bool) -> ModalityUse:
    return ModalityUse(row.name, row.max_tokens, row.vocab_size, reads, writes, row.tokenizer)


def _tokenizer_config(weights: Path) -> dict[str, object]:
    """The configuration beside a tokenizer's weights, else that in their header."""
    beside = weights.parent / CONFIG_FILE
    return load_config(beside) if beside.exists() else parse_header_config(read_header(weights).metadata)


def _text_of(path: Path | None) -> str | None:
    return None if path is None else str(path)
