"""Measures of things that are not maps: boxes, people, palettes, metadata; and of neighbours among features."""

import io
import math
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm.errors import SampleError
from fourm.hub.header import TokenizerPart
from fourm.measures.measure import Array, MeanOf, Measure, Pair, Row, Settings, State, Value, one_by_one
from fourm.modalities.facts import FIELDS, Boxes, Metadata, Palette
from fourm.modalities.figures import PICTURE_SIDE, People

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
FindJoints = Callable[[People], Floats]  # n people -> (n, 25, 2) pixels, NaN: not in front of the camera

BOX_SCORES = ("ap", "ap50", "ap75", "ar100")
_MAX_BOXES = 100  # of a picture
_IN_TURN = ("ap50", 0), ("ap75", 5)  # places among the thresholds of overlap 0.5, 0.55, ..., 0.95
_NEAR = {"pck_05": 0.05, "pck_10": 0.1}  # of the longer side of a person's box
RECALLS = {"recall_1": 1, "recall_5": 5, "recall_10": 10}
_TIE = 1e-9  # cosines that differ by less are equal
_CHUNK = 256  # queries that are compared at once, so that memory is flat

# sRGB (IEC 61966-2-1) to XYZ, and its white, D65.
_TO_XYZ = np.array([
    [0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]
])  # fmt: skip
_WHITE = np.array([0.95047, 1.0, 1.08883])


class BoxPrecision:
    """COCO's average precision of boxes, over overlaps of 0.5 to 0.95, by pycocotools.

    Lin et al. 2014, arXiv:1405.0312; areas of all sizes, at most 100 boxes of a picture, means over the names
    that true boxes have; names match without regard to case. Models write no scores: boxes of equal score
    are ranked by their order in the text, and pictures by a hash of their keys, whatever process read them. A
    row has the average precision of one picture.
    """

    def __init__(self, settings: Settings) -> None:
        empty = np.zeros((0, 2), dtype=np.int64), np.zeros((0, 5))
        self._found, self._true, self._samples = [empty], [empty], 0

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """The average precision of each picture."""
        found = [box_arrays(id_of(pair), pair.value) for pair in pairs]
        true = [box_arrays(id_of(pair), pair.other) for pair in pairs]
        rows = [{"ap": coco_ap(*both)["ap"]} for both in zip(found, true, strict=True)]
        self._found += found
        self._true += true
        self._samples += len(pairs)
        return rows

    def state(self) -> State:
        """All boxes: (n, 2) ids of picture and name, (n, 5) corners and score; of results and of partners."""
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
        scores = coco_ap(_joined(self._found), _joined(self._true))
        return {name: Value(score, self._samples) for name, score in scores.items()}


class MetadataFields:
    """The share of the true fields that a result states with the same index, and the mean error of each.

    The indices are those of 4M's texts: values of one bin are equal. The error is that of values, where both
    state one.
    """

    def __init__(self, settings: Settings) -> None:
        self._shares = MeanOf(one_by_one(_fields_equal), ["fields_equal"])
        self._errors: dict[int, list[float]] = {field.number: [] for field in FIELDS}

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """The share of each sample."""
        rows = self._shares.update(pairs)
        for pair in pairs:
            for number, error in field_errors(pair.value, pair.other).items():
                self._errors[number].append(error)
        return rows

    def state(self) -> State:
        """Shares of samples, and errors by the number of their field."""
        errors = {f"error/{number}": np.array(found) for number, found in self._errors.items() if found}
        return {**self._shares.state(), **errors}

    def merge(self, states: Sequence[State]) -> None:
        """Add shares and errors."""
        for state in states:
            self._shares.merge([{"fields_equal": state["fields_equal"]}])
            for number, errors in self._errors.items():
                errors.extend(state.get(f"error/{number}", np.zeros(0)).tolist())

    def result(self) -> dict[str, Value]:
        """The mean share; `error/NAME` of each field as details."""
        errors = {
            f"error/{FIELDS[number].name}": Value(math.fsum(found) / len(found), len(found), is_detail=True)
            for number, found in self._errors.items()
            if found
        }
        return self._shares.result() | errors


