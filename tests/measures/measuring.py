"""Measures values that are in memory: in one go, or in shares that are merged."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fourm.measures.measure import Measure, Pair, Settings, Value
from fourm.measures.tables import MEASURES, build_measure
from fourm.modalities.registry import RELEASED


def pairs_of(values: Sequence[tuple[Any, Any]]) -> list[Pair]:
    """Pairs of results and partners, with keys in their order."""
    return [Pair(f"00000/{i:06d}", None, value, other) for i, (value, other) in enumerate(values)]


def build(name: str, row: str, **settings: Any) -> Measure:
    return build_measure(MEASURES[name], Settings(RELEASED.get(row), **settings))


def measured(
    name: str, row: str, pairs: Sequence[Pair], shares: int = 0, **settings: Any
) -> dict[str, Value]:
    """The result of a measure; shares: of how many processes, whose states are merged, 0 for none."""
    whole = build(name, row, **settings)
    if not shares:
        whole.update(pairs)
        return whole.result()
    for share in range(shares):
        part = build(name, row, **settings)
        for pair in pairs[share::shares]:
            part.update([pair])
        state = part.state()
        assert all(isinstance(one, np.ndarray) and one.dtype != object for one in state.values())
        whole.merge([state])
    return whole.result()


def check_shares(name: str, row: str, pairs: Sequence[Pair], **settings: Any) -> dict[str, float]:
    """The numbers of one process, which are those of three and, of so few pairs, of one without any."""
    found = measured(name, row, pairs, **settings)
    assert found.keys() >= MEASURES[name].results.keys()
    for shares in (3, len(pairs) + 1):
        merged = measured(name, row, pairs, shares, **settings)
        assert merged.keys() == found.keys()
        for number, value in found.items():
            assert merged[number].samples == value.samples
            assert math.isclose(merged[number].value, value.value, rel_tol=0, abs_tol=1e-9) or (
                math.isnan(value.value) and math.isnan(merged[number].value)
            )
    return {number: value.value for number, value in found.items()}


def check_nothing(name: str, row: str, **settings: Any) -> None:
    """Without pairs, all numbers are NaN, of 0 samples."""
    found = measured(name, row, [], **settings)
    assert found.keys() >= MEASURES[name].results.keys()
    assert all(math.isnan(value.value) and value.samples == 0 for value in found.values())
