"""The registry: one typed row per modality, with its decoding defaults; rows from a model's YAML file."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from fourm.errors import UsageError, near_match, shown
from fourm.modalities.typed import Limits, to_type

TOKENS = "tok_"  # how the names of grids begin; the name of their values follows
SEQUENCE_ROWS = 512  # rows of every 1-D position table in the released checkpoints, whatever max_length says
_RESERVED = re.compile(  # names of other things in an output folder
    r"(run|failures|checksums|eval)\..*|eval|processes|samples(\.sr)?|frame|scores|plots|preview|malformed|"
    r"done(\.sr)?",
    re.I | re.DOTALL,
)
_FOLDER = re.compile(r"[^./\\-][^/\\]*")
_SUFFIX = re.compile(r"(?:\.[A-Za-z0-9_]{1,16}){1,2}")
_MAX_NAME = 200  # bytes; file systems allow 255, and suffixes are added
MAX_SIZE = 1 << 24  # tokens of a modality, ids of a vocabulary: far beyond any model
Count = Annotated[int, Limits(0, MAX_SIZE)]
Side = Annotated[int, Limits(1, 1 << 12)]  # two of them give at most MAX_SIZE tokens
Name = Annotated[str, Limits(1)]


class Kind(Enum):
    """The kind of a modality, which decides how its values are encoded, decoded and stored."""

    PIXELS = "pixels"  # a picture cut into patches, input only
    GRID = "grid"  # a square of tokens, row by row
    SEQUENCE = "sequence"  # text ids, decoded one after the other
    EMBEDDING = "embedding"  # a sequence of vectors, input only


@dataclass(frozen=True, slots=True)
class Defaults:
    """The decoding settings of a target for which none are given."""

    scheme: str
    num_steps: int | None = None  # None: the scheme needs none
    token_curve: str = "linear"
    temperature: float = 1.0
    temperature_curve: str = "constant"
    guidance: float = 1.0
    num_tokens: int | None = None  # None: as many as the modality has


@dataclass(frozen=True, slots=True)
class Modality:
    """A row of the registry: sizes, files and decoding defaults of one modality at one resolution."""

    name: Name  # "tok_rgb@224"; unique, no "-" and no ","
    kind: Kind
    max_tokens: Annotated[int, Limits(1, MAX_SIZE)]  # L
    vocab_size: Count = 0  # V; 0 for PIXELS and EMBEDDING
    grid: tuple[Side, Side] | None = None  # tokens per side, for PIXELS and GRID
    patch_size: Count = 0  # pixels per token side; 0 = none
    image_size: Count = 0  # pixels per picture side; 0 = none
    max_positions: Count = 0  # SEQUENCE: the decoder reads 0 for positions from here on; 0 for others
    embedding_width: Count = 0  # EMBEDDING: numbers per vector
    positions: Literal["sincos2d", "sincos1d", "learned"] = "sincos2d"  # as in the checkpoints
    codec: str = ""  # key in the codec table
    tokenizer: str = ""  # key among the tokenizers of a model; "" = no tokenizer
    folder: Name = ""  # where decoded values live in a dataset (token ids live under `name`)
    suffix: Name = ""  # of the files of values, ".png"
    title: str = ""  # in plots
    labels: tuple[str, ...] = ()  # names of the classes from 0 on; () where they are COCO's, or none
    # Decoding defaults with and without RGB among the conditions; None: the modality cannot be a target.
    rgb_defaults: Defaults | None = None
    defaults: Defaults | None = None

    def __post_init__(self) -> None:
        folder, area = self.folder, None if self.grid is None else math.prod(self.grid)
        wanted_area = None if self.kind in (Kind.SEQUENCE, Kind.EMBEDDING) else self.max_tokens
        is_folder = _is_free(folder) and folder.isprintable() and _FOLDER.fullmatch(folder)
        is_suffix = not self.suffix or _SUFFIX.fullmatch(self.suffix)
        rules = {
            "a name has no '-', ',', ':', '/' or blank": not set(self.name) & set("-, :/\\"),
            "a name begins with a letter": self.name[:1].isalnum() and self.name.isprintable(),
            "an output folder has something else under this name": _is_free(self.name),
            f"folder must be one plain name, not {shown(ascii(folder))}": not folder or is_folder,
            f"suffix must be a file extension such as .png, not {shown(ascii(self.suffix))}": is_suffix,
            "labels must be printable": all(label.isprintable() for label in self.labels),
            "vocab_size must be at least 1": not self.takes_ids or self.vocab_size >= 1,
            f"{self.kind.value} cannot be a target": self.takes_ids or self.defaults is None,
            "grid must be two sides whose product is max_tokens": area == wanted_area,
        }
        if broken := [rule for rule, is_kept in rules.items() if not is_kept]:
            raise UsageError(f"modality '{self.name}': {broken[0]}")

    @property
    def key(self) -> str:
        """The name up to '@': what kind of data it is, at any resolution."""
        return self.name.partition("@")[0]

    @property
    def resolution(self) -> int:
        """Pixels per side: the number behind '@'; 0 if the name has none."""
        tail = self.name.partition("@")[2]
        return int(tail) if tail.isdecimal() else 0

    @property
    def value_names(self) -> tuple[str, ...]:
        """Names for the values of a grid's tokens: `depth@448` and `depth` for `tok_depth@448`."""
        names = self.name.removeprefix(TOKENS), self.key.removeprefix(TOKENS), self.folder
        has_values = self.kind is Kind.GRID and self.name.startswith(TOKENS)
        return tuple(dict.fromkeys(names)) if has_values else ()

    @property
    def is_rgb(self) -> bool:
        """True for colour pictures in any form: with one as a condition, `rgb_defaults` apply."""
        return self.key in ("rgb", "tok_rgb")

    @property
    def takes_ids(self) -> bool:
        """True where values are token ids (GRID and SEQUENCE)."""
        return self.kind in (Kind.GRID, Kind.SEQUENCE)

    @property
    def is_released(self) -> bool:
        """True for a row that is compatible with the released row of the same name."""
        known, fields = RELEASED.rows.get(self.name), ("kind", "vocab_size", "tokenizer", "patch_size")
        return known is not None and all(getattr(known, field) == getattr(self, field) for field in fields)


