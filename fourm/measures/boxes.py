"""COCO's average precision, by pycocotools: boxes of objects, and those of SAM instances."""

import io
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm.measures.measure import Measure, Pair, Row, Settings, State, Value, hash_of, id_of
from fourm.modalities.facts import Box, Boxes
from fourm.modalities.figures import PICTURE_SIDE, Groups

# Boxes of some pictures: (n, 2) int64 ids of picture and name, (n, 5) float64 corners and score.
Arrays = tuple[NDArray[np.int64], NDArray[np.float64]]

BOX_SCORES = ("ap", "ap50", "ap75", "ar100")
_MAX_BOXES = 100  # of a name in a picture
_AP50, _AP75 = 0, 5  # places of these overlaps among 0.5, 0.55, ..., 0.95


class BoxPrecision:
    """COCO's average precision of boxes, over overlaps of 0.5 to 0.95, and its recall.

    Lin et al. 2014, arXiv:1405.0312; boxes of all areas, at most 100 of a name in a picture, means over the
    names that true boxes have; names match without regard to case. Models write no scores: boxes of equal
    score are ranked by their order in the text, and pictures by a hash of their keys, whatever process read
    them. A row has the average precision of one picture. 56 bytes are kept of each box.
    """

    def __init__(self, boxes_of: Callable[[Any], Boxes]) -> None:
        """boxes_of: the boxes of a value."""
        self._boxes_of, self._samples = boxes_of, 0
        self._found, self._true = [box_arrays(0, ())], [box_arrays(0, ())]

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """The average precision of each picture."""
        found = [box_arrays(id_of(pair), self._boxes_of(pair.value)) for pair in pairs]
        true = [box_arrays(id_of(pair), self._boxes_of(pair.other)) for pair in pairs]
        rows = [{"ap": box_scores(*both)["ap"]} for both in zip(found, true, strict=True)]
        self._found += found
        self._true += true
        self._samples += len(pairs)
        return rows

    def state(self) -> State:
        """All boxes: ids, and corners with scores, of results and of partners."""
        (found_ids, found), (true_ids, true) = _joined(self._found), _joined(self._true)
        return {
            "found_ids": found_ids, "found": found, "true_ids": true_ids, "true": true,
            "samples": np.array([self._samples], dtype=np.int64),
        }  # fmt: skip

    def merge(self, states: Sequence[State]) -> None:
        """Add boxes."""
        for state in states:
            self._found.append((state["found_ids"], state["found"]))
            self._true.append((state["true_ids"], state["true"]))
            self._samples += int(state["samples"][0])

    def result(self) -> dict[str, Value]:
        """Average precision and recall of all pictures; NaN without true boxes."""
        scores = box_scores(_joined(self._found), _joined(self._true))
        return {name: Value(score, self._samples) for name, score in scores.items()}


def boxes(settings: Settings) -> Measure:
    """`BoxPrecision` of boxes."""
    return BoxPrecision(lambda value: value)


def instances(settings: Settings) -> Measure:
    """`BoxPrecision` of the boxes of SAM instances, each counted once; their masks are not compared."""
    return BoxPrecision(instance_boxes)


def box_scores(found: Arrays, true: Arrays) -> dict[str, float]:
    """The numbers of BOX_SCORES of the boxes of results and of partners; without true boxes, all are NaN."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not len(true[0]):
        return dict.fromkeys(BOX_SCORES, math.nan)
    # Small numbers for pictures and names; those of names that no true box has are left out.
    ids = np.concatenate([true[0], found[0]])
    small = np.stack([np.unique(column, return_inverse=True)[1] for column in ids.T], axis=1)
    counted = {
        "images": [{"id": picture} for picture in np.unique(small[:, 0]).tolist()],
        "categories": [{"id": name} for name in np.unique(small[: len(true[0]), 1]).tolist()],
    }
    sides = list[COCO]()
    with redirect_stdout(io.StringIO()):  # it prints what it does
        for numbers, corners in zip(np.split(small, [len(true[0])]), (true[1], found[1]), strict=True):
            sides.append(COCO())
            sides[-1].dataset = {**counted, "annotations": _annotations(numbers, corners)}
            sides[-1].createIndex()
        compared = COCOeval(*sides, "bbox")
        compared.params.areaRng, compared.params.areaRngLbl = [[0, math.inf]], ["all"]
        compared.params.maxDets = [_MAX_BOXES]
        compared.evaluate()
        compared.accumulate()
    precision = compared.eval["precision"][..., 0, 0]  # (overlaps, places of recall, names)
    tables = (precision, precision[_AP50], precision[_AP75], compared.eval["recall"][..., 0, 0])
    return {name: _mean_known(one) for name, one in zip(BOX_SCORES, tables, strict=True)}


def instance_boxes(groups: Groups) -> Boxes:
    """The boxes of all instances, each once, without names."""
    found = dict.fromkeys(instance for group in groups for instance in group.instances)
    corners = (tuple(corner / PICTURE_SIDE for corner in instance.box) for instance in found)
    return tuple(Box(x0, y0, x1, y1, "") for x0, y0, x1, y1 in corners)


def box_arrays(picture: int, boxes: Boxes) -> Arrays:
    """Boxes of a picture with this id, corners in order."""
    ids = [(picture, hash_of(" ".join(box.name.lower().split()))) for box in boxes]
    numbers = np.array([(*box.corners, box.score) for box in boxes], dtype=np.float64).reshape(-1, 5)
    corners = np.sort(numbers[:, :4].reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    return np.array(ids, dtype=np.int64).reshape(-1, 2), np.concatenate([corners, numbers[:, 4:]], axis=1)


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([boxes for _, boxes in parts])


def _annotations(ids: NDArray[np.int64], boxes: NDArray[np.float64]) -> list[dict[str, object]]:
    """Boxes in COCO's form."""
    return [
        {
            "id": index, "image_id": picture, "category_id": name, "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0), "iscrowd": 0, "score": score,
        }
        for index, ((picture, name), (x0, y0, x1, y1, score)) in enumerate(
            zip(ids.tolist(), boxes.tolist(), strict=True), start=1
        )
    ]  # fmt: skip


def _mean_known(numbers: NDArray[np.float64]) -> float:
    """The mean of numbers; pycocotools has -1 where there is none."""
    known = numbers[numbers >= 0]
    return float(known.mean()) if known.size else math.nan
