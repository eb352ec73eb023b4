"""Chains: equal to the recorded ones, right where those are defective, lawful everywhere."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourm.errors import ScheduleError
from fourm.schedule.chain import Branch, TargetSpec, make_chain
from fourm.schedule.schemes import MIN_TEMPERATURE, TOKEN_CURVES


@pytest.fixture(scope="module")
def recorded(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "fm" / "sampling" / "schedules.json").read_text())


def specs_of(args: dict[str, Any]) -> list[TargetSpec]:
    names = ("target_domains", "tokens_per_target", "autoregression_schemes", "decoding_steps")
    names += ("token_decoding_schedules", "temps", "temp_schedules", "cfg_scales", "cfg_schedules")
    return [
        TargetSpec(target, tokens, scheme, steps, curve or "linear", temp, course, scale, guidance_curve)
        for target, tokens, scheme, steps, curve, temp, course, scale, guidance_curve in zip(
            *(args[name] for name in names), strict=True
        )
    ]


def test_chains_are_the_recorded_ones(recorded: dict[str, Any]) -> None:
    compared = 0
    for case in recorded["chained"]:
        args = case["args"]
        if isinstance(args["cfg_scales"][0], list) or "error" in case:
            continue
        limits = dict(zip(args["target_domains"], args["tokens_per_target"], strict=True))
        grow = args.get("cfg_grow_conditioning", False)
        chain = make_chain(specs_of(args), args["cond_domains"], grow=grow)
        wanted = [step for step in case["result"] if step["num_tokens"] != 0]
        rows: Any = chain.to_json()["steps"]
        assert [row["index"] for row in rows] == list(range(len(wanted)))
        defect = case.get("defect", "")
        for row, step in zip(rows, wanted, strict=True):
            assert (row["target"], row["scheme"]) == (step["target_domain"], step["scheme"])
            # The reference leaves the limit of a text to the driver.
            assert row["num_tokens"] == (step["num_tokens"] or limits[row["target"]])
            assert row["temperature"] == pytest.approx(step["temperature"], rel=1e-9, abs=0)
            guided = step["cfg_cond_domains"]
            assert row["guidance"] == (step["cfg_scale"] if guided else 1.0)
            if "lack caption" in defect and row["target"] == "tok_rgb@224":
                assert row["guided"] == [*guided, "caption"]  # a finished text joins like any other target
            else:
                assert row["guided"] == (guided if step["cfg_scale"] != 1.0 else [])
        compared += 1
    assert compared == 83


def test_settings_that_the_reference_rejects_are_rejected(recorded: dict[str, Any]) -> None:
    cases = [case for case in recorded["chained"] if "error" in case]
    cases = [case for case in cases if case["args"]["cfg_schedules"] != ["linear"]]  # we have that curve
    assert len(cases) == 5
    for case in cases:
        with pytest.raises(ScheduleError, match=r"^tok_clip@224: "):
            specs_of(case["args"])


counts_of_steps = st.integers(1, 300)
totals = st.integers(1, 800)


@given(
    st.sampled_from(["constant", "linear", "onex:0.1:0.5", "onex:0:3", "onex:2:1e-3"]),
    st.sampled_from(["maskgit", "roar", "halton"]),
    st.sampled_from(sorted(TOKEN_CURVES)),
    counts_of_steps,
    totals,
    st.floats(0, 1e3),
)
def test_every_step_of_a_chain_fixes_tokens_at_a_temperature_in_range(
    course: str, scheme: str, curve: str, num_steps: int, total: int, temp: float
) -> None:
    chain = make_chain([TargetSpec("x", total, scheme, num_steps, curve, temp, course, grid=(1, total))], [])
    assert sum(step.num_tokens for step in chain.steps) == total
    assert all(step.num_tokens > 0 for step in chain.steps)
    low, high = sorted([temp, float(course.split(":")[1]) if "onex" in course else 0.0])
    for step in chain.steps:
        assert math.isfinite(step.temperature)
        assert low - 1e-9 <= step.temperature <= max(high, MIN_TEMPERATURE) + 1e-9


def spec(target: str, guidance: float) -> TargetSpec:
    return TargetSpec(target, 4, "roar", 1, guidance=guidance)


def test_guidance_hides_the_conditions_and_shows_them_to_one_branch() -> None:
    step = make_chain([spec("a", 3.0)], ["caption", "det"]).steps[0]
    assert step.guided == {"caption", "det"}
    assert step.branches == (Branch(step.guided, 3.0),)
    assert step.guidance == 3.0


def test_scale_one_or_nothing_to_guide_is_a_plain_pass() -> None:
    for chain in (make_chain([spec("a", 1.0)], ["caption"]), make_chain([spec("a", 3.0)], [])):
        assert (chain.steps[0].guided, chain.steps[0].branches, chain.steps[0].guidance) == (
            frozenset(),
            (),
            1.0,
        )


def test_scale_zero_keeps_only_the_unconditional_pass() -> None:
    step = make_chain([spec("a", 0.0)], ["caption"]).steps[0]
    assert (step.guided, step.branches, step.guidance) == (frozenset(["caption"]), (), 0.0)


def curved(curve: str, guidance: float = 3.0, steps: int = 5, tokens: int = 20) -> TargetSpec:
    return TargetSpec("a", tokens, "roar", steps, guidance=guidance, guidance_curve=curve)


@pytest.mark.parametrize(
    ("curve", "scales"),
    [("linear", [1.0, 1.5, 2.0, 2.5, 3.0]), ("interval:0.2:0.8", [1.0, 3.0, 3.0, 3.0, 1.0])],
)
def test_a_step_without_guidance_has_no_branches(curve: str, scales: list[float]) -> None:
    steps = make_chain([curved(curve)], ["caption"]).steps
    assert [step.guidance for step in steps] == scales
    for step, scale in zip(steps, scales, strict=True):
        guided = frozenset(["caption"] if scale != 1 else [])
        assert (step.guided, step.branches) == (guided, (Branch(guided, scale),) if guided else ())


def test_guidance_over_the_whole_interval_is_constant_and_steps_without_tokens_do_not_count() -> None:
    whole, constant = (make_chain([curved(c)], ["caption"]).steps for c in ("interval:0:1", "constant"))
    assert whole == constant
    few = make_chain([curved("linear", steps=9, tokens=3)], ["caption"])
    assert [step.guidance for step in few.steps] == [1, 2, 3]


@pytest.mark.parametrize("curve", ["linear", "interval:0:0.5", "interval:0.5:1"])
def test_samples_of_which_a_part_is_given_have_the_curve_over_their_own_steps(curve: str) -> None:
    specs = [curved(curve), TargetSpec("b", 20, "halton", 4, "arccos", guidance_curve=curve, grid=(4, 5))]
    chain = make_chain(specs, ["caption"])
    own = chain.for_counts({"a": 3})
    alone = make_chain([curved(curve, tokens=3), specs[1]], ["caption"])
    assert [(s.num_tokens, s.guided, s.branches) for s in own.steps] == [
        (s.num_tokens, s.guided, s.branches) for s in alone.steps
    ]
    assert chain.for_counts({}) == chain


def test_a_scheme_with_a_fixed_order_needs_the_grid() -> None:
    with pytest.raises(ScheduleError, match="'halton' needs the rows and columns"):
        TargetSpec("a", 20, "halton", 4)


def test_finished_targets_join_the_guided_ones_if_the_model_reads_them() -> None:
    specs = [spec("a", 2.0), spec("b", 2.0)]
    assert make_chain(specs, ["c"]).steps[1].guided == {"a", "c"}
    assert make_chain(specs, ["c"], grow=False).steps[1].guided == {"c"}
    assert make_chain(specs, ["c"], reads=["c", "b"]).steps[1].guided == {"c"}


def test_weighted_conditions_have_a_branch_each() -> None:
    chain = make_chain([spec("a", 2.0), spec("b", 4.0)], ["c", "d", "e"], weights={"c": 2.0, "d": -1.0})
    first, second = chain.steps
    assert first.guided == {"c", "d"}
    assert first.branches == (Branch(frozenset("c"), 2.0), Branch(frozenset("d"), -1.0))
    assert second.branches[2:] == (Branch(frozenset("a"), 4.0),)
    rows: Any = chain.to_json()["steps"]
    assert rows[0]["branches"] == [{"visible": ["c"], "weight": 2.0}, {"visible": ["d"], "weight": -1.0}]


def test_chains_that_differ_in_weights_alone_differ_as_json() -> None:
    conditions = ["c", "d"]
    chains = [
        make_chain([spec("a", 2.0)], conditions),
        *(
            make_chain([spec("a", 2.0)], conditions, weights=weights)
            for weights in ({"c": 2.0, "d": 0.0}, {"c": 0.0, "d": 2.0}, {"c": 2.0}, {"c": 0.0, "d": 0.0})
        ),
        make_chain([spec("a", 0.0)], conditions),
    ]
    texts = [json.dumps(chain.to_json()) for chain in chains]
    assert len(set(texts)) == len(texts), texts


def test_an_integer_guidance_scale_is_a_scale() -> None:
    assert make_chain([spec("a", 3)], ["c"]).steps[0].branches == (Branch(frozenset("c"), 3.0),)


def test_a_text_is_one_step_with_its_limit() -> None:
    steps = make_chain([TargetSpec("caption", 256, "autoregressive", temperature=0.3)], ["rgb"]).steps
    assert [(s.num_tokens, s.temperature) for s in steps] == [(256, 0.3)]


def test_all_mistakes_of_a_target_are_reported_together() -> None:
    with pytest.raises(ScheduleError) as caught:
        TargetSpec("x", 0, "gibbs", 0, "quadratic", -1.0, "sqrt", 1.0, "cosine")
    assert len(caught.value.problems) == 7