@dataclass(frozen=True, slots=True)
class Registry:
    """All modalities known to one model."""

    rows: Mapping[str, Modality]  # by name, in the order of the table

    def get(self, name: str) -> Modality:
        """The row of a full name. UsageError: there is none."""
        if name not in self.rows:
            raise UsageError(f"unknown modality '{name}'{near_match(name, self.rows)}")
        return self.rows[name]

    def extended(self, rows: Iterable[Modality]) -> "Registry":
        """A registry with more rows; a row of a known name replaces it."""
        return Registry({**self.rows, **{row.name: row for row in rows}})

    def resolve(self, name: str, available: Iterable[str]) -> str:
        """The full name for a short one: `tok_rgb` is its lowest resolution among the available modalities.

        If no available modality has the name, the whole table is searched, so that the caller can say that
        the model lacks it. UsageError: no row has the name.
        """
        if name in self.rows:
            return name
        available = [n for n in available if n in self.rows]
        for names in (available, self.rows):
            if same_key := [n for n in names if self.rows[n].key == name]:
                return min(same_key, key=lambda n: self.rows[n].resolution)
        rows, is_full = [self.rows[n] for n in available], "@" in name or name.startswith(TOKENS)
        short = dict.fromkeys(one for row in rows for one in (*row.value_names[1:], row.key))
        tables = (available, short, self.rows) if is_full else (short, available, self.rows)
        close = next(filter(None, (near_match(name, names) for names in tables)), "")
        raise UsageError(f"unknown modality '{name}'{close}")

    def grid_of_values(self, name: str, available: Iterable[str]) -> str | None:
        """The available grid whose values have this name, at its lowest resolution; None if there is none."""
        grids = [n for n in available if n in self.rows and name in self.rows[n].value_names]
        exact = [n for n in grids if n.removeprefix(TOKENS) == name]
        return min(exact or grids, key=lambda n: self.rows[n].resolution, default=None)


