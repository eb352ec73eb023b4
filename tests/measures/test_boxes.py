"""Measures of boxes against pycocotools, and against numbers by hand."""

import io
import math
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fourm.measures.boxes import BOX_SCORES
from fourm.measures.measure import Pair, id_of
from fourm.modalities.facts import Box, Boxes
from fourm.modalities.figures import Group, Instance
from tests.measures.measuring import build, check_shares, pairs_of

TOLERANCE = 1e-6


def random_boxes(rng: np.random.Generator, near: Boxes = (), has_scores: bool = False) -> Boxes:
    """Up to six boxes, some of them near others."""
    found = list[Box]()
    for index in range(rng.integers(0, 7)):
        corners = np.sort(rng.random((2, 2)), axis=0).ravel()
        name = str(rng.choice(["cat", "dog", "red circle"]))
        if index < len(near) and rng.random() < 0.8:
            near_by = (np.array(near[index].corners) + rng.normal(0, 0.02, 4)).clip(0, 1)
            corners = np.sort(near_by.reshape(2, 2), axis=0).ravel()
            name = near[index].name
        score = float(rng.choice([0.7, 0.8, 0.9])) if has_scores else 1.0
        found.append(Box(*corners.tolist(), name, score))
    return tuple(found)


@pytest.mark.parametrize("has_scores", [False, True])
def test_boxes_are_those_of_pycocotools(has_scores: bool) -> None:
    rng, values = np.random.default_rng(0), list[tuple[Boxes, Boxes]]()
    for _ in range(30):
        true = random_boxes(rng)
        values.append((random_boxes(rng, true, has_scores), true))
    pairs = pairs_of(values)
    numbers = check_shares("boxes", "det", pairs)
    wanted = by_pycocotools(pairs)
    assert [numbers[name] for name in BOX_SCORES] == pytest.approx(wanted, abs=TOLERANCE)
    assert 0.1 < numbers["ap"] < numbers["ap50"] < 0.95
    assert check_shares("boxes", "det", pairs[::-1]) == numbers


def by_pycocotools(pairs: list[Pair]) -> list[float]:
    """AP, AP50, AP75 and AR100."""
    pairs = sorted(pairs, key=id_of)
    names = sorted({box.name for pair in pairs for box in pair.other})
    sides = list[COCO]()
    with redirect_stdout(io.StringIO()):
        for side in ("other", "value"):
            found = list[dict[str, object]]()
            for picture, pair in enumerate(pairs):
                for box in (one for one in getattr(pair, side) if one.name in names):
                    sides_of = [box.xmax - box.xmin, box.ymax - box.ymin]
                    found.append({
                        "image_id": picture, "category_id": names.index(box.name), "score": box.score,
                        "bbox": [box.xmin, box.ymin, *sides_of], "area": math.prod(sides_of), "iscrowd": 0,
                    })  # fmt: skip
            sides.append(COCO())
            sides[-1].dataset = {
                "images": [{"id": picture} for picture in range(len(pairs))],
                "categories": [{"id": number} for number in range(len(names))],
                "annotations": [{"id": number, **one} for number, one in enumerate(found, start=1)],
            }
            sides[-1].createIndex()
        compared = COCOeval(*sides, "bbox")
        compared.params.areaRng, compared.params.areaRngLbl = [[0, math.inf]], ["all"]
        compared.params.maxDets = [100]
        compared.evaluate()
        compared.accumulate()
    precision = compared.eval["precision"][..., 0, 0]  # overlaps, recalls, names
    recall = compared.eval["recall"][..., 0, 0]
    return [float(one.mean()) for one in (precision, precision[0], precision[5], recall)]


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


def test_a_hundred_boxes_of_a_name_are_counted() -> None:
    far = (FAR,) * 99
    numbers = check_shares("boxes", "det", pairs_of([((*far, CAT), (CAT,)), ((*far, FAR, CAT), (CAT,))]))
    assert numbers["ar100"] == 0.5


def test_many_boxes_of_a_picture_are_compared_at_once() -> None:
    rng = np.random.default_rng(1)
    corners = np.sort(rng.random((2_000, 2, 2)), axis=1).reshape(-1, 4).tolist()
    many = tuple(Box(*box, "cat") for box in corners)
    measure = build("boxes", "det")
    assert measure.update(pairs_of([(many, many)])) == [{"ap": pytest.approx(6 / 101)}]
    assert measure.result()["ar100"].value == pytest.approx(100 / 2_000)


def test_instances_are_compared_by_their_boxes_once_each() -> None:
    one, two = (Instance(box, (0,) * 16) for box in ((10, 20, 110, 120), (100, 100, 200, 220)))
    true = (Group((112, 112), (one, two)), Group(None, (two,)), Group((5, 5)))
    far = replace(one, box=(200, 0, 220, 10))
    for found, wanted in (
        (true, (1, 1)),
        ((Group(None, (replace(two, codes=(7,) * 16), one)),), (1, 1)),  # of other masks and order
        ((Group(None, (one,)), Group(None, (one,))), (51 / 101, 0.5)),
        ((Group(None, (far, one)),), (0.5 * 51 / 101, 0.5)),
        ((), (0, 0)),
    ):
        numbers = check_shares("instances", "sam_instance", pairs_of([(found, true)]))
        assert (numbers["ap"], numbers["ar100"]) == pytest.approx(wanted, abs=TOLERANCE)
    assert math.isnan(check_shares("instances", "sam_instance", pairs_of([(true, (Group((5, 5)),))]))["ap"])
