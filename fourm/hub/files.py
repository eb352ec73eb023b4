"""Finds the local files of a model or tokenizer by name or path; no torch, no network."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fourm import __version__
from fourm.errors import CheckpointError, MissingError, UsageError, near_match
from fourm.hub import catalogue, header
from fourm.hub.cache import HUB_ID, find_cached, find_snapshot, named_entry, text_tokenizer_path
from fourm.hub.catalogue import DEMO, DEMO_SR, TEXT_TOKENIZER, TOKENIZERS, Entry, find_entry
from fourm.hub.header import CONFIG_FILE, WEIGHTS_FILE, config_of, diffuses, parse_header_config, read_header
from fourm.hub.sizes import TokenizerSizes, released_tensors
from fourm.modalities.registry import RELEASED, Kind, Modality, Registry, load_registry, shared_folder

_DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo"
# Nouns for messages, by the kind of an entry of the catalogue; other kinds are nouns themselves.
_NOUNS = {"sr": "super-resolution model", "prompts": "set of prompts", "measure": "network of a measure"}
_DECODER_TOKENS = re.compile(r"decoder_embeddings\.(.+)\.token_emb\.weight")
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
    # False: the weights are not on this machine, and the rest is what the catalogue knows of this model.
    is_here: bool = True

    @property
    def tensors(self) -> Mapping[str, header.TensorInfo]:
        """The tensors of the weights, from the header of their file or as the model was released."""
        if self.is_here:
            return read_header(self.weights).tensors
        return released_tensors(self.config, self.registry)

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


def find_model(name_or_path: str | Path, needs_weights: bool = True) -> ModelFiles:
    """The files of a model and of its tokenizers that are on this machine; nothing is downloaded.

    name_or_path: `demo`, `demo-sr` (for super-resolution), a folder (also a snapshot in the Hub's cache), a
    `.safetensors` file with its configuration inside, a short name of the catalogue or the id of a repository
    on the Hub; these last two also as `NAME@REVISION`. If a model brings no tokenizer for a released
    modality, the released tokenizer is used.
    needs_weights: if False, a released model that is not on this machine is what the catalogue knows of it.
    UsageError for an unknown name, MissingError for a model that is not on this machine, CheckpointError for
    files that are no model.
    """
    if name_or_path == DEMO_SR:
        return find_sr(find_model(DEMO))
    return _completed(_locate(str(name_or_path), needs_weights))


def find_sr(model: ModelFiles, name: str | None = None, needs_weights: bool = True) -> ModelFiles:
    """The super-resolution model of a name, or without one, that in the folder `sr` beside a model's weights.

    It uses the tokenizers of the base model, including those that are `absent`, unless it brings its own.
    MissingError if no name is given and the model has no such folder; all else as of `find_model`.
    """
    if name == DEMO_SR and model.name != DEMO:  # it uses the tokenizers of its own base model
        return find_sr(find_model(DEMO))
    folder = model.weights.parent / "sr"
    if name is not None and name != DEMO_SR:
        files = _locate(name, needs_weights)
    elif model.is_here and folder.is_dir():
        files = _from_folder(folder, DEMO_SR if model.name == DEMO else f"{model.name}/sr", model.revision)
    else:
        raise MissingError(f"{model.name} brings no super-resolution model; name one with `sr_model`")
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
    if name := _name_of(files, key):
        return _fetches(name).removeprefix("; ")
    return f"lay it into the folder tokenizers/{key} beside the model's weights"


def require_text_tokenizer(files: ModelFiles, what: str) -> Path:
    """The model's text tokenizer. what: the subject of the MissingError or UsageError if there is none."""
    if files.text_tokenizer is not None:
        return files.text_tokenizer
    if _takes_released_text(files):
        raise MissingError(f"{what} needs the text tokenizer, which is not here{_fetches(TEXT_TOKENIZER)}")
    raise UsageError(f"{what} needs a text tokenizer, but model '{files.name}' comes without one")


def missing_parts(files: ModelFiles, keys: Iterable[str], with_text: bool) -> tuple[Entry, ...]:
    """What is to be fetched for a model and some of its tokenizers, by a modality row's `tokenizer`.

    with_text: its text tokenizer too. MissingError for a part that only the Hub knows.
    """
    names = [] if files.is_here else [files.name]
    names += [name for key in keys if key not in files.tokenizers and (name := _name_of(files, key))]
    if with_text and files.text_tokenizer is None and _takes_released_text(files):
        names.append(TEXT_TOKENIZER)
    return tuple(_entry_of(name) for name in dict.fromkeys(names))


def tokenizer_sizes(files: ModelFiles, key: str) -> TokenizerSizes | None:
    """What a tokenizer holds, by a modality row's `tokenizer`; None if it is neither here nor released."""
    if path := files.tokenizers.get(key):
        return TokenizerSizes.of(read_header(weights_of(path)).tensors)
    return _entry_of(name).sizes if (name := _name_of(files, key)) else None


def decodes_by_diffusion(files: ModelFiles, key: str) -> bool:
    """Whether a tokenizer does, by a modality row's `tokenizer`; False for one of which nothing is known."""
    if path := files.tokenizers.get(key):
        return diffuses(config_of(path))
    name = _name_of(files, key)
    entry = named_entry(name) if name else None
    return entry is not None and entry.sizes is not None and entry.sizes.unet is not None


def weights_of(path: Path) -> Path:
    """The file with the weights of a tokenizer, given its folder or that file."""
    return path / WEIGHTS_FILE if os.path.isdir(path) else path


def is_unused(name: str, files: ModelFiles) -> bool:
    """True for a tensor that is not loaded: the decoder never reads embeddings of the tokens of a grid."""
    match = _DECODER_TOKENS.fullmatch(name)
    row = files.registry.rows.get(match[1]) if match else None
    return row is not None and row.kind is Kind.GRID


def _locate(name: str, needs_weights: bool) -> ModelFiles:
    """The files of a model and of the parts in its folder, or what the catalogue knows (see `find_model`)."""
    try:
        return _locate_here(name)
    except MissingError:
        entry = find_entry(name)
        if needs_weights or entry is None or not entry.is_model:
            raise
        return ModelFiles(entry.hub_id, "", Path(WEIGHTS_FILE), entry.config, RELEASED, is_here=False)


def _locate_here(name: str) -> ModelFiles:
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
    if text is None and _takes_released_text(files) and os.path.lexists(released):
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


def _name_of(files: ModelFiles, key: str) -> str:
    """The name to download of a tokenizer that is not here, by a row's `tokenizer`; "" if there is none."""
    entry = _released_for(files, key)
    return files.absent.get(key, entry.name if entry else "")


def _takes_released_text(files: ModelFiles) -> bool:
    """Whether the released text tokenizer is the one for a model that has none here."""
    rows = (row for row in files.rows if row.kind is Kind.SEQUENCE)
    return TEXT_TOKENIZER in files.absent or any(row.is_released for row in rows)


def _entry_of(name: str) -> Entry:
    """The catalogue's entry of a part that is not here."""
    entry = named_entry(name)
    if entry is None or not entry.num_bytes:
        raise MissingError(f"the size of '{name}' is not known, for it is not here{_fetches(name)}")
    return entry
