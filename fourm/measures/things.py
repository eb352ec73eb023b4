"""Measures of things that are neither maps nor texts nor boxes: people, palettes, metadata."""

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm.hub.header import TokenizerPart
from fourm.measures.measure import MeanOf, Measure, Pair, Row, Settings
from fourm.modalities.facts import Palette
from fourm.modalities.figures import PICTURE_SIDE, People

Floats = NDArray[np.float64]
FindJoints = Callable[[People], Floats]  # n people -> (n, 25, 2) pixels, NaN: not in front of the camera

_NEAR = {"pck_05": 0.05, "pck_10": 0.1}  # of the longer side of a person's box
# sRGB (IEC 61966-2-1) to XYZ, and its white, D65.
_TO_XYZ = np.array([
    [0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]
])  # fmt: skip
_WHITE = np.array([0.95047, 1.0, 1.08883])


def poses(settings: Settings) -> Measure:
    """PCK: the share of joints that lie within 0.05 or 0.1 of the longer side of the true person's box.

    Yang and Ramanan 2013, doi:10.1109/TPAMI.2012.261. Joints are those of our skeleton (`codecs/figures`),
    posed by the tokenizer. People are paired so that their joints are nearest; all joints of a true person
    without a partner are wrong. The mean over pictures with people.
    """
    joints_of = cache(partial(_load_joints, settings))
    return MeanOf(lambda pair: pck(pair.value, pair.other, joints_of()), list(_NEAR))


def palettes(settings: Settings) -> Measure:
    """The mean distance in CIE Lab (CIE76) of colours, and the difference of their numbers.

    Colours are paired so that the sum of distances is lowest; those of the longer palette that are left over
    have no distance.
    """
    names = ["lab_distance", "count_error"]
    return MeanOf(lambda pair: palette_errors(pair.value, pair.other), names)


def metadata(settings: Settings) -> Measure:
    """The share of the true fields that a result states with the same index, and the mean error of each.

    The indices are those of 4M's texts: values of one bin are equal. `error/NAME` is the absolute error of
    the values of a field, where both state one.
    """
    return MeanOf(_metadata_of, ["fields_equal"])


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
