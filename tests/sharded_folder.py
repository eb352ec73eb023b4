"""Folders of sharded runs made by hand, in any format, without a model."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fourm.data.dataset import Input
from fourm.data.layout import Key, Place, number_keys
from fourm.data.shards import Format, Shard, shard_name
from fourm.files.writing import remove_leftovers
from fourm.output.markers import Counts, Marker, ShardFailure, settings_digest
from fourm.output.members import Member
from fourm.output.record import RUN, RunRecord, format_run
from fourm.output.shard_files import ShardFiles

IDS = Place("tok_rgb@64", ".npy", modality="tok_rgb@64", form="ids")
RGB = Place("rgb", ".png", modality="tok_rgb@64")
CAPTION = Place("caption", ".txt", shared=True, modality="caption", is_condition=True)
SIZE = 3  # samples of a shard
Draw = Callable[[Key], bytes]  # the picture of a sample, as a file


def record_of(form: Format, shards: int) -> RunRecord:
    steps = [{"index": 0, "target": "tok_rgb@64", "num_tokens": 4}]
    return RunRecord(
        schedule={"conditions": ["caption"], "steps": steps},
        model="demo", revision="", files={}, samples=SIZE * shards, num_variations=1, seed=0,
        dtype="float32", device_type="cpu", attention="sdpa", decode=True, detokenizer_steps=1, preview=0,
        places=(CAPTION, IDS, RGB), input=Input("texts"), layout=form, shard_size=SIZE, shards=shards,
    )  # fmt: skip


def no_picture(key: Key) -> bytes:
    return f"picture {key.name}".encode() * 50


def make_shard(
    out: Path, record: RunRecord, number: int, failed: Sequence[int] = (), draw: Draw = no_picture
) -> Marker:
    """Write one shard. failed: positions of the samples in it that have no results."""
    files, stream = ShardFiles(out, shard := shard_of(number), record.layout), io.BytesIO()
    np.save(stream, np.array([[1, 2, 3, number]], np.int16))
    keys, lost = number_keys(SIZE, SIZE * number), list[Key]()
    for position, key in enumerate(keys):
        if position in failed:
            lost.append(key)
            continue
        files.add(Member(key, None, "caption", ".txt"), f"a text, {key.name}".encode())
        files.add(Member(key, None, IDS.folder, ".npy"), stream.getvalue())
        files.add(Member(key, None, "rgb", ".png"), draw(key))
    failures = tuple(ShardFailure(key.text, 0, "is too long") for key in lost)
    counts = Counts(SIZE, SIZE - len(lost), len(lost))
    settings = settings_digest(record)
    return files.finish(Marker(shard, record.layout, "path", counts, settings, {}, failures, seconds=2.0))


def make_folder(
    out: Path, form: Format, shards: int = 3, made: Sequence[int] = (0, 1, 2), draw: Draw = no_picture
) -> RunRecord:
    """The folder of a run, with some of its shards; the middle one has a failed sample."""
    out.mkdir(exist_ok=True)
    record = record_of(form, shards)
    (out / RUN).write_text(format_run(record, "0123abcd"))
    for number in made:
        make_shard(out, record, number, [2] if number == 1 else [], draw)
    remove_leftovers(out)
    return record


def shard_of(number: int) -> Shard:
    return Shard(number, shard_name(number), SIZE * number, SIZE, ("lines", "p.txt"))
