"""Measures of captions against NLTK, sacrebleu, rouge-score, COCO's own code, and numbers by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from numpy.typing import NDArray
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from fourm.errors import SampleError
from fourm.measures.texts import cider_d, words_of
from tests.measures.measuring import build, check_shares, pairs_of

WORDS = "a red blue small large circle square left right of on the white cat's".split()
NAMES = {"bleu": "bleu_4", "rouge": "rouge_l", "cider": "cider_d"}
TOLERANCE = 1e-6


def number(name: str, *texts: tuple[str, str]) -> float:
    """The number of a measure of (result, partner) texts, which is the same of several processes."""
    return check_shares(name, "caption", pairs_of(texts))[NAMES[name]]


def random_texts(count: int, least: int = 1) -> list[tuple[str, str]]:
    """Pairs of texts that share some words, with capitals and punctuation."""
    rng, texts = np.random.default_rng(count), []
    for _ in range(count):
        true = rng.choice(WORDS, rng.integers(least, 14)).tolist()
        found = [word if rng.random() < 0.8 else str(rng.choice(WORDS)) for word in true]
        texts.append((" ".join(found).capitalize() + ".", ", ".join(true) + "!"))
    return texts


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words_of("A cat's  RED\nball, l'été № 12 -- x_1 ...") == [
        "a", "cat", "s", "red", "ball", "l", "été", "12", "x_1"
    ]  # fmt: skip
    assert words_of(" ,.! ") == []


def test_bleu_is_that_of_nltk() -> None:
    texts = random_texts(60, least=4)  # NLTK counts a 4-gram for shorter ones
    found, true = ([words_of(text) for text in side] for side in zip(*texts, strict=True))
    assert number("bleu", *texts) == pytest.approx(corpus_bleu([[one] for one in true], found), abs=TOLERANCE)


def test_bleu_by_hand() -> None:
    found, true = "the cat sat on the mat", "the cat sat on a mat"
    wanted = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert number("bleu", (found, true)) == pytest.approx(wanted)
    # Shorter texts are punished by e^(1 - 6 / 4).
    assert number("bleu", ("the cat sat on", true)) == pytest.approx(math.exp(1 - 6 / 4))
    # Texts of three words have no run of four, which is left out.
    assert number("bleu", ("a red circle", "a red circle")) == pytest.approx(1)


def test_rouge_is_that_of_google_research() -> None:
    texts, judge = random_texts(40), RougeScorer(["rougeL"])  # which reads no letters but those of English
    wanted = [judge.score(true, found)["rougeL"].fmeasure for found, true in texts]
    assert number("rouge", *texts) == pytest.approx(np.mean(wanted), abs=TOLERANCE)


def test_bleu_of_short_texts_is_that_of_sacrebleu() -> None:
    texts = [*random_texts(30), ("a red", "a red"), ("x", "a b"), ("", "a")]
    found, true = ([" ".join(words_of(text)) for text in side] for side in zip(*texts, strict=True))
    wanted = BLEU(tokenize="none", effective_order=True).corpus_score(found, [true]).score / 100
    assert number("bleu", *texts) == pytest.approx(wanted, abs=TOLERANCE)


def test_long_texts() -> None:
    rng = np.random.default_rng(0)
    found, true = (" ".join(rng.choice(WORDS, 10_000)) for _ in range(2))
    assert 0 < number("bleu", (found, true)) < 0.9
    assert number("cider", (true, true), ("x", "x")) == pytest.approx((10 + 10 / 4) / 2)
    with pytest.raises(SampleError, match="words, but ROUGE-L is measured of 2,000 at most"):
        number("rouge", (found, true))


def test_rouge_by_hand() -> None:
    # The longest common subsequences are "police the gunman" and "the gunman".
    assert number("rouge", ("police kill the gunman", "police killed the gunman")) == pytest.approx(3 / 4)
    assert number("rouge", ("the gunman kill police", "police killed the gunman")) == pytest.approx(2 / 4)


@pytest.mark.parametrize("number", range(4))
def test_cider_is_what_its_authors_code_recorded_and_what_matrices_give(number: int) -> None:
    one = json.loads((Path(__file__).parent / "cider.json").read_text(encoding="utf-8"))["lists"][number]
    assert cider_d(one["found"], one["true"]) == pytest.approx(one["scores"], abs=TOLERANCE)
    found, true = ([text.split() for text in one[side]] for side in ("found", "true"))
    assert by_matrices(found, true) == pytest.approx(one["scores"], abs=TOLERANCE)


@pytest.mark.parametrize("count", [2, 60])
def test_cider_is_that_of_matrices(count: int) -> None:
    texts = random_texts(count)
    found, true = ([words_of(text) for text in side] for side in zip(*texts, strict=True))
    assert number("cider", *texts) == pytest.approx(by_matrices(found, true).mean(), abs=TOLERANCE)


def by_matrices(found: list[list[str]], true: list[list[str]]) -> NDArray[np.float64]:
    """CIDEr-D of each pair, from tables of the numbers of all n-grams."""
    lengths = [np.array([max(len(words) - 1, 0) for words in side]) for side in (found, true)]
    total = np.zeros(len(true))
    for n in range(1, 5):
        grams = [[[*zip(*(words[i:] for i in range(n)), strict=False)] for words in side]
                 for side in (found, true)]  # fmt: skip
        known = sorted({gram for side in grams for own in side for gram in own})
        counts = [np.array([[own.count(gram) for gram in known] for own in side]) for side in grams]
        rare = math.log(len(true)) - np.log(np.maximum(1, (counts[1] > 0).sum(axis=0)))
        ours, theirs = (np.reshape(one, (len(true), -1)) * rare for one in counts)
        products = (np.minimum(ours, theirs) * theirs).sum(axis=1)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        total += np.divide(products, norms, out=np.zeros(len(true)), where=norms > 0)
    return 10 * total / 4 * np.exp(-np.square(lengths[0] - lengths[1]) / 72)


def test_cider_by_hand() -> None:
    # Both texts are right: 10. The second is wrong: 10 / 2.
    one, other = "a red circle here", "two blue squares there"
    assert number("cider", (one, one), (other, other)) == pytest.approx(10)
    assert number("cider", (one, one), ("nothing like it at all", other)) == pytest.approx(5)
    # One word of two is right, and no 2-gram: the cosine is 1/2 for 1-grams and 0 for others. Equal lengths.
    assert number("cider", ("red up", "red circle"), ("x", "y")) == pytest.approx(10 * 0.5 / 4 / 2)
    # Of one pair, and of equal partners, nothing is rare.
    assert number("cider", (one, one)) == 0
    assert number("cider", (one, one), (one, one)) == 0


def test_rows_have_the_number_of_one_text() -> None:
    pairs = pairs_of([("a red circle here", "a red circle here"), ("x", "a red circle here")])
    assert [row["bleu_4"] for row in build("bleu", "caption").update(pairs)] == pytest.approx([1, 0])
    assert [row["rouge_l"] for row in build("rouge", "caption").update(pairs)] == pytest.approx([1, 0])
    assert build("cider", "caption").update(pairs) == [{}, {}]


def test_texts_of_any_letters_survive_a_state() -> None:
    texts = ["été à\n\nParis", "猫 と 犬", "\udc80 \ud800 x", "", "🙂", "a\x00b"]
    for name, wanted in (("bleu", 1), ("rouge", 4 / 6), ("cider", 10 * (3 / 4 + 3 / 4 + 1 / 4 + 2 / 4) / 6)):
        assert number(name, *((text, text) for text in texts)) == pytest.approx(wanted)
