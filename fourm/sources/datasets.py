"""Samples of a dataset: what of it a run reads, from folders that are named as modalities."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fourm.data.dataset import (
    UNKNOWN,
    Dataset,
    Input,
    choose_samples,
    folders_in,
    list_dataset,
    match_listings,
    match_spellings,
)
from fourm.data.layout import CROP_SETTINGS, FRAME, KEPT_PIXELS, PICTURES, Sample
from fourm.data.parts import Part, list_part
from fourm.data.prompts import missing_file
from fourm.errors import UsageError
from fourm.files.opening import local_name
from fourm.modalities.registry import Kind, Modality
from fourm.schedule.keeps import MASK, Keep
from fourm.sources.source import Source, folder_of_values, folders_of

CAPTION = "caption"  # codec of the modality that prompts belong to


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a dataset a run reads."""

    rows: tuple[Modality, ...]  # of the conditions, and of the targets of which a part is kept
    raw: Collection[str]  # grids of which the dataset holds values, not tokens
    keeps: Sequence[Keep] = ()  # also those of super-resolution afterwards
    later: Sequence[Keep] = ()  # of super-resolution alone
    more: tuple[str, ...] = ()  # other folders that are read of the samples that have a file there

    @property
    def masks(self) -> list[str]:
        """Names of masks of which each sample has its own."""
        return [keep.mask for keep in self.keeps if keep.where == MASK and not keep.file]

    @property
    def beside(self) -> tuple[str, ...]:
        """Folders that are read of the samples that have a file there."""
        is_placed = any(shows_part(row, self.raw) for row in self.rows)
        return (FRAME, *((PICTURES, CROP_SETTINGS) if is_placed else ()), *self.more)

    def input(self, source: Source, folders: Mapping[str, str]) -> Input:
        """What is recorded of a dataset; folders: of each modality, or what stands for one."""
        unread = {name for keep in self.later for name in keep.names}
        own = tuple(folder for name, folder in folders.items() if name not in unread)
        return Input("folder", own, source.num_samples, source.subset_seed, upright=bool(source.upright))

    def finish(self, samples: Sequence[Sample], source: Source) -> tuple[Sample, ...]:
        """Listed samples, with masks that serve all of them, and whether they are turned upright."""
        masks = {keep.mask: find_mask(keep.file) for keep in self.keeps if keep.file}
        upright: Literal["", "all"] = "all" if source.upright else ""
        return tuple(replace(one, files={**one.files, **masks}, upright=upright) for one in samples)

    def folders(self, root: Path) -> dict[str, str]:
        """The folder of each modality in a dataset; UsageError if tokens are asked for where values are."""
        return _folders(root, self.rows, self.raw) | dict.fromkeys(self.masks, KEPT_PIXELS)


def read_folder(source: Source, root: Path, wanted: Wanted) -> Dataset:
    """The samples of a dataset."""
    folders = wanted.folders(root)
    return chosen(list_dataset(root, folders, wanted.beside), source, wanted, folders)


def read_part(
    root: Path, folders: Mapping[str, str], beside: Sequence[str], part: Part, places: slice
) -> Dataset:
    """The samples of a part of a dataset that come at these places in the part of its first folder."""
    found = {modality: list_part(root / folder, part) for modality, folder in folders.items()}
    more = {name: list_part(root / name, part) for name in beside if os.path.lexists(root / name)}
    if part.count is not None and (places.start, places.stop) != (0, part.count):
        match_spellings(listings := [*found.values(), *more.values()])
        keys = {*sorted({*listings[0].files, *listings[0].problems})[places]}
        for one in listings:
            one.files = {key: path for key, path in one.files.items() if key in keys}
            one.problems = {
                key: why for key, why in one.problems.items() if key in keys or key.name == UNKNOWN
            }
    return match_listings(found, more, {name: f"a file in {folder}" for name, folder in folders.items()})


def chosen(dataset: Dataset, source: Source, wanted: Wanted, folders: Mapping[str, str]) -> Dataset:
    """As many samples of a listed dataset as are asked for, and what is recorded of it."""
    samples = choose_samples(dataset.samples, source.num_samples, source.subset_seed)
    read = wanted.input(source, folders)
    return replace(dataset, samples=wanted.finish(samples, source), input=read)


def find_mask(file: str) -> Path:
    """The path of a mask that serves all samples; UsageError if it is no readable file."""
    try:
        if os.path.isdir(local_name(file)):
            raise UsageError(f"`keep`: {file} is a folder, not a mask picture")
        os.stat(file)
    except FileNotFoundError as error:
        raise missing_file(Path(file)) from error
    except OSError as error:
        raise UsageError(f"`keep`: {file} cannot be read ({error.strerror})") from error
    return Path(file)


def kept_names(keeps: Sequence[Keep]) -> set[str]:
    """The names of a sample's files from which parts of targets are read, and that say where in a picture."""
    return {name for keep in keeps for name in keep.names} | {PICTURES, CROP_SETTINGS}


def shows_part(row: Modality, raw: Collection[str]) -> bool:
    """True if a condition is read from files of the whole picture, of which a crop has to be taken.

    Files of tokens and captions are of a crop already.
    """
    return row.codec != CAPTION and (row.kind is not Kind.GRID or row.name in raw)


def _folders(root: Path, rows: Sequence[Modality], raw: Collection[str]) -> dict[str, str]:
    """The folder of each condition in a dataset. Tokens are in a folder with the full name of the modality.

    UsageError: tokens are to be read of a modality of which the dataset holds only values.
    """
    folders, present = dict[str, str](), folders_in(root)
    for row in rows:
        values = folder_of_values(row, present)
        if row.kind is not Kind.GRID:
            folders[row.name] = row.folder
        elif row.name in raw:
            folders[row.name] = values or (row.value_names or folders_of(row))[-1]
        elif (
            values and row.value_names and not (root / row.name).exists()
        ):  # asking for tokens of maps is an easy mistake
            advice = f"`cond={values}` reads the folder '{values}' and tokenises it"
            raise UsageError(f"{root}: no folder '{row.name}' of tokens; {advice}")
        else:
            folders[row.name] = row.name
    return folders