def shared_folder(rows: Iterable[Modality]) -> tuple[str, str] | None:
    """The name of a row whose files would overwrite another row's, and a message; None if there is none."""
    rows = tuple(row for row in rows if row.takes_ids)
    # Some file systems do not distinguish upper and lower case.
    taken = {row.name.casefold(): f"the tokens of {row.name}" for row in rows if row.kind is Kind.GRID}
    for row in rows:
        folder = row.folder.casefold()
        if folder and folder in taken:
            return row.name, (
                f"the values of {row.name} would lie in the folder '{row.folder}', and so would "
                f"{taken[folder]}; give one of them another in modalities.yaml, such as "
                f"'folder: {row.name.removeprefix(TOKENS)}'"
            )
        taken[folder] = f"the values of {row.name}"
    return None


def _is_free(name: str) -> bool:
    """True for a name that a folder of values in an output folder can have."""
    return _RESERVED.fullmatch(name) is None and len(name.encode(errors="replace")) <= _MAX_NAME


# Settings of the reference's demo.
_DENSE_RGB = Defaults("roar", 1, "linear", 0.01, "constant", 2.0)
_DENSE = Defaults("roar", 8, "linear", 3.0, "onex:0.5:0.5", 2.0)
_CLIP = Defaults("roar", 50, "linear", 5.0, "onex:0.5:0.5", 3.0)
_RGB = Defaults("roar", 25, "linear", 3.0, "onex:0.5:0.5", 2.0)
_PATCH_14 = Defaults("roar", 8, "linear", 0.01, "constant", 2.0)
_GLOBAL_FEATURES = Defaults("roar", 1, "linear", 0.1, "constant", 1.0)
_SUPER_RESOLUTION = Defaults("maskgit", 8, "cosine", 1.0, "constant", 2.0)


def _tokens(
    stem: str, vocab_size: int, tokenizer: str, suffix: str, title: str, patch: int = 16, size: int = 224
) -> Modality:
    """A row of a grid of tokens; patch, size: pixels per side of a token and of the picture."""
    side = size // patch
    plain = {"rgb": _RGB, "clip": _CLIP}.get(stem, _DENSE)
    rgb_defaults, defaults = _RGB if stem == "rgb" else _DENSE_RGB, _PATCH_14 if patch == 14 else plain
    if size == 448:
        rgb_defaults = defaults = _SUPER_RESOLUTION
    return Modality(
        f"tok_{stem}@{size}", Kind.GRID, side * side, vocab_size, (side, side), patch, size,
        codec=f"tok_{stem}", tokenizer=tokenizer, folder=stem if size == 224 else f"{stem}@{size}",
        suffix=suffix, title=title, rgb_defaults=rgb_defaults, defaults=defaults,
    )  # fmt: skip


def _global_features(stem: str, tokenizer: str, title: str) -> Modality:
    """A picture as 16 tokens: its grid comes from the model's `image_size`, 4 x 4 at 224."""
    return Modality(f"tok_{stem}", Kind.GRID, 16, 8192, (4, 4), 56, positions="learned", codec=f"tok_{stem}",
                    tokenizer=tokenizer, folder=stem, suffix=".npy", title=title,
                    rgb_defaults=_GLOBAL_FEATURES, defaults=_GLOBAL_FEATURES)  # fmt: skip


def _sequence(
    name: str, max_tokens: int, temperature: float, title: str, suffix: str = ".json",
    max_positions: int = 0, tokenizer: str = "", num_tokens: int | None = None,
) -> Modality:  # fmt: skip
    """A row of texts; max_positions is max_tokens where it is 0."""
    defaults = Defaults("autoregressive", temperature=temperature, num_tokens=num_tokens)
    return Modality(name, Kind.SEQUENCE, max_tokens, 30000, max_positions=max_positions or max_tokens,
                    positions="sincos1d", codec=name, tokenizer=tokenizer, folder=name, suffix=suffix,
                    title=title, rgb_defaults=defaults, defaults=defaults)  # fmt: skip


