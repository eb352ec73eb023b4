"""Human poses drawn: cameras against the recorded reference, the skeleton and its figures as laws."""

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
    draw_boxes_of_people,
    draw_figures,
    nearest_rotations,
    place_joints,
)
from fourm.modalities.poses import People, Person, parse_people
from fourm.modalities.text import PICTURE_SIDE
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
    assert draw_boxes_of_people(people).size == (448, 448)


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
    picture = np.asarray(draw_boxes_of_people((SOMEBODY, other))).astype(int)
    line = picture[2 * 17 : 2 * 40, 2 * 52 + 12 : 2 * 52 + 80]
    blue, green = (line[..., 2] > line[..., 0] + 40).sum(), (line[..., 1] > line[..., 2] + 40).sum()
    assert blue > 0
    assert green == 0


def test_nobody_is_said() -> None:
    for picture in (draw_figures((), still), draw_boxes_of_people(())):
        assert (np.asarray(picture) < 200).any()


def test_without_a_tokenizer_boxes_and_numbers_are_drawn_and_it_is_said() -> None:
    picture = np.asarray(draw_boxes_of_people((SOMEBODY,)))
    left, top, right, bottom = (int(2 * c) for c in SOMEBODY.box)
    assert (picture[top, left:right] < 250).any(axis=-1).all()
    assert (picture[bottom - 100 : bottom - 10, left + 10 : right - 10] == 255).all()  # no body
    assert (picture[top + 5 : top + 60, left + 5 : right] < 150).any()  # numbers
    assert (picture[-14:] < 100).any()  # the note
