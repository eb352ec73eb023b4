"""The folders of a dataset that `fourm tokenize` reads, and the samples in them."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fourm.data.dataset import Dataset, flat_advice, folders_in, list_folder, match_spellings
from fourm.data.layout import CROP_SETTINGS, FRAME, MAX_SAMPLES, PICTURES, VALID_PIXELS, Sample
from fourm.errors import MissingError, UsageError, near_match
from fourm.files.opening import no_folder
from fourm.hub.files import ModelFiles, check_tokenizers, tokenizer_advice, weights_of
from fourm.hub.header import read_header
from fourm.modalities.registry import TOKENS, Kind, Modality

_OTHER_FOLDERS = {"tok_semseg": "semseg_coco"}  # names in datasets of the reference, by key of a modality


def find_raw_folders(root: Path, model: ModelFiles, names: Sequence[str] | None) -> dict[Modality, str]:
    """The folders to tokenise, by modality: those that are named, or all that the model's tokenizers read.

    A name is that of a folder (`depth`), of a modality (`tok_depth@224`), or of all its sizes (`tok_depth`).
    UsageError: an unknown name, or no folder; MissingError: a named tokenizer is not on this machine.
    """
    if not root.is_dir():
        raise no_folder(root)
    folders = value_folders(root, model)
    for row in _named_rows(names or (), model, folders):
        if not folders[row]:
            there = ", ".join(folders_in(root)) or "no folder at all"
            wanted = " or ".join(folders_of(row))
            there += flat_advice(root, PICTURES) if PICTURES in folders_of(row) else ""
            raise UsageError(f"{root}: no folder {wanted} for {row.name}; there is {there}")
    found = choose_raw(folders, model, names)
    if not found:
        if missing := missing_tokenizers(folders, model):
            raise UsageError(f"{root}: nothing to do; {missing[0]}")
        present, readable = folders_in(root), dict.fromkeys(n for row in folders for n in folders_of(row))
        deeper = [name for name in present if any((root / name / folder).is_dir() for folder in readable)]
        there = f"there is {', '.join(present) or 'none at all'}{flat_advice(root, PICTURES)}"
        advice = f"{root / deeper[0]} has some" if deeper else there
        reads = f"that a tokenizer of model '{model.name}' reads ({', '.join(readable)})"
        raise UsageError(f"{root}: no folder {reads}; {advice}")
    return found


def choose_raw(
    there: Mapping[Modality, str], model: ModelFiles, names: Sequence[str] | None
) -> dict[Modality, str]:
    """Of the modalities whose values are there, those that are named, or all that a tokenizer reads.

    there: what holds the values of each modality; "" for nothing.
    """
    found = dict[Modality, str]()
    for row in there if names is None else _named_rows(names, model, there):
        if there[row] and row.tokenizer in model.tokenizers:
            found[row] = there[row]
        elif there[row] and names is not None:
            advice = tokenizer_advice(model, row.tokenizer)
            raise MissingError(f"{row.name}: its tokenizer '{row.tokenizer}' is not here; {advice}")
    check_tokenizers(model, found)
    for row in found:
        path = model.tokenizers[row.tokenizer]
        if not any(name.startswith("encoder.") for name in read_header(weights_of(path))[1]):
            raise UsageError(f"{row.name}: its tokenizer {path} has no encoder, so it makes no tokens")
    return found


def missing_tokenizers(there: Mapping[Modality, str], model: ModelFiles) -> tuple[str, ...]:
    """A note for each modality that is left out because its tokenizer is not on this machine."""
    return tuple(
        f"{name} is left out: its tokenizer is not here; {tokenizer_advice(model, row.tokenizer)}"
        for row, name in there.items()
        if name and row.tokenizer not in model.tokenizers
    )


def list_raw_samples(root: Path, out: Path, folders: Mapping[Modality, str]) -> Dataset:
    """All samples that have a file in one of the folders at least, sorted by key.

    Crop settings in `out` belong to tokens that are there already, so they replace those of the dataset.
    """
    listed = {row.name: list_folder(root, folder) for row, folder in folders.items()}
    names = (PICTURES, VALID_PIXELS, CROP_SETTINGS, FRAME)
    beside = {name: list_folder(root, name) for name in names if os.path.lexists(root / name)}
    own = {name: list_folder(out, name) for name in (CROP_SETTINGS,) if os.path.lexists(out / name)}
    match_spellings([*listed.values(), *beside.values(), *own.values()])
    problems = {key: problem for one in listed.values() for key, problem in one.problems.items()}
    notes = tuple(dict.fromkeys(note for one in listed.values() for note in one.notes))
    keys = sorted({key for one in listed.values() for key in one.files} | problems.keys())
    if not keys:
        why = notes[0] if notes else "files lie in FOLDER/ANY/NAME.EXT"
        raise UsageError(f"{root}: no file in {', '.join(folders.values())}; {why}")
    if len(keys) > MAX_SAMPLES:
        raise UsageError(f"{root}: {len(keys):,} samples; one run takes at most {MAX_SAMPLES:,}")
    samples = list[Sample]()
    for key in keys:
        extra = beside | {name: one for name, one in own.items() if key in one.files}
        wrong = (one.problems[cause] for one in extra.values() if (cause := one.cause_of(key)))
        files = {name: one.files[key] for name, one in (listed | extra).items() if key in one.files}
        samples.append(Sample(key, files=files, problem=problems.get(key) or next(wrong, "")))
    return Dataset(tuple(samples), notes=notes)


def tokenized_rows(model: ModelFiles) -> list[Modality]:
    """The modalities of a model whose tokens a tokenizer makes."""
    return [row for row in model.rows if row.kind is Kind.GRID and row.tokenizer]


def value_folders(root: Path, model: ModelFiles) -> dict[Modality, str]:
    """For each modality with a tokenizer, the folder of values that is there; "" for none."""
    present = folders_in(root)
    return {row: folder_of_values(row, present) for row in tokenized_rows(model)}


def _named_rows(names: Sequence[str], model: ModelFiles, rows: Collection[Modality]) -> list[Modality]:
    """The rows that names of folders and modalities mean, each once."""
    chosen = dict[str, Modality]()
    for name in names:
        found = [row for row in rows if name in (row.name, row.key, *folders_of(row))]
        if not found:
            keys = dict.fromkeys(row.key.removeprefix(TOKENS) for row in rows)
            near = near_match(name, [*keys, *(row.name for row in rows)]) or f"; it has {', '.join(keys)}"
            what = f"is nothing that model '{model.name}' has a tokenizer for"
            raise UsageError(f"`modalities`: '{name}' {what}{near}")
        chosen |= {row.name: row for row in found}
    return list(chosen.values())


def folder_of_values(row: Modality, present: Collection[str]) -> str:
    """The folder, of those present, that holds the values of a grid; "" for none."""
    return next((name for name in (*row.value_names, *folders_of(row)) if name in present), "")


def folders_of(row: Modality) -> tuple[str, ...]:
    """The folders of a dataset that may hold values of a modality, the likeliest first."""
    names = (row.folder, row.key.removeprefix(TOKENS), _OTHER_FOLDERS.get(row.key, ""))
    return tuple(dict.fromkeys(name for name in names if name))