_AT_BOTH_SIZES = (
    ("rgb", 16384, "rgb", ".png", "RGB"),
    ("depth", 8192, "depth", ".npy", "Depth"),
    ("normal", 8192, "normal", ".png", "Normals"),
    ("semseg", 4096, "semseg", ".png", "Semantic segmentation"),
    ("clip", 8192, "clip", ".npy", "CLIP-B/16"),
)
# The table of the released models. `human_poses` holds 275 tokens, but its decoder positions end at 263.
_ROWS = (
    Modality("rgb@224", Kind.PIXELS, 196, 0, (14, 14), 16, 224,
             codec="rgb", folder="rgb", suffix=".png", title="RGB"),
    _sequence("caption", 256, 0.3, "Caption", suffix=".txt"),
    _sequence("det", 256, 0.3, "Bounding boxes"),
    *(_tokens(*row) for row in _AT_BOTH_SIZES),
    Modality("t5_caption", Kind.EMBEDDING, 77, embedding_width=4096, positions="sincos1d", codec="t5_caption",
             folder="t5_caption", suffix=".npz", title="T5 XXL"),
    _sequence("metadata", 40, 0.1, "Metadata"),
    _sequence("human_poses", 275, 0.1, "Human poses", max_positions=263, tokenizer="human_poses"),
    _sequence("color_palette", 23, 0.1, "Color palette"),
    _sequence("sam_instance", 290, 0.01, "SAM instances", tokenizer="sam_instance", num_tokens=256),
    _tokens("canny_edge", 8192, "edges", ".png", "Canny edges"),
    _tokens("sam_edge", 8192, "edges", ".png", "SAM edges"),
    _tokens("dinov2", 8192, "dinov2", ".npy", "DINOv2-B/14", patch=14),
    _tokens("imagebind", 8192, "imagebind", ".npy", "ImageBind-H/14", patch=14),
    _global_features("dinov2_global", "dinov2_glob", "DINOv2-B/14 (global)"),
    _global_features("imagebind_global", "imagebind_glob", "ImageBind-H/14 (global)"),
    Modality("rgb@448", Kind.PIXELS, 784, 0, (28, 28), 16, 448,
             codec="rgb", folder="rgb", suffix=".png", title="RGB"),
    *(_tokens(*row, size=448) for row in _AT_BOTH_SIZES),
)  # fmt: skip
GENERATION_ORDER = (  # of keys: maps, then the picture, then text, as in the reference's demo
    "tok_clip", "tok_dinov2", "tok_imagebind", "tok_depth", "tok_normal", "tok_semseg", "tok_canny_edge",
    "tok_sam_edge", "tok_rgb", "caption", "det", "human_poses", "sam_instance", "color_palette", "metadata",
)  # fmt: skip
UNORDERED = ("tok_dinov2_global", "tok_imagebind_global")  # made only where they are asked for by name
RELEASED = Registry({row.name: row for row in _ROWS})


def load_registry(path: Path) -> Registry:
    """The released rows plus those of a model's `modalities.yaml`; errors name the line.

    A row lists only what differs from the released row with the same key (`tok_rgb@64` from `tok_rgb@224`),
    or from the row in its field `like`. Every target gets a folder of its own, with or without `folder`.
    """
    from fourm.modalities.yaml_files import read_rows  # imports yaml

    rows, where = dict[str, Modality](), dict[str, str]()
    with_folder = set[str]()  # names of rows whose entry has a folder
    for entries in read_rows(path):
        places = {key: place for key, (_, place) in entries.items()}
        if "name" not in places:
            raise UsageError(f"{next(iter(places.values()), path)}: this row has no 'name'")
        given = _typed_fields(entries)
        try:
            row = _complete_row(given)
            if row.name in rows:
                raise UsageError(f"modality '{row.name}' has a row already ({where[row.name]})")
        except UsageError as error:
            raise UsageError(f"{places['name']}: {error}") from None
        with_folder |= {row.name} if "folder" in places else set()
        rows[row.name], where[row.name] = row, places.get("folder", places["name"])
    rows = _assign_folders(rows, with_folder)
    if shared := shared_folder(rows.values()):
        raise UsageError(f"{where[shared[0]]}: {shared[1]}")
    return RELEASED.extended(rows.values())


