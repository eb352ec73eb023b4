"""Where tokens of values and their crops go: to files that are kept from run to run, or into a shard."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fourm.codecs.files import pack_crops, pack_ids, read_array, write_crops
from fourm.data.layout import CROP_SETTINGS, Crop, Key, Sample, path_of
from fourm.errors import SampleError
from fourm.files.writing import create_atomic, write_data
from fourm.inputs.conditions import Work
from fourm.inputs.request import TokenizeRequest
from fourm.modalities.registry import Modality
from fourm.output.processes import Process
from fourm.output.record import BASE
from fourm.results.job import CROPS, ids_place
from fourm.results.sinks import ShardSink

Rows = Sequence[Modality]


class TokenFiles(Protocol):
    """Takes the token files of samples."""

    def holds(self, row: Modality, key: Key) -> bool:
        """Whether a complete file is there; SampleError for one with other contents."""

    def crops(self, key: Key) -> Path | None:
        """The file of the crops of a sample that belong to tokens which are there already."""

    def keep_crops(self, key: Key, crops: Sequence[Crop], are_drawn: bool) -> bool:
        """Write the crops of a sample; False if another process was first. are_drawn: no file said them."""

    def write(self, row: Modality, key: Key, ids: Tensor) -> None:
        """Write the tokens (crops, L) of a sample."""

    def finish(self, key: Key, rows: Rows) -> tuple[Path, ...]:
        """All tokens of a sample are written; their files, as events name them."""

    def fail(self, key: Key, rows: Rows, reason: str) -> None:
        """Not all tokens of a sample can be made."""


@dataclass(frozen=True, slots=True)
class TokenFolder:
    """Writes each file atomically to a path of its own. Complete files are kept, whoever made them."""

    request: TokenizeRequest
    process: Process

    def holds(self, row: Modality, key: Key) -> bool:
        path = self._path(row, key)
        if self.request.overwrite or not path.is_file() or path.stat().st_size == 0:  # as a power cut leaves
            return False
        ids = read_array(path)
        wanted = (self.request.num_crops, row.max_tokens)
        if ids.dtype.kind not in "iu" or ids.shape != wanted or ids.min() < 0 or ids.max() >= row.vocab_size:
            due = f"{wanted[0]} crops of {wanted[1]} tokens in 0..{row.vocab_size - 1}"
            what = f"{ids.dtype} of shape {ids.shape} is not {due}"
            raise SampleError(f"{path}: {what}; `overwrite=True` makes it anew")
        return True

    def crops(self, key: Key) -> Path | None:
        path = path_of(self.request.out, CROP_SETTINGS, key, CROPS.suffix)
        return path if path.is_file() else None

    def keep_crops(self, key: Key, crops: Sequence[Crop], are_drawn: bool) -> bool:
        if are_drawn and len(crops) > 1 and not self.request.overwrite:
            for row in self.request.rows:  # new random crops would not be those of older tokens
                if (tokens := self._path(row, key)).is_file():
                    raise SampleError(f"{tokens}: shows crops of which there is no file in {CROP_SETTINGS}")
        path = path_of(self.request.out, CROP_SETTINGS, key, CROPS.suffix)
        return create_atomic(self.request.out, path, partial(write_crops, crops))

    def write(self, row: Modality, key: Key, ids: Tensor) -> None:
        write_data(self.request.out, self._path(row, key), pack_ids(ids.numpy()))

    def finish(self, key: Key, rows: Rows) -> tuple[Path, ...]:
        return tuple(self._path(row, key) for row in rows)

    def fail(self, key: Key, rows: Rows, reason: str) -> None:
        self.process.add_failure(key.text, 0, reason, BASE, self.finish(key, rows))

    def _path(self, row: Modality, key: Key) -> Path:
        place = ids_place(row)
        return path_of(self.request.out, place.folder, key, place.suffix)


@dataclass(frozen=True, slots=True)
class TokenShard:
    """Puts the tokens and the crops of samples into a shard."""

    sink: ShardSink

    def holds(self, row: Modality, key: Key) -> bool:
        return False

    def crops(self, key: Key) -> Path | None:
        return None

    def keep_crops(self, key: Key, crops: Sequence[Crop], are_drawn: bool) -> bool:
        self.sink.write(CROPS, _work(key), partial(pack_crops, crops))
        return True

    def write(self, row: Modality, key: Key, ids: Tensor) -> None:
        self.sink.write(ids_place(row), _work(key), partial(pack_ids, ids.numpy()))

    def finish(self, key: Key, rows: Rows) -> tuple[Path, ...]:
        self.sink.finish(_work(key))
        return ()

    def fail(self, key: Key, rows: Rows, reason: str) -> None:
        self.sink.fail(_work(key), reason)


def _work(key: Key) -> Work:
    return Work(Sample(key), 0)
