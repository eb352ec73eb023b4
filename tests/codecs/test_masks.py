"""SAM instances painted: against the recorded pictures, and what a picture may hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from fourm.codecs.masks import draw_instances, outline_instances, paint_instances, palette
from fourm.modalities.instances import Group, Groups, Instance, parse_instances
from fourm.modalities.text import PICTURE_SIDE
from tests.modalities.test_instances import CAT, CODES, DOG, groups_that_fit

# Of 50,176 pixels per picture: the resizing of another machine may round a border pixel differently.
MOST_DIFFERENT = 3


def formula(codes: Any) -> NDArray[np.float32]:
    """The logits that the recorded pictures were made with (golden/data/sam_instance.json)."""
    y, x = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    shapes = [1 - np.hypot(x, y) / 0.9, 0.8 - np.maximum(abs(x), abs(y)), 0.7 - abs(x + y), 0.02 * x]
    return np.stack([12 * shapes[one[0] % 4] for one in codes]).astype(np.float32)[:, None]


def test_recorded_pictures_are_painted(golden: Path) -> None:
    data = json.loads((golden / "data" / "sam_instance.json").read_text())
    with np.load(golden / "data" / "sam_instance.npz") as pictures:
        wanted = {
            case["picture_key"]: (case["string"], pictures[case["picture_key"]]) for case in data["cases"]
        }
        for number, text in enumerate(data["batch_of_two"]["strings"]):
            wanted[f"row {number}"] = (text, pictures["batch_of_two"][number])
    for key, (text, picture) in wanted.items():
        painted = np.asarray(draw_instances(parse_instances(text)[0], formula))
        assert painted.shape == picture.shape
        assert (painted != picture).any(axis=-1).sum() <= MOST_DIFFERENT, key
    assert len(wanted) == 19


def test_colours_are_the_recorded_ones(golden: Path) -> None:
    with np.load(golden / "data" / "sam_instance.npz") as arrays:
        assert np.array_equal(palette(), arrays["palette"])


def test_a_row_without_instances_is_black_and_harms_no_other(golden: Path) -> None:
    failure = json.loads((golden / "data" / "sam_instance.json").read_text())["reference_failures"][2]
    first, second = (
        np.asarray(draw_instances(parse_instances(text)[0], formula)) for text in failure["strings"]
    )
    assert failure["reference_result_all_zero"]
    assert first.any()
    assert not second.any()


def test_more_things_than_colours_start_over() -> None:
    """Where the reference ends with an error."""
    x, y = np.meshgrid(np.arange(0, 60), np.arange(0, 20))
    boxes = np.stack([x * 3, y * 3, x * 3 + 3, y * 3 + 3], axis=-1).reshape(-1, 4)
    masks = np.ones((len(boxes), 4, 4), dtype=np.float32)
    masks[:, 0, 0] = 0.0
    picture = paint_instances(boxes, masks)
    assert len(boxes) == 1200
    for number in (0, 999, 1000, 1199):
        x0, y0 = boxes[number, :2]
        assert np.array_equal(picture[y0 + 2, x0 + 2], palette()[number % 1000])


def test_nothing_and_flat_masks_paint_nothing() -> None:
    assert not paint_instances(np.zeros((0, 4), dtype=np.int64), np.zeros((0, 8, 8), dtype=np.float32)).any()
    box = np.array([[10, 10, 50, 50]])
    flat = np.full((1, 8, 8), 0.95, dtype=np.float32)
    assert not paint_instances(box, flat).any()
    flat[0, 0, 0] = 0.04
    assert paint_instances(box, flat).any()


def test_masks_of_one_thing_are_averaged_and_painted_once() -> None:
    half = np.zeros((2, 64, 64), dtype=np.float32)
    half[:, :, :32] = 1.0
    half[1, :, 30:32] = 0.0
    picture = paint_instances(np.array([[0, 0, 64, 64], [0, 0, 64, 64]]), half)
    colours = {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}
    assert colours == {(0, 0, 0), tuple(palette()[0].tolist())}


def test_small_things_lie_on_large_ones() -> None:
    masks = np.ones((2, 8, 8), dtype=np.float32)
    masks[:, 0, 0] = 0.0
    for order in ([0, 1], [1, 0]):
        boxes = np.array([[50, 50, 80, 80], [0, 0, 200, 200]])[order]
        picture = paint_instances(boxes, masks)
        assert np.array_equal(picture[70, 70], palette()[1])
        assert np.array_equal(picture[150, 150], palette()[0])


def test_boxes_are_cut_at_the_border() -> None:
    masks = np.ones((1, 8, 8), dtype=np.float32)
    masks[:, -1, -1] = 0.0
    picture = paint_instances(np.array([[150, 200, 999, 999]]), masks)
    assert picture.shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
    assert picture[-1, -1].any()


def test_extreme_logits_are_no_error() -> None:
    logits = np.full((1, 1, 64, 64), 3e38, dtype=np.float32)
    logits[0, 0, :, :20] = -3e38
    with np.errstate(all="raise"):
        picture = np.asarray(draw_instances((Group((1, 2), (CAT,)),), lambda codes: logits))
    assert picture[50, 55].any()
    assert not picture[50, 12].any()


@settings(max_examples=40, deadline=None)
@given(groups_that_fit())
def test_whatever_a_text_says_can_be_drawn(groups: Groups) -> None:
    assert draw_instances(groups, formula).size == (PICTURE_SIDE, PICTURE_SIDE)
    assert outline_instances(groups).size == (PICTURE_SIDE, PICTURE_SIDE)


def test_all_instances_are_decoded_at_once_in_the_order_of_the_text() -> None:
    asked = []

    def decode(codes: Any) -> NDArray[np.float32]:
        asked.append(list(codes))
        return formula(codes)

    draw_instances((Group((1, 2), (CAT, DOG)), Group((3, 4)), Group((5, 6), (CAT,))), decode)
    assert asked == [[CAT.codes, DOG.codes, CAT.codes]]


def test_without_a_tokenizer_boxes_are_drawn_and_it_is_said() -> None:
    groups = (Group((1, 2), (Instance((40, 50, 90, 120), CODES), DOG)),)
    picture = np.asarray(outline_instances(groups))
    assert np.array_equal(picture[50, 60], palette()[1] // 2 + 128)
    assert not picture[80, 60].any()
    assert np.array_equal(picture[20, 150], palette()[0] // 2 + 128)
    assert (picture[-15:] > 150).any()  # the note


def test_a_box_at_the_lower_border_is_seen_beside_the_note() -> None:
    low = Instance((2, 150, 222, 223), CODES)
    picture = np.asarray(outline_instances((Group((1, 2), (low,)),)))
    assert picture[223, 4:220].any(axis=-1).all()


@pytest.mark.parametrize("groups", [(), (Group((3, 4)),)])
def test_nothing_found_is_black(groups: Groups) -> None:
    assert not np.asarray(draw_instances(groups, formula)).any()
