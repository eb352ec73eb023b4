"""Finds the local files of a model or tokenizer by name or path and describes them; no torch, no network."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from fourm import __version__
from fourm.errors import CheckpointError, MissingError, UsageError, near_match
from fourm.hub import catalogue
from fourm.hub.cache import HUB_ID, find_cached, find_snapshot, named_entry, text_tokenizer_path
from fourm.hub.catalogue import DEMO, DEMO_SR, TEXT_TOKENIZER, TOKENIZERS, Entry, find_entry
from fourm.hub.header import CONFIG_FILE, DTYPES, WEIGHTS_FILE, config_of, parse_header_config, read_header
from fourm.modalities.registry import RELEASED, Kind, Modality, Registry, load_registry, shared_folder

_DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo"
_BUILT_IN = {DEMO: "The built-in model", DEMO_SR: "The built-in model for super-resolution"}  # titles
# Nouns for messages, by the kind of an entry of the catalogue; other kinds are nouns themselves.
_NOUNS = {"sr": "super-resolution model", "prompts": "set of prompts"}
# Names of tensors in checkpoints; the group is the modality.
_POSITIONS = re.compile(r"(?:encoder|decoder)_embeddings\.(.+)\.pos_emb")
_DECODER_TOKENS = re.compile(r"decoder_embeddings\.(.+)\.token_emb\.weight")
_NORM_BIAS = re.compile(r"(?:.*[._])?(?:norm\d?|\w+_norm)\.bias")
# Codebooks of tokenizers: (K, D) for K codes, or split into N parts, (N, K, D / N).
_CODEBOOKS = ("quantize._codebook.embed", "quantize.codes")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The paths of the parts of one model, and its configuration."""

    name: str  # the folder or file as it was given, or the id of a repository on the Hub
    revision: str  # "" for a folder or file that does not come from the Hub
    weights: Path  # the .safetensors file
    config: Mapping[str, object]
    registry: Registry
    text_tokenizer: Path | None = None
    prompts: Path | None = None  # a file of example prompts
    tokenizers: Mapping[str, Path] = field(default_factory=dict)  # by a modality row's `tokenizer`
    # What was asked for and is not on this machine: its name, by a row's `tokenizer` or by TEXT_TOKENIZER.
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        """Names of the modalities that the encoder takes."""
        return self._domains("domains_in")

    @property
    def writes(self) -> tuple[str, ...]:
        """Names of the modalities that the decoder can produce."""
        return tuple(name for name in self._domains("domains_out") if self.registry.get(name).takes_ids)

    @property
    def rows(self) -> tuple[Modality, ...]:
        """The rows of all modalities that the model reads or writes, each once."""
        return tuple(self.registry.get(name) for name in dict.fromkeys((*self.reads, *self.writes)))

    def _domains(self, key: str) -> tuple[str, ...]:
        if key not in self.config and "codebook_size" in self.config:
            raise CheckpointError(f"{self.name}: a tokenizer, where a model is needed")
        names = self.config.get(key)
        if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
            raise CheckpointError(f"{self.name}: '{key}' of the model's configuration is not a list of names")
        for name in names:
            if name not in self.registry.rows:
                advice = near_match(name, self.registry.rows) or "; add its row to modalities.yaml"
                raise CheckpointError(f"{self.name}: '{key}' names the unknown modality '{name}'{advice}")
        return tuple(names)


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
    missing: tuple[str, ...] = ()  # names of missing parts that `fourm download` can fetch

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
            "text_tokenizer": self.text_tokenizer and str(self.text_tokenizer),
            "tokenizers": {key: {"name": name, "path": path and str(path)}
                           for key, (name, path) in self.tokenizers.items()},
            "modalities": [
                {"name": row.name, "tokens": row.max_tokens, "vocabulary": row.vocab_size,
                 "reads": self.uses(row)[0], "writes": self.uses(row)[1], "tokenizer": row.tokenizer}
                for row in self.rows
            ],
        }  # fmt: skip


