"""Maps, boxes and crops as conditions: the same folder from any batch size, shards and interruption."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.runs.test_generate_cli import start, tree

Run = Callable[..., tuple[int, str, str]]
CONDITIONS = ["depth", "det", "rgb-depth-normal-semseg-canny_edge-clip-det-metadata-color_palette-caption"]
COUNT = 9


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of many sizes with every sort of condition; two of three have crops, some reach outside."""
    root, draw = tmp_path_factory.mktemp("dataset"), np.random.default_rng(0)
    for i in range(COUNT):
        height, width = 60 + 7 * i, 100 - 5 * i
        write_maps(root, f"{i}", draw, height, width)
        boxes = [[0.1 * j, 0.05, 0.1 * j + 0.3, 0.9] for j in range(i % 4)]
        instances = [{"boxes": box, "class_name": "circle", "score": 0.9} for box in boxes]
        write(root / f"det/s/{i}.json", json.dumps({"instances": instances}))
        write(root / f"metadata/s/{i}.json", json.dumps({"brightness": 20 * i} if i else {}))
        write(root / f"color_palette/s/{i}.json", json.dumps([{"1": [[25 * i, 25, 25]]}]))
        write(root / f"caption/s/{i}.txt", "a small red circle on a white background")
        if i % 3:
            crop = np.array([[i - 4, 3, 50, 40 + i, i % 2], [0, 0, 9, 9, 0]])
            np.save(made(root / f"crop_settings/s/{i}.npy"), crop)
    return root


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write(path: Path, text: str) -> None:
    made(path).write_text(text)


def write_maps(root: Path, name: str, draw: np.random.Generator, height: int, width: int) -> None:
    for folder in ("rgb", "normal"):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(made(root / folder / "s" / f"{name}.png"))
    for folder, levels in (("semseg", 3), ("canny_edge", 256)):
        pixels = draw.integers(0, levels, (height, width), dtype=np.uint8)
        Image.fromarray(pixels).save(made(root / folder / "s" / f"{name}.png"))
    depth = draw.integers(0, 65536, (height, width), dtype=np.uint16)
    Image.fromarray(depth).save(made(root / "depth" / "s" / f"{name}.png"))
    np.save(made(root / "clip" / "s" / f"{name}.npy"), draw.standard_normal((14, 8, 8)).astype(np.float32))


def words(dataset: Path, conditions: str, out: Path) -> list[object]:
    given = ["--data", dataset, "--cond", conditions, "--targets", "tok_rgb", "--steps", "4"]
    return [*given, "--num-variations", "2", "--device", "cpu", "--out", out]


@pytest.mark.parametrize("conditions", CONDITIONS)
def test_conditions_of_files_give_one_folder_for_every_batch_size_shard_and_interruption(
    run: Run, dataset: Path, tmp_path: Path, conditions: str
) -> None:
    for size in ("1", "3", "auto"):
        assert run("generate", *words(dataset, conditions, tmp_path / size), "--batch-size", size)[0] == 0
    expected = tree(tmp_path / "1")
    assert tree(tmp_path / "3") == tree(tmp_path / "auto") == expected
    assert len(list((tmp_path / "1").glob("rgb*/s/*-v1.png"))) == COUNT
    for shard in ("2/3", "0/3", "1/3"):
        code, _, err = run("generate", *words(dataset, conditions, tmp_path / "shards"), "--shard", shard)
        assert code == 0, err
    assert tree(tmp_path / "shards") == expected
    interrupted(words(dataset, conditions, tmp_path / "cut"), tmp_path)
    seen = {name for name in tree(tmp_path / "cut") if not name.startswith(".partial/")}
    assert 0 < len(seen) < len(expected)
    code, _, err = run("generate", *words(dataset, conditions, tmp_path / "cut"), "--resume")
    assert code == 0, err
    assert tree(tmp_path / "cut") == expected


def interrupted(given: list[object], folder: Path) -> None:
    """Start a run in a process of its own and kill it when some of its samples are there."""
    log = folder / "log"
    process = start(*given, "--batch-size", "1", "--log-json", log)
    try:
        while not log.exists() or log.read_text().count('"saved"') < COUNT // 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
