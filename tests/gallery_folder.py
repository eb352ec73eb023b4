"""Output folders as runs of the demo model leave them, written without a model."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fourm.codecs.colours import turbo
from fourm.data.dataset import Input
from fourm.data.layout import Key, Place, path_of
from fourm.output.processes import FAILURES
from fourm.output.record import BASE, FORMAT, RUN, SR, SR_RUN, RunRecord
from tests.folders import record_samples

STEPS = 4  # of each target


@dataclass(frozen=True, slots=True)
class Made:
    """What is to be in a folder."""

    prompts: Sequence[str]
    variations: int = 1
    names: Sequence[str] = ()  # of samples; numbers where there are none
    sr: bool = False
    preview: bool = False
    failed: Collection[int] = ()  # samples whose last variation failed
    side: int = 64
    labels: bool = True  # maps of them too


def key_of(made: Made, index: int) -> Key:
    return Key("00000", made.names[index] if made.names else f"{index:06d}")


def build_folder(root: Path, made: Made) -> Path:
    """Captions, labels, pictures and what else is wanted, with their records."""
    places = [
        Place("caption", ".txt", True, "caption", "value", True),
        *([Place("semseg", ".png", False, "tok_semseg@64")] if made.labels else []),
        Place("rgb", ".png", False, "tok_rgb@64"),
    ]
    _record(root, RUN, BASE, ["caption"], places, made)
    sr_run = Place("rgb@128", ".png", False, "tok_rgb@128")
    if made.sr:
        _record(root, SR_RUN, SR, ["caption", "tok_rgb@64"], [sr_run], made)
    failures = []
    for index, prompt in enumerate(made.prompts):
        key = key_of(made, index)
        _write(path_of(root, "caption", key, ".txt"), prompt)
        for variation in range(made.variations):
            v = variation if made.variations > 1 else None
            if index in made.failed and variation == made.variations - 1:
                failures.append({"key": key.text, "variation": variation, "reason": "a tokenizer said <no>"})
                continue
            picture, labels = _scene(index, variation, made.side)
            _save(picture, path_of(root, "rgb", key, ".png", v))
            if made.labels:
                _save(labels, path_of(root, "semseg", key, ".png", v))
            if made.sr:
                large = _scene(index, variation, 2 * made.side)[0]
                _save(large, path_of(root, sr_run.folder, key, sr_run.suffix, v))
            if made.preview:
                _film(root, key, v, picture)
    record_samples(root, [key_of(made, index) for index in range(len(made.prompts))])
    if failures:
        _write(root / FAILURES, "".join(json.dumps(row) + "\n" for row in failures))
    return root


def _record(
    root: Path, file: str, stage: str, conditions: list[str], places: list[Place], made: Made
) -> None:
    targets = [place.modality for place in places if not place.is_condition]
    steps = [
        {"index": i, "target": target, "num_tokens": (256 if stage == SR else 64) // STEPS}
        for i, target in enumerate(target for target in targets for _ in range(STEPS))
    ]
    schedule: dict[str, Any] = {"conditions": conditions, "steps": steps}
    options = " ".join(["--cond", "-".join(conditions), *(f"--target {t}:steps={STEPS}" for t in targets)])
    record = RunRecord(
        schedule, "demo" if stage == BASE else "demo-sr", "", {}, max(len(made.prompts), 1),
        made.variations, 7,
        "float32", "cpu", "", True, 25, int(made.preview), tuple(places), stage, options=options,
        input=Input("texts"),
    )  # fmt: skip
    _write(root / file, json.dumps({"format": FORMAT, **record.to_json(), "identity": "0123abcd"}))


def _scene(index: int, variation: int, side: int) -> tuple[Image.Image, Image.Image]:
    """A disc that tells samples and variations apart, and the map of its labels."""
    y, x = np.mgrid[0:side, 0:side] / side
    middle = 0.3 + 0.4 * np.array([(index * 0.37 + variation * 0.21) % 1, (index * 0.61) % 1])
    inside = (x - middle[0]) ** 2 + (y - middle[1]) ** 2 < (0.14 + 0.08 * (variation % 3)) ** 2
    picture = turbo(x + 0.7 * y + index * 0.01) // 2 + 90
    picture[inside] = turbo(np.linspace(0, 1, 29)[None])[0, index % 29]
    labels = np.where(inside, 1 + index % 3, 0).astype(np.uint8)
    return Image.fromarray(picture.astype(np.uint8)), Image.fromarray(labels)


def _film(root: Path, key: Key, variation: int | None, picture: Image.Image) -> None:
    """Tokens from top to bottom, a quarter of them in each step."""
    order = np.repeat(np.arange(STEPS), 64 // STEPS).astype(np.int16) + STEPS + 1
    folder = "preview/tok_rgb@64"
    path = path_of(root, folder, key, "-order.npy", variation)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, order)
    for step in range(STEPS):
        frame = np.full_like(np.asarray(picture), 128)
        rows = frame.shape[0] * (step + 1) // STEPS
        frame[:rows] = np.asarray(picture)[:rows]
        _save(
            Image.fromarray(frame), path_of(root, folder, key, f"-step{step + STEPS + 1:03d}.png", variation)
        )


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
