"""From a model's name, folder or file to local files and what is known of it, without torch or network."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fourm import __version__
from fourm.errors import CheckpointError, MissingError, UsageError, near_match
from fourm.hub import catalogue
from fourm.hub.cache import HUB_ID, find_cached, find_snapshot, named_entry, text_tokenizer_path
from fourm.hub.catalogue import DEMO, DEMO_SR, TEXT_TOKENIZER, TOKENIZERS, Entry, find_entry
from fourm.hub.header import CONFIG_FILE, DTYPES, WEIGHTS_FILE, config_of, parse_header_config, read_header
from fourm.modalities.registry import RELEASED, Kind, Modality, Registry, load_registry, shared_folder

_DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo"
_NOUNS = {"sr": "super-resolution model", "prompts": "set of prompts"}  # for kinds that are none themselves
_POSITIONS = re.compile(r"(?:encoder|decoder)_embeddings\.(.+)\.pos_emb")
_UNUSED = re.compile(r"decoder_embeddings\.(.+)\.token_emb\.weight")
_NORM_BIAS = re.compile(r"(?:.*[._])?(?:norm\d?|\w+_norm)\.bias")
_BUILT_IN = {DEMO: "The built-in model", DEMO_SR: "The built-in model for super-resolution"}
_CODEBOOKS = ("quantize._codebook.embed", "quantize.codes")  # (K, L) and (N, K, L / N)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Where the parts of one model lie, and what its configuration says."""

    name: str  # a folder or file as it was given; the id of a repository of the Hub
    revision: str  # "" for a folder or file of the user's own
    weights: Path
    config: Mapping[str, object]
    registry: Registry
    text_tokenizer: Path | None = None
    prompts: Path | None = None
    tokenizers: Mapping[str, Path] = field(default_factory=dict)  # by a modality row's `tokenizer`
    # Names of tokenizers that were asked for and are not here, by key; TEXT_TOKENIZER for that of text.
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def reads(self) -> tuple[str, ...]:
        """Modalities that the encoder takes."""
        return self._domains("domains_in")

    @property
    def writes(self) -> tuple[str, ...]:
        """Modalities that the decoder can produce."""
        return tuple(n for n in self._domains("domains_out") if self.registry.get(n).takes_ids)

    @property
    def rows(self) -> tuple[Modality, ...]:
        """The rows of all its modalities, each once."""
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


