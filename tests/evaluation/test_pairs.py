"""Two folders become pairs: by name, in any layout, in shares; what is damaged or alone is told."""

import io
import json
import subprocess
import sys
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.Image import Resampling

from fourm.codecs.files import format_frame
from fourm.codecs.maps import cut
from fourm.data.layout import Crop, Frame, Key, centre_crop, pad_crop
from fourm.data.shards import FORMATS, Format
from fourm.errors import UsageError
from fourm.evaluation.pairs import Pairs, list_pairs
from fourm.evaluation.values import Held, fitted
from fourm.inputs.world import World
from fourm.modalities.registry import RELEASED
from tests.folders import RGB, noise, put
from tests.measured import KEYS, dataset, run_folder
from tests.sharded_folder import IDS, make_folder


def pairs_of(kind: str, root: Path, against: Path | None, world: World | None = None) -> Pairs:
    found = list_pairs(root, None if against is None else str(against), world)
    return next(one for one in found if one.held.name == kind)


def test_a_run_is_paired_with_a_dataset_by_name(tmp_path: Path) -> None:
    pairs = pairs_of("rgb", run_folder(tmp_path / "run"), dataset(tmp_path / "data", 5))
    found = [*pairs]
    assert [one.key for one in found] == [key.text for key in KEYS[:3]]
    for at, one in enumerate(found):
        np.testing.assert_array_equal(one.value, noise(10 * at, 8, 8, 3))
        np.testing.assert_array_equal(one.other, one.value)
        assert one.texts == {"caption": f"picture {at}"}
    assert asdict(pairs.counts) == {"pairs": 3, "without_partner": 0, "matched": 3, "others": 5}


def test_boxes_are_compared_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    boxes = [([0.5, 0.5, 0.9, 0.9], 1.0), ([0.1, 0.1, 0.2, 0.2], 0.5), ([0.0, 0.0, 0.3, 0.3], 0.6)]
    found = [{"boxes": corners, "class_name": "circle", "score": score} for corners, score in boxes]
    for name in ("one", "two"):
        (tmp_path / name / "det").mkdir(parents=True)
        (tmp_path / name / "det" / "a.json").write_text(json.dumps({"instances": found}))
    [pair] = pairs_of("det", tmp_path / "one", tmp_path / "two")
    for side in (pair.value, pair.other):
        assert [(box.xmin, box.score) for box in side] == [(0.5, 1.0), (0.0, 0.6)]


def test_what_was_given_to_a_run_is_not_measured(tmp_path: Path) -> None:
    root = run_folder(tmp_path / "run")
    assert [one.held.name for one in list_pairs(root, str(root))] == ["tok_rgb@64", "rgb"]


def test_values_without_a_partner_are_counted(tmp_path: Path) -> None:
    pairs = pairs_of("rgb", run_folder(tmp_path / "run", 4), dataset(tmp_path / "data", 2))
    assert [one.other is None for one in pairs] == [False, False, True, True]
    assert asdict(pairs.counts) == {"pairs": 2, "without_partner": 2, "matched": 2, "others": 2}