def find_model(name_or_path: str | Path, needs_weights: bool = True) -> ModelFiles:
    """The files of a model and of its tokenizers that are on this machine; nothing is downloaded.

    name_or_path: `demo`, `demo-sr` (for super-resolution), a folder (also a snapshot in the Hub's cache), a
    `.safetensors` file with its configuration inside, a short name of the catalogue or the id of a repository
    on the Hub; these last two also as `NAME@REVISION`. If a model brings no tokenizer for a released
    modality, the released tokenizer is used.
    needs_weights: if False, a released model that is not on this machine is described by the catalogue.
    UsageError for an unknown name, MissingError for a model that is not on this machine, CheckpointError for
    files that are no model.
    """
    if name_or_path == DEMO_SR:
        return find_sr(find_model(DEMO))
    try:
        return _completed(_locate(str(name_or_path)))
    except MissingError:
        entry = find_entry(str(name_or_path))
        if needs_weights or entry is None:
            raise
        return _completed(ModelFiles(entry.hub_id, "", Path(WEIGHTS_FILE), entry.config, RELEASED))


def find_sr(model: ModelFiles, name: str | None = None) -> ModelFiles:
    """The super-resolution model of a name, or without one, that in the folder `sr` beside a model's weights.

    It uses the tokenizers of the base model, including those that are `absent`, unless it brings its own.
    MissingError if no name is given and the model has no such folder; other errors as of `find_model`.
    """
    if name == DEMO_SR and model.name != DEMO:  # it uses the tokenizers of its own base model
        return find_sr(find_model(DEMO))
    folder = model.weights.parent / "sr"
    if name is not None and name != DEMO_SR:
        files = _locate(name)
    elif folder.is_dir():
        files = _from_folder(folder, DEMO_SR if model.name == DEMO else f"{model.name}/sr", model.revision)
    else:
        raise MissingError(f"{model.name} brings no super-resolution model; name one with --sr-model")
    tokenizers = {**model.tokenizers, **files.tokenizers}
    absent = {key: wanted for key, wanted in model.absent.items() if key not in files.tokenizers}
    text = files.text_tokenizer or model.text_tokenizer
    return _completed(replace(files, tokenizers=tokenizers, absent=absent, text_tokenizer=text))


def resolve_tokenizer(name_or_path: str | Path) -> Path:
    """The folder or file of a tokenizer by path, name, Hub id or `NAME@REVISION`; errors as `find_model`."""
    path, _, _, advice = _find(str(name_or_path), "tokenizer")
    if path.is_dir():
        _weights_in(path, advice)
    else:
        read_header(path)
    return path


def with_parts(files: ModelFiles, tokenizers: Mapping[str, str], text_name: str | None = None) -> ModelFiles:
    """The model with other tokenizers.

    tokenizers: a modality row's `tokenizer` -> a name, a path, or the key of another tokenizer of the model.
    text_name: path or name of the text tokenizer. What is not on this machine becomes `absent`, which is an
    error only if a run needs it. UsageError for an unknown name or a text tokenizer that does not exist.
    """
    found, absent = dict(files.tokenizers), dict(files.absent)
    for key, name in tokenizers.items():
        found.pop(key, None)  # if the named one is missing, the former one must not be used silently
        absent.pop(key, None)
        try:
            found[key] = files.tokenizers[name] if name in files.tokenizers else resolve_tokenizer(name)
        except MissingError:
            absent[key] = name
    text = files.text_tokenizer
    if text_name is not None:
        text = Path(os.path.expanduser(text_name))
        if not os.path.isfile(text):
            released = text_tokenizer_path()
            # Configuration files of the reference name the released file by its path in the reference's tree.
            if text_name.lower() != TEXT_TOKENIZER and text.name != released.name:
                advice = "no such file; `fourm download text-tokenizer` fetches one"
                raise UsageError(f"text tokenizer '{text_name}': {advice}")
            text = released if os.path.isfile(released) else None
        if text is None:
            absent[TEXT_TOKENIZER] = text_name
    return replace(files, tokenizers=found, absent=absent, text_tokenizer=text)


