"""Measures of maps: depth, normals, segmentation, edges, features. All arithmetic is in float64 or int64."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fourm.codecs.colours import COCO_NAMES, NO_CLASS, class_names
from fourm.errors import SampleError
from fourm.measures.measure import (
    Array,
    Counts,
    MeanOf,
    Measure,
    Pair,
    PooledOf,
    Row,
    Settings,
    State,
    Value,
    check_sizes,
    id_of,
)

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

SCORES = ("miou", "pixel_accuracy")
NUM_CLASSES = 256  # rows and columns of a confusion matrix, with "no class"
DEPTH_ERRORS = ("abs_rel", "rmse", "delta_1", "delta_2", "delta_3")
_DELTA = 1.25  # a pixel is right within this ratio, its square, its cube
NORMAL_ERRORS = ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30")
_ANGLES = (11.25, 22.5, 30.0)  # degrees
_MIN_LENGTH = 0.5  # a vector of a true map that is shorter is no direction, as grey, which stands for unknown
_LEVELS = 256  # of edges, 0..255
_EDGE_FROM = 128  # a pixel of a true map of edges is an edge from this level on
_TOLERANCE = 0.0075  # of the diagonal: how far apart two pixels of one edge may lie
_THRESHOLDS = [-(-255 * share // 100) for share in range(1, 100)]  # lowest levels of 1 % .. 99 % of 255
RECALLS = {"recall_1": 1, "recall_5": 5, "recall_10": 10}
_TIE = 1e-9  # cosines that differ by less are equal
_CHUNK = 256  # queries that are compared at once, so that memory is flat


def depth(settings: Settings) -> Measure:
    """AbsRel, RMSE and shares within ratios of 1.25, 1.25^2, 1.25^3, each the mean over pictures.

    Eigen et al. 2014, arXiv:1406.2283. The depth of 4M is relative: scale and shift are fitted to the true
    map by least squares, picture by picture (Ranftl et al. 2020, arXiv:1907.01341), but for `metric_depth`.
    """
    measured = partial(_depth_of, is_metric=settings.metric_depth)
    return MeanOf(measured, DEPTH_ERRORS)


def normals(settings: Settings) -> Measure:
    """Mean and median of the angle between normals in degrees, shares within 11.25, 22.5 and 30 degrees.

    Fouhey et al. 2013, doi:10.1109/ICCV.2013.421. Each number is one of a picture, and its mean over
    pictures; so `median_angle` is the mean of medians.
    """
    return MeanOf(_normals_of, NORMAL_ERRORS)


def cosine(settings: Settings) -> Measure:
    """The cosine of two feature maps: the mean over their places, then over samples."""
    return MeanOf(_cosine_of, ["cosine"])


def segmentation(settings: Settings) -> Measure:
    """Mean intersection over union of classes and pixel accuracy, of the confusion matrix of all pixels.

    Long et al. 2015, arXiv:1411.4038. A class counts if a true map or a result has it. Pixels without a class
    in the true map are left out; those of a result are wrong. `iou/NAME` of each class is a detail.
    """
    names = class_names(settings.row.labels or COCO_NAMES)
    return PooledOf(_confusion_of, partial(scores, names=names), SCORES, (NUM_CLASSES, NUM_CLASSES))


def edges(settings: Settings) -> Measure:
    """F1 of edges at the one threshold that is best for all pictures (ODS), which is a detail.

    Arbeláez et al. 2011, doi:10.1109/TPAMI.2010.161, without thinning: a pixel is right if the other map has
    an edge within 0.0075 of the diagonal, and several pixels may be right by the same one. A row has the F1
    of one picture at its own best threshold.
    """
    return PooledOf(_edges_of, best_f1, ["ods_f1"], (3, _LEVELS))


class Retrieval:
    """The share of samples whose partner is among the 1, 5, 10 nearest of all partners, by cosine.

    Hodosh et al. 2013, doi:10.1613/jair.3994.
    Features are means over places. Partners that are as near as the own one count as nearer; several of one
    sample count once. Only features of as many channels are rivals. Rows have no number, because the others
    are known only at the end.
    """

    def __init__(self, settings: Settings) -> None:
        self._ids, self._found, self._true = list[int](), list[Array](), list[Array]()

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """Rows without numbers."""
        vectors = [[_vector_of(one) for one in _checked(pair)] for pair in pairs]
        self._ids += [id_of(pair, is_sample=True) for pair in pairs]
        self._found += [found for found, _ in vectors]
        self._true += [true for _, true in vectors]
        return [{} for _ in pairs]

    def state(self) -> State:
        """(n,) ids of samples and their channels, and the features of results and of partners in a row."""
        empty = np.zeros(0, dtype=np.float32)
        widths = np.array([len(one) for one in self._found], dtype=np.int64)
        found, true = (np.concatenate([empty, *side]) for side in (self._found, self._true))
        return {"ids": np.array(self._ids, dtype=np.int64), "widths": widths, "found": found, "true": true}

    def merge(self, states: Sequence[State]) -> None:
        """Add features."""
        for state in states:
            ends = state["widths"].cumsum()[:-1]
            self._ids += state["ids"].tolist()
            self._found += np.split(state["found"], ends)[: len(state["ids"])]
            self._true += np.split(state["true"], ends)[: len(state["ids"])]

    def result(self) -> dict[str, Value]:
        """The shares."""
        ids, widths = (np.array(one, dtype=np.int64) for one in (self._ids, [*map(len, self._found)]))
        nearer = np.zeros(len(ids), dtype=np.int64)
        for width in np.unique(widths).tolist():
            places = np.flatnonzero(widths == width)
            sides = (np.stack([side[place] for place in places]) for side in (self._found, self._true))
            nearer[places] = count_nearer(ids[places], *sides)
        shares = {name: float((nearer < most).mean()) if len(ids) else math.nan
                  for name, most in RECALLS.items()}  # fmt: skip
        return {name: Value(share, len(ids)) for name, share in shares.items()}


def depth_errors(found: Floats, true: Floats, is_metric: bool = False) -> Row:
    """The numbers of DEPTH_ERRORS of some pixels (n,), all of them known.

    RMSE is in units of the true map. Where that has numbers below 0, it has no zero point, as after
    standardisation, so that ratios mean nothing: they are NaN. A number that is not above 0 is never within a
    ratio. Without pixels all is NaN.
    """
    errors = dict.fromkeys(DEPTH_ERRORS, math.nan)
    if not len(true):
        return errors
    fitted = found if is_metric else _fitted(found, true, found)
    errors["rmse"] = float(np.sqrt(np.square(fitted - true).mean()))
    if true.min() > 0:
        errors["abs_rel"] = float((np.abs(fitted - true) / true).mean())
        ratio = np.full(len(true), np.inf)
        above = fitted > 0
        with np.errstate(over="ignore"):
            ratio[above] = np.maximum(fitted[above] / true[above], true[above] / fitted[above])
        for power in (1, 2, 3):
            errors[f"delta_{power}"] = float((ratio < _DELTA**power).mean())
    return errors


def normal_angles(found: NDArray[np.uint8], true: NDArray[np.uint8]) -> Floats:
    """Angles (n,) in degrees between directions of pixels (n, 3), 0..255 for -1..1.

    Pixels whose true vector is too short to be a direction are left out.
    """
    a, b = (levels.astype(np.float64) / 127.5 - 1 for levels in (found, true))
    is_known = np.linalg.norm(b, axis=1) >= _MIN_LENGTH
    a, b = a[is_known], b[is_known]
    # Exact for small angles, too, unlike the arc cosine.
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b), axis=1), (a * b).sum(axis=1)))


def class_ious(confusion: Counts) -> Floats:
    """(256,) intersection over union of each class of a confusion matrix (true, found); NaN: absent."""
    right = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - right
    ious = np.full(NUM_CLASSES, np.nan)
    np.divide(right, union, out=ious, where=union > 0)
    ious[NO_CLASS] = np.nan
    return ious


def scores(confusion: Counts, names: Sequence[str]) -> Row:
    """The numbers of SCORES of a confusion matrix, NaN without pixels; `iou/NAME` of the classes it has."""
    ious, total = class_ious(confusion), int(confusion.sum())
    if not total:
        return dict.fromkeys(SCORES, math.nan)
    present = {f"iou/{name}": iou for name, iou in zip(names, ious.tolist(), strict=True) if iou == iou}
    accuracy = int(np.diag(confusion).sum()) / total
    return {"miou": math.fsum(present.values()) / len(present), "pixel_accuracy": accuracy, **present}


def edge_counts(found: NDArray[np.uint8], true: NDArray[np.uint8]) -> Counts:
    """(3, 256) numbers of pixels of two maps (H, W), by level.

    Pixels of the result by their level; those of them that are near a true edge; pixels of true edges by the
    highest level of the result near them.
    """
    from scipy.ndimage import maximum_filter

    radius = _TOLERANCE * math.hypot(*true.shape)
    reach = np.arange(-int(radius), int(radius) + 1)
    disc = reach[:, None] ** 2 + reach**2 <= radius**2
    edge = true >= _EDGE_FROM
    near_edge, highest = (
        maximum_filter(levels, footprint=disc, mode="constant") for levels in (edge.astype(np.uint8), found)
    )
    counted = (found, found[near_edge > 0], highest[edge])
    return np.stack([np.bincount(levels.reshape(-1), minlength=_LEVELS) for levels in counted])


def edge_f1(counts: Counts) -> Floats:
    """(99,) F1 of `edge_counts` at the thresholds 1 %, 2 %, ..., 99 % of 255.

    1 where there is neither an edge nor one in the result, 0 where there is only one of both.
    """
    found, right, reached = counts[:, ::-1].cumsum(axis=1)[:, ::-1][:, _THRESHOLDS]
    edges = counts[2].sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = right / found, reached / edges
        f1 = np.nan_to_num(2 * precision * recall / (precision + recall))
    return np.where((found == 0) & (edges == 0), 1.0, f1)


def best_f1(counts: Counts) -> Row:
    """The best of `edge_f1`, and its threshold as a share of 255; NaN without pixels."""
    if not counts.any():
        return {"ods_f1": math.nan}
    f1 = edge_f1(counts)
    return {"ods_f1": float(f1.max()), "ods_threshold": (int(f1.argmax()) + 1) / 100}


def cosines(found: NDArray[np.float32], true: NDArray[np.float32]) -> Floats:
    """The cosine at each place (h * w,) of two maps (C, h, w).

    Where a vector is 0, it is 1 if the other one is 0, too, else 0.
    """
    a, b = (one.reshape(len(one), -1).astype(np.float64) for one in (found, true))
    lengths = np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=0)
    product = lengths[0] * lengths[1]
    both_zero = ((lengths[0] == 0) & (lengths[1] == 0)).astype(np.float64)
    return np.divide((a * b).sum(axis=0), product, out=both_zero, where=product > 0)


def count_nearer(ids: Ids, found: Array, true: Array) -> Ids:
    """(n,) for each result the number of other samples with a partner that is at least as near as its own.

    ids: (n,) of samples. found, true: (n, C).
    """
    order = np.argsort(ids, kind="stable")
    ids, theirs = ids[order], _unit(true[order])
    samples, starts, places = np.unique(ids, return_index=True, return_inverse=True)
    nearer = np.zeros(len(ids), dtype=np.int64)
    for start in range(0, len(ids), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(ids)))
        cosines = _unit(found[order[rows]]) @ theirs.T
        own = cosines[np.arange(len(rows)), rows]
        best = np.maximum.reduceat(cosines, starts, axis=1)  # (queries, samples)
        is_nearer = (best >= own[:, None] - _TIE) & (np.arange(len(samples)) != places[rows, None])
        nearer[order[rows]] = is_nearer.sum(axis=1)
    return nearer


def fitted_depth(pair: Pair) -> Floats:
    """The measured map (H, W) with the scale and shift that fit its known pixels to the true map."""
    found, true, known = _depths(pair)
    return _fitted(found[known], true[known], found) if known.any() else found


def _depth_of(pair: Pair, is_metric: bool) -> Row:
    found, true, known = _depths(pair)
    return depth_errors(found[known], true[known], is_metric)


def _depths(pair: Pair) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """The measured and the true map (H, W), and where both are known."""
    check_sizes(pair)
    found, true = (value.astype(np.float64) for value in (pair.value, pair.other))
    known = _known(pair) & np.isfinite(found) & np.isfinite(true)
    if not (true[known] < 0).any():
        known &= true != 0  # the level of pixels whose depth is not known
    return found, true, known


def _fitted(found: Floats, true: Floats, values: Floats) -> Floats:
    """values * scale + shift, which bring `found` nearest to the true numbers by the sum of squares."""
    centred = found - found.mean()
    scale = centred @ (true - true.mean()) / (centred @ centred) if np.ptp(found) > 0 else 0.0
    return (values - found.mean()) * scale + true.mean()


def _normals_of(pair: Pair) -> Row:
    check_sizes(pair)
    known = _known(pair)
    angles = normal_angles(pair.value[known], pair.other[known])
    if not len(angles):
        return dict.fromkeys(NORMAL_ERRORS, math.nan)
    numbers = (angles.mean(), np.median(angles), *((angles < limit).mean() for limit in _ANGLES))
    return dict(zip(NORMAL_ERRORS, map(float, numbers), strict=True))


def _confusion_of(pair: Pair) -> Counts:
    check_sizes(pair)
    counted = _known(pair) & (pair.other != NO_CLASS)
    cells = pair.other[counted].astype(np.int64) * NUM_CLASSES + pair.value[counted]
    return np.bincount(cells, minlength=NUM_CLASSES**2).reshape(NUM_CLASSES, NUM_CLASSES)


def _edges_of(pair: Pair) -> Counts:
    check_sizes(pair)
    known = _known(pair)
    if not known.any():
        return np.zeros((3, _LEVELS), dtype=np.int64)
    return edge_counts(*(np.where(known, one, np.uint8(0)) for one in (pair.value, pair.other)))


def _cosine_of(pair: Pair) -> Row:
    return {"cosine": float(cosines(*_checked(pair)).mean())}


def _checked(pair: Pair) -> tuple[Array, Array]:
    """Both values (C, h, w); SampleError: they cannot be compared."""
    if pair.value.shape != pair.other.shape:
        found, wanted = (" x ".join(map(str, one.shape)) for one in (pair.value, pair.other))
        raise SampleError(f"features of {found}, but its partner has {wanted}")
    if not pair.value.size:
        raise SampleError("features without a number")
    if not (np.isfinite(pair.value).all() and np.isfinite(pair.other).all()):
        raise SampleError("features that are no finite numbers")
    return pair.value, pair.other


def _vector_of(features: Array) -> NDArray[np.float32]:
    return features.reshape(len(features), -1).mean(axis=1, dtype=np.float64).astype(np.float32)


def _unit(vectors: Array) -> Floats:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)


def _known(pair: Pair) -> NDArray[np.bool_]:
    """(H, W): the pixels that are compared."""
    return np.ones(pair.other.shape[:2], dtype=np.bool_) if pair.known is None else pair.known
