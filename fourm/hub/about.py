"""What there is to know about models and tokenizers: from their files, or else from the catalogue."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from fourm.hub import catalogue
from fourm.hub.cache import find_cached, find_pin
from fourm.hub.catalogue import DEMO, DEMO_SR, TOKENIZERS, Entry, find_entry
from fourm.hub.files import ModelFiles, find_model, is_unused, missing_parts, weights_of
from fourm.hub.header import CONFIG_FILE, DTYPES, config_of, read_header
from fourm.modalities.registry import RELEASED, Kind, Modality

_BUILT_IN = {DEMO: "The built-in model", DEMO_SR: "The built-in model for super-resolution"}  # titles
# Names of tensors in checkpoints; the group is the modality.
_POSITIONS = re.compile(r"(?:encoder|decoder)_embeddings\.(.+)\.pos_emb")
_NORM_BIAS = re.compile(r"(?:.*[._])?(?:norm\d?|\w+_norm)\.bias")


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is shown of a model, tokenizer or file. A list shows less: those after `revision` may be empty."""

    entry: Entry  # with the size of the local file, if any; a tokenizer writes what it encodes
    path: Path | None  # of the main file, usually the weights; None: it is not on this machine
    revision: str = ""
    rows: tuple[Modality, ...] = ()  # modalities that a model reads or writes, or that a tokenizer encodes
    config: Mapping[str, object] = field(default_factory=dict)
    # By a modality row's `tokenizer`: the name to download, and the path if it is on this machine.
    tokenizers: Mapping[str, tuple[str, Path | None]] = field(default_factory=dict)
    text_tokenizer: Path | None = None
    memory: Mapping[str, int] = field(default_factory=dict)  # dtype -> bytes of the loaded weights
    missing: tuple[Entry, ...] = ()  # what of it is not on this machine and can be fetched
    # Outside the Hub: by the address of a file its sha256, or the first 8 digits until its first download.
    sources: Mapping[str, str] = field(default_factory=dict)

    def uses(self, row: Modality) -> tuple[bool, bool]:
        """Whether a modality is read, and whether it is written. A tokenizer does both."""
        if not self.entry.is_model:
            return True, True
        return row.name in self.entry.reads, row.name in self.entry.writes

    def to_json(self, is_whole: bool = False) -> dict[str, object]:
        """The information as plain data for JSON. is_whole: with the fields that a list leaves out."""
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
            "fetch": [one.name for one in self.missing],
            "sources": dict(self.sources),
            "fetch_bytes": sum(one.num_bytes for one in self.missing),
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
    built_in = (_all_about(find_model(name)) for name in _BUILT_IN)
    return [*built_in, *map(_known_info, catalogue.CATALOGUE.values())]


def describe(name_or_path: str) -> ModelInfo:
    """All information about a model, tokenizer or file, by name, Hub id or path; errors as `find_model`."""
    path = Path(os.path.expanduser(name_or_path))
    weights = weights_of(path)
    if os.path.isfile(weights):
        has_config_file = os.path.exists(weights.parent / CONFIG_FILE)
        config = config_of(weights.parent if has_config_file else path)
        if "codebook_size" in config:
            count = sum(info.num_elements for info in read_header(weights).tensors.values())
            own = Entry(name_or_path, "", "tokenizer", "Tokenizer", "", weights.stat().st_size, count)
            return ModelInfo(own, weights, config=config, memory=_memory(count))
    entry = None if os.path.exists(path) else find_entry(name_or_path)
    if entry is None or entry.is_model:
        files = find_model(entry.hub_id if entry else name_or_path, needs_weights=entry is None)
        return _all_about(files)
    info = _known_info(entry)
    config = config_of(info.path.parent) if entry.key and info.path else {}
    memory = _memory(entry.num_params) if entry.key else {}
    return replace(info, config=config, memory=memory, missing=() if info.path else (entry,),
                   sources=_sources(entry))  # fmt: skip


def count_parameters(files: ModelFiles) -> int:
    """The number of trained parameters of a model, from its file's header; shared ones count once."""
    tensors, rows = files.tensors, files.registry.rows
    count = 0
    for name, info in tensors.items():
        if (match := _POSITIONS.fullmatch(name)) and match[1] in rows:
            is_counted = rows[match[1]].positions == "learned"
        elif name.endswith(".mod_emb") and name.startswith("decoder_"):  # shared with the encoder's
            is_counted = name.replace("decoder_", "encoder_", 1) not in tensors
        else:  # a model without `norm_bias` stores zeros
            is_counted = files.config.get("norm_bias") is not False or not _NORM_BIAS.fullmatch(name)
        if is_counted:
            count += info.num_elements
    return count


def _all_about(files: ModelFiles) -> ModelInfo:
    """All information about a model."""
    known = find_entry(files.name)
    if files.is_here:
        known = known or Entry(files.name, "", "model", _BUILT_IN.get(files.name, "Model"), "", 0)
        size, count = files.weights.stat().st_size, count_parameters(files)
        entry = replace(known, num_bytes=size, num_params=count, reads=files.reads, writes=files.writes)
        info = ModelInfo(entry, files.weights, files.revision)
    else:
        info = _known_info(cast(Entry, known))
    num_loaded = sum(one.num_elements for name, one in files.tensors.items() if not is_unused(name, files))
    keys = dict.fromkeys(row.tokenizer for row in files.rows if row.tokenizer)
    names = {key: TOKENIZERS[key].name if key in TOKENIZERS else key for key in keys}
    has_text = bool(files.reads) and any(row.kind is Kind.SEQUENCE for row in files.rows)
    return replace(
        info, rows=files.rows, config=files.config, memory=_memory(num_loaded),
        tokenizers={key: (name, files.tokenizers.get(key)) for key, name in names.items()},
        text_tokenizer=files.text_tokenizer, missing=missing_parts(files, keys, has_text),
    )  # fmt: skip


def _known_info(entry: Entry) -> ModelInfo:
    """Information from the catalogue, with path and size of the file in the cache if it is there."""
    path, revision = find_cached(entry) or (None, "")
    size = path.stat().st_size if path is not None else entry.num_bytes
    rows = tuple(row for row in RELEASED.rows.values() if entry.key and row.tokenizer == entry.key)
    writes = entry.writes or tuple(row.name for row in rows)
    return ModelInfo(replace(entry, num_bytes=size, writes=writes), path, revision, rows)


def _sources(entry: Entry) -> dict[str, str]:
    pin = find_pin(entry.record)
    known = [file.checksum for file in pin.files] if pin else [one.sha256 for one in entry.sources]
    return {one.url: sha256 for one, sha256 in zip(entry.sources, known, strict=False)}


def _memory(num_loaded: int) -> dict[str, int]:
    """Bytes of loaded weights by dtype, each dtype once: those that are other names for one are left out."""
    dtypes = [dtype for dtype in DTYPES.values() if dtype.name == dtype.torch_name]
    return {dtype.name: num_loaded * dtype.num_bytes for dtype in dtypes}
