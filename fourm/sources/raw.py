"""What `fourm tokenize` reads: pictures and maps in folders of a dataset, in tars, in files of columns."""

import io
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fourm.data.dataset import Dataset, flat_advice, folders_in, list_folder, match_spellings
from fourm.data.layout import CROP_SETTINGS, FRAME, MAX_SAMPLES, PICTURES, VALID_PIXELS, Sample
from fourm.data.shards import SHARD_SIZE
from fourm.errors import MissingError, UsageError, near_match
from fourm.files.opening import local_path, no_folder
from fourm.hub.files import ModelFiles, check_tokenizers, tokenizer_advice, weights_of
from fourm.hub.header import read_header
from fourm.modalities.registry import TOKENS, Kind, Modality
from fourm.sources.containers import held_values, read_containers
from fourm.sources.shards import Asked, Shards, find_shards
from fourm.sources.source import (
    Source,
    checked_source,
    classify_source,
    folder_of_values,
    folders_of,
)


@dataclass(frozen=True, slots=True)
class RawInput:
    """The values that are to become tokens."""

    source: Source
    model: ModelFiles
    places: Mapping[Modality, str]  # the folder, or the name of what holds the values of each modality
    notes: tuple[str, ...] = ()  # a sentence for each modality that is left out

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of this machine with a folder for each modality."""
        return not self.source.containers

    def samples(self, out: Path) -> Dataset:
        """All samples. Crop settings in `out` belong to tokens that are there already, so they come first."""
        if self.is_folder:
            return list_raw_samples(Path(self.source.data or ""), out, self.places)
        dataset = read_containers(self.source, self._asked().wanted, self.model)
        own = list_folder(out, CROP_SETTINGS).files if os.path.lexists(out / CROP_SETTINGS) else {}
        samples = (
            replace(one, files={**one.files, CROP_SETTINGS: own[one.key]}) if one.key in own else one
            for one in dataset.samples
        )
        return replace(dataset, samples=tuple(samples))

    def shards(self, size: int = SHARD_SIZE) -> Shards:
        """The samples that have a value of each modality, in shards of at most `size`."""
        return find_shards(self._asked(size), io.BytesIO())

    def _asked(self, size: int = SHARD_SIZE) -> Asked:
        names = tuple(row.name for row in self.places)
        return Asked(self.source, names, self.model, frozenset(names), size=size, more=(VALID_PIXELS,))


def find_raw(
    data: str, endings: Mapping[str, str], model: ModelFiles, names: Sequence[str] | None
) -> RawInput:
    """The values to tokenise: of the modalities that are named, or all that the model's tokenizers read.

    data, endings: as in a `Source`. UsageError: an unknown name, or no values; MissingError: a named
    tokenizer is not on this machine.
    """
    source = classify_source(Source(data=data, endings=endings), model)
    if not source.containers:
        root = local_path(data)
        places = find_raw_folders(root, model, names)
        left_out = missing_tokenizers(value_folders(root, model), model) if names is None else ()
        return RawInput(checked_source(replace(source, data=data, paths=()), model), model, places, left_out)
    there = held_values(source, tokenized_rows(model), model)
    if names is not None:  # that there are none of a name is said when they are read
        there = {row: name or row.folder for row, name in there.items()}
    places, left_out = choose_raw(there, model, names), missing_tokenizers(there, model)
    if not places:
        reads = ", ".join(dict.fromkeys(row.folder for row in there))
        why = f"holds nothing that a tokenizer of model '{model.name}' reads ({reads}); `map` names more"
        why = f"nothing to do; {left_out[0]}" if left_out else why
        raise UsageError(f"{source.containers[0].label}: {why}")
    return RawInput(source, model, places, left_out if names is None else ())


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