def _assign_folders(rows: Mapping[str, Modality], with_folder: Collection[str]) -> dict[str, Modality]:
    """The rows, by name, with a folder for each target that is not among `with_folder`.

    The lowest resolution of a key gets its plain folder, `rgb`, if that is free; others get `rgb@128`.
    """
    assigned = dict(rows)
    has_own = {*with_folder, *RELEASED.rows}
    taken = {(row.key, row.folder) for row in rows.values() if row.name in has_own}
    targets = [row for row in rows.values() if row.takes_ids and row.name not in with_folder]
    for row in sorted(targets, key=lambda one: one.resolution):
        stem = row.key.removeprefix(TOKENS)
        # The tokens of a grid lie in a folder with the name of the modality.
        is_taken = (row.key, stem) in taken or (row.kind is Kind.GRID and stem == row.name)
        if row.name not in RELEASED.rows:
            own = f"{stem}@{row.name.partition('@')[2] or 'values'}" if is_taken else stem
            assigned[row.name] = replace(row, folder=own)
        taken.add((row.key, stem))
    return assigned


def _typed_fields(entries: Mapping[str, tuple[object, str]]) -> dict[str, Any]:
    """The fields of a row, by name, from values and their places; one error names all that do not fit."""
    hints = {**get_type_hints(Modality, include_extras=True), "like": str}
    given, problems = dict[str, Any](), list[str]()
    for key, (value, place) in entries.items():
        try:
            if key not in hints:
                raise ValueError(f"unknown key '{key}'{near_match(key, hints)}")
            if value is None:
                raise ValueError(f"'{key}' has no value")
            given[key] = to_type(hints[key], value, key)
        except ValueError as error:
            problems.append(f"{place}: {error}")
    if problems:
        raise UsageError("\n".join(problems))
    return given


def _complete_row(given: dict[str, Any]) -> Modality:
    """A row from its fields; others are those of the row that it is like, or follow from its kind.

    UsageError: a field is missing, or the row's codec has another kind or suffix.
    """
    name, like = given["name"], given.pop("like", "")
    key = name.partition("@")[0]
    same_key = (row for row in RELEASED.rows.values() if row.key == key)
    base = RELEASED.get(like) if like else next(same_key, None)
    kind: Any = given.get("kind") or (base.kind if base else None)
    if name in RELEASED.rows:
        given.setdefault("folder", RELEASED.rows[name].folder)
    if "grid" in given:
        given.setdefault("max_tokens", math.prod(given["grid"]))
    if "defaults" in given:
        given.setdefault("rgb_defaults", given["defaults"])
    if kind is Kind.SEQUENCE and "max_tokens" in given:
        given.setdefault("max_positions", given["max_tokens"])
    if base:
        row = replace(base, **given)
    elif missing := [required for required in ("kind", "max_tokens") if required not in given]:
        raise UsageError(f"'{missing[0]}' is missing")
    else:
        defaults = {Kind.GRID: Defaults("roar", 8), Kind.SEQUENCE: Defaults("autoregressive")}.get(kind)
        positions = "sincos1d" if kind in (Kind.SEQUENCE, Kind.EMBEDDING) else "sincos2d"
        others = {"codec": key, "folder": key.removeprefix(TOKENS), "suffix": ".npy", "title": key}
        others |= {"positions": positions, "defaults": defaults, "rgb_defaults": defaults}
        row = Modality(**{**others, **given})
    # The codec of the row must be able to read and write its values.
    known = next((one for one in RELEASED.rows.values() if one.codec == row.codec), row)
    for what, own, due in (("kind", row.kind.value, known.kind.value), ("suffix", row.suffix, known.suffix)):
        if own != due:
            raise UsageError(f"the {what} of codec '{row.codec}' is {due}, not {own}")
    return row
