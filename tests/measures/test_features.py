"""Measures of features against torch and scikit-learn, and against numbers by hand."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from fourm.errors import SampleError
from fourm.measures.measure import Pair
from tests.measures.measuring import build, check_shares, pairs_of, row_of

FEATURES = "tok_dinov2_global"
TOLERANCE = 1e-6


def test_cosines_are_those_of_torch() -> None:
    rng = np.random.default_rng(5)
    values = [tuple(rng.normal(size=(2, 32, 7, 5)).astype(np.float32)) for _ in range(4)]
    wanted = [
        torch.cosine_similarity(*(torch.from_numpy(one).double() for one in both), dim=0).mean().item()
        for both in values
    ]
    numbers = check_shares("cosine", FEATURES, pairs_of(values))
    assert numbers["cosine"] == pytest.approx(np.mean(wanted), abs=TOLERANCE)


def test_cosines_by_hand() -> None:
    def places(*vectors: tuple[float, float]) -> NDArray[np.float32]:
        return np.array(vectors, dtype=np.float32).T[:, None]

    one = places((1, 0), (0, 2), (0, 0), (3, 0))
    other = places((5, 0), (3, 0), (0, 0), (-1, 0))
    assert row_of("cosine", FEATURES, one, other)["cosine"] == pytest.approx((1 + 0 + 1 - 1) / 4)
    assert row_of("cosine", FEATURES, one, one)["cosine"] == pytest.approx(1)
    assert row_of("cosine", FEATURES, 0 * one, one)["cosine"] == pytest.approx(1 / 4)


def test_neighbours_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(10)
    true = rng.normal(size=(600, 16, 2, 2)).astype(np.float32)
    found = (true + rng.normal(0, 2, true.shape)).astype(np.float32)
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


def test_features_of_two_widths_are_refused_and_those_of_other_samples_are_no_rivals() -> None:
    measure = build("retrieval", FEATURES)
    with pytest.raises(SampleError, match="features of 2 x 1 x 1, but its partner has 3 x 1 x 1"):
        measure.update(pairs_of([(features(1, 2), features(1, 2, 3))]))
    assert measure.result()["recall_1"].samples == 0
    wide, narrow = features(1, 2, 3), features(1, 2)
    assert check_shares("retrieval", FEATURES, pairs_of([(wide, wide), (narrow, narrow)]))["recall_1"] == 1
