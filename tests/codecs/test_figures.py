"""People and instances as pictures: against the recorded reference, and as laws."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fourm.codecs.figures import (
    FOCAL_LENGTH,
    POSE_NUMBERS,
    camera_translation,
    draw_figures,
    draw_instances,
    instance_colours,
    nearest_rotations,
    paint_instances,
    place_joints,
)
from fourm.modalities.figures import (
    PICTURE_SIDE,
    Group,
    Groups,
    Instance,
    People,
    Person,
    parse_instances,
    parse_people,
)
from tests.modalities.test_instances import CAT, CODES, DOG, groups_that_fit
from tests.modalities.test_poses import people_on_bins

STILL = np.tile(np.eye(3), (23, 1, 1))  # arms spread
PELVIS, HEAD, LEFT_HAND, RIGHT_HAND, LEFT_FOOT = 0, 24, 22, 23, 10
# Upright and facing the camera, whose y axis points down.
FACING = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))
SOMEBODY = Person((52.0, 12.0, 172.0, 212.0), FACING, (1,) * 8, (0.0,) * 10, (0.9, 0.0, 0.3))


def still(codes: Any) -> NDArray[np.float32]:
    return np.tile(STILL.reshape(1, POSE_NUMBERS, 1, 1), (len(codes), 1, 1, 1)).astype(np.float32)


def turn(axis: int, angle: float) -> NDArray[np.float64]:
    """A rotation about an axis."""
    a, b = (k for k in range(3) if k != axis)
    matrix = np.eye(3)
    matrix[[a, b], [a, b]] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def inside(people: People, decode: Any = still) -> NDArray[np.bool_]:
    """(224, 224) where somebody's body is drawn."""
    with_figure = np.asarray(draw_figures(people, decode).resize((PICTURE_SIDE, PICTURE_SIDE))).astype(int)
    # Moved out of the picture to the right: all that is left are the boxes and numbers.
    hidden = tuple(replace(p, camera=(p.camera[0], p.camera[1] + 6, p.camera[2])) for p in people)
    without = np.asarray(draw_figures(hidden, decode).resize((PICTURE_SIDE, PICTURE_SIDE))).astype(int)
    return np.abs(with_figure - without).max(axis=-1) > 40


def test_cameras_are_the_recorded_ones(golden: Path) -> None:
    checked = 0
    for case in json.loads((golden / "data" / "human_poses.json").read_text())["decode"]:
        for person, wanted in zip(parse_people(case["string"])[0], case["people"], strict=True):
            assert wanted["focal_length_px"] == FOCAL_LENGTH
            assert np.allclose(camera_translation(person), wanted["camera_translation"], rtol=1e-5)
            checked += 1
    assert checked == 6


def test_a_skeleton_at_rest_is_as_large_as_an_adult() -> None:
    places = place_joints(np.eye(3), STILL)
    assert places.shape == (25, 3)
    assert 1.5 < places[HEAD, 1] - places[LEFT_FOOT, 1] < 1.8
    assert 1.4 < places[LEFT_HAND, 0] - places[RIGHT_HAND, 0] < 1.8
    assert np.allclose(places[LEFT_HAND] * [-1, 1, 1], places[RIGHT_HAND])


def test_a_joint_moves_what_hangs_on_it_and_nothing_else() -> None:
    bent = STILL.copy()
    bent[17] = turn(2, -np.pi / 2)  # the left elbow
    rest, moved = place_joints(np.eye(3), STILL), place_joints(np.eye(3), bent)
    changed = np.flatnonzero(np.abs(rest - moved).max(axis=1) > 1e-9).tolist()
    assert changed == [20, 22]  # wrist and hand
    assert np.allclose(moved[20] - moved[18], [0, -0.25, 0])