def check_tokenizers(files: ModelFiles, rows: Iterable[Modality]) -> None:
    """CheckpointError for a tokenizer whose codebook, by its header, is not as large as the vocabulary."""
    for row in rows:
        if row.kind is not Kind.GRID or row.tokenizer not in files.tokenizers:
            continue
        path = files.tokenizers[row.tokenizer]
        size = codebook_size(path)
        if size is not None and size != row.vocab_size:
            count = f"only {size}" if size < row.vocab_size else size
            entry = _released_for(files, row.tokenizer)
            better = f"; the released one is {entry.name}" if entry else ""
            what = f"{row.vocab_size} tokens, but its tokenizer has {count} codes ({path}){better}"
            raise CheckpointError(f"{row.name}: {what}")


def codebook_size(path: Path) -> int | None:
    """The number of codes of a tokenizer, from the header of its file; None if it has no codebook."""
    tensors = read_header(weights_of(path)).tensors
    shapes = [tensors[name].shape for name in _CODEBOOKS if name in tensors]
    return shapes[0][-2] if shapes and len(shapes[0]) >= 2 else None


def tokenizer_advice(files: ModelFiles, key: str) -> str:
    """The end of a message that says how to get a missing tokenizer. key: a modality row's `tokenizer`."""
    entry = _released_for(files, key)
    if name := files.absent.get(key, entry.name if entry else ""):
        return _fetches(name).removeprefix("; ")
    return f"lay it into the folder tokenizers/{key} beside the model's weights"


def require_text_tokenizer(files: ModelFiles, what: str) -> Path:
    """The model's text tokenizer. what: the subject of the MissingError or UsageError if there is none."""
    if files.text_tokenizer is not None:
        return files.text_tokenizer
    has_released_text = any(row.is_released for row in files.rows if row.kind is Kind.SEQUENCE)
    if TEXT_TOKENIZER in files.absent or has_released_text:
        raise MissingError(f"{what} needs the text tokenizer, which is not here{_fetches(TEXT_TOKENIZER)}")
    raise UsageError(f"{what} needs a text tokenizer, but model '{files.name}' comes without one")


def weights_of(path: Path) -> Path:
    """The file with the weights of a tokenizer, given its folder or that file."""
    return path / WEIGHTS_FILE if os.path.isdir(path) else path


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
        return _all_about(files, entry)
    info = _known_info(entry)
    config = config_of(info.path.parent) if entry.key and info.path else {}
    memory = _memory(entry.num_params) if entry.key else {}
    return replace(info, config=config, memory=memory, missing=() if info.path else (entry.name,))


def count_parameters(files: ModelFiles) -> int:
    """The number of trained parameters of a model, from its file's header; shared ones count once."""
    tensors = read_header(files.weights).tensors
    rows = files.registry.rows
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


def is_unused(name: str, files: ModelFiles) -> bool:
    """True for a tensor that is not loaded: the decoder never reads embeddings of the tokens of a grid."""
    match = _DECODER_TOKENS.fullmatch(name)
    row = files.registry.rows.get(match[1]) if match else None
    return row is not None and row.kind is Kind.GRID


def _locate(name: str) -> ModelFiles:
    """The files of a model and of the parts in its folder."""
    if name == DEMO:
        if not (_DEMO_FOLDER / CONFIG_FILE).exists():
            raise MissingError("the embedded demo model is missing from this installation; reinstall fourm")
        return _from_folder(_DEMO_FOLDER, DEMO, f"fourm {__version__}")
    path, name, revision, advice = _find(name, "model")
    if path.is_dir():
        return _from_folder(path, name, revision, advice)
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: a model is a folder or a .safetensors file")
    config = parse_header_config(read_header(path).metadata)
    if "domains_in" not in config:
        raise CheckpointError(f"{path}: its header holds no model configuration; give its folder")
    return ModelFiles(name, "", path, config, RELEASED)


