"""Measures of people, palettes and metadata against plain loops and other libraries."""

import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.color import rgb2lab

from fourm.codecs.figures import find_joints
from fourm.measures.things import pck, to_lab
from fourm.modalities.facts import FIELDS, METADATA, Colour, Fact
from fourm.modalities.figures import People
from tests.codecs.test_figures import SOMEBODY, still
from tests.measures.measuring import build, check_shares, pairs_of
from tests.measures.seeded import facts, moved, write_poses

TOLERANCE = 1e-6


def joints_of(people: People) -> NDArray[np.float64]:
    return find_joints(people, still)


@pytest.mark.parametrize(
    ("found", "true", "wanted"),
    [
        ((SOMEBODY,), (SOMEBODY,), (1, 1)),
        (moved(0.1), (SOMEBODY,), (1, 1)),  # 9 pixels, of which 10 and 20 are allowed
        (moved(0.15), (SOMEBODY,), (0, 1)),
        (moved(0.3), (SOMEBODY,), (0, 0)),
        (moved(0.15) + moved(0.1), (SOMEBODY,), (1, 1)),  # the nearer of two
        ((SOMEBODY,), (SOMEBODY, *moved(1.0)), (0.5, 0.5)),
        ((*moved(1.0), SOMEBODY), (SOMEBODY, *moved(1.0)), (1, 1)),
        ((), (SOMEBODY,), (0, 0)),
        ((replace(SOMEBODY, camera=(-0.9, 0.0, 0.3)),), (SOMEBODY,), (0, 0)),  # behind the camera
        ((SOMEBODY,), (replace(SOMEBODY, camera=(-0.9, 0.0, 0.3)),), (math.nan, math.nan)),
        ((SOMEBODY,), (), (math.nan, math.nan)),
        ((), (), (math.nan, math.nan)),
    ],
)
def test_people_by_hand(found: People, true: People, wanted: tuple[float, float]) -> None:
    assert tuple(pck(found, true, joints_of).values()) == pytest.approx(wanted, nan_ok=True)


def test_people_are_those_of_plain_loops() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        ours, theirs = (rng.uniform(0, 224, (rng.integers(1, 5), 25, 2)) for _ in range(2))
        near = min(len(ours), len(theirs))
        ours[:near] = theirs[:near][::-1] + rng.normal(0, 10, (near, 25, 2))
        true = tuple(
            replace(SOMEBODY, box=(0.0, 0.0, float(side), 50.0)) for side in rng.uniform(60, 200, len(theirs))
        )
        people = iter((ours, theirs))
        numbers = pck((SOMEBODY,) * len(ours), true, lambda _, people=people: next(people))
        distances = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
        costs = np.minimum(distances, 224).sum(axis=-1)
        longer = max(costs.shape)
        square = np.zeros((longer, longer))
        square[: len(ours), : len(theirs)] = costs
        best = min(
            permutations(range(longer)), key=lambda order: sum(square[order[j], j] for j in range(longer))
        )
        near_05 = [
            distances[best[j], j, k] <= 0.05 * true[j].box[2]
            for j in range(len(theirs)) for k in range(25) if best[j] < len(ours)
        ]  # fmt: skip
        assert numbers["pck_05"] == pytest.approx(sum(near_05) / (25 * len(theirs)), abs=TOLERANCE)


def test_people_are_measured_through_their_tokenizer(tmp_path: Path) -> None:
    other = replace(SOMEBODY, pose_codes=(9,) * 8)
    pairs = pairs_of([((SOMEBODY,), (SOMEBODY,)), ((other,), (SOMEBODY,)), ((), ())])
    numbers = check_shares("pck", "human_poses", pairs, weights=write_poses(tmp_path) / "model.safetensors")
    assert 0.5 < numbers["pck_05"] < 1


def test_colours_are_those_of_scikit_image() -> None:
    levels = np.random.default_rng(7).integers(0, 256, (500, 3))
    levels[:2] = [0, 0, 0], [1, 2, 3]
    assert np.abs(to_lab(levels) - rgb2lab(levels / 255)).max() < TOLERANCE


def test_palettes_are_those_of_plain_loops() -> None:
    rng, values, wanted = np.random.default_rng(8), [], []
    for _ in range(25):
        sides = [tuple(Colour(*row) for row in rng.integers(0, 256, (rng.integers(1, 6), 3)).tolist())
                 for _ in range(2)]  # fmt: skip
        values.append(tuple(sides))
        short, long = (rgb2lab(np.array(one) / 255) for one in sorted(sides, key=len))
        orders = permutations(range(len(long)), len(short))
        wanted.append(min(np.linalg.norm(short - long[list(order)], axis=1).mean() for order in orders))
    numbers = check_shares("palettes", "color_palette", pairs_of(values))
    assert numbers["lab_distance"] == pytest.approx(np.mean(wanted), abs=TOLERANCE)
    assert numbers["count_error"] == np.mean([abs(len(one) - len(other)) for one, other in values])


def test_metadata_by_hand() -> None:
    true = facts(original_width=640, n_humans=2, brightness=120.5, watermark_score=0)
    found = facts(original_width=650, n_humans=5, brightness=119.8, saturation=3)
    # The same step of 32 pixels, another number, the same bin, and one that is not stated.
    numbers = check_shares("metadata", "metadata", pairs_of([(found, true), (true, true), ((), ())]))
    assert numbers == {
        "fields_equal": pytest.approx((2 / 4 + 1) / 2), "error/original_width": pytest.approx(5),
        "error/n_humans": pytest.approx(1.5), "error/brightness": pytest.approx(0.35),
        "error/watermark_score": 0,
    }  # fmt: skip
    assert check_shares("metadata", "metadata", pairs_of([((), true)]))["fields_equal"] == 0
    measure = build("metadata", "metadata")
    measure.update(pairs_of([(found, true)]))
    details = [name for name, value in measure.result().items() if value.is_detail]
    assert details == ["error/brightness", "error/n_humans", "error/original_width"]


def test_metadata_is_equal_where_its_words_are() -> None:
    rng, values, wanted = np.random.default_rng(9), [], []
    for _ in range(30):
        true, found = (
            tuple(Fact(FIELDS[n], FIELDS[n].value_of(int(rng.integers(3)))) for n in rng.permutation(21)[:12])
            for _ in range(2)
        )  # fmt: skip
        values.append((found, true))
        words = set(METADATA.to_pieces(true))
        wanted.append(len(words & set(METADATA.to_pieces(found))) / len(words))
    numbers = check_shares("metadata", "metadata", pairs_of(values))
    assert numbers["fields_equal"] == pytest.approx(np.mean(wanted), abs=TOLERANCE)
