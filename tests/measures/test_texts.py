"""Measures of captions against NLTK, COCO's own code and plain recursion, and against numbers by hand."""

import math
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from pycocoevalcap.cider.cider import Cider

from fourm.measures.measure import Pair
from fourm.measures.texts import words_of
from tests.measures.measuring import build, check_nothing, check_shares, measured, pairs_of

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


@pytest.mark.parametrize("name", NAMES)
def test_without_pairs_there_are_no_numbers(name: str) -> None:
    check_nothing(name, "caption")


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


def test_rouge_is_that_of_a_plain_recursion() -> None:
    texts = random_texts(40)
    wanted = []
    for found, true in (map(words_of, both) for both in texts):
        wanted.append(2 * longest(tuple(found), tuple(true)) / (len(found) + len(true)))
    assert number("rouge", *texts) == pytest.approx(np.mean(wanted), abs=TOLERANCE)


@cache
def longest(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """The length of the longest common subsequence."""
    if not one or not other:
        return 0
    if one[0] == other[0]:
        return 1 + longest(one[1:], other[1:])
    return max(longest(one[1:], other), longest(one, other[1:]))


def test_rouge_by_hand() -> None:
    # The longest common subsequences are "police the gunman" and "the gunman".
    assert number("rouge", ("police kill the gunman", "police killed the gunman")) == pytest.approx(3 / 4)
    assert number("rouge", ("the gunman kill police", "police killed the gunman")) == pytest.approx(2 / 4)


@pytest.mark.parametrize("count", [2, 60])
def test_cider_is_that_of_its_authors(count: int) -> None:
    texts = random_texts(count)
    found, true = ({i: [" ".join(words_of(text))] for i, text in enumerate(side)}
                   for side in zip(*texts, strict=True))  # fmt: skip
    score, _ = Cider().compute_score(true, found)
    assert number("cider", *texts) == pytest.approx(float(score), abs=TOLERANCE)


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


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_texts(name: str) -> None:
    right, wrong = "a small red circle", "two other things entirely"
    best = {"bleu": 1, "rouge": 1, "cider": 10}[name]
    assert number(name, (right, right), (wrong, wrong)) == pytest.approx(best)
    assert number(name, (wrong, right), (right, wrong)) == pytest.approx(0)
    assert number(name, ("", right), ("...", wrong)) == pytest.approx(0)
    empty = number(name, ("", ""), ("", ""))
    assert math.isnan(empty) if name == "bleu" else empty == 0
    assert number(name, ("", ""), (right, right), (wrong, wrong)) > 0


def test_rows_have_the_number_of_one_text() -> None:
    pairs = pairs_of([("a red circle here", "a red circle here"), ("x", "a red circle here")])
    assert [row["bleu_4"] for row in build("bleu", "caption").update(pairs)] == pytest.approx([1, 0])
    assert [row["rouge_l"] for row in build("rouge", "caption").update(pairs)] == pytest.approx([1, 0])
    assert build("cider", "caption").update(pairs) == [{}, {}]


def test_texts_of_any_letters_survive_a_state() -> None:
    pairs = [
        Pair(str(i), i, text, text) for i, text in enumerate(["été à\n\nParis", "猫 と 犬", "\udc80 x", ""])
    ]
    one, three = (measured("cider", "caption", pairs, shares)["cider_d"] for shares in (0, 3))
    assert one == three
    assert one.samples == 4


def test_texts_need_no_torch() -> None:
    code = (
        "import sys; from tests.measures.measuring import measured, pairs_of\n"
        "for name in ('bleu', 'rouge', 'cider', 'exact_match'):\n"
        "    measured(name, 'caption', pairs_of([('a', 'a')]), 2)\n"
        "sys.exit('torch' in sys.modules)"
    )
    done: Any = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 0