def _find(name: str, kind: str) -> tuple[Path, str, str, str]:
    """The path, name and revision of a model or tokenizer, and the end of a message on how to download it.

    Revision and message are "" unless it is a snapshot in the Hub's cache.
    """
    if not name:  # a shell variable that is not set; Path("") would be the folder `.`
        raise UsageError("the name of a model or tokenizer is empty")
    path = Path(os.path.expanduser(name))
    # Unlike the methods of Path, these functions raise nothing for a name that is too long.
    if os.path.isdir(path) or os.path.isfile(path):
        return path, name, "", ""
    if os.path.exists(path):
        raise UsageError(f"{path}: cannot be read (a pipe, a device or a socket, not a file or folder)")
    bare = name.partition("@")[0]  # without the revision
    if not HUB_ID.fullmatch(bare):
        raise UsageError(f"{name}: no such file or folder")
    entry = named_entry(name)
    if entry is None:
        known = near_match(bare, [DEMO, DEMO_SR]) if kind == "model" else ""
        advice = catalogue.near_entry(bare) or known or "; `fourm models` lists all names"
        raise UsageError(f"{kind} '{name}' is neither a file or folder nor a released one{advice}")
    is_wanted_kind = entry.is_model if kind == "model" else entry.kind == kind
    if not is_wanted_kind and find_entry(entry.name):
        raise UsageError(f"'{name}' is a {_NOUNS.get(entry.kind, entry.kind)}, where a {kind} is needed")
    snapshot = find_snapshot(entry.hub_id, entry.revision)
    fetches = _fetches(f"{entry.name} --revision {entry.revision}" if entry.revision else entry.name)
    if snapshot is None:
        advice = catalogue.near_entry(entry.hub_id) or fetches
        raise MissingError(f"{kind} '{name}' is not on this machine{advice}")
    return snapshot, entry.hub_id, snapshot.name, fetches


def _fetches(name: str) -> str:
    return f"; `fourm download {name}` fetches it"


def _from_folder(folder: Path, name: str, revision: str, advice: str = "") -> ModelFiles:
    """The files of a model folder. advice: how to repair a snapshot in the Hub's cache, for messages."""
    weights = _weights_in(folder, advice)
    files = _listed(folder)
    tokenizers = folder / "tokenizers"
    registry = load_registry(folder / "modalities.yaml") if "modalities.yaml" in files else RELEASED
    parts = sorted(tokenizers / part for part in _listed(tokenizers)) if os.path.isdir(tokenizers) else []
    return ModelFiles(
        name, revision, weights, config_of(folder), registry,
        text_tokenizer=folder / "text_tokenizer.json" if "text_tokenizer.json" in files else None,
        prompts=folder / "prompts.txt" if "prompts.txt" in files else None,
        tokenizers={part.stem: part for part in parts if part.suffix == ".safetensors" or part.is_dir()},
    )  # fmt: skip


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from None


def _weights_in(folder: Path, advice: str) -> Path:
    """The file with the weights in a folder. advice: how to repair a snapshot, "" for any other folder."""
    files = _listed(folder)
    missing = MissingError if advice else CheckpointError  # a snapshot can be downloaded again
    for path in (folder / WEIGHTS_FILE, folder / CONFIG_FILE):
        if os.path.islink(path) and not os.path.exists(path):
            raise missing(f"{path}: a link to a file that is gone{advice}")
    if WEIGHTS_FILE in files:
        return folder / WEIGHTS_FILE
    if pickles := sorted(name for name in files if name.endswith(catalogue.PICKLES)):
        raise CheckpointError(f"{folder}: holds {pickles[0]}, a pickle; only {WEIGHTS_FILE} is loaded")
    raise missing(f"{folder}: no {WEIGHTS_FILE} in this folder{advice}")


def _completed(files: ModelFiles) -> ModelFiles:
    """The model with checked modalities, and with released tokenizers of the cache if it brings none."""
    files = _with_grids(files)
    if not files.reads and not files.writes:
        raise CheckpointError(f"{files.name}: the model reads and writes no modality")
    if shared := shared_folder(files.rows):
        raise CheckpointError(f"{files.name}: {shared[1]}")
    found = dict(files.tokenizers)
    for key in {row.tokenizer for row in files.rows} - found.keys() - files.absent.keys():
        entry = _released_for(files, key)
        if entry and (cached := find_cached(entry)):
            found[key] = cached[0].parent
    text, released = files.text_tokenizer, text_tokenizer_path()
    has_released_text = any(row.is_released for row in files.rows if row.kind is Kind.SEQUENCE)
    if text is None and has_released_text and os.path.lexists(released):
        text = released
    return replace(files, tokenizers=found, text_tokenizer=text)