class Retrieval:
    """The share of samples whose partner is among the 1, 5, 10 nearest of all partners, by cosine.

    Features are means over places. Partners that are as near as the own one count as nearer; several of one
    sample count once. Rows have no number, because the others are known only at the end.
    """

    def __init__(self, settings: Settings) -> None:
        self._ids = list[int]()
        self._found, self._true = list[Array](), list[Array]()

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """Rows without numbers."""
        vectors = [[_vector_of(one) for one in (pair.value, pair.other)] for pair in pairs]
        widths = {len(one) for both in vectors for one in both} | {len(one) for one in self._true[:1]}
        if len(widths) > 1:
            raise SampleError(f"features of {' and '.join(map(str, sorted(widths)))} channels")
        for pair, (found, true) in zip(pairs, vectors, strict=True):
            self._ids.append(id_of(pair, is_sample=True))
            self._found.append(found)
            self._true.append(true)
        return [{} for _ in pairs]

    def state(self) -> State:
        """(n,) ids of samples, (n, C) features of results and of partners."""
        empty = np.zeros((0, 0), dtype=np.float32)
        found, true = (np.stack(one) if one else empty for one in (self._found, self._true))
        return {"ids": np.array(self._ids, dtype=np.int64), "found": found, "true": true}

    def merge(self, states: Sequence[State]) -> None:
        """Add features."""
        for state in states:
            self._ids += state["ids"].tolist()
            self._found += [*state["found"]]
            self._true += [*state["true"]]

    def result(self) -> dict[str, Value]:
        """The shares."""
        if not self._ids:
            return {name: Value(math.nan, 0) for name in RECALLS}
        state = self.state()
        nearer = count_nearer(state["ids"], state["found"], state["true"])
        return {name: Value(float((nearer < most).mean()), len(nearer)) for name, most in RECALLS.items()}


def poses(settings: Settings) -> Measure:
    """PCK: the share of joints that lie within 0.05 or 0.1 of the longer side of the true person's box.

    Yang and Ramanan 2013, doi:10.1109/TPAMI.2012.261. Joints are those of our skeleton (`codecs/figures`),
    posed by the tokenizer. People are paired so that their joints are nearest; all joints of a true person
    without a partner are wrong. The mean over pictures with people.
    """
    # These import torch.
    from fourm.codecs.figures import find_joints
    from fourm.codecs.texts import STRUCTURED, decoder_of
    from fourm.networks.checkpoint import load_tokenizer

    assert settings.weights is not None  # the line in MEASURES names them
    form = STRUCTURED[settings.row.codec]
    tokenizer = load_tokenizer(settings.weights, settings.device, part=TokenizerPart.DECODER)
    decode = decoder_of(settings.row, tokenizer, form.codes, form.channels)
    joints_of = partial(find_joints, decode=decode)
    return MeanOf(one_by_one(lambda pair: pck(pair.value, pair.other, joints_of)), list(_NEAR))


def palettes(settings: Settings) -> Measure:
    """The mean distance in CIE Lab (CIE76) of colours, and the difference of their numbers.

    Colours are paired so that the sum of distances is lowest; those of the longer palette that are left over
    have no distance.
    """
    names = ["lab_distance", "count_error"]
    return MeanOf(one_by_one(lambda pair: palette_errors(pair.value, pair.other)), names)