def find_model(name_or_path: str | Path, needs_weights: bool = True) -> ModelFiles:
    """The files of a model with all its parts that are here; nothing is fetched.

    The name is `demo`, `demo-sr` (for super-resolution), a folder (also a snapshot of the Hub's cache), a
    `.safetensors` file with its configuration inside, a short name of the catalogue or the id of a repository
    on the Hub; these two also as `NAME@REVISION`. Tokenizers that a model does not bring itself are the
    released ones, where they are here and its modalities are the released ones.
    needs_weights: if False, a released model that is not here has the configuration of the catalogue.
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
    """The super-resolution model of that name, else the one in the folder `sr` beside a model's weights.

    The base model's tokenizers serve both, unless the super-resolution model brings its own. One that was
    named for the base, but is not here, is not here for both.
    """
    if name == DEMO_SR and model.name != DEMO:
        return find_sr(find_model(DEMO))
    folder = model.weights.parent / "sr"
    if name is not None and name != DEMO_SR:
        files = _locate(name)
    elif folder.is_dir():
        files = _from_folder(folder, DEMO_SR if model.name == DEMO else f"{model.name}/sr", model.revision)
    else:
        raise MissingError(f"{model.name} brings no super-resolution model; name one with --sr-model")
    tokenizers = {**model.tokenizers, **files.tokenizers}
    absent = {key: name for key, name in model.absent.items() if key not in files.tokenizers}
    text = files.text_tokenizer or model.text_tokenizer
    return _completed(replace(files, tokenizers=tokenizers, absent=absent, text_tokenizer=text))


def resolve_tokenizer(name_or_path: str | Path) -> Path:
    """The folder or file of a tokenizer: a path, a short name or a Hub id, these two also `NAME@REVISION`."""
    path, _, _, advice = _find(str(name_or_path), "tokenizer")
    if path.is_dir():
        _weights_in(path, advice)
    else:
        read_header(path)
    return path


def with_parts(files: ModelFiles, tokenizers: Mapping[str, str], text_name: str | None = None) -> ModelFiles:
    """The model with tokenizers that were named (a modality row's `tokenizer` -> name or path).

    A name may also be that of another tokenizer which the model brings. What is not here becomes `absent`,
    which matters only if a run needs it (`tokenizer_advice`).
    """
    found, absent = dict(files.tokenizers), dict(files.absent)
    for key, name in tokenizers.items():
        found.pop(key, None)  # another one in its place would be a silent mistake
        absent.pop(key, None)
        try:
            found[key] = files.tokenizers[name] if name in files.tokenizers else resolve_tokenizer(name)
        except MissingError:
            absent[key] = name
    text = files.text_tokenizer
    if text_name is not None:
        text, released = Path(os.path.expanduser(text_name)), text_tokenizer_path()
        # The reference's configuration files name the file by its place in the reference's own tree.
        is_released = text_name.lower() == TEXT_TOKENIZER or text.name == released.name
        if not os.path.isfile(text) and not is_released:
            told = "no such file; `fourm download text-tokenizer` fetches one"
            raise UsageError(f"text tokenizer '{text_name}': {told}")
        text = next((path for path in (text, released) if os.path.isfile(path)), None)
        if text is None:
            absent[TEXT_TOKENIZER] = text_name
    return replace(files, tokenizers=found, absent=absent, text_tokenizer=text)


def check_tokenizers(files: ModelFiles, rows: Iterable[Modality]) -> None:
    """Refuse a tokenizer that has not one code for each token of a grid, judged by its header alone."""
    for row in rows:
        if row.kind is not Kind.GRID or row.tokenizer not in files.tokenizers:
            continue
        path = files.tokenizers[row.tokenizer]
        size = codebook_size(path)
        if size is not None and size != row.vocab_size:
            count = f"only {size}" if size < row.vocab_size else size
            entry = _released_for(files, row.tokenizer)
            better = f"; the released one is {entry.name}" if entry else ""
            told = f"{row.vocab_size} tokens, but its tokenizer has {count} codes ({path}){better}"
            raise CheckpointError(f"{row.name}: {told}")


def codebook_size(path: Path) -> int | None:
    """How many codes a tokenizer has, counted from its tensors; None where it has no codebook."""
    tensors = read_header(weights_of(path)).tensors
    shapes = [tensors[name].shape for name in _CODEBOOKS if name in tensors]
    return shapes[0][-2] if shapes and len(shapes[0]) >= 2 else None


def tokenizer_advice(files: ModelFiles, key: str) -> str:
    """Half a sentence: how to get a tokenizer that is not here."""
    entry = _released_for(files, key)
    if name := files.absent.get(key, entry.name if entry else ""):
        return _fetches(name).removeprefix("; ")
    return f"lay it into the folder tokenizers/{key} beside the model's weights"


def require_text_tokenizer(files: ModelFiles, what: str) -> Path:
    """The model's text tokenizer, or an error that says what needs it and how to get it."""
    if files.text_tokenizer is not None:
        return files.text_tokenizer
    texts = [row.is_released for row in files.rows if row.kind is Kind.SEQUENCE]
    if TEXT_TOKENIZER in files.absent or any(texts):
        raise MissingError(f"{what} needs the text tokenizer, which is not here{_fetches(TEXT_TOKENIZER)}")
    raise UsageError(f"{what} needs a text tokenizer, but model '{files.name}' comes without one")


def weights_of(path: Path) -> Path:
    """The weights of a tokenizer that is a folder or a file."""
    return path / WEIGHTS_FILE if path.is_dir() else path


def list_models() -> list[ModelInfo]:
    """The built-in models and everything in the catalogue."""
    built_in = (_all_about(find_model(name)) for name in _BUILT_IN)
    return [*built_in, *map(_known_info, catalogue.CATALOGUE.values())]


def describe(name_or_path: str) -> ModelInfo:
    """All about a model, tokenizer or file: one of the catalogue, of the Hub's cache, or a path."""
    path = Path(os.path.expanduser(name_or_path))
    is_path, weights = os.path.exists(path), weights_of(path)
    described = weights.parent if os.path.exists(weights.parent / CONFIG_FILE) else path
    if is_path and weights.is_file() and "codebook_size" in (config := config_of(described)):
        count = sum(info.num_elements for info in read_header(weights).tensors.values())
        own = Entry(name_or_path, "", "tokenizer", "Tokenizer", "", weights.stat().st_size, count)
        return ModelInfo(own, weights, config=config, memory=_memory(count))
    entry = None if is_path else find_entry(name_or_path)
    if entry is None or entry.is_model:
        files = find_model(entry.hub_id if entry else name_or_path, needs_weights=entry is None)
        return _all_about(files, entry)
    info = _known_info(entry)
    config = config_of(info.path.parent) if entry.key and info.path else {}
    memory = _memory(entry.num_params) if entry.key else {}
    return replace(info, config=config, memory=memory, missing=() if info.path else (entry.name,))


def count_parameters(files: ModelFiles) -> int:
    """How many numbers of a model are trained, from its file's header; those stored twice count once."""
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


def is_unused(name: str, files: ModelFiles) -> bool:
    """True for tensors that are not loaded: embeddings of tokens that the decoder never gets."""
    match = _UNUSED.fullmatch(name)
    row = files.registry.rows.get(match[1]) if match else None
    return row is not None and row.kind is Kind.GRID


def _locate(name: str) -> ModelFiles:
    """The files of a model, with those parts that it brings itself."""
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
    """A model or tokenizer: its path, its name and revision, and half a sentence on how to fetch it.

    It is a file or folder, or a snapshot in the Hub's cache. Only that can be fetched and has a revision.
    """
    if not name:  # as of a variable that is not set; it does not stand for the folder `.`
        raise UsageError("the name of a model or tokenizer is empty")
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path) or os.path.isfile(path):  # False, not an error, for a name that no file can have
        return path, name, "", ""
    if os.path.exists(path):
        raise UsageError(f"{path}: cannot be read (a pipe, a device or a socket, not a file or folder)")
    bare = name.partition("@")[0]
    if not HUB_ID.fullmatch(bare):
        raise UsageError(f"{name}: no such file or folder")
    entry = named_entry(name)
    if entry is None:
        known = near_match(bare, [DEMO, DEMO_SR]) if kind == "model" else ""
        advice = catalogue.near_entry(bare) or known or "; `fourm models` lists all names"
        raise UsageError(f"{kind} '{name}' is neither a file or folder nor a released one{advice}")
    is_right = entry.kind == kind or (kind == "model" and entry.is_model)
    if not is_right and find_entry(entry.name):
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
    """A model folder with its parts; `advice` says how to mend one of the Hub's cache."""
    weights, files, tokenizers = _weights_in(folder, advice), _listed(folder), folder / "tokenizers"
    registry = load_registry(folder / "modalities.yaml") if "modalities.yaml" in files else RELEASED
    parts = sorted(tokenizers / p for p in _listed(tokenizers)) if os.path.isdir(tokenizers) else []
    return ModelFiles(
        name, revision, weights, config_of(folder), registry,
        text_tokenizer=folder / "text_tokenizer.json" if "text_tokenizer.json" in files else None,
        prompts=folder / "prompts.txt" if "prompts.txt" in files else None,
        tokenizers={p.stem: p for p in parts if p.suffix == ".safetensors" or p.is_dir()},
    )  # fmt: skip


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from None


