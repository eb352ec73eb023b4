"""The simplest measures by hand, and means that any split of the pairs leaves as they are."""

import math
from fractions import Fraction
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score

from fourm.measures.measure import (
    ExactSum,
    MeanOf,
    Measure,
    Pair,
    Row,
    Settings,
    exact_match,
    token_share,
)
from fourm.measures.pictures import psnr
from fourm.modalities.registry import RELEASED

SETTINGS = Settings(RELEASED.get("tok_rgb@224"))


def pair(value: Any, other: Any, key: str = "00000/000000", **more: Any) -> Pair:
    return Pair(key, None, value, other, **more)


def grey(level: int, side: int = 4) -> Any:
    return np.full((side, side, 3), level, np.uint8)


def update(measure: Measure, pairs: Any) -> Any:
    measure.update([*pairs])
    return measure.result()


def test_psnr_is_that_of_the_mean_squared_error_in_a_range_of_1() -> None:
    measure = psnr(SETTINGS)
    assert measure.update([pair(grey(51), grey(102))])[0]["psnr"] == pytest.approx(-10 * math.log10(0.04))
    half = grey(0)
    half[:2] = 255
    assert measure.update([pair(half, grey(0))])[0]["psnr"] == pytest.approx(-10 * math.log10(0.5))


def test_identical_pictures_are_counted_and_left_out_of_the_mean_psnr() -> None:
    measure = psnr(SETTINGS)
    rows = measure.update([pair(grey(9), grey(9)), pair(grey(0), grey(255))])
    assert [row["psnr"] for row in rows] == [math.inf, 0]
    found = measure.result()["psnr"]
    assert (found.value, found.samples, dict(found.counts)) == (0, 1, {"identical": 1})
    alone = update(psnr(SETTINGS), [pair(grey(9), grey(9))])["psnr"]
    assert (alone.value, alone.samples) == (math.inf, 1)


def test_psnr_is_of_known_pixels_and_undefined_without_any() -> None:
    known = np.zeros((4, 4), np.bool_)
    measure = psnr(SETTINGS)
    assert math.isnan(measure.update([pair(grey(0), grey(255), known=known)])[0]["psnr"])
    half = grey(0)
    half[0] = 255
    known[0] = True
    assert measure.update([pair(half, grey(255), known=known)])[0]["psnr"] == math.inf
    assert dict(measure.result()["psnr"].counts) == {"identical": 1, "undefined": 1}


def test_the_share_of_equal_tokens_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    values = [tuple(rng.integers(0, 4, (2, 196))) for _ in range(5)]
    wanted = [accuracy_score(true, found) for found, true in values]
    found = update(token_share(SETTINGS), [pair(*both) for both in values])
    assert found["token_share"].value == pytest.approx(np.mean(wanted), abs=1e-9)


def test_texts_match_exactly_but_for_blanks_at_their_ends() -> None:
    pairs = [pair("a cat\n", "a cat"), pair("a cat", "A cat"), pair("", "a cat"), pair("", " ")]
    assert [row["exact_match"] for row in exact_match(SETTINGS).update(pairs)] == [1, 0, 0, 1]


def first(pair: Pair) -> Row:
    return {"first": pair.value}


FLOATS = st.one_of(st.floats(-1e9, 1e9), st.sampled_from([math.nan, math.inf]))


@given(st.lists(FLOATS, max_size=30), st.integers(1, 4))
def test_the_mean_of_any_shares_is_that_of_all(numbers: list[float], shares: int) -> None:
    whole, merged = (MeanOf(first, ["first"]) for _ in range(2))
    whole.update([pair(one, None) for one in numbers])
    states = []
    for rank in range(shares):
        part = MeanOf(first, ["first"])
        part.update([pair(one, None) for one in numbers[rank::shares]])
        states.append(part.state())
    merged.merge(states)
    np.testing.assert_equal(merged.result(), whole.result())


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30), st.randoms())
def test_a_sum_is_exact_in_any_order_and_stays_small(numbers: list[float], random: Random) -> None:
    total, shuffled = ExactSum(), ExactSum()
    random.shuffle(more := [*numbers])
    for one, other in zip(numbers, more, strict=True):
        total.add(one)
        shuffled.add(other)
    assert total.mean() == shuffled.mean() == float(sum(map(Fraction, numbers)) / len(numbers))
    assert total.state().nbytes < 1000


def test_a_mean_is_that_of_numpy_and_others_are_counted() -> None:
    total, numbers = ExactSum(), np.random.default_rng(0).normal(30, 9, 1000)
    for one in [*numbers.tolist(), math.inf, -math.inf, math.nan]:
        total.add(one)
    assert total.mean() == pytest.approx(numbers.mean(), rel=1e-12)
    assert (total.finite, total.infinite, total.undefined) == (1000, 2, 1)
