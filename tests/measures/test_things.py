"""Measures of boxes, people, palettes, metadata and neighbours against plain loops and other libraries."""

import json
import math
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skimage.color import rgb2lab
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from fourm.codecs.figures import find_joints
from fourm.errors import SampleError
from fourm.measures.measure import Pair
from fourm.measures.things import BOX_SCORES, id_of, pck, to_lab
from fourm.modalities.facts import FIELDS, METADATA, Box, Boxes, Colour, Fact, Metadata
from fourm.modalities.figures import People
from tests.codecs.test_figures import SOMEBODY, still
from tests.codecs.test_parts import POSE_CONFIG, random_tokenizer
from tests.measures.measuring import build, check_nothing, check_shares, measured, pairs_of
from tests.tiny import save

TOLERANCE = 1e-6
FEATURES = "tok_dinov2_global"


@pytest.mark.parametrize(
    ("name", "row"),
    [("boxes", "det"), ("palettes", "color_palette"), ("metadata", "metadata"), ("retrieval", FEATURES)],
)
def test_without_pairs_there_are_no_numbers(name: str, row: str) -> None:
    check_nothing(name, row)


def random_boxes(rng: np.random.Generator, near: Boxes = (), has_scores: bool = False) -> Boxes:
    """Up to six boxes, some of them near others."""
    found = list[Box]()
    for index in range(rng.integers(0, 7)):
        corners = np.sort(rng.random((2, 2)), axis=0).ravel()
        name = str(rng.choice(["cat", "dog", "red circle"]))
        if index < len(near) and rng.random() < 0.8:
            corners = (np.array(near[index].corners) + rng.normal(0, 0.02, 4)).clip(0, 1)
            name = near[index].name
        score = float(rng.choice([0.7, 0.8, 0.9])) if has_scores else 1.0
        found.append(Box(*corners.tolist(), name, score))
    return tuple(found)


@pytest.mark.parametrize("has_scores", [False, True])
def test_boxes_are_those_of_plain_loops(has_scores: bool) -> None:
    rng, values = np.random.default_rng(0), list[tuple[Boxes, Boxes]]()
    for _ in range(30):
        true = random_boxes(rng)
        values.append((random_boxes(rng, true, has_scores), true))
    pairs = pairs_of(values)
    numbers = check_shares("boxes", "det", pairs)
    wanted = by_loops(pairs)
    assert [numbers[name] for name in BOX_SCORES] == pytest.approx(wanted, abs=TOLERANCE)
    assert 0.1 < numbers["ap"] < numbers["ap50"] < 0.95
    again = measured("boxes", "det", pairs[::-1])
    assert [again[name].value for name in BOX_SCORES] == [numbers[name] for name in BOX_SCORES]


def by_loops(pairs: list[Pair]) -> list[float]:
    """AP, AP50, AP75 and AR100 of COCO."""
    pairs = sorted(pairs, key=id_of)
    names = sorted({box.name for pair in pairs for box in pair.other})
    thresholds = np.linspace(0.5, 0.95, 10)
    precisions, recalls = np.zeros((10, len(names))), np.zeros((10, len(names)))
    for place, threshold in enumerate(thresholds):
        for column, name in enumerate(names):
            hits = list[tuple[float, bool]]()
            total = 0
            for pair in pairs:
                left = [box for box in pair.other if box.name == name]
                total += len(left)
                for box in sorted((b for b in pair.value if b.name == name), key=lambda b: -b.score):
                    best = max(left, key=lambda one: overlap(box, one), default=None)
                    is_hit = best is not None and overlap(box, best) >= threshold
                    if best is not None and is_hit:
                        left.remove(best)
                    hits.append((box.score, is_hit))
            is_right = np.array([hit for _, hit in sorted(hits, key=lambda one: -one[0])], dtype=bool)
            right = is_right.cumsum()
            precision, recall = right / np.arange(1, len(right) + 1), right / total
            recalls[place, column] = recall[-1] if len(recall) else 0
            highest = [max(precision[recall >= least], default=0.0) for least in np.linspace(0, 1, 101)]
            precisions[place, column] = np.mean(highest)
    return [precisions.mean(), precisions[0].mean(), precisions[5].mean(), recalls.mean()]


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    sides = [
        max(
            0.0,
            min(one.corners[axis + 2], other.corners[axis + 2]) - max(one.corners[axis], other.corners[axis]),
        )
        for axis in (0, 1)
    ]
    both, (a, b) = math.prod(sides), ((x.xmax - x.xmin) * (x.ymax - x.ymin) for x in (one, other))
    return both / (a + b - both) if a + b - both else 0.0