@pytest.mark.parametrize("side", ["run", "data"])
def test_a_damaged_file_is_named_and_left_out(tmp_path: Path, side: str) -> None:
    run_folder(tmp_path / "run"), dataset(tmp_path / "data")
    (tmp_path / side / "rgb" / f"{KEYS[1].path}.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    pairs = pairs_of("rgb", tmp_path / "run", tmp_path / "data")
    assert [one.key for one in pairs] == [KEYS[0].text, KEYS[2].text]
    [problem] = pairs.problems
    assert (problem.key, problem.variation, problem.modality) == (KEYS[1].text, None, "rgb")
    assert f"{KEYS[1].path}.png" in problem.reason


def test_variations_have_one_partner_or_one_each(tmp_path: Path) -> None:
    several, others = run_folder(tmp_path / "3", 2, 3), run_folder(tmp_path / "also3", 2, 3)
    one = dataset(tmp_path / "data", 2)
    found = [*pairs_of("rgb", several, one)]
    assert [pair.variation for pair in found] == [0, 1, 2] * 2
    for pair in found:
        np.testing.assert_array_equal(pair.other, found[0 if pair.key == KEYS[0].text else 3].value)
    for pair in pairs_of("rgb", several, others):
        np.testing.assert_array_equal(pair.other, pair.value)
    with pytest.raises(UsageError, match=r"tok_rgb@64: .* has 2 for each .* has 3; .*as many, or one"):
        list_pairs(run_folder(tmp_path / "2", 2, 2), str(several))


@pytest.mark.parametrize(
    "recorded", [Crop((16, 24), 2, 1, 6, 6), Crop((8, 8), 2, 1, 6, 6), pad_crop(16, 24), pad_crop(32, 48)]
)
def test_the_partner_of_a_square_is_cut_to_it(tmp_path: Path, recorded: Crop) -> None:
    root, whole = run_folder(tmp_path / "run", 2), (8, 8) if recorded.whole == (8, 8) else (16, 24)
    data = dataset(tmp_path / "data", 2, shape=(*whole, 3))
    crop = pad_crop(*whole) if recorded.is_padded else recorded
    frame = root / "frame" / f"{KEYS[0].path}.json"
    frame.parent.mkdir(parents=True)
    frame.write_text(format_frame(Frame(recorded)))
    for at, (one, seen) in enumerate(
        zip(pairs_of("rgb", root, data), (crop, centre_crop(*whole)), strict=True)
    ):
        expected = cut(noise(10 * at, *whole, 3), seen, 8, Resampling.BICUBIC)
        np.testing.assert_array_equal(one.other, expected)


def test_pixels_beyond_the_picture_are_not_known() -> None:
    held, value, other = (
        Held("rgb", RELEASED.rows["rgb@224"], "picture"),
        noise(0, 8, 8, 3),
        noise(1, 16, 24, 3),
    )
    _, known = fitted(held, value, other, None, pad_crop(16, 24))
    assert known is not None
    np.testing.assert_array_equal(known, np.isin(np.arange(8), range(1, 7))[:, None].repeat(8, 1))
    assert fitted(held, value, other, None, None)[1] is None


def test_depth_that_is_not_known_does_not_become_a_part_of_other_pixels() -> None:
    other = np.full((64, 96), 2, np.float32)
    other[20:30, 40:50] = 0
    held = Held("depth", RELEASED.rows["tok_depth@224"], "depth")
    seen, _ = fitted(held, np.ones((32, 32), np.float32), other, None, None)
    assert 0 < np.isnan(seen).sum() < 200
    np.testing.assert_allclose(seen[~np.isnan(seen)], 2, rtol=1e-6)


def test_transparent_pixels_are_not_known(tmp_path: Path) -> None:
    root, data = run_folder(tmp_path / "run", 1), dataset(tmp_path / "data", 1)
    pixels = np.dstack([noise(0, 8, 8, 3), np.full((8, 8), 255, np.uint8)])
    pixels[:3, :, 3] = 0
    put(root, RGB, KEYS[0], pixels)
    [one] = pairs_of("rgb", root, data)
    assert one.known is not None
    np.testing.assert_array_equal(one.known, pixels[..., 3] > 0)
    assert not one.value[:3].any()


@pytest.mark.parametrize("form", FORMATS[1:])
def test_shards_of_any_layout_are_read(tmp_path: Path, form: Format) -> None:
    make_folder(tmp_path / "run", form)
    pairs = pairs_of(IDS.folder, tmp_path / "run", tmp_path / "run")
    found = [*pairs]
    assert [one.value.tolist() for one in found] == [[1, 2, 3, n] for n in (0, 0, 0, 1, 1, 2, 2, 2)]
    assert pairs.counts.pairs == 8


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_are_apart_and_complete(tmp_path: Path, size: int, is_sharded: bool) -> None:
    if is_sharded:
        make_folder(tmp_path / "run", "shards")
    else:
        run_folder(tmp_path / "run", 5)
    root = tmp_path / "run"
    parts = [[one.key for one in pairs_of(IDS.folder, root, root, World(i, size))] for i in range(size)]
    whole = [one.key for one in pairs_of(IDS.folder, root, root)]
    assert sorted(key for part in parts for key in part) == whole
    if is_sharded:  # a process reads whole shards
        assert {key[-1] for key in parts[0]} >= {"0", "1", "2"}


def test_a_dataset_may_be_tars_with_several_files_for_each_name(tmp_path: Path) -> None:
    root = run_folder(tmp_path / "run")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "00000.tar", "w") as tar:
        for at, key in enumerate(KEYS[:3]):
            stream = io.BytesIO()
            Image.fromarray(noise(10 * at, 8, 8, 3)).save(stream, "PNG")
            for ending, data in (("png", stream.getvalue()), ("txt", b"a text")):
                member = tarfile.TarInfo(f"{key.name}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    for against in ("data", "data/{00000..00000}.tar"):
        for one in pairs_of("rgb", root, tmp_path / against):
            np.testing.assert_array_equal(one.other, one.value)


def test_folders_of_tokens_and_texts_are_read_without_torch(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for key in KEYS:
        for folder, ending in (("caption", ".txt"), ("tok_rgb@224", ".npy")):
            path = root / folder / f"{key.path}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("a cat") if ending == ".txt" else np.save(path, np.arange(196))
    code = f"""
import sys, fourm
found = fourm.evaluate({str(root)!r}, {str(root)!r})
numbers = dict((one.name, one.value) for one in found.numbers)
assert numbers.keys() >= set(["bleu_4", "rouge_l", "cider_d"])
assert (numbers["token_share"], numbers["exact_match"]) == (1, 1)
assert "torch" not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        list_pairs(run_folder(tmp_path / "run"), str(tmp_path / "nowhere"))


def test_names_are_matched_whole(tmp_path: Path) -> None:
    root = run_folder(tmp_path / "run", 1)
    put(root, RGB, Key("", "loose"), noise(3, 8, 8, 3))
    data = dataset(tmp_path / "data", 1)
    Image.fromarray(noise(3, 8, 8, 3)).save(data / "rgb" / "loose.png")
    assert {one.key: one.other is not None for one in pairs_of("rgb", root, data)} == {
        "00000/000000": True,
        "loose": True,
    }


def test_a_dataset_is_read_with_the_modalities_of_the_run_it_is_compared_with(tmp_path: Path) -> None:
    """Tokens of the embedded model, which no released one has; on either side, or with its name."""
    root, data = run_folder(tmp_path / "run"), tmp_path / "data"
    for key in KEYS[:3]:
        path = data / IDS.folder / f"{key.path}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.arange(3))
    assert [pair.other.tolist() for pair in pairs_of(IDS.folder, root, data)] == [[0, 1, 2]] * 3
    assert [pair.value.tolist() for pair in pairs_of(IDS.folder, data, root)] == [[0, 1, 2]] * 3
    assert not list_pairs(data, str(data))
    assert [one.held.name for one in list_pairs(data, str(data), model="demo")] == [IDS.folder]