@given(st.lists(st.floats(-3, 3), min_size=72, max_size=72))
def test_limbs_keep_their_length_in_every_pose(angles: list[float]) -> None:
    turns = np.stack([turn(k % 3, angle) for k, angle in enumerate(angles[:69])]).reshape(23, 3, 3, 3)
    rotations = turns[:, 0] @ turns[:, 1] @ turns[:, 2]
    whole = turn(0, angles[69]) @ turn(1, angles[70]) @ turn(2, angles[71])
    rest, moved = place_joints(np.eye(3), STILL), place_joints(whole, rotations)
    for a, b in ((1, 4), (4, 7), (16, 18), (18, 20), (15, 24), (0, 3)):
        assert np.linalg.norm(moved[a] - moved[b]) == pytest.approx(np.linalg.norm(rest[a] - rest[b]))
    assert np.allclose(moved[PELVIS], rest[PELVIS])  # the body turns about its pelvis


@given(st.lists(st.floats(-2, 2), min_size=9, max_size=9))
def test_what_a_tokenizer_decodes_becomes_a_rotation(numbers: list[float]) -> None:
    rotation = nearest_rotations(np.array(numbers).reshape(1, 3, 3))[0]
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
    assert np.linalg.det(rotation) == pytest.approx(1)
    assert np.allclose(nearest_rotations(3 * rotation), rotation, atol=1e-6)


def test_somebody_upright_stands_in_their_box() -> None:
    where = inside((SOMEBODY,))
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    left, top, right, bottom = SOMEBODY.box
    assert top - 5 < rows[0] < top + 45
    assert bottom - 45 < rows[-1] < bottom + 5
    assert abs((columns[0] + columns[-1]) / 2 - (left + right) / 2) < 3
    head, feet = where[rows[0] + 5], where[rows[-1] - 3]
    assert 0 < np.ptp(np.flatnonzero(head)) < 40
    assert np.ptp(np.flatnonzero(feet)) < 60


def test_a_figure_moves_with_its_box_and_grows_with_its_scale() -> None:
    there = inside((SOMEBODY,))
    moved = inside((replace(SOMEBODY, box=(72.0, 12.0, 192.0, 212.0)),))
    assert (there[:, 20:-20] != np.roll(moved, -20, axis=1)[:, 20:-20]).mean() < 0.02
    assert inside((replace(SOMEBODY, camera=(0.5, 0.0, 0.3)),)).sum() < 0.5 * there.sum()


def test_the_left_arm_of_somebody_facing_us_is_on_our_right() -> None:
    def raised(codes: Any) -> NDArray[np.float32]:
        pose = STILL.copy()
        pose[15] = turn(2, np.pi / 2 - 0.2)  # left shoulder
        pose[16] = turn(2, np.pi / 2 - 0.2)  # right shoulder: down
        return pose.reshape(1, POSE_NUMBERS, 1, 1).astype(np.float32)

    where = inside((SOMEBODY,), raised)
    shoulders = where[:80]
    assert shoulders[:40, PICTURE_SIDE // 2 + 5 :].sum() > shoulders[:40, : PICTURE_SIDE // 2 - 15].sum()


@pytest.mark.parametrize(
    "camera", [(-1.0, 0.0, 0.0), (19.0, 19.0, 19.0), (0.01, -1.0, 19.0), (0.0, 0.0, 0.0)]
)
@pytest.mark.parametrize("box", [(0.0, 0.0, 0.0, 0.0), (224.0, 224.0, 0.0, 0.0), SOMEBODY.box])
def test_whoever_cannot_be_drawn_is_named(
    camera: tuple[float, float, float], box: tuple[float, float, float, float]
) -> None:
    picture = np.asarray(draw_figures((replace(SOMEBODY, camera=camera, box=box),), still))
    assert (picture < 250).any()


@settings(max_examples=25, deadline=None)
@given(people_on_bins(), st.integers(0, 5))
def test_whatever_a_text_says_can_be_drawn(people: People, seed: int) -> None:
    def decode(codes: Any) -> NDArray[np.float32]:
        return np.random.default_rng(seed).normal(size=(len(codes), POSE_NUMBERS, 1, 1)).astype(np.float32)

    assert draw_figures(people, decode).size == (448, 448)
    assert draw_figures(people).size == (448, 448)


def test_a_box_at_the_border_is_drawn_whole() -> None:
    picture = np.asarray(draw_figures((replace(SOMEBODY, box=(0.0, 0.0, 224.0, 224.0)),), still))
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge < 250).any(axis=-1).all()


