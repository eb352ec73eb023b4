"""The protocol of measures: pairs of values in, numbers of each pair and of all pairs out; the simplest ones.

A measure is a function of `tables.MEASURES` that takes `Settings` and returns an object with the methods of
`Measure`. Most are the mean of a number per pair (`MeanOf`), some are made of summed counts (`PooledOf`).

What `Pair.value` and `Pair.other` are depends on the kind of data (`tables.Sort`):

    picture     (H, W, 3) uint8; pixels that are not known are black, see `Pair.known`
    depth       (H, W) float32, NaN where it is not known; 16-bit levels are scaled to [0, 1]
    normal      (H, W, 3) uint8, a direction in each pixel as the registry's normal maps have it
    labels      (H, W) uint8 class numbers, 255 where there is none
    edges       (H, W) uint8 strengths
    features    (C, h, w) float32
    text        str
    boxes, poses, instances, palette, metadata
                the value of the modality's grammar in `modalities/facts` and `modalities/figures`
    tokens      (L,) int64 ids

The two values of a pair may differ in size, number and length: a measure that cannot compare them raises
SampleError, in words about the two values; the key and the modality are added by the caller.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fourm.errors import SampleError
from fourm.modalities.registry import Modality

Row = Mapping[str, float]  # numbers of one pair by name; NaN: not defined for it
Array = NDArray[Any]  # float64, int64 or uint8, of any shape; no texts, no objects
State = Mapping[str, Array]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """One result and what it is compared with."""

    key: str  # of the sample, "00000/000000"
    variation: int | None  # None: the only one
    value: Any
    other: Any = None  # its partner; None for measures that need none, where there is none
    texts: Mapping[str, str] = field(default_factory=dict)  # by modality: {"caption": "a red circle"}
    # (H, W) bool, True where both are known; None: everywhere. Only of values and partners of one size.
    known: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """All that the results of a measure depend on besides the values."""

    row: Modality  # of the values: its name, labels, size
    device: str = "cpu"  # for networks
    weights: Path | None = None  # folder or file of the network, if the measure's line in MEASURES names one
    metric_depth: bool = False  # depth is compared as it is, without scale and shift


@dataclass(frozen=True, slots=True)
class Value:
    """One number of a result."""

    value: float  # NaN: no sample defines it
    samples: int  # that it is made of
    is_mean: bool = False  # it is the mean of the finite numbers of this name in the rows
    is_detail: bool = False  # is written to eval.json, but not shown in the table: a class, a field
    counts: Mapping[str, int] = field(default_factory=dict)  # of samples left out of it, by why


class Measure(Protocol):
    """Collects what pairs contribute, in any order, and can be continued by another process.

    A network is loaded by the first `update`: a process that only merges needs none.
    """

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """Add some pairs; returns a row of numbers for each, {} where a pair alone has none.

        SampleError: one of them cannot be measured; then none was added. The caller adds them again one by
        one, and reports those that fail.
        """

    def state(self) -> State:
        """What was collected: sums (float64, int64) or values of each pair. May be empty arrays."""

    def merge(self, states: Sequence[State]) -> None:
        """Add what others collected. However pairs are split, the result is the same within 1e-9."""

    def result(self) -> dict[str, Value]:
        """The numbers by name, as MEASURES lists them; further names are `is_detail`.

        Works without pairs, too: then numbers are NaN, of 0 samples.
        """


class ExactSum:
    """The sum of the finite ones among some numbers, without rounding, and how many numbers of each kind."""

    def __init__(self) -> None:
        self.finite = self.infinite = self.undefined = 0
        self._total = Fraction()

    def add(self, number: float) -> None:
        """Count a number, and add it if it is finite."""
        if math.isfinite(number):
            self.finite += 1
            self._total += Fraction(number)
        elif math.isnan(number):
            self.undefined += 1
        else:
            self.infinite += 1

    def state(self) -> Array:
        """The counts and the sum, numerator and denominator, as text in uint8."""
        numbers = (self.finite, self.infinite, self.undefined, *self._total.as_integer_ratio())
        return np.frombuffer(" ".join(map(str, numbers)).encode(), dtype=np.uint8)

    def merge(self, state: Array) -> None:
        """Add what another one has."""
        finite, infinite, undefined, *ratio = map(int, state.tobytes().split())
        self.finite += finite
        self.infinite += infinite
        self.undefined += undefined
        self._total += Fraction(*ratio)

    def mean(self) -> float:
        """Of the finite numbers; infinity if there are only infinite ones, NaN if there is neither."""
        if self.finite:
            return float(self._total / self.finite)
        return math.inf if self.infinite else math.nan


class MeanOf:
    """The mean of each number of the rows of a function. Sums are exact, so that order changes nothing."""

    def __init__(
        self, row_of: Callable[[Pair], Row], names: Sequence[str], infinite: str = "infinite"
    ) -> None:
        """row_of: the numbers of a pair. names: of those that MEASURES lists; others are details.

        infinite: what it means if a number is infinite; such samples are counted under this name and are
        left out of the mean, unless all are. NaN counts as `undefined` and is left out.
        """
        self._row_of, self._names, self._infinite = row_of, names, infinite
        self._sums = {name: ExactSum() for name in names}

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """The rows; all errors come before anything is taken in."""
        rows = [self._row_of(pair) for pair in pairs]
        for row in rows:
            for name, number in row.items():
                self._sums.setdefault(name, ExactSum()).add(float(number))
        return rows

    def state(self) -> State:
        """The exact sum of each number."""
        return {name: total.state() for name, total in self._sums.items()}

    def merge(self, states: Sequence[State]) -> None:
        """Add the sums of other processes."""
        for state in states:
            for name, total in state.items():
                self._sums.setdefault(name, ExactSum()).merge(total)

    def result(self) -> dict[str, Value]:
        """The means."""
        names = [*self._names, *sorted(self._sums.keys() - set(self._names))]
        return {name: self._value(name, self._sums[name]) for name in names}

    def _value(self, name: str, total: ExactSum) -> Value:
        counts = {self._infinite: total.infinite, "undefined": total.undefined}
        said = {why: count for why, count in counts.items() if count}
        samples = total.finite or total.infinite
        return Value(total.mean(), samples, is_mean=True, is_detail=name not in self._names, counts=said)


class PooledOf:
    """Numbers of the counts of all pairs together, as BLEU is one. A row has the numbers of one pair."""

    def __init__(
        self, counts_of: Callable[[Pair], Counts], numbers_of: Callable[[Counts], Row],
        names: Sequence[str], shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        """counts_of: int64 of this shape, of a pair; if all are 0, it does not count as a sample.

        numbers_of: the numbers of such counts, of one pair or summed. names: as in `MeanOf`; rows have no
        details.
        """
        self._counts_of, self._numbers_of, self._names = counts_of, numbers_of, names
        self._counts, self._samples = np.zeros(shape, dtype=np.int64), 0

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """The numbers of each pair; all errors come before anything is taken in."""
        found = [self._counts_of(pair) for pair in pairs]
        for counts in found:
            self._counts = self._counts + counts
            self._samples += bool(counts.any())
        rows = map(self._numbers_of, found)
        return [{name: row[name] for name in self._names} for row in rows]

    def state(self) -> State:
        """The sums of counts, and the number of samples."""
        return {"counts": self._counts, "samples": np.array([self._samples], dtype=np.int64)}

    def merge(self, states: Sequence[State]) -> None:
        """Add the sums of other processes."""
        for state in states:
            self._counts = self._counts + state["counts"]
            self._samples += int(state["samples"][0])

    def result(self) -> dict[str, Value]:
        """The numbers of all."""
        found = self._numbers_of(self._counts).items()
        return {name: Value(one, self._samples, is_detail=name not in self._names) for name, one in found}


def token_share(settings: Settings) -> Measure:
    """The share of positions at which two rows of tokens have equal ids, and whether all have.

    Of rows of different lengths, the positions that one of them lacks are not equal.
    """
    return MeanOf(_token_share, ["token_share", "all_equal"])


def exact_match(settings: Settings) -> Measure:
    """Whether two texts are equal, blanks at their ends aside (Rajpurkar et al. 2016, arXiv:1606.05250)."""
    return MeanOf(lambda pair: {"exact_match": pair.value.strip() == pair.other.strip()}, ["exact_match"])


def check_sizes(pair: Pair) -> None:
    """SampleError unless both values of a pair, arrays, have the same height and width."""
    here, there = (value.shape[:2] for value in (pair.value, pair.other))
    if here != there:
        found, wanted = (f"{width} x {height}" for height, width in (here, there))
        raise SampleError(f"{found} pixels, but its partner has {wanted}")


def check_side(pair: Pair, smallest: int, what: str) -> None:
    """SampleError unless height and width of the value of a pair, an array, are at least `smallest`."""
    height, width = pair.value.shape[:2]
    if min(height, width) < smallest:
        raise SampleError(f"{width} x {height} pixels, but {what} needs {smallest} on each side")


def id_of(pair: Pair, is_sample: bool = False) -> int:
    """A number for a pair, the same in every process; is_sample: the same for all variations of a sample."""
    return hash_of(pair.key if is_sample else f"{pair.key}\n{pair.variation}")


def hash_of(text: str) -> int:
    """63 bits, so that it fits into an int64."""
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()) >> 1


def _token_share(pair: Pair) -> Row:
    shorter, longer = sorted((len(pair.value), len(pair.other)))
    if not longer:
        return {"token_share": math.nan, "all_equal": math.nan}
    equal = int(np.count_nonzero(pair.value[:shorter] == pair.other[:shorter]))
    return {"token_share": equal / longer, "all_equal": equal == longer}