CAT = Box(0.0, 0.0, 1.0, 0.5, "cat")
FAR = Box(0.8, 0.8, 1.0, 1.0, "cat")


@pytest.mark.parametrize(
    ("found", "true", "wanted"),
    [
        ((CAT,), (CAT,), (1, 1, 1, 1)),
        ((replace(CAT, name=" Cat"),), (CAT,), (1, 1, 1, 1)),
        ((Box(1.0, 0.5, 0.0, 0.0, "cat"),), (CAT,), (1, 1, 1, 1)),  # corners that a model wrote the other way
        ((replace(CAT, name="dog"),), (CAT,), (0, 0, 0, 0)),
        ((), (CAT,), (0, 0, 0, 0)),
        ((replace(CAT, xmax=0.62),), (CAT,), (0.3, 1, 0, 0.3)),  # right for overlaps of 0.5, 0.55, 0.6
        ((CAT, FAR), (CAT,), (1, 1, 1, 1)),  # written first, so ranked first
        ((FAR, CAT), (CAT,), (0.5, 0.5, 0.5, 1)),
        ((replace(FAR, score=0.9), CAT), (CAT,), (1, 1, 1, 1)),
        ((CAT, CAT), (CAT, FAR), (51 / 101, 51 / 101, 51 / 101, 0.5)),  # a box is right once
        ((CAT,), (), (math.nan,) * 4),
        ((), (), (math.nan,) * 4),
    ],
)
def test_boxes_by_hand(found: Boxes, true: Boxes, wanted: tuple[float, ...]) -> None:
    numbers = check_shares("boxes", "det", pairs_of([(found, true)]))
    assert [numbers[name] for name in BOX_SCORES] == pytest.approx(wanted, abs=TOLERANCE, nan_ok=True)
    (row,) = build("boxes", "det").update(pairs_of([(found, true)]))
    assert row["ap"] == pytest.approx(wanted[0], abs=TOLERANCE, nan_ok=True)


def test_boxes_in_pictures_without_true_boxes_are_wrong() -> None:
    pairs = pairs_of([((CAT,), (CAT,)), ((CAT,), ()), ((CAT,), ()), ((CAT,), ())])
    numbers = check_shares("boxes", "det", pairs)
    place = sorted(pairs, key=id_of).index(pairs[0])
    assert numbers["ap"] == pytest.approx(1 / (place + 1), abs=TOLERANCE)


def test_nothing_is_printed_by_the_measure_of_boxes(capsys: pytest.CaptureFixture[str]) -> None:
    check_shares("boxes", "det", pairs_of([((CAT,), (CAT,))]))
    assert capsys.readouterr() == ("", "")


def joints_of(people: People) -> NDArray[np.float64]:
    return find_joints(people, still)


def moved(metres: float) -> People:
    """Somebody further to the right; a metre is 90 pixels, and the box has a side of 200."""
    scale, x, y = SOMEBODY.camera
    return (replace(SOMEBODY, camera=(scale, x + metres, y)),)


