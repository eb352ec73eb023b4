"""The schemes on masks small enough to check by hand."""

import torch

from fourm.schedule.schemes import SCHEMES

UNKNOWN = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1]], dtype=torch.bool)
NOISE = torch.tensor([[0.9, 0.0, 0.5, 0.1], [0.0, 0.3, 0.2, 0.1], [0.4, 0.4, 0.0, 0.9]])


def test_maskgit_asks_for_every_unknown_position_in_ascending_order() -> None:
    assert SCHEMES["maskgit"].ask(UNKNOWN, 3, 1, NOISE).tolist() == [[0, 2, 3], [1, 2, 3], [0, 1, 3]]


def test_roar_asks_for_the_unknown_positions_with_the_lowest_noise() -> None:
    assert SCHEMES["roar"].ask(UNKNOWN, 3, 2, NOISE).tolist() == [[2, 3], [2, 3], [0, 1]]


def test_roar_asks_for_no_more_than_is_left() -> None:
    assert SCHEMES["roar"].ask(UNKNOWN, 3, 9, NOISE).shape == (3, 3)


def test_autoregression_asks_for_the_first_unknown_position() -> None:
    assert SCHEMES["autoregressive"].ask(UNKNOWN, 3, 1, NOISE).tolist() == [[0], [1], [0]]


def test_maskgit_keeps_the_surest_answers_and_breaks_ties_to_the_lower_index() -> None:
    confidence = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [0.2, 0.3, 0.3]])
    keep = SCHEMES["maskgit"].keep
    assert keep(confidence, confidence, 2).tolist() == [[1, 2], [0, 1], [1, 2]]


def test_roar_and_autoregression_keep_every_answer() -> None:
    for name in ("roar", "autoregressive"):
        assert SCHEMES[name].keep(
            torch.tensor([[0.1, 0.9, 0.5]]), torch.tensor([[0.1, 0.9, 0.5]]), 1
        ).tolist() == [[0, 1, 2]]


def test_only_autoregression_is_causal() -> None:
    assert {name for name, scheme in SCHEMES.items() if scheme.causal} == {"autoregressive"}