def test_people_have_colours_of_their_own() -> None:
    people = tuple(replace(SOMEBODY, box=(10.0 + 70 * k, 60.0, 70.0 + 70 * k, 160.0)) for k in range(3))
    picture = np.asarray(draw_figures(people, still))
    chests = [tuple(picture[2 * 95, 2 * (40 + 70 * k)].tolist()) for k in range(3)]
    assert len(set(chests)) == 3
    assert (255, 255, 255) not in chests


def test_no_box_runs_through_the_number_of_somebody() -> None:
    """The second box would cross the first one's numbers; they have a white ground of their own."""
    other = replace(SOMEBODY, box=(90.0, 16.0, 200.0, 200.0))
    picture = np.asarray(draw_figures((SOMEBODY, other))).astype(int)
    line = picture[2 * 17 : 2 * 40, 2 * 52 + 12 : 2 * 52 + 80]
    blue, green = (line[..., 2] > line[..., 0] + 40).sum(), (line[..., 1] > line[..., 2] + 40).sum()
    assert blue > 0
    assert green == 0


def test_nobody_is_said() -> None:
    for picture in (draw_figures((), still), draw_figures(())):
        assert (np.asarray(picture) < 200).any()


def test_without_a_tokenizer_boxes_and_numbers_are_drawn_and_it_is_said() -> None:
    picture = np.asarray(draw_figures((SOMEBODY,)))
    left, top, right, bottom = (int(2 * c) for c in SOMEBODY.box)
    assert (picture[top, left:right] < 250).any(axis=-1).all()
    assert (picture[bottom - 100 : bottom - 10, left + 10 : right - 10] == 255).all()  # no body
    assert (picture[top + 5 : top + 60, left + 5 : right] < 150).any()  # numbers
    assert (picture[-14:] < 100).any()  # the note


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
        assert np.array_equal(instance_colours(), arrays["palette"])


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
        assert np.array_equal(picture[y0 + 2, x0 + 2], instance_colours()[number % 1000])


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
    assert colours == {(0, 0, 0), tuple(instance_colours()[0].tolist())}


def test_small_things_lie_on_large_ones() -> None:
    masks = np.ones((2, 8, 8), dtype=np.float32)
    masks[:, 0, 0] = 0.0
    for order in ([0, 1], [1, 0]):
        boxes = np.array([[50, 50, 80, 80], [0, 0, 200, 200]])[order]
        picture = paint_instances(boxes, masks)
        assert np.array_equal(picture[70, 70], instance_colours()[1])
        assert np.array_equal(picture[150, 150], instance_colours()[0])


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
def test_whatever_a_text_says_of_instances_can_be_drawn(groups: Groups) -> None:
    assert draw_instances(groups, formula).size == (PICTURE_SIDE, PICTURE_SIDE)
    assert draw_instances(groups).size == (PICTURE_SIDE, PICTURE_SIDE)


def test_all_instances_are_decoded_at_once_in_the_order_of_the_text() -> None:
    asked = []

    def decode(codes: Any) -> NDArray[np.float32]:
        asked.append(list(codes))
        return formula(codes)

    draw_instances((Group((1, 2), (CAT, DOG)), Group((3, 4)), Group((5, 6), (CAT,))), decode)
    assert asked == [[CAT.codes, DOG.codes, CAT.codes]]


def test_without_a_tokenizer_boxes_are_drawn_and_it_is_said() -> None:
    groups = (Group((1, 2), (Instance((40, 50, 90, 120), CODES), DOG)),)
    picture = np.asarray(draw_instances(groups))
    assert np.array_equal(picture[50, 60], instance_colours()[1] // 2 + 128)
    assert not picture[80, 60].any()
    assert np.array_equal(picture[20, 150], instance_colours()[0] // 2 + 128)
    assert (picture[-15:] > 150).any()  # the note


def test_a_box_at_the_lower_border_is_seen_beside_the_note() -> None:
    low = Instance((2, 150, 222, 223), CODES)
    picture = np.asarray(draw_instances((Group((1, 2), (low,)),)))
    assert picture[223, 4:220].any(axis=-1).all()


@pytest.mark.parametrize("groups", [(), (Group((3, 4)),)])
def test_nothing_found_is_black(groups: Groups) -> None:
    assert not np.asarray(draw_instances(groups, formula)).any()
