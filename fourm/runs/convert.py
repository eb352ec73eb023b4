"""Files of the reference in open formats: pickled SAM instances (.npy) become JSON (docs/formats.md)."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fourm.data.dataset import list_dataset
from fourm.data.layout import Crop, path_of
from fourm.data.opening import open_file, real
from fourm.data.writing import (
    check_folder,
    check_partial,
    check_root,
    make_all,
    refuse_inside,
    remove_leftovers,
    write_atomic,
)
from fourm.errors import SampleError, UsageError
from fourm.modalities.instances import instances_from_json
from fourm.modalities.text import PICTURE_SIDE
from fourm.output.formats import find_flaw
from fourm.runs.pickled import Array, parse_pickled

FOLDER = "sam_instance"
MAX_BYTES = 1 << 24  # of a file, and of the JSON that it becomes
MAX_ENTRIES = 1 << 24  # of all lists in a file: one array can stand in many places


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one file."""

    source: Path
    target: Path
    was_there: bool = False
    problem: str = ""  # "": all is well


def convert_dataset(root: Path, out: Path, overwrite: bool = False) -> Iterator[Converted]:
    """`root/sam_instance/<folder>/<name>.npy` -> `out/sam_instance/<folder>/<name>.json`, one by one."""
    if not root.is_dir():
        raise UsageError(f"{root}: there is no such folder")
    if real(out) == real(root):
        raise UsageError(f"--out {out}: is the dataset itself, where every sample has one file; name another")
    refuse_inside(out, root / FOLDER)
    check_root(out)
    check_partial(out)
    check_folder(out, out / FOLDER)
    try:
        yield from _convert(root, out, overwrite)
    finally:  # also where the disk is full
        remove_leftovers(out)


def _convert(root: Path, out: Path, overwrite: bool) -> Iterator[Converted]:
    for sample in list_dataset(root, {FOLDER: FOLDER}).samples:
        target = path_of(out, FOLDER, sample.key, ".json")
        if sample.problem:
            yield Converted(sample.files.get(FOLDER, root / FOLDER), target, problem=sample.problem)
            continue
        source = sample.files[FOLDER]
        if os.path.lexists(target) and not overwrite and _is_whole(target):
            yield Converted(source, target, was_there=True)
            continue
        try:
            _write(read_instances(source), source, out, target)
        except SampleError as error:
            yield Converted(source, target, problem=str(error))
        else:
            yield Converted(source, target)


def _is_whole(path: Path) -> bool:
    """False for a file without an end, as a power cut leaves it; what somebody has changed stays."""
    try:
        flaw = find_flaw(path)
    except SampleError:
        return False
    return flaw is None or not flaw.is_cut


def read_instances(path: Path) -> list[object]:
    """The crops of a pickled file as the data of a JSON file."""
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise SampleError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_BYTES:
        raise SampleError(f"{path}: more than {MAX_BYTES >> 20} MiB")
    try:
        crops = _Unfolder(MAX_ENTRIES).crops(parse_pickled(data))
        whole = Crop((PICTURE_SIDE, PICTURE_SIDE), 0, 0, PICTURE_SIDE, PICTURE_SIDE)
        for number in range(max(len(crops), 1)):
            instances_from_json(crops, replace(whole, number=number))
    except ValueError as error:
        raise SampleError(f"{path}: {error}") from error
    return crops


def _write(crops: list[object], source: Path, out: Path, target: Path) -> None:
    text = json.dumps(crops, allow_nan=False, separators=(",", ":")) + "\n"
    if len(text) > MAX_BYTES:
        raise SampleError(f"{source}: comes to more than {MAX_BYTES >> 20} MiB of JSON")

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8")

    make_all(out)
    write_atomic(out, target, write)


@dataclass(slots=True)
class _Unfolder:
    """Arrays become nested lists; each time that one is met counts."""

    left: int  # entries that may still come

    def crops(self, value: object) -> list[object]:
        """The crops of a file."""
        return [self._crop(crop, number) for number, crop in enumerate(self._entries(value))]

    def _crop(self, crop: object, number: int) -> dict[str, object]:
        if not isinstance(crop, dict) or not {"points", "token_ids", "bbox"} <= crop.keys():
            raise ValueError(f"crop {number} is no object with 'points', 'token_ids' and 'bbox'")
        return {
            "points": [self._contour(one) for one in self._entries(crop["points"])],
            "token_ids": self._lists(crop["token_ids"], 2),
            "bbox": self._lists(crop["bbox"], 2),
        }

    def _contour(self, instance: object) -> list[object]:
        """The first contour of an instance, P x 1 x 2 or P x 2, as P x 2."""
        contours = self._entries(instance)
        points = self._lists(contours[0], 3) if contours else []
        if not isinstance(points, list):
            raise ValueError("a contour is no list of points")
        return [point[0] if isinstance(point, list) and len(point) == 1 else point for point in points]

    def _lists(self, value: object, depth: int) -> object:
        """Nested lists of numbers, not deeper than that."""
        if isinstance(value, int | float):
            return value
        if depth == 0:
            raise ValueError("lists are nested too deeply")
        return [self._lists(one, depth - 1) for one in self._entries(value)]

    def _entries(self, value: object) -> list[object]:
        """What a list, a tuple or the first axis of an array holds."""
        if isinstance(value, Array):
            self._count(math.prod(value.shape))
            entries = value.rows()
        elif isinstance(value, list | tuple):
            entries = list(value)
        else:
            raise ValueError("something else stands where a list or an array belongs")
        self._count(len(entries))
        return entries

    def _count(self, number: int) -> None:
        self.left -= number
        if self.left < 0:
            raise ValueError(f"it comes to more than {MAX_ENTRIES:,} entries")
