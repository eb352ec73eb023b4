"""Measures values that are in memory: in one go, or in shares that are merged."""

import math
from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from fourm.measures.measure import Measure, Pair, Settings, State, Value
from fourm.measures.tables import MEASURES, build_measure
from fourm.modalities.registry import RELEASED

ABSENT = Path("absent")  # weights of what does not read its network


def pairs_of(values: Sequence[tuple[Any, Any]]) -> list[Pair]:
    """Pairs of results and partners, with keys in their order."""
    return [Pair(f"00000/{i:06d}", None, value, other) for i, (value, other) in enumerate(values)]


def build(name: str, row: str, **settings: Any) -> Measure:
    return build_measure(MEASURES[name], Settings(RELEASED.get(row), **settings))


def row_of(
    name: str, row: str, found: Any, true: Any, known: Any = None, **settings: Any
) -> dict[str, float]:
    """The numbers of one pair."""
    (numbers,) = build(name, row, **settings).update([Pair("a", None, found, true, known=known)])
    return dict(numbers)


def states_of(name: str, row: str, pairs: Sequence[Pair], shares: int, **settings: Any) -> list[State]:
    """What each of some processes collects, which takes one pair at a time."""
    states = []
    for share in range(shares):
        part = build(name, row, **settings)
        for pair in pairs[share::shares]:
            part.update([pair])
        states.append(part.state())
        kinds = {one.dtype for one in states[-1].values()}
        assert kinds <= {np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.uint8)}
    return states


def check_shares(name: str, row: str, pairs: Sequence[Pair], **settings: Any) -> dict[str, float]:
    """The numbers of one process, which are those of three in any order, and of one without any pair."""
    whole = build(name, row, **settings)
    whole.update(pairs)
    found = whole.result()
    assert list(found)[: len(MEASURES[name].results)] == list(MEASURES[name].results)
    orders = [[*states] for states in permutations(states_of(name, row, pairs, 3, **settings))]
    for states in [*orders, states_of(name, row, pairs, min(len(pairs), 9) + 1, **settings)]:
        merged = build(name, row, weights=ABSENT)
        merged.merge(states)
        check_equal(merged.result(), found)
    return {number: value.value for number, value in found.items()}


def check_equal(merged: dict[str, Value], found: dict[str, Value]) -> None:
    assert list(merged) == list(found)
    for number, value in found.items():
        assert (merged[number].samples, merged[number].counts) == (value.samples, value.counts)
        assert is_near(merged[number].value, value.value, 1e-9)


def is_near(one: float, other: float, distance: float) -> bool:
    return one == other or abs(one - other) <= distance or (math.isnan(one) and math.isnan(other))