def _weights_in(folder: Path, advice: str) -> Path:
    """The weights of a folder; what is missing in one of the Hub's cache can be fetched (`advice`)."""
    files, missing = _listed(folder), MissingError if advice else CheckpointError
    for path in (folder / WEIGHTS_FILE, folder / CONFIG_FILE):
        if os.path.islink(path) and not os.path.exists(path):
            raise missing(f"{path}: a link to a file that is gone{advice}")
    if WEIGHTS_FILE in files:
        return folder / WEIGHTS_FILE
    if pickles := sorted(name for name in files if name.endswith(catalogue.PICKLES)):
        raise CheckpointError(f"{folder}: holds {pickles[0]}, a pickle; only {WEIGHTS_FILE} is loaded")
    raise missing(f"{folder}: no {WEIGHTS_FILE} in this folder{advice}")


def _completed(files: ModelFiles) -> ModelFiles:
    """The model, its modalities checked, with released tokenizers of the Hub's cache where it brings none."""
    size, sized = files.config.get("image_size", 224), []
    if type(size) is not int or size < 1:
        raise CheckpointError(f"'image_size' of the config must be a whole number above 0, not {size!r}")
    for row in files.registry.rows.values():
        if row.kind is Kind.GRID and row.patch_size and not row.image_size:  # the model's size is its own
            side = size // row.patch_size
            if side and row.grid != (side, side):
                sized.append(replace(row, grid=(side, side), max_tokens=side * side))
    files = replace(files, registry=files.registry.extended(sized)) if sized else files
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
    if text is None and any(row.is_released for row in files.rows if row.kind is Kind.SEQUENCE):
        text = released if os.path.lexists(released) else None
    return replace(files, tokenizers=found, text_tokenizer=text)


