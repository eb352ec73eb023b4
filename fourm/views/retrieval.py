"""Nearest neighbours among the features of a folder: exact, and the same for any order of files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.drawing import text_card
from fourm.codecs.files import read_features, read_text
from fourm.codecs.images import GridCodec
from fourm.codecs.maps import FORMS, read_pixels
from fourm.codecs.table import Codec, build_codec
from fourm.data.containers import is_there
from fourm.data.dataset import list_dataset
from fourm.data.layout import Key, Sample
from fourm.data.pictures import find_pictures, names_in
from fourm.errors import SampleError, UsageError, check_choice, near_match
from fourm.modalities.registry import Kind, Modality, Registry
from fourm.output.record import RUN
from fourm.output.samples import open_runs
from fourm.results.job import ENCODED
from fourm.sources.source import is_dataset
from fourm.views.panels import reader_for
from fourm.views.plots import draw_sheet

METRICS = ("euclidean", "cosine")
EMBED = "embed"  # the name, for users, of the features that `fourm embed` makes
Vectors = NDArray[np.float32]  # (N, C)


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """One vector for each sample of a folder, and what could not be read."""

    keys: tuple[str, ...]  # N names, `folder/name`
    vectors: Vectors
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A sample and how far its features are from those of the query."""

    key: str
    distance: float  # Euclidean, or 1 - cosine


def feature_row(registry: Registry, name: str) -> Modality | None:
    """The row of features that a user names: `dinov2_global`, `tok_dinov2_global` or `tok_clip@224`.

    None for EMBED, the features that `fourm embed` makes: they are of no modality.
    """
    if name == EMBED:
        return None
    forms = ((row, FORMS.get(row.codec)) for row in registry.rows.values() if row.kind is Kind.GRID)
    rows = [row for row, form in forms if form is not None and form.resample is None]
    return _named_row("by", name, rows, "are no features", EMBED)


def load_features(root: Path, row: Modality | None) -> Features:
    """The features of a dataset folder; a map of them (C, h, w) counts as the mean over its places.

    row: None for what `fourm embed` wrote: means over tokens, of several layers one after the other.
    """
    name, folder = (row.name, row.folder) if row is not None else (ENCODED.folder, ENCODED.folder)
    if row is not None and not (root / folder).exists() and (root / ENCODED.folder).is_dir():
        advice = f"`by={EMBED}` compares what `fourm embed` wrote there"
        raise UsageError(f"{root}: no folder '{folder}'; {advice}")
    samples = _in_shards(root, name, folder) or list_dataset(root, {name: folder}).samples
    read = _read_encoded if row is None else partial(_read_map, build_codec(row))
    keys, vectors, problems = list[str](), list[NDArray[np.float32]](), list[str]()
    for sample in samples:
        path = sample.files.get(name, root)
        try:
            if sample.problem:
                raise SampleError(sample.problem)
            vector = read(path)
            if vectors and len(vector) != len(vectors[0]):
                raise SampleError(f"{path}: {len(vector)} channels, where others have {len(vectors[0])}")
        except SampleError as error:
            problems.append(str(error))
        else:
            keys.append(sample.key.text)
            vectors.append(vector)
    if not vectors:
        raise UsageError(f"{root}: no features can be read; {problems[0]}")
    return Features(tuple(keys), np.stack(vectors), tuple(problems))


def nearest(
    queries: Vectors, among: Features, count: int, metric: str = METRICS[0], own: Sequence[str] = ()
) -> list[list[Neighbour]]:
    """For each row of queries (Q, C) the nearest `count` samples, nearest first; equal ones by name.

    own: the names that the queries have among these samples; none of them is its own neighbour.
    """
    check_choice("metric", metric, METRICS)
    if queries.shape[1] != among.vectors.shape[1]:
        counts = f"the queries have {queries.shape[1]} channels, the collection {among.vectors.shape[1]}"
        raise UsageError(f"{counts}: they come from different models or layers")
    order = sorted(range(len(among.keys)), key=lambda i: among.keys[i])
    rows, vectors, found = queries.astype(np.float64), among.vectors[order].astype(np.float64), []
    if metric == "cosine":
        rows, vectors = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (rows, vectors))
    for number, row in enumerate(rows):
        if metric == "cosine":
            distances = 1 - np.einsum("nc,c->n", vectors, row)  # equal vectors have equal sums
        else:  # differences first: the expanded square loses the nearest neighbours' digits
            distances = np.sqrt(np.square(vectors - row).sum(axis=1))
        best = [i for i in np.argsort(distances, kind="stable")[: count + 1]
                if not own or among.keys[order[i]] != own[number]][:count]  # fmt: skip
        found.append([Neighbour(among.keys[order[i]], float(distances[i])) for i in best])
    return found