@pytest.mark.parametrize(
    ("found", "true", "wanted"),
    [
        ((SOMEBODY,), (SOMEBODY,), (1, 1)),
        (moved(0.1), (SOMEBODY,), (1, 1)),  # 9 pixels, of which 10 and 20 are allowed
        (moved(0.15), (SOMEBODY,), (0, 1)),
        (moved(0.3), (SOMEBODY,), (0, 0)),
        (moved(0.15) + moved(0.1), (SOMEBODY,), (1, 1)),  # the nearer of two
        ((SOMEBODY,), (SOMEBODY, *moved(1.0)), (0.5, 0.5)),
        (moved(1.0) + (SOMEBODY,), (SOMEBODY, *moved(1.0)), (1, 1)),
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
    tokenizer = random_tokenizer(POSE_CONFIG)
    save(tokenizer, tmp_path, torch.Generator().manual_seed(0), ())
    (tmp_path / "config.json").write_text(json.dumps(asdict(POSE_CONFIG)))
    other = replace(SOMEBODY, pose_codes=(9,) * 8)
    pairs = pairs_of([((SOMEBODY,), (SOMEBODY,)), ((other,), (SOMEBODY,)), ((), ())])
    numbers = check_shares("pck", "human_poses", pairs, weights=tmp_path)
    assert 0.5 < numbers["pck_05"] < 1
    check_nothing("pck", "human_poses", weights=tmp_path)


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


@pytest.mark.parametrize(
    ("found", "true", "wanted"),
    [
        ([(0, 0, 0)], [(255, 255, 255)], (100, 0)),
        ([(0, 0, 0), (255, 255, 255)], [(255, 255, 255), (0, 0, 0)], (0, 0)),
        ([(0, 0, 0)], [(255, 255, 255), (0, 0, 0)], (0, 1)),
        ([], [(0, 0, 0)], (math.nan, 1)),
        ([], [], (0, 0)),
    ],
)
def test_palettes_by_hand(found: Any, true: Any, wanted: tuple[float, float]) -> None:
    sides = [tuple(Colour(*one) for one in side) for side in (found, true)]
    (row,) = build("palettes", "color_palette").update([Pair("a", None, *sides)])
    assert tuple(row.values()) == pytest.approx(wanted, nan_ok=True, abs=1e-3)


def facts(**values: float) -> Metadata:
    fields = {field.name: field for field in FIELDS}
    return tuple(Fact(fields[name], value) for name, value in values.items())


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


def test_metadata_is_equal_where_its_words_are() -> None:
    rng, values, wanted = np.random.default_rng(9), [], []
    for _ in range(30):
        true, found = (
            tuple(Fact(FIELDS[n], FIELDS[n].value_of(int(rng.integers(0, 3)))) for n in rng.permutation(21)[:12])
            for _ in range(2)
        )  # fmt: skip
        values.append((found, true))
        words = set(METADATA.to_pieces(true))
        wanted.append(len(words & set(METADATA.to_pieces(found))) / len(words))
    numbers = check_shares("metadata", "metadata", pairs_of(values))
    assert numbers["fields_equal"] == pytest.approx(np.mean(wanted), abs=TOLERANCE)


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(10)
    true = rng.normal(size=(600, 16, 2, 2)).astype(np.float32)
    found = (true + rng.normal(0, 3, true.shape)).astype(np.float32)
    numbers = check_shares("retrieval", FEATURES, pairs_of(list(zip(found, true, strict=True))))
    likeness = cosine_similarity(
        *(one.reshape(600, 16, 4).mean(axis=2).astype(np.float64) for one in (found, true))
    )
    wanted = [top_k_accuracy_score(np.arange(600), likeness, k=k) for k in (1, 5, 10)]
    assert list(numbers.values()) == pytest.approx(wanted, abs=TOLERANCE)
    assert 0.05 < numbers["recall_1"] < numbers["recall_10"] < 0.95


def features(*numbers: float) -> NDArray[np.float32]:
    return np.array(numbers, dtype=np.float32).reshape(-1, 1, 1)


def test_neighbours_by_hand() -> None:
    one, other = features(1, 0), features(0, 1)
    assert check_shares("retrieval", FEATURES, pairs_of([(one, one), (other, other)]))["recall_1"] == 1
    assert check_shares("retrieval", FEATURES, pairs_of([(other, one), (one, other)])) == {
        "recall_1": 0, "recall_5": 1, "recall_10": 1
    }  # fmt: skip
    assert check_shares("retrieval", FEATURES, pairs_of([(one, one)]))["recall_1"] == 1
    # Features that are all equal, or all zero, find nothing.
    assert check_shares("retrieval", FEATURES, pairs_of([(one, one)] * 7)) == {
        "recall_1": 0, "recall_5": 0, "recall_10": 1
    }  # fmt: skip
    assert check_shares("retrieval", FEATURES, pairs_of([(0 * one, 0 * one)] * 7))["recall_5"] == 0


def test_variations_of_a_sample_are_no_rivals() -> None:
    one, other = features(1, 0), features(0, 1)
    pairs = [
        Pair("a", 0, one, one),
        Pair("a", 1, one, one),
        Pair("b", 0, other, other),
        Pair("b", 1, one, other),
    ]
    numbers = check_shares("retrieval", FEATURES, pairs)
    assert numbers["recall_1"] == 3 / 4


def test_features_of_two_widths_are_refused() -> None:
    measure = build("retrieval", FEATURES)
    with pytest.raises(SampleError, match="features of 2 and 3 channels"):
        measure.update(pairs_of([(features(1, 2), features(1, 2, 3))]))
    assert measure.result()["recall_1"].samples == 0
