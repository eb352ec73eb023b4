"""Measures of maps against scikit-learn, SciPy and torch, and against numbers by hand."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from sklearn.linear_model import LinearRegression
from sklearn.metrics import (
    accuracy_score,
    jaccard_score,
    mean_absolute_percentage_error,
    mean_squared_error,
)

from fourm.measures.maps import DEPTH_ERRORS, NORMAL_ERRORS
from tests.measures.measuring import build, check_shares, pairs_of, row_of

DEPTH, NORMAL, LABELS, EDGES = "tok_depth@224", "tok_normal@224", "tok_semseg@224", "tok_canny_edge@224"
TOLERANCE = 1e-6


def floats(*rows: list[float]) -> NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize("is_metric", [False, True])
def test_depth_is_that_of_scikit_learn(is_metric: bool) -> None:
    rng, values, wanted = np.random.default_rng(0), [], []
    for _ in range(5):
        found, true = (rng.uniform(0.05, 1, (23, 31)).astype(np.float32) for _ in range(2))
        found[rng.random(found.shape) < 0.1] = np.nan
        true[rng.random(true.shape) < 0.1] = np.nan
        true[rng.random(true.shape) < 0.1] = 0
        values.append((found, true))
        counted = ~np.isnan(found) & ~np.isnan(true) & (true != 0)
        x, y = found[counted].astype(np.float64), true[counted].astype(np.float64)
        fitted = x if is_metric else LinearRegression().fit(x[:, None], y).predict(x[:, None])
        wanted.append((
            mean_absolute_percentage_error(y, fitted), math.sqrt(mean_squared_error(y, fitted)),
            *(np.mean([a > 0 and max(a / b, b / a) < 1.25**k for a, b in zip(fitted, y, strict=True)])
              for k in (1, 2, 3)),
        ))  # fmt: skip
    found_means = check_shares("depth", DEPTH, pairs_of(values), metric_depth=is_metric)
    assert [found_means[name] for name in DEPTH_ERRORS] == pytest.approx(
        np.mean(wanted, axis=0), abs=TOLERANCE
    )


def test_depth_by_hand() -> None:
    found, true = floats([1, 1], [5, 9]), floats([1, 2], [4, 0])  # 0: not known
    numbers = row_of("depth", DEPTH, found, true, metric_depth=True)
    assert numbers["abs_rel"] == pytest.approx((0 + 1 / 2 + 1 / 4) / 3)
    assert numbers["rmse"] == pytest.approx(math.sqrt(2 / 3))
    # Ratios are 1, 2 and 1.25; the last one is not below 1.25.
    assert [numbers[f"delta_{k}"] for k in (1, 2, 3)] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_relative_depth_is_right_whatever_its_scale_and_shift() -> None:
    true = np.random.default_rng(1).uniform(1, 9, (8, 8)).astype(np.float32)
    for found in (true, 3 * true - 20, -0.5 * true):
        numbers = row_of("depth", DEPTH, found, true)
        assert numbers["rmse"] < TOLERANCE
        assert [numbers[f"delta_{k}"] for k in (1, 2, 3)] == [1, 1, 1]


def test_a_constant_depth_counts_as_the_mean_of_the_true_one() -> None:
    true = floats([1, 2], [3, 6])
    numbers = row_of("depth", DEPTH, np.full((2, 2), 0.1, dtype=np.float32), true)
    assert numbers["rmse"] == pytest.approx(float(true.std()), abs=TOLERANCE)
    assert numbers["abs_rel"] == pytest.approx((2 + 1 / 2 + 0 + 1 / 2) / 4)
    assert row_of("depth", DEPTH, true, np.full((2, 2), 2, dtype=np.float32))["rmse"] == pytest.approx(0)


def test_depth_of_all_wrong_signs_is_within_no_ratio() -> None:
    true = floats([1, 2], [3, 6])
    numbers = row_of("depth", DEPTH, -true, true, metric_depth=True)
    assert [numbers[f"delta_{k}"] for k in (1, 2, 3)] == [0, 0, 0]
    assert numbers["abs_rel"] == pytest.approx(2)


def test_a_standardised_true_depth_has_no_ratios() -> None:
    true = floats([-1, 0], [0.5, 0.5])
    numbers = row_of("depth", DEPTH, floats([-1, 0], [0.5, 0.7]), true, metric_depth=True)
    assert numbers["rmse"] == pytest.approx(0.1)  # 0 is a number like others here
    assert all(math.isnan(numbers[name]) for name in DEPTH_ERRORS if name != "rmse")


def test_pictures_without_known_depth_are_left_out() -> None:
    empty, map_ = np.full((2, 2), np.nan, dtype=np.float32), floats([1, 2], [3, 4])
    numbers = check_shares("depth", DEPTH, pairs_of([(empty, map_), (map_, empty), (map_, map_)]))
    assert numbers["rmse"] == pytest.approx(0)
    assert math.isnan(check_shares("depth", DEPTH, pairs_of([(map_, 0 * map_)]))["rmse"])


def test_only_pixels_that_both_know_are_compared() -> None:
    known = np.array([[True, False]])
    found, true = floats([1, 9]), floats([1, 2])
    assert row_of("depth", DEPTH, found, true, known, metric_depth=True)["rmse"] == 0
    a, b = np.array([[1, 2]], dtype=np.uint8), np.array([[1, 3]], dtype=np.uint8)
    assert row_of("segmentation", LABELS, a, b, known)["pixel_accuracy"] == 1
    assert row_of("edges", EDGES, np.array([[0, 255]], dtype=np.uint8), 0 * a, known)["ods_f1"] == 1
    a, b = (np.array([[[255, 128, 128], blue]], dtype=np.uint8) for blue in ([0, 0, 255], [0, 255, 0]))
    assert row_of("normals", NORMAL, a, b, known)["mean_angle"] == 0


def test_normals_are_those_of_torch() -> None:
    rng, values, wanted = np.random.default_rng(2), [], []
    for _ in range(4):
        vectors = rng.normal(size=(2, 17, 19, 3))
        vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
        found, true = np.rint((vectors + 1) * 127.5).astype(np.uint8)
        values.append((found, true))
        a, b = (torch.from_numpy(one.astype(np.float64) / 127.5 - 1) for one in (found, true))
        angles = np.degrees(torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos().numpy()).ravel()
        wanted.append(
            [angles.mean(), np.median(angles), *(np.mean(angles < most) for most in (11.25, 22.5, 30))]
        )
    numbers = check_shares("normals", NORMAL, pairs_of(values))
    assert [numbers[name] for name in NORMAL_ERRORS] == pytest.approx(np.mean(wanted, axis=0), abs=TOLERANCE)


def test_normals_by_hand() -> None:
    white, black, cyan, grey = ([255] * 3, [0] * 3, [0, 255, 255], [128] * 3)
    found = np.array([[white, white, white, white]], dtype=np.uint8)
    true = np.array([[white, black, cyan, grey]], dtype=np.uint8)  # grey: no direction
    numbers = row_of("normals", NORMAL, found, true)
    between = math.degrees(math.acos(1 / 3))
    assert numbers["mean_angle"] == pytest.approx((0 + 180 + between) / 3)
    assert numbers["median_angle"] == pytest.approx(between)
    assert [numbers[name] for name in NORMAL_ERRORS[2:]] == pytest.approx([1 / 3] * 3)
    assert row_of("normals", NORMAL, found, found)["mean_angle"] == 0
    assert all(math.isnan(one) for one in row_of("normals", NORMAL, found, 0 * found + 128).values())


def test_segmentation_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    choices = np.array([0, 3, 7, 132, 254, 255], dtype=np.uint8)  # class 0 is in results only
    values = [(rng.choice(choices, (20, 30)), rng.choice(choices[1:], (20, 30))) for _ in range(5)]
    numbers = check_shares("segmentation", LABELS, pairs_of(values))
    found, true = (np.concatenate([one.ravel() for one in side]) for side in zip(*values, strict=True))
    found, true = found[true != 255], true[true != 255]
    classes = choices[:-1].tolist()
    assert numbers["pixel_accuracy"] == pytest.approx(accuracy_score(true, found), abs=TOLERANCE)
    wanted = jaccard_score(true, found, labels=classes, average=None)
    assert numbers["miou"] == pytest.approx(wanted.mean(), abs=TOLERANCE)
    each = {name: number for name, number in numbers.items() if name.startswith("iou/")}
    assert list(each) == ["iou/person", "iou/motorcycle", "iou/truck", "iou/rug-merged", "iou/class 254"]
    assert list(each.values()) == pytest.approx(wanted, abs=TOLERANCE)


def test_edges_are_those_of_distance_transforms() -> None:
    rng, shape = np.random.default_rng(4), (150, 250)  # a tolerance of 2.19 pixels
    values = []
    for _ in range(3):
        true = np.where(rng.random(shape) < 0.01, 255, rng.integers(0, 128, shape)).astype(np.uint8)
        near = np.roll(true, rng.integers(-3, 4, 2), axis=(0, 1))
        found = np.where(near > 127, rng.integers(0, 256, shape), rng.integers(0, 30, shape)).astype(np.uint8)
        values.append((found, true))
    wanted = by_distance(values)
    numbers = check_shares("edges", EDGES, pairs_of(values))
    assert numbers["ods_f1"] == pytest.approx(wanted.max(), abs=TOLERANCE)
    assert wanted[round(numbers["ods_threshold"] * 100) - 1] == pytest.approx(wanted.max(), abs=TOLERANCE)
    assert 0.2 < numbers["ods_f1"] < 0.9
    alone = by_distance(values[:1]).max()
    assert row_of("edges", EDGES, *values[0])["ods_f1"] == pytest.approx(alone, abs=TOLERANCE)


def by_distance(values: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]]) -> NDArray[np.float64]:
    """(99,) F1 of several maps, all of which have edges at all thresholds."""
    f1 = []
    for share in range(1, 100):
        right = reached = total_found = total = 0
        for found, true in values:
            radius, edge, is_found = (
                0.0075 * math.hypot(*true.shape),
                true > 127,
                found * 100.0 >= share * 255,
            )
            right += (distance_transform_edt(~edge)[is_found] <= radius).sum()
            reached += (distance_transform_edt(~is_found)[edge] <= radius).sum() if is_found.any() else 0
            total_found, total = total_found + is_found.sum(), total + edge.sum()
        precision, recall = right / max(total_found, 1), reached / total
        f1.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return np.array(f1)


def test_edges_by_hand() -> None:
    def line(column: int) -> NDArray[np.uint8]:
        picture = np.zeros((224, 224), dtype=np.uint8)
        picture[:, column] = 255
        return picture

    empty = np.zeros((224, 224), dtype=np.uint8)
    for found, true, wanted in (
        (line(100), line(100), 1.0), (line(102), line(100), 1.0),  # 2.38 pixels are allowed
        (line(103), line(100), 0.0), (empty, empty, 1.0), (line(100), empty, 0.0), (empty, line(100), 0.0),
        (line(100) | line(50), line(100), 2 / 3), (line(100), line(100) | line(50), 2 / 3),
    ):  # fmt: skip
        assert row_of("edges", EDGES, found, true) == {"ods_f1": pytest.approx(wanted)}
        assert check_shares("edges", EDGES, pairs_of([(found, true)]))["ods_f1"] == pytest.approx(wanted)


def test_one_threshold_serves_all_pictures() -> None:
    true = np.zeros((20, 20), dtype=np.uint8)
    true[:, 5] = 255
    weak, strong = (np.where(true, level, noise).astype(np.uint8) for level, noise in ((100, 50), (255, 150)))
    pairs = pairs_of([(weak, true), (strong, true)])
    assert [row["ods_f1"] for row in build("edges", EDGES).update(pairs)] == [1, 1]
    assert check_shares("edges", EDGES, pairs)["ods_f1"] < 0.9
