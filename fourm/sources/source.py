"""Where samples come from, as a user names it: texts, pictures, a dataset, containers, nothing."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fourm.data.containers import (
    Container,
    containers_in,
    find_containers,
    is_container,
    name_containers,
)
from fourm.data.dataset import PICTURE_SUFFIXES, folders_in
from fourm.data.pictures import UNREAD_PICTURES, has_wildcards, names_in
from fourm.data.prompts import JSON_LINES, TABLES, missing_file
from fourm.data.shards import PARQUET, WEBDATASET
from fourm.data.storage import check_address, find_remote_containers, is_remote
from fourm.errors import UsageError
from fourm.files.opening import local_name
from fourm.files.tars import SHARD_SUFFIX
from fourm.hub.catalogue import PARTI
from fourm.hub.datasets import find_hub_containers, is_hub_data
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import TOKENS, Modality, Registry
from fourm.output.markers import marker_files
from fourm.output.record import DONE, RUN, SR_RUN
from fourm.output.samples import load_run

_OTHER_FOLDERS = {"tok_semseg": "semseg_coco"}  # names in datasets of the reference, by key of a modality
_TEXTS = (".txt", *JSON_LINES, *TABLES)
EMPTY, STREAM = "empty", "-"  # values of `data`: no input; standard input


@dataclass(frozen=True, slots=True)
class Source:
    """Where samples come from, as a user names it."""

    prompts: tuple[str, ...] = ()  # captions, one per sample
    data: str | None = None  # a file, a folder, a pattern, STREAM, PARTI or EMPTY
    column: str | None = None  # of a table: where its prompts are
    num_samples: int | None = None
    subset_seed: int | None = None  # None: the first num_samples
    num_variations: int = 1  # of each sample; for the limit of results of a run
    paths: tuple[str, ...] = ()  # pictures, folders of pictures, patterns with wildcards
    files: Mapping[str, str] = field(default_factory=dict)  # one for all samples, by condition (full name)
    upright: bool | None = None  # rotate pictures by their EXIF tag; None: all but those of datasets
    endings: Mapping[str, str] = field(default_factory=dict)  # ending or column of a container -> modality
    containers: tuple[Container, ...] = ()  # that `data` names; see `classify_source`

    @property
    def is_folder(self) -> bool:
        """True if `data` is a folder. Of a classified source, it is a dataset."""
        return os.path.isdir(self.data or "")  # False, not an error, for a name that no file can have

    @property
    def is_text_file(self) -> bool:
        """True if `data` is a file or stream of texts."""
        return self.data not in (None, EMPTY) and not self.containers and not self.is_folder

    @property
    def reads_texts(self) -> bool:
        """True if there are texts, typed or in a file."""
        return bool(self.prompts) or self.is_text_file


def classify_source(source: Source, model: ModelFiles) -> Source:
    """The source with all pictures in `paths`, and with a dataset or a file of texts in `data`.

    A user may name pictures by `data` and a dataset as an argument. UsageError: both are given.
    """
    data, paths = source.data, source.paths
    if source.containers:
        return source
    if data is not None and is_remote(data) and data.lower().endswith(_TEXTS):
        return replace(source, data=check_address(data))
    if data is not None and (found := _find_dataset(data, model)) is not None:
        if paths:
            raise _mixed_error(data, paths[0])
        return replace(source, containers=found)
    if data is not None and (os.path.isdir(data) or _is_pictures(data)):
        if paths:
            raise UsageError(f"pictures are given both as {paths[0]} and as `data={data}`; give them one way")
        return replace(source, data=None, paths=(data,))
    sets = [
        path for path in paths if os.path.isdir(path) and is_dataset(path, names_in(path), model.registry)
    ]
    if not sets:
        return source
    others = [*(path for path in paths if path != sets[0]), *([data] if data else [])]
    if others or len(paths) > 1:
        raise _mixed_error(sets[0], (others or paths)[0])
    return classify_source(replace(source, data=paths[0], paths=()), model)


def checked_source(source: Source, model: ModelFiles) -> Source:
    """The classified source. UsageError: it contradicts itself, or its file is not there."""
    if source.prompts and source.data is not None:
        raise UsageError("prompts are given both as arguments and with `data`; give one of them")
    if source.data == "":
        raise UsageError("`data`: is empty; name a prompt file, a folder, a picture or - for standard input")
    source = classify_source(source, model)
    if source.containers and source.files:
        raise _mixed_error(source.data or "", next(iter(source.files.values())))
    if source.is_text_file:
        _check_file(source.data or "")
    elif source.column is not None and not source.containers:
        what = ".tsv, .csv and .jsonl files, tars and Parquet files of `data`"
        raise UsageError(f"`column={source.column}`: only {what} have one")
    if source.endings and not source.containers:
        name, modality = next(iter(source.endings.items()))
        raise UsageError(f"`map={name}={modality}`: only tars and Parquet files of `data` have one")
    if source.subset_seed is not None and source.num_samples is None:
        raise UsageError("`subset_seed` draws from the samples; `num_samples` must say how many")
    return source


def is_dataset(path: str, names: Sequence[str], registry: Registry) -> bool:
    """True if a folder, with these names in it, has a folder named as a modality, or the record of a run."""
    known = {name for row in registry.rows.values() for name in (row.key, *folders_of(row), row.name)}
    has_folder = any(os.path.isdir(os.path.join(path, name)) for name in known.intersection(names))
    return has_folder or RUN in names or SR_RUN in names


def folder_of_values(row: Modality, present: Collection[str]) -> str:
    """The folder, of those present, that holds the values of a grid; "" for none."""
    return next((name for name in (*row.value_names, *folders_of(row)) if name in present), "")


def folders_of(row: Modality) -> tuple[str, ...]:
    """The folders of a dataset that may hold values of a modality, the likeliest first."""
    names = (row.folder, row.key.removeprefix(TOKENS), _OTHER_FOLDERS.get(row.key, ""))
    return tuple(dict.fromkeys(name for name in names if name))


def _find_dataset(data: str, model: ModelFiles) -> tuple[Container, ...] | None:
    """The containers that `data` names, () for a dataset in folders; None for texts and pictures."""
    if is_hub_data(data):
        return find_hub_containers(data)
    if is_remote(data):
        return find_remote_containers(data)
    local_name(data)
    if not os.path.isdir(data):
        return find_containers(data) if is_container(data) else None
    if is_dataset(data, folders_in(Path(data)), model.registry):
        return ()
    if os.path.isfile(os.path.join(data, RUN)):
        return _containers_of_run(Path(data))
    return containers_in(Path(data)) or None


def _containers_of_run(root: Path) -> tuple[Container, ...]:
    """The files of a run in shards of one file each; () of another, and where its record is damaged."""
    try:
        run = load_run(root)
    except UsageError:
        return ()
    ending = {WEBDATASET: SHARD_SUFFIX, PARQUET: f".{PARQUET}"}.get(run.record.layout)
    if ending is None:
        return ()
    done = run.root / DONE[run.file]
    names = (path.relative_to(done).with_suffix(ending) for path in marker_files(run.root, run.file))
    return name_containers([run.root / name for name in names if os.path.isfile(run.root / name)], run.root)


def _is_pictures(data: str) -> bool:
    """True if a text names pictures by its ending, or by a pattern."""
    return data.lower().endswith((*PICTURE_SUFFIXES, *UNREAD_PICTURES)) or has_wildcards(data)


def _mixed_error(dataset: str, other: str) -> UsageError:
    return UsageError(f"{dataset}: is a dataset, which is not read together with {other}; give one of them")


def _check_file(data: str) -> None:
    """Refuse a file of `data` that does not exist or cannot be read."""
    try:
        if data not in (STREAM, PARTI) and not is_remote(data):
            os.stat(data)
    except FileNotFoundError as error:
        raise missing_file(Path(data)) from error
    except OSError as error:
        raise UsageError(f"{data}: cannot be read ({error.strerror})") from error