def _released_for(files: ModelFiles, key: str) -> Entry | None:
    """The released tokenizer for a key, where the model's modalities with this key are the released ones."""
    served = [row for row in files.rows if row.tokenizer == key]
    return TOKENIZERS.get(key) if served and all(row.is_released for row in served) else None


def _known_info(entry: Entry) -> ModelInfo:
    """What the catalogue knows, with the file in the cache."""
    path, revision = find_cached(entry) or (None, "")
    size = path.stat().st_size if path is not None else entry.num_bytes
    rows = tuple(row for row in RELEASED.rows.values() if entry.key and row.tokenizer == entry.key)
    writes = entry.writes or tuple(row.name for row in rows)
    return ModelInfo(replace(entry, num_bytes=size, writes=writes), path, revision, rows)


def _all_about(files: ModelFiles, entry: Entry | None = None) -> ModelInfo:
    """All about a model. One of the catalogue (`entry`) need not be here."""
    if entry is None or find_cached(entry):
        own = Entry(files.name, "", "model", _BUILT_IN.get(files.name, "Model"), "", 0)
        entry = find_entry(files.name) or own
        size, count = files.weights.stat().st_size, count_parameters(files)
        entry = replace(entry, num_bytes=size, num_params=count, reads=files.reads, writes=files.writes)
        info, tensors = ModelInfo(entry, files.weights, files.revision), read_header(files.weights).tensors
        loaded = sum(one.num_elements for name, one in tensors.items() if not is_unused(name, files))
    else:
        info, dim = _known_info(entry), entry.config["dim"]
        grids = (row for row in files.rows if row.kind is Kind.GRID and row.name in entry.writes)
        unused = sum(row.vocab_size for row in grids)
        loaded = entry.num_bytes // 4 - unused * (dim if isinstance(dim, int) else 0)
    tokenizers = {}
    for key in dict.fromkeys(row.tokenizer for row in files.rows if row.tokenizer):
        released = TOKENIZERS.get(key)
        tokenizers[key] = (released.name if released else key, files.tokenizers.get(key))
    parts = [(info.entry.name, info.path), *tokenizers.values()]
    if files.reads and any(row.vocab_size and row.kind is not Kind.GRID for row in files.rows):
        parts.append((TEXT_TOKENIZER, files.text_tokenizer))
    missing = (name for name, path in parts if path is None and find_entry(name) is not None)
    return replace(
        info, rows=files.rows, config=files.config, tokenizers=tokenizers, memory=_memory(loaded),
        text_tokenizer=files.text_tokenizer, missing=tuple(missing),
    )  # fmt: skip


def _memory(num_loaded: int) -> dict[str, int]:
    return {d.name: num_loaded * d.num_bytes for d in DTYPES.values() if d.name == d.torch_name}
