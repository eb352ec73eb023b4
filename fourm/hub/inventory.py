"""What there is and what of it is here: every model and tokenizer that is known, or all about one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fourm.hub.cache import find_cached, text_tokenizer_path
from fourm.hub.catalogue import CATALOGUE, CONFIG_FILE, Entry, Part, find_entry, tokenizer_entry
from fourm.hub.files import DEMO, DEMO_SR, ModelFiles, find_model, resolve_tokenizer, weights_of
from fourm.hub.header import DTYPES, TensorInfo, load_config, parse_header_config, read_header
from fourm.modalities.registry import RELEASED, Kind, Modality

TEXT_TOKENIZER = "text-tokenizer"
_POSITIONS = re.compile(r"(?:encoder|decoder)_embeddings\.(.+)\.pos_emb")
_UNUSED = re.compile(r"decoder_embeddings\.(.+)\.token_emb\.weight")
_NORM_BIAS = re.compile(r"(?:.*[._])?(?:norm\d?|\w+_norm)\.bias")
_BUILT_IN = {DEMO: "The built-in model", DEMO_SR: "The built-in model for super-resolution"}


@dataclass(frozen=True, slots=True)
class Item:
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
        """The item as plain data."""
        return {"name": self.name, "hub_id": self.hub_id, "kind": self.kind, "title": self.title,
                "licence": self.licence, "bytes": self.num_bytes, "parameters": self.num_params,
                "reads": list(self.reads), "writes": list(self.writes), "cached": self.path is not None,
                "revision": self.revision, "path": None if self.path is None else str(self.path)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Use:
    """One modality of a model or tokenizer."""

    name: str
    tokens: int
    vocabulary: int
    reads: bool
    writes: bool
    is_grid: bool  # False: a sequence, or what has no tokens of its own
    tokenizer: str  # key; "" = none

    def to_json(self) -> dict[str, object]:
        """The modality as plain data."""
        return {"name": self.name, "tokens": self.tokens, "vocabulary": self.vocabulary,
                "reads": self.reads, "writes": self.writes, "tokenizer": self.tokenizer}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sheet:
    """All about one item."""

    item: Item
    uses: tuple[Use, ...]
    config: Mapping[str, object]
    tokenizers: Mapping[str, tuple[str, Path | None]]  # key -> name to fetch, where it is
    text_tokenizer: Path | None = None
    memory: Mapping[str, int] = field(default_factory=dict)  # dtype -> bytes of the weights as loaded

    @property
    def missing(self) -> tuple[str, ...]:
        """What `fourm download` fetches for it: the item itself and its parts that are not here."""
        wanted = [(self.item.name, self.item.path), *self.tokenizers.values()]
        if any(use.vocabulary and not use.is_grid for use in self.uses) and self.item.reads:
            wanted.append((TEXT_TOKENIZER, self.text_tokenizer))
        return tuple(name for name, path in wanted if path is None and find_entry(name) is not None)

    def to_json(self) -> dict[str, object]:
        """The sheet as plain data."""
        tokenizers = {key: {"name": name, "path": None if path is None else str(path)}
                      for key, (name, path) in self.tokenizers.items()}  # fmt: skip
        text = None if self.text_tokenizer is None else str(self.text_tokenizer)
        return {**self.item.to_json(), "memory": dict(self.memory), "tokenizers": tokenizers,
                "text_tokenizer": text, "modalities": [use.to_json() for use in self.uses],
                "config": dict(self.config)}  # fmt: skip


def list_items() -> list[Item]:
    """The built-in model and everything in the catalogue."""
    built_in = [_model_item(find_model(name)) for name in _BUILT_IN]
    return [*built_in, *(_item(entry) for entry in CATALOGUE.values())]


def describe(name_or_path: str) -> Sheet:
    """All about a model, tokenizer or file: one of the catalogue, of the Hub's cache, or a path."""
    path = Path(os.path.expanduser(name_or_path))
    if os.path.exists(path):
        return _tokenizer_of(name_or_path) if _is_tokenizer(path) else _model_sheet(find_model(name_or_path))
    entry = find_entry(name_or_path)
    if entry is None:
        return _model_sheet(find_model(name_or_path))
    item = _item(entry)
    if not entry.is_model:
        return _part_sheet(item, entry.key)
    return _uncached_model(entry, item) if item.path is None else _model_sheet(find_model(entry.hub_id))


def count_parameters(files: ModelFiles) -> int:
    """Trained numbers of a model, counted from its file's header: fixed tables, and twins, are none."""
    tensors = read_header(files.weights)[1]
    return sum(info.num_elements for name, info in tensors.items() if not _is_fixed(name, tensors, files))


