"""What `fourm tokenize` reads: pictures and maps in folders of a dataset, in tars, in files of columns."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fourm.data.dataset import Dataset, list_folder
from fourm.data.layout import CROP_SETTINGS, VALID_PIXELS
from fourm.data.shards import SHARD_SIZE
from fourm.errors import UsageError
from fourm.files.opening import local_path
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Modality
from fourm.sources.containers import held_values, read_containers
from fourm.sources.raw_folders import (
    choose_raw,
    find_raw_folders,
    list_raw_samples,
    missing_tokenizers,
    tokenized_rows,
    value_folders,
)
from fourm.sources.shards import Asked, Shards, find_shards
from fourm.sources.source import Source, checked_source, classify_source


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
