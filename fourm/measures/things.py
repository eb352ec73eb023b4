"""Measures of things that are neither maps nor texts: boxes, instances, people, palettes, metadata."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm.hub.header import TokenizerPart
from fourm.measures.measure import (
    MeanOf,
    Measure,
    Pair,
    Row,
    Settings,
    State,
    Value,
    hash_of,
    id_of,
    one_by_one,
)
from fourm.modalities.facts import Box, Boxes, Palette
from fourm.modalities.figures import PICTURE_SIDE, Groups, People

Floats = NDArray[np.float64]
FindJoints = Callable[[People], Floats]  # n people -> (n, 25, 2) pixels, NaN: not in front of the camera

BOX_SCORES = ("ap", "ap50", "ap75", "ar100")
_MAX_BOXES = 100  # of a name in a picture
_OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
# A box of a result: ids of its picture and name, and at which of _OVERLAPS it is right.
_JUDGED = np.dtype([("picture", "i8"), ("name", "i8"), ("score", "f8"), ("hits", "?", len(_OVERLAPS))])
Judged = NDArray[Any]  # (n,) of _JUDGED, those of one picture and name in a row, the best first
_NEAR = {"pck_05": 0.05, "pck_10": 0.1}  # of the longer side of a person's box
# sRGB (IEC 61966-2-1) to XYZ, and its white, D65.
_TO_XYZ = np.array([
    [0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]
])  # fmt: skip
_WHITE = np.array([0.95047, 1.0, 1.08883])


class BoxPrecision:
    """COCO's average precision of boxes, over overlaps of 0.5 to 0.95, and its recall.

    Lin et al. 2014, arXiv:1405.0312; boxes of all areas, at most 100 of a name in a picture, means over the
    names that true boxes have; names match without regard to case. Models write no scores: boxes of equal
    score are ranked by their order in the text, and pictures by a hash of their keys, whatever process read
    them. A row has the average precision of one picture.

    pycocotools, which tests compare this with, keeps each box as a dictionary and looks at each pair of a
    picture and a name: 2,000 pictures with 900 names take 24 s and 1.2 GB, and both grow with the square.
    Here boxes are compared when their picture is read, and 34 bytes are kept of each.
    """

    def __init__(self, boxes_of: Callable[[Any], Boxes]) -> None:
        """boxes_of: the boxes of a value."""
        self._boxes_of, self._samples = boxes_of, 0
        self._judged, self._counts = [np.zeros(0, _JUDGED)], Counter[int]()

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """The average precision of each picture."""
        rows = list[Row]()
        for pair in pairs:
            judged, counts = judge_boxes(id_of(pair), self._boxes_of(pair.value), self._boxes_of(pair.other))
            rows.append({"ap": box_scores(judged, counts)["ap"]})
            self._judged.append(judged)
            self._counts.update(counts)
        self._samples += len(pairs)
        return rows

    def state(self) -> State:
        """The boxes of results, as bytes, and (k, 2) the names of true boxes and how many each has."""
        return {
            "judged": np.concatenate(self._judged).view(np.uint8),
            "counts": np.array([*self._counts.items()], dtype=np.int64).reshape(-1, 2),
            "samples": np.array([self._samples], dtype=np.int64),
        }

    def merge(self, states: Sequence[State]) -> None:
        """Add boxes."""
        for state in states:
            self._judged.append(state["judged"].view(_JUDGED))
            self._counts.update(dict(state["counts"].tolist()))
            self._samples += int(state["samples"][0])

    def result(self) -> dict[str, Value]:
        """Average precision and recall of all pictures; NaN without true boxes."""
        scores = box_scores(np.concatenate(self._judged), self._counts)
        return {name: Value(score, self._samples) for name, score in scores.items()}


def boxes(settings: Settings) -> Measure:
    """`BoxPrecision` of boxes."""
    return BoxPrecision(lambda value: value)


def instances(settings: Settings) -> Measure:
    """`BoxPrecision` of the boxes of SAM instances, each counted once; their masks are not compared."""
    return BoxPrecision(instance_boxes)


def poses(settings: Settings) -> Measure:
    """PCK: the share of joints that lie within 0.05 or 0.1 of the longer side of the true person's box.

    Yang and Ramanan 2013, doi:10.1109/TPAMI.2012.261. Joints are those of our skeleton (`codecs/figures`),
    posed by the tokenizer. People are paired so that their joints are nearest; all joints of a true person
    without a partner are wrong. The mean over pictures with people.
    """
    joints_of = cache(partial(_load_joints, settings))
    return MeanOf(one_by_one(lambda pair: pck(pair.value, pair.other, joints_of())), list(_NEAR))


def palettes(settings: Settings) -> Measure:
    """The mean distance in CIE Lab (CIE76) of colours, and the difference of their numbers.

    Colours are paired so that the sum of distances is lowest; those of the longer palette that are left over
    have no distance.
    """
    names = ["lab_distance", "count_error"]
    return MeanOf(one_by_one(lambda pair: palette_errors(pair.value, pair.other)), names)


def metadata(settings: Settings) -> Measure:
    """The share of the true fields that a result states with the same index, and the mean error of each.

    The indices are those of 4M's texts: values of one bin are equal. `error/NAME` is the absolute error of
    the values of a field, where both state one.
    """
    return MeanOf(one_by_one(_metadata_of), ["fields_equal"])


def judge_boxes(picture: int, found: Boxes, true: Boxes) -> tuple[Judged, Counter[int]]:
    """The boxes of a result, and how many true ones each name has. picture: its id."""
    named = defaultdict[str, tuple[list[Box], list[Box]]](lambda: ([], []))
    for side, boxes in enumerate((found, true)):
        for box in boxes:
            named[" ".join(box.name.lower().split())][side].append(box)
    judged, counts = [np.zeros(0, _JUDGED)], Counter[int]()
    for name, (ours, theirs) in named.items():
        best, number = sorted(ours, key=lambda box: -box.score)[:_MAX_BOXES], hash_of(name)
        rows = np.zeros(len(best), _JUDGED)
        rows["picture"], rows["name"], rows["score"] = picture, number, [box.score for box in best]
        rows["hits"] = match_boxes(_corners(best), _corners(theirs))
        judged.append(rows)
        if theirs:
            counts[number] = len(theirs)
    return np.concatenate(judged), counts


def match_boxes(found: Floats, true: Floats) -> NDArray[np.bool_]:
    """(n, 10) for each box whether it is right at each of the overlaps 0.5, 0.55, ..., 0.95.

    found: (n, 4), the best first; each takes the true box, of those (m, 4) that are still free, which it
    overlaps most, as in COCO's code.
    """
    hits, every = np.zeros((len(found), len(_OVERLAPS)), dtype=np.bool_), np.arange(len(_OVERLAPS))
    is_free = np.ones((len(_OVERLAPS), len(true)), dtype=np.bool_)
    for row, box in zip(hits, found, strict=True):
        overlaps = overlaps_of(box, true)
        near = np.flatnonzero(overlaps >= _OVERLAPS[0])
        if not len(near):
            continue
        fit = np.where(is_free[:, near] & (overlaps[near] >= _OVERLAPS[:, None]), overlaps[near], -1.0)
        best = len(near) - 1 - fit[:, ::-1].argmax(axis=1)  # of equal ones the last, as there
        row[:] = fit[every, best] >= 0
        is_free[every, near[best]] &= ~row
    return hits


def overlaps_of(box: Floats, others: Floats) -> Floats:
    """(m,) intersection over union of a box (4,) and others (m, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    both = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - both
    return np.divide(both, union, out=np.zeros_like(both), where=union > 0)


def box_scores(judged: Judged, counts: Mapping[int, int]) -> dict[str, float]:
    """The numbers of BOX_SCORES. counts: of true boxes by the id of their name; without any, all are NaN."""
    if not counts:
        return dict.fromkeys(BOX_SCORES, math.nan)
    # By name, score and picture; those of one picture stay in order.
    judged = judged[np.lexsort((judged["picture"], -judged["score"], judged["name"]))]
    names, totals = np.array(sorted(counts.items())).T
    starts, ends = (judged["name"].searchsorted(names, side) for side in ("left", "right"))
    precisions, recalls = (np.zeros((len(names), len(_OVERLAPS))) for _ in range(2))
    for row in np.flatnonzero(starts < ends):
        right = judged["hits"][starts[row] : ends[row]].cumsum(axis=0)  # (n, overlaps)
        precision = right / np.arange(1, len(right) + 1)[:, None]
        best = np.maximum.accumulate(precision[::-1])[::-1]  # of this recall and of higher ones
        reached = right / totals[row]
        steps = np.diff(_RECALLS.searchsorted(reached, "right"), axis=0, prepend=0)  # that each box adds
        precisions[row], recalls[row] = (best * steps).sum(axis=0) / len(_RECALLS), reached[-1]
    ap50, ap75 = (float(precisions[:, place].mean()) for place in (0, 5))
    return {"ap": float(precisions.mean()), "ap50": ap50, "ap75": ap75, "ar100": float(recalls.mean())}


def instance_boxes(groups: Groups) -> Boxes:
    """The boxes of all instances, each once, without names."""
    found = dict.fromkeys(instance for group in groups for instance in group.instances)
    corners = (tuple(corner / PICTURE_SIDE for corner in instance.box) for instance in found)
    return tuple(Box(x0, y0, x1, y1, "") for x0, y0, x1, y1 in corners)


def pck(found: People, true: People, joints_of: FindJoints) -> dict[str, float]:
    """The share of true joints that are near those of the paired person; NaN without true people."""
    ours, theirs = joints_of(found), joints_of(true)
    is_counted = np.isfinite(theirs).all(axis=2)  # (true, 25)
    if not is_counted.any():
        return dict.fromkeys(_NEAR, math.nan)
    corners = np.array([person.box for person in true])
    sides = np.abs(corners[:, 2:] - corners[:, :2]).max(axis=1)
    distances = np.linalg.norm(ours[:, None] - theirs[None], axis=3)  # (found, true, 25)
    distances = np.where(np.isnan(distances), np.inf, distances)
    costs = (np.minimum(distances, PICTURE_SIDE) * is_counted).sum(axis=2)
    share = np.full(is_counted.shape, np.inf)
    for one, other in paired(costs):
        share[other] = distances[one, other] / sides[other] if sides[other] else np.inf
    return {name: float((share[is_counted] <= limit).mean()) for name, limit in _NEAR.items()}


def palette_errors(found: Palette, true: Palette) -> dict[str, float]:
    """The numbers of `palettes` of one sample; without colours on one side, there is no distance."""
    count_error = float(abs(len(found) - len(true)))
    if not found or not true:
        return {"lab_distance": math.nan if count_error else 0.0, "count_error": count_error}
    a, b = (to_lab(np.array(palette)) for palette in (found, true))
    distances = np.linalg.norm(a[:, None] - b[None], axis=2)
    matched = [distances[both] for both in paired(distances)]
    return {"lab_distance": float(np.mean(matched)), "count_error": count_error}


def to_lab(levels: NDArray[Any]) -> Floats:
    """(n, 3) CIE Lab of sRGB levels 0..255, white D65, 2 degrees."""
    x = levels / 255
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    t = linear @ _TO_XYZ.T / _WHITE
    fx, fy, fz = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116).T
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=1)


