"""How targets came to be: the pictures that a run has kept after some of its steps, and who decided what."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fourm.codecs.files import read_array, read_picture
from fourm.data.layout import Key, path_of
from fourm.errors import SampleError
from fourm.modalities.registry import Kind, Modality
from fourm.output.record import RunRecord
from fourm.runs.outputs import order_place, preview_place

MAX_SIDE = 2048  # pixels of a picture that is shown: larger ones are made smaller


@dataclass(frozen=True, slots=True)
class Frame:
    """What a target looked like after a step."""

    step: int  # of the chain, from 1
    decided: int  # tokens of the target that were decided by then
    picture: Image.Image


@dataclass(frozen=True, slots=True)
class Film:
    """How a target of one variation came to be."""

    modality: str
    title: str
    variation: int | None
    grid: tuple[int, int]  # rows, columns of tokens
    order: tuple[int, ...] | None  # the step of the chain, from 1, that decided each token, row by row
    frames: tuple[Frame, ...]


def read_film(
    root: Path, record: RunRecord, row: Modality, key: Key, variation: int | None
) -> tuple[Film | None, list[SampleError]]:
    """The film of one target and variation (as file names show it), and what is wrong with its files.

    None where the run has kept nothing of it. row: under the name that the record has for the target.
    """
    problems = list[SampleError]()
    if not record.preview or row.kind is not Kind.GRID or row.grid is None:
        return None, problems
    order = _order(root, row, key, variation, problems)
    frames = tuple(_frames(root, record, row.name, key, variation, problems))
    film = Film(row.name, row.title, variation, row.grid, order, frames) if order or frames else None
    return film, problems


def steps_of(record: RunRecord) -> list[tuple[int, str, int]]:
    """Index (from 0), target and number of tokens of each step of a record's schedule."""
    steps = record.schedule["steps"]
    return [(step["index"], step["target"], step["num_tokens"]) for step in steps]


def limited(picture: Image.Image) -> Image.Image:
    """A picture that is not too large to be shown."""
    if max(picture.size) > MAX_SIDE:
        picture = picture.copy()
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def _order(
    root: Path, row: Modality, key: Key, variation: int | None, problems: list[SampleError]
) -> tuple[int, ...] | None:
    place = order_place(row.name)
    path = path_of(root, place.folder, key, place.suffix, variation)
    if not path.is_file():
        return None
    try:
        steps = read_array(path)
        if steps.dtype.kind not in "iu" or steps.size != row.max_tokens:
            raise SampleError(f"{path}: {steps.dtype} of shape {steps.shape}, not a step for each token")
    except SampleError as error:
        problems.append(error)
        return None
    return tuple(steps.ravel().tolist())


def _frames(
    root: Path, record: RunRecord, target: str, key: Key, variation: int | None, problems: list[SampleError]
) -> Iterator[Frame]:
    decided = 0
    for index, name, count in steps_of(record):
        if name != target:
            continue
        decided += count
        place = preview_place(target, index + 1)
        path = path_of(root, place.folder, key, place.suffix, variation)
        if not path.is_file():
            continue
        try:
            yield Frame(index + 1, decided, limited(read_picture(path).convert("RGB")))
        except SampleError as error:
            problems.append(error)