def _is_fixed(name: str, tensors: Mapping[str, TensorInfo], files: ModelFiles) -> bool:
    if (match := _POSITIONS.fullmatch(name)) and match[1] in files.registry.rows:
        return files.registry.rows[match[1]].positions != "learned"
    if name.endswith(".mod_emb") and name.startswith("decoder_"):
        return name.replace("decoder_", "encoder_", 1) in tensors
    return files.config.get("norm_bias") is False and _NORM_BIAS.fullmatch(name) is not None


def _memory(num_loaded: int) -> dict[str, int]:
    return {d.name: num_loaded * d.num_bytes for d in DTYPES.values() if d.name == d.torch_name}


def _item(entry: Entry) -> Item:
    found = find_cached(entry)
    path, revision = found if found is not None else (None, "")
    coded = tuple(row.name for row in _rows_of(entry.key))
    return Item(
        entry.name, entry.hub_id, entry.kind.value, entry.title, entry.licence.sentence,
        path.stat().st_size if path is not None else entry.num_bytes, entry.num_params,
        entry.reads, entry.writes or coded, path, revision,
    )  # fmt: skip


def _rows_of(key: str) -> list[Modality]:
    """The released modalities of a tokenizer."""
    return [row for row in RELEASED.rows.values() if key and row.tokenizer == key]


def _model_item(files: ModelFiles) -> Item:
    """A model that is here."""
    entry = find_entry(files.name)
    title = _BUILT_IN.get(files.name, entry.title if entry else "Model")
    return Item(
        entry.name if entry else files.name, entry.hub_id if entry else "",
        entry.kind.value if entry else Part.MODEL.value, title,
        entry.licence.sentence if entry else "", files.weights.stat().st_size, count_parameters(files),
        files.reads, files.writes, files.weights, files.revision,
    )  # fmt: skip


def _model_sheet(files: ModelFiles) -> Sheet:
    tensors = read_header(files.weights)[1]
    loaded = 0
    for name, info in tensors.items():
        row = files.registry.rows.get(match[1]) if (match := _UNUSED.fullmatch(name)) else None
        loaded += 0 if row is not None and row.kind is Kind.GRID else info.num_elements
    names = {key: entry.name for row in files.rows if (entry := tokenizer_entry(key := row.tokenizer))}
    keys = dict.fromkeys(row.tokenizer for row in files.rows if row.tokenizer)
    return Sheet(
        _model_item(files),
        tuple(_use(row, row.name in files.reads, row.name in files.writes) for row in files.rows),
        files.config,
        {key: (names.get(key, key), files.tokenizers.get(key)) for key in keys},
        files.text_tokenizer,
        _memory(loaded),
    )


def _uncached_model(entry: Entry, item: Item) -> Sheet:
    """What the catalogue knows."""
    rows = [RELEASED.get(name) for name in dict.fromkeys((*entry.reads, *entry.writes))]
    unused = sum(row.vocab_size for row in rows if row.kind is Kind.GRID and row.name in entry.writes)
    dim = entry.config["dim"]
    found = {CATALOGUE[name].key: (name, find_cached(CATALOGUE[name])) for name in entry.tokenizers}
    text = text_tokenizer_path()
    return Sheet(
        item,
        tuple(_use(row, row.name in entry.reads, row.name in entry.writes) for row in rows),
        entry.config,
        {key: (name, here[0] if here else None) for key, (name, here) in found.items()},
        text if os.path.isfile(text) else None,
        _memory(entry.num_bytes // 4 - unused * (dim if isinstance(dim, int) else 0)),
    )


def _part_sheet(item: Item, key: str) -> Sheet:
    """A released tokenizer, or a file that is none of the networks."""
    uses = tuple(_use(row, True, True) for row in _rows_of(key))
    config = _tokenizer_config(item.path) if key and item.path is not None else {}
    return Sheet(item, uses, config, {}, None, _memory(item.num_params) if key else {})


def _tokenizer_of(name: str) -> Sheet:
    """A tokenizer in a folder or file of the user's own."""
    path = weights_of(resolve_tokenizer(name))
    num_params = sum(info.num_elements for info in read_header(path)[1].values())
    kind = Part.TOKENIZER.value
    item = Item(name, "", kind, "Tokenizer", "", path.stat().st_size, num_params, path=path)
    return Sheet(item, (), _tokenizer_config(path), {}, None, _memory(num_params))


def _use(row: Modality, reads: bool, writes: bool) -> Use:
    return Use(row.name, row.max_tokens, row.vocab_size, reads, writes, row.kind is Kind.GRID, row.tokenizer)


def _tokenizer_config(weights: Path) -> dict[str, object]:
    beside = weights.parent / CONFIG_FILE
    return load_config(beside) if beside.exists() else parse_header_config(read_header(weights)[0])


def _is_tokenizer(path: Path) -> bool:
    """True for a folder or file whose configuration is that of a tokenizer."""
    weights = weights_of(path)
    return weights.is_file() and "codebook_size" in _tokenizer_config(weights)
