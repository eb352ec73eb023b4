"""Curves equal the recorded ones, or are right where those are wrong; schemes on masks checked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourm.errors import UsageError
from fourm.schedule.schemes import (
    SCHEMES,
    TEMPERATURE_CURVES,
    TOKEN_CURVES,
    arccos_tokens,
    cosine_tokens,
    halton_order,
    linear_temperature,
    linear_tokens,
    onex_temperature,
    parse_curve,
)

UNKNOWN = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 1], [1, 1, 0, 1]], dtype=torch.bool)
NOISE = torch.tensor([[0.9, 0.0, 0.5, 0.1], [0.0, 0.3, 0.2, 0.1], [0.4, 0.4, 0.0, 0.9]])


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "fm" / "sampling" / "schedules.json").read_text())


def test_linear_token_counts_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    for case in recorded["linear_tokens"]:
        assert linear_tokens(case["num_steps"], case["total_tokens"]) == case["result"]


def test_cosine_token_counts_are_the_recorded_ones_and_never_negative(recorded: dict[str, Any]) -> None:
    for case in recorded["cosine_tokens"]:
        counts = cosine_tokens(case["num_steps"], case["total_tokens"])
        if "defect" in case:
            assert min(case["result"]) < 0
            assert min(counts) >= 0
            assert (len(counts), sum(counts)) == (case["num_steps"], case["total_tokens"])
        else:
            assert counts == case["result"]


def test_linear_temperatures_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    for case in recorded["linear_temperature"]:
        got = linear_temperature(case["temp"], case["token_schedule"])
        assert got == pytest.approx(case["result"], rel=1e-9, abs=0)


def test_onex_temperatures_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    for case in recorded["onex_temperature"]:
        if case["power"] == 0:
            with pytest.raises(UsageError, match="must be positive"):
                parse_curve("onex:0.5:0", "temperature")
            continue
        got = onex_temperature(case["max_t"], case["token_schedule"], case["min_t"], case["power"])
        wanted = [case["min_t"]] if "defect" in case else case["result"]
        assert got == pytest.approx(wanted, rel=1e-9, abs=0)


@given(st.sampled_from(sorted(TOKEN_CURVES)), st.integers(1, 300), st.integers(1, 800))
def test_token_counts_sum_and_are_never_negative(curve: str, num_steps: int, total: int) -> None:
    counts = TOKEN_CURVES[curve](num_steps, total)
    assert sum(counts) == total
    assert min(counts) >= 0
    assert len(counts) <= num_steps


@pytest.mark.parametrize(
    ("of", "text"),
    [
        *(("temperature", text) for text in ("onex", "onex:1", "onex:1:2:3", "onex:a:1", "constant:1")),
        *(("temperature", text) for text in ("onex:-1:1", "onex:1:0", "onex:nan:1", "onex:0:inf")),
        *(("guidance", text) for text in ("linear:1", "interval", "interval:0.5", "interval:a:1")),
        *(("guidance", text) for text in ("interval:0.5:0.4", "interval:-0.1:1", "interval:0:1.1")),
        *(("guidance", text) for text in ("interval:nan:1", "interval:0:inf")),
    ],
)
def test_a_curve_with_wrong_numbers_is_refused(of: str, text: str) -> None:
    with pytest.raises(UsageError, match=f"{of} schedule '{text}': .* must"):
        parse_curve(text, of)


def test_the_table_says_what_stands_behind_a_name() -> None:
    with pytest.raises(UsageError, match="known are constant, linear, onex:lowest temperature:power"):
        parse_curve("sqrt", "temperature")
    with pytest.raises(UsageError, match="known are constant, linear, interval:first share:last share"):
        parse_curve("sqrt", "guidance")
    assert set(TEMPERATURE_CURVES) == {"constant", "linear", "onex"}


def test_guidance_over_the_steps() -> None:
    counts = [9, 1, 1, 1, 1]
    for text, scales in {
        "constant": [3, 3, 3, 3, 3],
        "linear": [1, 1.5, 2, 2.5, 3],
        "interval:0:1": [3, 3, 3, 3, 3],
        "interval:0.25:0.75": [1, 3, 3, 3, 1],
        "interval:0.3:0.3": [1, 1, 1, 1, 1],
    }.items():
        assert parse_curve(text, "guidance")(3.0, counts) == scales
    assert parse_curve("linear", "guidance")(0.1, [4]) == [0.1]
    assert parse_curve("interval:0:0.5", "guidance")(3.0, [4]) == [1]
    assert parse_curve("linear", "guidance")(3.0, []) == []


def test_maskgit_asks_for_every_unknown_position_in_ascending_order() -> None:
    assert SCHEMES["maskgit"].order(UNKNOWN, NOISE)[:, :3].tolist() == [[0, 2, 3], [1, 2, 3], [0, 1, 3]]


def test_roar_asks_for_the_unknown_positions_with_the_lowest_noise() -> None:
    first = SCHEMES["roar"].order(UNKNOWN, NOISE)[:, :2]
    assert first.sort(dim=1).values.tolist() == [[2, 3], [2, 3], [0, 1]]


def test_halton_orders_and_counts_are_the_recorded_ones(golden: Path) -> None:
    recorded = json.loads((golden / "fm_partial" / "halton.json").read_text())
    compared = 0
    for name, want in recorded.items():
        what, *numbers = name.split("_")
        if what == "order":
            side = int(numbers[0])
            assert list(halton_order(side, side)) == want
        elif what == "counts":
            total, steps = map(int, numbers)
            assert arccos_tokens(steps, total) == want
        compared += what in ("order", "counts")
    assert compared == 34


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_halton_order_has_every_position_of_its_grid_once(rows: int, columns: int) -> None:
    assert sorted(halton_order(rows, columns)) == list(range(rows * columns))


def test_a_wide_grid_has_the_points_of_the_sequence() -> None:
    """(1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9) on 2 rows and 9 columns."""
    assert halton_order(2, 9)[:4] == (9 + 3, 6, 9 + 1, 4)


def test_halton_skips_known_positions() -> None:
    ranks = torch.tensor(SCHEMES["halton"].ranks(2, 2)).float()  # type: ignore[misc]
    assert halton_order(2, 2) == (2, 1, 0, 3)
    assert SCHEMES["halton"].order(UNKNOWN, ranks.expand(3, 4))[:, :3].tolist() == [
        [2, 0, 3], [2, 1, 3], [1, 0, 3],
    ]  # fmt: skip


@pytest.mark.parametrize("scheme", ["maskgit", "roar", "halton"])
def test_known_positions_come_last(scheme: str) -> None:
    assert not UNKNOWN.gather(1, SCHEMES[scheme].order(UNKNOWN, NOISE))[:, 3:].any()


def test_maskgit_keeps_the_surest_answers_and_breaks_ties_to_the_lower_index() -> None:
    confidence = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [0.2, 0.3, 0.3]])
    rank = SCHEMES["maskgit"].rank
    assert rank is not None
    assert rank(confidence, confidence).tolist() == [[1, 2, 0], [0, 1, 2], [1, 2, 0]]


def test_only_maskgit_drops_answers() -> None:
    assert {name for name, scheme in SCHEMES.items() if scheme.rank} == {"maskgit"}


def test_only_autoregression_is_causal() -> None:
    assert {name for name, scheme in SCHEMES.items() if scheme.causal} == {"autoregressive"}
