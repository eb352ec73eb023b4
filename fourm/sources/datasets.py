"""Samples of a dataset: what of it a run reads, from folders that are named as modalities."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
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
from fourm.data.parts import DatasetPart, list_part, tops_in
from fourm.data.prompts import missing_file
from fourm.errors import UsageError, printable
from fourm.files.opening import local_name
from fourm.files.tars import SHARD_SUFFIX, read_tar
from fourm.modalities.registry import Kind, Modality
from fourm.schedule.keeps import MASK, Keep
from fourm.sources.source import Source, folder_of_values, folders_of

CAPTION = "caption"  # codec of the modality that prompts belong to
_SHOWN = 3  # folders that a sentence names


@dataclass(frozen=True, slots=True)
class WantedFiles:
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


def read_folder(source: Source, root: Path, wanted: WantedFiles) -> Dataset:
    """The samples of a dataset."""
    folders = wanted.folders(root)
    return choose_listed(list_dataset(root, folders, wanted.beside), source, wanted, folders)


def read_part(
    root: Path, folders: Mapping[str, str], beside: Sequence[str], part: DatasetPart, places: slice
) -> Dataset:
    """The samples of a part of a dataset that come at these places in the part of its first folder.

    One without a file there counts to the sample before it, or else to the first one.
    """
    found = {modality: list_part(root / folder, part) for modality, folder in folders.items()}
    more = {name: list_part(root / name, part) for name in beside if os.path.lexists(root / name)}
    first = next(iter(found.values()))
    for folder in sorted({key.folder for key in first.files if not part.holds(key.folder)}):  # of whole keys
        for one in (*found.values(), *more.values()):
            for key, path in list_part(one.top, DatasetPart(folder, 0)).files.items():
                if key in first.files and one.files.get(key) != path:
                    one.put(key, path)
    if part.count is not None and (places.start, places.stop) != (0, part.count):
        listings = [*found.values(), *more.values()]
        match_spellings(listings)
        known = sorted({*first.files, *(key for key in first.problems if key.name != UNKNOWN)})
        here, after = known[places], known[places.stop :][:1]
        for one in listings:
            keys = {
                key for key in (*one.files, *one.problems)
                if here and (places.start == 0 or here[0] <= key) and not (after and after[0] <= key)
            }  # fmt: skip
            one.files = {key: path for key, path in one.files.items() if key in keys}
            one.problems = {
                key: why for key, why in one.problems.items() if key in keys or key.name == UNKNOWN
            }
    return match_listings(found, more, {name: f"a file in {folder}" for name, folder in folders.items()})


def find_lacking(root: Path, folders: Sequence[str], found: Iterable[str]) -> dict[str, list[str]]:
    """By the folder of a modality, names of folders and tars directly in it that the first one lacks.

    found: folders of the parts of the first one.
    """
    tops = {folder.partition("/")[0] for folder in found}
    named = {folder: sorted(tops_in(root / folder) - tops) for folder in folders[1:]}
    return {folder: names for folder, names in named.items() if names}


def notes_of_lacking(root: Path, first: str, lacking: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """A sentence for each folder in which `find_lacking` has found something."""
    for folder, names in lacking.items():
        few = ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        what = f"{len(names):,} folders or tars" if len(names) > 1 else "a folder or tar"
        yield f"{root}: {folder} has {what} that {first} lacks ({few}); those samples are left out"


def hold_whole_keys(root: Path, lacking: Mapping[str, Sequence[str]]) -> bool:
    """Whether one is a tar of whole keys, which may be of any folder; tars beside each other are alike."""
    tars = (root / folder / f"{names[0]}{SHARD_SUFFIX}" for folder, names in lacking.items())
    with suppress(OSError):  # whoever reads it tells of it
        return any(os.path.isfile(tar) and read_tar(tar).is_whole for tar in tars)
    return False


def choose_listed(
    dataset: Dataset, source: Source, wanted: WantedFiles, folders: Mapping[str, str]
) -> Dataset:
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
