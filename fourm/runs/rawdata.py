"""What `fourm tokenize` is asked for and works on: folders of pictures and maps, samples, settings."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fourm.data.dataset import Dataset, Listing, flat_advice, folders_in, list_folder, match_spellings
from fourm.data.layout import CROP_SETTINGS, MAX_SAMPLES, PICTURES, Key, Sample, check_apart
from fourm.errors import MissingError, UsageError, near_match
from fourm.hub.files import ModelFiles, check_tokenizers, tokenizer_advice, weights_of
from fourm.hub.header import read_header
from fourm.modalities.registry import Kind, Modality
from fourm.runs.request import check_attention, check_seed
from fourm.runs.world import World

VALID = "mask_valid"  # folder of a dataset: which pixels of a sample mean something
MAX_CROPS = 10_000
_OTHER_FOLDERS = {"tok_semseg": "semseg_coco"}  # as the reference's data has them
_ENCODERS = ("encoder.",)


@dataclass(frozen=True, slots=True)
class RawFolder:
    """A folder of values, and the modality whose tokens they become."""

    row: Modality
    folder: str


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """Everything about one run of `tokenize`.

    The files of a sample are named by row; PICTURES, VALID and CROP_SETTINGS may be among them.
    """

    model: ModelFiles
    rows: tuple[Modality, ...]
    samples: Sequence[Sample]
    out: Path
    num_crops: int | None = None  # None: as many as the samples' crop settings have, else 1
    min_scale: float = 0.8  # smallest share of a picture's area that a random crop shows
    seed: int = 0
    batch_size: int | None = None  # samples that are read together; None: chosen by the device
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "sdpa"
    overwrite: bool = False
    world: World = field(default_factory=World)

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_attention(self.attention)
        check_apart(self.out, self.samples)
        if not 0 < self.min_scale <= 1:
            raise UsageError(f"--min-scale {self.min_scale:g}: a share of the area lies above 0, up to 1")
        if self.num_crops is not None and not 1 <= self.num_crops <= MAX_CROPS:
            raise UsageError(f"--crops {self.num_crops}: a sample has 1 to {MAX_CROPS:,} crops")


def find_folders(root: Path, model: ModelFiles, names: Sequence[str] | None) -> tuple[RawFolder, ...]:
    """The folders that are to become tokens: those that are named, or all that the model's tokenizers read.

    A name is that of a folder (`depth`), of a modality (`tok_depth@224`), or of all its sizes (`tok_depth`).
    """
    if not root.is_dir():
        raise UsageError(f"{root}: {'is a file, not a' if root.exists() else 'no such'} folder")
    rows = [row for row in model.rows if row.kind is Kind.GRID and row.tokenizer]
    present = folders_in(root)
    if names is None:
        readable = [row for row in rows if row.tokenizer in model.tokenizers]
        found = [one for row in readable if (one := _folder_of(row, present))]
        if not found:
            raise UsageError(_nothing_to_do(root, model, rows, present))
    else:
        chosen = {row.name: row for name in names for row in _rows_of(name, rows, model)}
        found = [_required(root, model, row, present) for row in chosen.values()]
    check_tokenizers(model, [one.row for one in found])
    for one in found:
        path = model.tokenizers[one.row.tokenizer]
        if not any(name.startswith(_ENCODERS) for name in read_header(weights_of(path))[1]):
            raise UsageError(f"{one.row.name}: its tokenizer {path} has no encoder, so it makes no tokens")
    return tuple(found)


def missing_tokenizers(root: Path, model: ModelFiles) -> tuple[str, ...]:
    """Half a sentence for each folder that the model could read if its tokenizer were here."""
    present = folders_in(root)
    rows = [row for row in model.rows if row.kind is Kind.GRID and row.tokenizer not in model.tokenizers]
    return tuple(
        f"{one.folder} is left out: its tokenizer is not here; {tokenizer_advice(model, row.tokenizer)}"
        for row in rows
        if row.tokenizer and (one := _folder_of(row, present)) is not None
    )


def list_samples(root: Path, out: Path, folders: Sequence[RawFolder]) -> Dataset:
    """All samples that have a file in one of the folders at least, sorted by key.

    Crop settings in `out`, which belong to tokens that are there, come before those of the dataset.
    """
    listed = {one.row.name: list_folder(root, one.folder) for one in folders}
    beside = {name: _list_if_there(root, name) for name in (PICTURES, VALID, CROP_SETTINGS)}
    own_settings = _list_if_there(out, CROP_SETTINGS)
    match_spellings([*listed.values(), *beside.values(), own_settings])
    problems = dict[Key, str]()
    for one in listed.values():
        problems |= one.all_problems
    notes = tuple(dict.fromkeys(note for one in listed.values() for note in one.notes))
    keys = sorted({key for one in listed.values() for key in one.files} | problems.keys())
    if not keys:
        names = ", ".join(one.folder for one in folders)
        why = notes[0] if notes else "files lie in FOLDER/ANY/NAME.EXT"
        raise UsageError(f"{root}: no file in {names}; {why}")
    if len(keys) > MAX_SAMPLES:
        raise UsageError(f"{root}: {len(keys):,} samples; one run takes at most {MAX_SAMPLES:,}")
    samples = list[Sample]()
    for key in keys:
        extra = beside | ({CROP_SETTINGS: own_settings} if key in own_settings.files else {})
        wrong = (problem for one in extra.values() if (problem := one.problem_of(key)))
        files = {name: one.files[key] for name, one in (listed | extra).items() if key in one.files}
        samples.append(Sample(key, files=files, problem=problems.get(key) or next(wrong, "")))
    return Dataset(tuple(samples), notes=notes)


def _list_if_there(root: Path, folder: str) -> Listing:
    return list_folder(root, folder) if os.path.lexists(root / folder) else Listing()


def _folders_of(row: Modality) -> tuple[str, ...]:
    """Where the values of a modality may lie: its decoded values, or pictures of any size."""
    names = (row.folder, row.key.removeprefix("tok_"), _OTHER_FOLDERS.get(row.key, ""))
    return tuple(dict.fromkeys(name for name in names if name))


def _folder_of(row: Modality, present: Sequence[str]) -> RawFolder | None:
    return next((RawFolder(row, name) for name in _folders_of(row) if name in present), None)


def _rows_of(name: str, rows: Sequence[Modality], model: ModelFiles) -> list[Modality]:
    """The rows that a name means."""
    found = [row for row in rows if name in (row.name, row.key, *_folders_of(row))]
    if not found:
        known = [word for row in rows for word in (row.key.removeprefix("tok_"), row.name)]
        raise UsageError(
            f"--modalities: '{name}' is nothing that model '{model.name}' has a tokenizer for"
            + (near_match(name, known) or f"; it has {', '.join(dict.fromkeys(known[::2]))}")
        )
    return found


def _required(root: Path, model: ModelFiles, row: Modality, present: Sequence[str]) -> RawFolder:
    one = _folder_of(row, present)
    if one is None:
        there = ", ".join(present) or "no folder at all"
        raise UsageError(
            f"{root}: no folder {' or '.join(_folders_of(row))} for {row.name}; there is {there}"
        )
    if row.tokenizer not in model.tokenizers:
        advice = tokenizer_advice(model, row.tokenizer)
        raise MissingError(f"{row.name}: its tokenizer '{row.tokenizer}' is not here; {advice}")
    return one


def _nothing_to_do(root: Path, model: ModelFiles, rows: Sequence[Modality], present: Sequence[str]) -> str:
    """Why there is nothing to do, and what would be right."""
    if missing := missing_tokenizers(root, model):
        return f"{root}: nothing to do; {missing[0]}"
    wanted = dict.fromkeys(name for row in rows for name in _folders_of(row))
    deeper = [name for name in present if any((root / name / folder).is_dir() for folder in wanted)]
    if deeper:
        advice = f"; {root / deeper[0]} has some"
    else:
        advice = f"; there is {', '.join(present) or 'none at all'}{flat_advice(root, PICTURES)}"
    return f"{root}: no folder that a tokenizer of model '{model.name}' reads ({', '.join(wanted)}){advice}"
