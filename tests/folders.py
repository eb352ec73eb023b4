"""Output folders made by hand: records and files as runs leave them, with pixels that tests know."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fourm.data.dataset import Input
from fourm.data.layout import Key, Place, Sample, path_of
from fourm.output.processes import PROCESSES
from fourm.output.record import FORMAT, RUN, SAMPLES, SR_RUN, RunRecord
from fourm.output.samples import open_runs

RGB = Place("rgb", ".png", modality="tok_rgb@64")
SEMSEG = Place("semseg", ".png", modality="tok_semseg@64")
DEPTH = Place("depth", ".npy", modality="tok_depth@64")
CLIP = Place("clip", ".npy", modality="tok_clip@64")
CAPTION = Place("caption", ".txt", shared=True, modality="caption", is_condition=True)
FINE = Place("rgb@128", ".png", modality="tok_rgb@128")
FIRST, SECOND = Key("00000", "000000"), Key("00000", "000001")


def write_record(root: Path, places: Sequence[Place], file: str = RUN, **changes: Any) -> None:
    """A record whose schedule has the conditions and targets of these places, two steps for each target."""
    conditions = [place.modality for place in places if place.is_condition]
    targets = [place.modality for place in places if not place.is_condition and place.form != "extra"]
    steps = [
        {"index": index, "target": target, "scheme": "roar", "num_tokens": 32, "temperature": 1.0}
        for index, target in enumerate(target for target in targets for _ in range(2))
    ]
    record = RunRecord(
        schedule={"conditions": conditions, "top_k": 0, "top_p": 1.0, "steps": steps}, model="demo",
        revision="", files={}, samples=2, num_variations=1, seed=7, dtype="float32",
        device_type="cpu", attention="sdpa", decode=True, detokenizer_steps=25, preview=0,
        places=tuple(places), input=Input("texts"),
    )  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    data = {"format": FORMAT, **record.to_json(), "identity": "0123abcd"} | changes
    (root / file).write_text(json.dumps(data))


def record_samples(root: Path, keys: Sequence[Key]) -> None:
    """Record samples of these names for each run of a folder, in the place of what is recorded."""
    for run in open_runs(root) if keys else ():
        path = root / SAMPLES[run.file].folder / "00000.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(run.describe(Sample(key)).to_line() for key in sorted(keys)))


def put(root: Path, place: Place, key: Key, value: object, variation: int | None = None) -> Path:
    """A file of a sample, recorded: a text, bytes as they are, an array, or pixels for a picture."""
    if any((root / file).exists() for file in (RUN, SR_RUN)):
        known = (sample.key for run in open_runs(root) for sample in run.samples())
        record_samples(root, list({key, *known}))
    path = path_of(root, place.folder, key, place.suffix, variation)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif isinstance(value, str):
        path.write_text(value, encoding="utf-8")
    elif place.suffix.endswith(".npy"):
        np.save(path, np.asarray(value))
    else:
        Image.fromarray(np.asarray(value, dtype=np.uint8)).save(path)
    return path


def tree(out: Path) -> dict[str, bytes]:
    """Every file of the samples of runs, by path: all but the records, and what each process noted."""
    files = (p for p in sorted(out.rglob("*")) if p.is_file() and p.parent.name != PROCESSES)
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in files if p.name not in (RUN, SR_RUN)}


def noise(seed: int, *shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Pixels that are found nowhere else."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def snapshot(root: Path) -> Mapping[str, bytes]:
    """Every file below a folder, plots aside."""
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    names = {path.relative_to(root).as_posix(): path.read_bytes() for path in files}
    return {name: data for name, data in names.items() if not name.startswith("plots/")}


@contextmanager
def as_somebody() -> Iterator[None]:
    """Permissions count, even for tests that run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
