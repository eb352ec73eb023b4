"""Measures of captions: BLEU, ROUGE-L and CIDEr-D, each of one text against one other.

All three compare the same words: lower-case runs of letters, digits and underscores, much as the tokenizer of
COCO's evaluation leaves them, which also removes punctuation. A text without words matches no text.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fourm.errors import SampleError
from fourm.measures.measure import Counts, MeanOf, Measure, Pair, PooledOf, Row, Settings, State, Value

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]

MAX_GRAM = 4  # words
MAX_WORDS = 2000  # of a text, for ROUGE-L
_SIGMA = 6.0  # of CIDEr-D's penalty for another length
_SCALE = 10.0  # CIDEr-D of a text that is equal to its partner
_WORD = re.compile(r"\w+")


class Cider:
    """CIDEr-D, 0 to 10: the cosine of n-grams that are weighted by how few of the other texts have them.

    Vedantam et al. 2015, arXiv:1411.5726. Each pair is a document, and documents are the partners of all
    pairs. A single pair has 0: its n-grams are in all documents. Rows have no number, because weights are
    known only at the end.
    """

    def __init__(self, settings: Settings) -> None:
        self._found, self._true = list[str](), list[str]()  # words, joined by blanks

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """Rows without numbers."""
        self._found += [" ".join(words_of(pair.value)) for pair in pairs]
        self._true += [" ".join(words_of(pair.other)) for pair in pairs]
        return [{} for _ in pairs]

    def state(self) -> State:
        """The words of all texts, in UTF-8, a line for each text."""
        return {"found": _packed(self._found), "true": _packed(self._true)}

    def merge(self, states: Sequence[State]) -> None:
        """Add texts."""
        for state in states:
            self._found += _unpacked(state["found"])
            self._true += _unpacked(state["true"])

    def result(self) -> dict[str, Value]:
        """The mean over pairs."""
        scores = cider_d(self._found, self._true)
        return {"cider_d": Value(math.fsum(scores) / len(scores) if scores else math.nan, len(scores))}


def bleu(settings: Settings) -> Measure:
    """BLEU-4 of all texts together, 0 to 1, by sacrebleu; a row has the BLEU of one text.

    Papineni et al. 2002, doi:10.3115/1073083.1073135; Post 2018, arXiv:1804.08771. Orders of n-grams without
    a match are smoothed (its method "exp"); those that no text is long enough for are left out. NaN where
    partners have no words.
    """
    return PooledOf(_bleu_counts, _bleu_of, ["bleu_4"], (2 * MAX_GRAM + 2,))


def rouge(settings: Settings) -> Measure:
    """ROUGE-L, 0 to 1: F1 of the longest common subsequence of words, by rouge-score; the mean over texts.

    Lin 2004, https://aclanthology.org/W04-1013. Words are not stemmed, and recall counts as much as precision
    (COCO's evaluation weighs it by 1.2).
    """
    scorer = cache(_rouge_scorer)
    return MeanOf(lambda pair: _rouge_of(pair, scorer()), ["rouge_l"])


def words_of(text: str) -> list[str]:
    """The words that are compared."""
    return _WORD.findall(text.lower())


def cider_d(found: Sequence[str], true: Sequence[str]) -> list[float]:
    """CIDEr-D of each of n texts against the true one at its place, 0 to 10; words are between blanks."""
    # N-grams are counted twice, because those of all texts would need gigabytes.
    documents = Counter(gram for text in true for gram in grams_of(text.split()))
    log_total = math.log(len(true)) if true else 0.0
    pairs = ((grams_of(text.split()) for text in both) for both in zip(found, true, strict=True))
    return [_cider_of(one, other, documents, log_total) for one, other in pairs]


def grams_of(words: Words) -> Grams:
    """How often each run of 1 to 4 words occurs."""
    sizes = range(1, MAX_GRAM + 1)
    return Counter(tuple(words[at : at + n]) for n in sizes for at in range(len(words) - n + 1))


@cache
def _bleu_metric() -> "BLEU":
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", effective_order=True)


def _bleu_counts(pair: Pair) -> Counts:
    """(10,) matches of 1- to 4-grams, their numbers, the lengths of result and partner."""
    found, true = (" ".join(words_of(text)) for text in (pair.value, pair.other))
    score = _bleu_metric().sentence_score(found, [true])
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len], dtype=np.int64)


def _bleu_of(counts: Counts) -> Row:
    """BLEU-4 of `_bleu_counts` of one text, or summed over texts."""
    matches, totals, (found, true) = (part.tolist() for part in np.split(counts, [MAX_GRAM, 2 * MAX_GRAM]))
    if not true:
        return {"bleu_4": math.nan}
    score = _bleu_metric().compute_bleu(
        matches, totals, found, true, smooth_method="exp", effective_order=True
    )
    return {"bleu_4": min(score.score / 100, 1.0)}  # equal texts may have 1 + 4e-16


def _rouge_scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())


class _Words:
    """`words_of` in the form that rouge-score takes."""

    def tokenize(self, text: str) -> list[str]:
        return words_of(text)


def _rouge_of(pair: Pair, scorer: "RougeScorer") -> Row:
    # rouge-score makes a table of a number for each pair of words.
    for text in (pair.value, pair.other):
        if (count := len(words_of(text))) > MAX_WORDS:
            raise SampleError(f"{count:,} words, but ROUGE-L is measured of {MAX_WORDS:,} at most")
    return {"rouge_l": float(scorer.score(pair.other, pair.value)["rougeL"].fmeasure)}


def _cider_of(found: Grams, true: Grams, documents: Grams, log_total: float) -> float:
    """CIDEr-D of one text. Lengths are numbers of 2-grams, as in the authors' code."""
    ours, theirs = (_weighted(grams, documents, log_total) for grams in (found, true))
    lengths = [sum(count for gram, count in grams.items() if len(gram) == 2) for grams in (found, true)]
    penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * _SIGMA**2))
    similarity = 0.0
    for one, other in zip(ours, theirs, strict=True):
        shared = [(weight, other[gram]) for gram, weight in one.items() if gram in other]
        if length := _length(one.values()) * _length(other.values()):
            similarity += math.fsum(min(pair) * pair[1] for pair in shared) / length
    return _SCALE * penalty * similarity / MAX_GRAM


def _weighted(grams: Grams, documents: Grams, log_total: float) -> list[dict[tuple[str, ...], float]]:
    """The weights of n-grams, for each n: their number times the logarithm of how rare they are."""
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_GRAM)]
    for gram, count in grams.items():
        weights[len(gram) - 1][gram] = count * (log_total - math.log(max(1, documents[gram])))
    return weights


def _length(weights: Iterable[float]) -> float:
    return math.sqrt(math.fsum(weight * weight for weight in weights))


def _packed(texts: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("".join(f"{text}\n" for text in texts).encode(), dtype=np.uint8)


def _unpacked(packed: NDArray[np.uint8]) -> list[str]:
    return packed.tobytes().decode().split("\n")[:-1]