def as_rows(found: Mapping[str, Sequence[Neighbour]]) -> list[dict[str, object]]:
    """Neighbours of each query as plain data."""
    return [
        {"query": key, "neighbours": [{"key": n.key, "distance": round(n.distance, 6)} for n in neighbours]}
        for key, neighbours in found.items()
    ]


def draw_neighbours(
    queries: Path, among: Path, registry: Registry, name: str | None, found: Mapping[str, Sequence[Neighbour]]
) -> Image.Image:
    """A sheet with a row for each query: its picture or caption, then its neighbours' values of this name.

    queries, among: folders that hold these. name: None for pictures. UsageError: there are no such values.
    """
    seen = [row for row in registry.rows.values() if row.kind in (Kind.GRID, Kind.PIXELS)]
    row = _named_row("show", name or "rgb", seen, "is no folder of pictures or maps")
    shown = _files(among, row.folder, registry)
    near_ones = dict.fromkeys(one.key for near in found.values() for one in near)
    if near_ones and not shown:
        advice = f"holds no {row.folder}; `pictures` names a folder that does"
        raise UsageError(f"`show={name or row.folder}`: {among} {advice}")
    keys = [key for key in near_ones if key in shown]
    codec = build_codec(row)
    values: list[Any] = [reader_for(row).read(shown[key]) for key in keys]
    made = [codec.picture(x) for x in values]
    if values and isinstance(codec, GridCodec):
        made = codec.pictures(values)  # with the same colours for all
    drawn = dict(zip(keys, made, strict=True))
    pictures, captions = (_files(queries, folder, registry) for folder in ("rgb", "caption"))
    rows = []
    for key, neighbours in found.items():
        if key in pictures:
            asked = Image.fromarray(read_pixels(pictures[key]))
        else:
            asked = text_card(read_text(captions[key]) if key in captions else key)
        near = [(drawn.get(n.key) or text_card("no file"), f"{n.key}\n{n.distance:.4f}") for n in neighbours]
        rows.append([(asked, key), *near])
    most = max(map(len, found.values()))
    return draw_sheet(rows, ["query", *(f"neighbour {rank}" for rank in range(1, most + 1))])


def _read_map(codec: Codec, path: Path) -> NDArray[np.float32]:
    """The mean over the places of a map of features, (C,)."""
    value = np.asarray(codec.read(path), dtype=np.float32)
    return value.reshape(len(value), -1).mean(axis=1)


def _read_encoded(path: Path) -> NDArray[np.float32]:
    """The features (layers, D) or (layers, N, D) of a file as one vector, their means over tokens."""
    value = read_features(path)
    means = value.mean(axis=1, dtype=np.float64) if value.ndim == 3 else value
    return means.astype(np.float32).reshape(-1)


def _named_row(setting: str, name: str, rows: Sequence[Modality], problem: str, *more: str) -> Modality:
    """The row of a name; UsageError names those that there are, `more` too, or a near one."""
    named = {one: row for row in reversed(rows) for one in (row.name, row.key, row.folder, *row.value_names)}
    if name not in named:
        known = dict.fromkeys((row.folder, *row.value_names)[-1] for row in rows)
        close = near_match(name, [*named, *more]) or f"; there are {', '.join([*known, *more])}"
        raise UsageError(f"`{setting}`: '{name}' {problem}{close}")
    return named[name]


def _files(root: Path, folder: str, registry: Registry) -> dict[str, Path]:
    """The files of a folder by the names of their samples; none where there is no such folder.

    The pictures of a folder that is neither of a run nor a dataset are named as `fourm embed` names them.
    """
    samples = _in_shards(root, folder, folder)
    if not samples and (root / folder).is_dir():
        samples = list_dataset(root, {folder: folder}).samples
    elif not samples and folder == "rgb" and not is_dataset(str(root), names_in(root), registry):
        found = find_pictures([str(root)], partial(is_dataset, registry=registry))
        return {key.text: path for key, path in zip(found.keys, found.paths, strict=True)}
    return {sample.key.text: sample.files[folder] for sample in samples if not sample.problem}


def _in_shards(root: Path, name: str, folder: str) -> Sequence[Sample]:
    """The results of sharded runs in a folder that have a file of this kind, called as files would be."""
    found = list[Sample]()
    for run in open_runs(root) if (root / RUN).is_file() else ():
        places = [place for place in run.places if place.folder == folder and run.record.is_sharded]
        for place, sample in ((place, sample) for place in places for sample in run.samples()):
            for number in (None,) if place.shared else run.variations:
                path = root / sample.file(place, number)
                end = "" if number is None else f"-v{number}"
                if is_there(path):
                    found.append(Sample(Key(sample.key.folder, sample.key.name + end), files={name: path}))
    return found