def coco_ap(found: tuple[Ids, Floats], true: tuple[Ids, Floats]) -> dict[str, float]:
    """The numbers of BOX_SCORES of boxes: (n, 2) ids of picture and name, (n, 5) corners and score.

    NaN without true boxes.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not len(true[0]):
        return dict.fromkeys(BOX_SCORES, math.nan)
    ids = np.concatenate([true[0], found[0]])
    small = np.stack([np.unique(column, return_inverse=True)[1] for column in ids.T], axis=1)
    counted = {
        "images": [{"id": picture} for picture in np.unique(small[:, 0]).tolist()],
        "categories": [{"id": name} for name in np.unique(small[: len(true[0]), 1]).tolist()],
    }
    sides = list[COCO]()
    with redirect_stdout(io.StringIO()):  # of its messages
        for numbers, boxes in zip(np.split(small, [len(true[0])]), (true[1], found[1]), strict=True):
            sides.append(COCO())
            sides[-1].dataset = {**counted, "annotations": _annotations(numbers, boxes)}
            sides[-1].createIndex()
        compared = COCOeval(*sides, "bbox")
        compared.params.areaRng, compared.params.areaRngLbl = [[0, math.inf]], ["all"]
        compared.params.maxDets = [_MAX_BOXES]
        compared.evaluate()
        compared.accumulate()
    precision = compared.eval["precision"][..., 0, 0]  # thresholds, places of recall, names
    at = {name: _mean_known(precision[place]) for name, place in _IN_TURN}
    return {"ap": _mean_known(precision), **at, "ar100": _mean_known(compared.eval["recall"][..., 0, 0])}


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


def field_errors(found: Metadata, true: Metadata) -> dict[int, float]:
    """The absolute error of each field that both state, by its number."""
    stated = {fact.field.number: fact.value for fact in found}
    pairs = ((fact, stated.get(fact.field.number)) for fact in true)
    return {fact.field.number: float(abs(fact.value - value)) for fact, value in pairs if value is not None}


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


def count_nearer(ids: Ids, found: Array, true: Array) -> Ids:
    """(n,) for each result the number of other samples with a partner that is at least as near as its own.

    ids: (n,) of samples. found, true: (n, C).
    """
    order = np.argsort(ids, kind="stable")
    ids, ours, theirs = ids[order], _unit(found[order]), _unit(true[order])
    samples, starts, places = np.unique(ids, return_index=True, return_inverse=True)
    nearer = np.zeros(len(ids), dtype=np.int64)
    for start in range(0, len(ids), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(ids)))
        cosines = ours[rows] @ theirs.T
        own = cosines[np.arange(len(rows)), rows]
        best = np.maximum.reduceat(cosines, starts, axis=1)  # (queries, samples)
        is_nearer = (best >= own[:, None] - _TIE) & (np.arange(len(samples)) != places[rows, None])
        nearer[order[rows]] = is_nearer.sum(axis=1)
    return nearer


def box_arrays(picture: int, boxes: Boxes) -> tuple[Ids, Floats]:
    """(n, 2) ids of picture and name, (n, 5) corners in order and score."""
    ids = [(picture, _hash_of(" ".join(box.name.lower().split()))) for box in boxes]
    numbers = np.array([(*box.corners, box.score) for box in boxes], dtype=np.float64).reshape(-1, 5)
    low, high = (pick(numbers[:, :2], numbers[:, 2:4]) for pick in (np.minimum, np.maximum))
    return np.array(ids, dtype=np.int64).reshape(-1, 2), np.concatenate([low, high, numbers[:, 4:]], axis=1)


def id_of(pair: Pair, is_sample: bool = False) -> int:
    """A number for a pair, the same in every process; is_sample: the same for all variations of a sample."""
    return _hash_of(pair.key if is_sample else f"{pair.key}\n{pair.variation}")


def _hash_of(text: str) -> int:
    """63 bits, so that it fits into an int64."""
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest()) >> 1


def _joined(parts: Sequence[tuple[Ids, Floats]]) -> tuple[Ids, Floats]:
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([boxes for _, boxes in parts])


def _annotations(ids: Ids, boxes: Floats) -> list[dict[str, object]]:
    """Boxes in COCO's form: (n, 2) ids of picture and name, (n, 5) corners and score."""
    return [
        {
            "id": index, "image_id": picture, "category_id": name, "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0), "iscrowd": 0, "score": score,
        }
        for index, ((picture, name), (x0, y0, x1, y1, score)) in enumerate(
            zip(ids.tolist(), boxes.tolist(), strict=True), start=1
        )
    ]  # fmt: skip


def _mean_known(numbers: Floats) -> float:
    """The mean of numbers; pycocotools has -1 where there is none."""
    known = numbers[numbers >= 0]
    return float(known.mean()) if known.size else math.nan


def _fields_equal(pair: Pair) -> Row:
    stated = {fact.field.number: fact.field.index_of(fact.value) for fact in pair.value}
    equal = [stated.get(fact.field.number) == fact.field.index_of(fact.value) for fact in pair.other]
    return {"fields_equal": sum(equal) / len(equal) if equal else math.nan}


def _vector_of(features: Array) -> NDArray[np.float32]:
    return features.reshape(len(features), -1).mean(axis=1, dtype=np.float64).astype(np.float32)


def _unit(vectors: Array) -> Floats:
    wide = vectors.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