def paired(costs: Floats) -> list[tuple[int, int]]:
    """Places (row, column) of a matrix, one in each row or column, whose sum is lowest (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(costs)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def _load_joints(settings: Settings) -> FindJoints:
    """What finds joints, with the tokenizer of poses."""
    # These import torch.
    from fourm.codecs.figures import find_joints
    from fourm.codecs.texts import STRUCTURED, decoder_of
    from fourm.networks.checkpoint import load_tokenizer

    weights, form = settings.weights, STRUCTURED[settings.row.codec]
    assert weights is not None  # the line in MEASURES names them
    folder = weights if weights.is_dir() else weights.parent
    tokenizer = load_tokenizer(folder, settings.device, part=TokenizerPart.DECODER)
    return partial(find_joints, decode=decoder_of(settings.row, tokenizer, form.codes, form.channels))


def _metadata_of(pair: Pair) -> Row:
    stated = {fact.field: fact.value for fact in pair.value}
    equal, errors = 0, dict[str, float]()
    for fact in pair.other:
        if (value := stated.get(fact.field)) is not None:
            equal += fact.field.index_of(value) == fact.field.index_of(fact.value)
            errors[f"error/{fact.field.name}"] = float(abs(fact.value - value))
    return {"fields_equal": equal / len(pair.other) if pair.other else math.nan} | errors


def _corners(boxes: Sequence[Box]) -> Floats:
    """(n, 4) corners in order."""
    corners = np.array([box.corners for box in boxes], dtype=np.float64).reshape(-1, 2, 2)
    return np.sort(corners, axis=1).reshape(-1, 4)