def _with_grids(files: ModelFiles) -> ModelFiles:
    """The model with grids that fit the size of its pictures, for rows that name no size themselves."""
    size = files.config.get("image_size", 224)
    if type(size) is not int or size < 1:
        raise CheckpointError(f"'image_size' of the config must be a whole number above 0, not {size!r}")
    resized = []
    for row in files.registry.rows.values():
        if row.kind is Kind.GRID and row.patch_size and not row.image_size:
            side = size // row.patch_size
            if side and row.grid != (side, side):
                resized.append(replace(row, grid=(side, side), max_tokens=side * side))
    return replace(files, registry=files.registry.extended(resized)) if resized else files


def _released_for(files: ModelFiles, key: str) -> Entry | None:
    """The released tokenizer for a row's `tokenizer`, if the model's rows that use it are released ones."""
    served = [row for row in files.rows if row.tokenizer == key]
    return TOKENIZERS.get(key) if served and all(row.is_released for row in served) else None


def _known_info(entry: Entry) -> ModelInfo:
    """Information from the catalogue, with path and size of the file in the cache if it is there."""
    path, revision = find_cached(entry) or (None, "")
    size = path.stat().st_size if path is not None else entry.num_bytes
    rows = tuple(row for row in RELEASED.rows.values() if entry.key and row.tokenizer == entry.key)
    writes = entry.writes or tuple(row.name for row in rows)
    return ModelInfo(replace(entry, num_bytes=size, writes=writes), path, revision, rows)


def _all_about(files: ModelFiles, entry: Entry | None = None) -> ModelInfo:
    """All information about a model. entry: its entry in the catalogue; then the weights may be missing."""
    if entry is None or find_cached(entry):
        own = Entry(files.name, "", "model", _BUILT_IN.get(files.name, "Model"), "", 0)
        entry = find_entry(files.name) or own
        size, count = files.weights.stat().st_size, count_parameters(files)
        entry = replace(entry, num_bytes=size, num_params=count, reads=files.reads, writes=files.writes)
        info = ModelInfo(entry, files.weights, files.revision)
        tensors = read_header(files.weights).tensors
        num_loaded = sum(one.num_elements for name, one in tensors.items() if not is_unused(name, files))
    else:
        info = _known_info(entry)
        # Released weights are float32, 4 bytes each. Embeddings are subtracted that `is_unused` excludes.
        grids = (row for row in files.rows if row.kind is Kind.GRID and row.name in entry.writes)
        num_unused = sum(row.vocab_size for row in grids)
        num_loaded = entry.num_bytes // 4 - num_unused * cast(int, entry.config["dim"])
    tokenizers = {}
    for key in dict.fromkeys(row.tokenizer for row in files.rows if row.tokenizer):
        released = TOKENIZERS.get(key)
        tokenizers[key] = (released.name if released else key, files.tokenizers.get(key))
    parts = [(info.entry.name, info.path), *tokenizers.values()]  # names and paths
    if files.reads and any(row.vocab_size and row.kind is not Kind.GRID for row in files.rows):
        parts.append((TEXT_TOKENIZER, files.text_tokenizer))
    missing = (name for name, path in parts if path is None and find_entry(name) is not None)
    return replace(
        info, rows=files.rows, config=files.config, tokenizers=tokenizers, memory=_memory(num_loaded),
        text_tokenizer=files.text_tokenizer, missing=tuple(missing),
    )  # fmt: skip


def _memory(num_loaded: int) -> dict[str, int]:
    """Bytes of loaded weights by dtype, each dtype once: those that are other names for one are left out."""
    dtypes = [dtype for dtype in DTYPES.values() if dtype.name == dtype.torch_name]
    return {dtype.name: num_loaded * dtype.num_bytes for dtype in dtypes}
