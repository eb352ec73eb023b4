"""Settings against a model: defaults, one value for all, whole targets, each mistake in one good sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm.errors import ScheduleError
from fourm.hub.files import ModelFiles, find_model
from fourm.schedule.chain import Chain
from fourm.schedule.plan import build_chain, parse_chain
from fourm.schedule.settings import read_settings
from tests.headers import fine, seven, twenty_one


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return find_model(seven(tmp_path_factory.mktemp("seven")))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return find_model(twenty_one(tmp_path_factory.mktemp("twenty_one")))


@pytest.fixture(scope="module")
def sr(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return find_model(fine(tmp_path_factory.mktemp("fine")))


def plan(model: ModelFiles, **options: object) -> Chain:
    return build_chain(read_settings([], options).base, model)


def problems(model: ModelFiles, **options: object) -> tuple[str, ...]:
    with pytest.raises(ScheduleError) as caught:
        plan(model, **options)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


def test_without_settings_a_caption_becomes_clip_and_rgb(model: ModelFiles) -> None:
    chain = plan(model)
    assert chain.conditions == ("caption",)
    assert chain.targets == ("tok_clip@224", "tok_rgb@224")
    assert [(s.num_steps, s.temperature, s.guidance) for s in chain.specs] == [(50, 5.0, 3.0), (25, 3.0, 2.0)]
    assert (len(chain.steps), chain.top_k, chain.top_p, chain.grow) == (75, 0, 0.8, True)
    assert chain.steps[-1].guided == {"caption", "tok_clip@224"}


@pytest.mark.parametrize("note", [0, 1])
def test_the_defaults_of_both_directions_are_the_recorded_ones(
    golden: Path, big: ModelFiles, note: int
) -> None:
    cases = json.loads((golden / "fm" / "sampling" / "schedules.json").read_text())["chained"]
    case = [c for c in cases if c.get("note") == "demo defaults"][note]
    args = case["args"]
    chain = plan(big, cond_domains=args["cond_domains"], target_domains=args["target_domains"])
    rows: Any = chain.to_json()["steps"]
    assert len(rows) == len(case["result"])
    for row, step in zip(rows, case["result"], strict=True):
        assert row["target"] == step["target_domain"]
        assert row["num_tokens"] == step["num_tokens"] or step["num_tokens"] is None
        assert row["temperature"] == pytest.approx(step["temperature"], rel=1e-9)
        assert row["guidance"] == step["cfg_scale"]


def test_the_defaults_of_super_resolution_are_the_recorded_ones(
    golden: Path, model: ModelFiles, sr: ModelFiles
) -> None:
    cases = json.loads((golden / "fm" / "sampling" / "schedules.json").read_text())["chained"]
    case = [c for c in cases if c.get("note") == "demo defaults"][3]
    chain = build_chain(read_settings([], {}).sr, sr, made=plan(model).modalities)
    assert list(chain.conditions) == case["args"]["cond_domains"]
    assert list(chain.targets) == case["args"]["target_domains"]
    rows: Any = chain.to_json()["steps"]
    for row, step in zip(rows, case["result"], strict=True):
        assert (row["num_tokens"], row["temperature"]) == (step["num_tokens"], step["temperature"])
        assert (row["guidance"], row["guided"]) == (step["cfg_scale"], step["cfg_cond_domains"])


def test_the_published_recipes_give_the_recorded_chains(
    golden: Path, model: ModelFiles, sr: ModelFiles
) -> None:
    cases = json.loads((golden / "fm" / "sampling" / "schedules.json").read_text())["chained"]
    cfgs = Path(__file__).resolve().parents[2] / "cfgs" / "generation"
    files = [
        cfgs / "settings_base" / "T2CR_roar49-25_cfg3_t6-0.5.yaml",
        cfgs / "settings_sr" / "x2CR_mg8_cfg3_t1const.yaml",
    ]
    settings = read_settings(files, {})
    base = build_chain(settings.base, model)
    for note, chain in (
        ("settings of the text-to-CLIP-to-RGB recipe", base),
        ("settings of the super-resolution recipe", build_chain(settings.sr, sr, made=base.modalities)),
    ):
        case = next(c for c in cases if c.get("note") == note)
        rows: Any = chain.to_json()["steps"]
        assert [row["num_tokens"] for row in rows] == [step["num_tokens"] for step in case["result"]]
        assert [row["guided"] for row in rows] == [step["cfg_cond_domains"] for step in case["result"]]
        wanted = [step["temperature"] for step in case["result"]]
        assert [row["temperature"] for row in rows] == pytest.approx(wanted, rel=1e-9)
        assert chain.top_p == 0.9


def test_one_value_serves_all_targets_and_none_is_the_default(model: ModelFiles) -> None:
    chain = plan(model, temps="0.5", decoding_steps="None-5", cfg_scales="-1")
    assert [(s.temperature, s.num_steps, s.guidance) for s in chain.specs] == [
        (0.5, 50, -1.0),
        (0.5, 5, -1.0),
    ]


def test_a_random_order_takes_equal_parts_whatever_curve_is_named(model: ModelFiles) -> None:
    chain = plan(model, target_domains="tok_rgb", decoding_steps="4", token_decoding_schedules="cosine")
    assert [step.num_tokens for step in chain.steps] == [49, 49, 49, 49]


def test_a_target_can_be_written_whole(model: ModelFiles) -> None:
    chain = plan(
        model,
        target=["tok_clip:scheme=maskgit,steps=8,token-schedule=cosine,temp=3.0", "tok_rgb:cfg=-1.5"],
        temps="1.0",
    )
    clip, rgb = chain.specs
    assert (clip.scheme, clip.num_steps, clip.token_curve, clip.temperature) == ("maskgit", 8, "cosine", 3.0)
    assert (rgb.temperature, rgb.guidance, rgb.num_steps) == (1.0, -1.5, 25)


def test_no_conditions_can_be_asked_for(model: ModelFiles) -> None:
    for text in ("none", "", []):
        chain = plan(model, cond_domains=text, target_domains="tok_rgb")
        assert chain.conditions == ()
        assert chain.steps[0].branches == ()


def test_conditions_can_have_weights(model: ModelFiles) -> None:
    chain = plan(model, cond_domains="caption:2.0,tok_depth:-1.5,det", target_domains="tok_rgb")
    assert chain.conditions == ("caption", "det", "tok_depth@224")
    assert chain.weights == (("caption", 2.0), ("tok_depth@224", -1.5))
    assert chain.steps[0].guided == {"caption", "tok_depth@224"}


@pytest.mark.parametrize(
    ("top_k", "top_p", "wanted"),
    [("50", "0.9", (50, 0.9)), ("0.05", "0", (0.05, 1.0)), ("0.0", "1", (0, 1.0)), ("1.0", "1.0", (0, 1.0)),
     ("1", "0.5", (1, 0.5))],
)  # fmt: skip
def test_filters_are_counts_shares_or_off(
    model: ModelFiles, top_k: str, top_p: str, wanted: tuple[float, float]
) -> None:
    chain = plan(model, top_k=top_k, top_p=top_p)
    assert (chain.top_k, chain.top_p) == wanted
    assert type(chain.top_k) is type(wanted[0])


WRONG: list[tuple[dict[str, object], str]] = [
    ({"cond_domains": "captoin"}, "`cond`: unknown modality 'captoin'; did you mean 'caption'?"),
    ({"target_domains": "tok_rbg"}, "`targets`: unknown modality 'tok_rbg'; did you mean 'tok_rgb@224'?"),
    ({"temps": "1-2-3"}, "`temps`: 3 values for 2 targets (tok_clip@224, tok_rgb@224); give 1 or 2"),
    ({"target_domains": "tok_rgb", "temps": "1-2"}, "`temps`: 2 values for 1 target (tok_rgb@224); give 1"),
    ({"temps": "warm"}, "`temps`: 'warm' is not a number"),
    ({"temps": "3--1"}, "`temps`: the temperature -1; give 0 or more"),
    ({"cfg_scales": "1e30"}, "`cfg`: the guidance scale 1e+30; give -1000000 to 1000000"),
    ({"cond_domains": "caption:1e400"}, "`cond` caption: the guidance scale inf; give"),
    ({"decoding_steps": "300-25"}, "`steps`: 300 steps are more than the 196 tokens of tok_clip@224"),
    ({"decoding_steps": "0"}, "`steps`: 0 decoding steps; give 1 or more"),
    (
        {"autoregression_schemes": "autoregressive"},
        "'autoregressive' does not fit tok_clip@224, a grid of tokens",
    ),
    (
        {"target_domains": "det", "autoregression_schemes": "roar"},
        "'roar' does not fit det, a sequence; use auto",
    ),
    ({"autoregression_schemes": "maskgti"}, "`schemes`: unknown scheme 'maskgti'; did you mean 'maskgit'?"),
    ({"token_decoding_schedules": "cosin"}, "unknown token schedule 'cosin'; did you mean 'cosine'?"),
    (
        {"temp_schedules": "onex:1"},
        "`temp_schedules`: temperature schedule 'onex:1': lowest temperature and power",
    ),
    ({"cfg_schedules": "cosine"}, "`cfg_schedules`: unknown guidance schedule 'cosine'; known are constant"),
    (
        {"cfg_schedules": "interval:0.8:0.2"},
        "`cfg_schedules`: guidance schedule 'interval:0.8:0.2': its numbers must be from 0 to 1, the smaller",
    ),
    (
        {"target_domains": "tok_rgb", "cond_domains": "caption:2", "cfg_schedules": "linear"},
        "tok_rgb@224: the guidance schedule 'linear' is for one guidance scale, and weights of conditions",
    ),
    ({"tokens_per_target": "100"}, "`tokens`: 100 tokens for tok_clip@224, which has 196"),
    ({"target_domains": "det", "tokens_per_target": "300"}, "300 tokens for det, which has at most 256"),
    ({"top_p": "1.5"}, "`top_p`: top_p is a share from 0 to 1, not 1.5"),
    ({"top_p": "-0.5"}, "`top_p`: top_p is a share from 0 to 1, not -0.5"),
    ({"top_p": "0.5-0.6"}, "`top_p`: one value for the whole chain was expected"),
    ({"top_k": "50.0"}, "`top_k`: top_k is a whole number (50) or a share from 0 to 1 (0.05), not 50.0"),
    ({"top_k": "-1"}, "top_k is a whole number"),
    (
        {"target_domains": "tok_sam_edge"},
        "cannot produce 'tok_sam_edge@224'; it produces caption, det, tok_clip@224",
    ),
    ({"target_domains": "rgb@448"}, "cannot produce 'rgb@448'"),
    ({"cond_domains": "metadata"}, "cannot read 'metadata'; it reads caption"),
    ({"target_domains": "tok_rgb-tok_rgb@224"}, "`targets`: 'tok_rgb@224' is given twice"),
    ({"cond_domains": "caption,caption"}, "`cond`: 'caption' is given twice"),
    (
        {"cond_domains": "tok_rgb", "target_domains": "tok_rgb"},
        "'tok_rgb@224' is both a condition and a target",
    ),
    ({"target_domains": ""}, "`targets`: no target is named"),
    ({"cond_domains": ["caption-rgb=cat.jpg"]}, "'caption-rgb=cat.jpg': a file belongs to one name"),
    ({"cond_domains": ["rgb="]}, "'rgb=' names no file"),
    ({"cond_domains": ["rgb=s3://b/cat.jpg"]}, "s3:// is not supported"),
    ({"cond_domains": ["tok_rgb", "tok_rgb=cat.npy"]}, "'tok_rgb@224' is given twice"),
    ({"cond_weights": ["depth:1.5"]}, "`weight`: 'depth' is not among the conditions, which are caption"),
    ({"cond_domains": "depth:2", "cond_weights": ["depth:1"]}, "'depth' is given a weight twice"),
    ({"target_domains": "depth-tok_depth"}, "'tok_depth@224' is given twice"),
    (
        {"target": ["tok_rgb:stepps=3"]},
        "`target` tok_rgb: stepps: unknown key 'stepps'; did you mean 'steps'",
    ),
    ({"target": ["tok_rgb", "tok_rgb"]}, "`target`: 'tok_rgb' is given twice"),
    ({"target": ["tok_rgb"], "target_domains": "tok_clip"}, "`target` and `targets` are both given"),
    ({"target": ["tok_rgb:steps=999"]}, "`target` tok_rgb: steps: 999 steps are more than the 196 tokens"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=[said[:60] for _, said in WRONG])
def test_a_mistake_is_one_sentence(model: ModelFiles, options: dict[str, object], said: str) -> None:
    found = problems(model, **options)
    assert any(said in problem for problem in found), found
    if "`tokens`: 100" not in said and "autoregressive" not in said:  # those two are wrong for both targets
        assert len([p for p in found if said not in p]) <= 1


def test_a_mistake_in_the_defaults_of_a_row_is_a_sentence(tmp_path: Path) -> None:
    rows = "- name: tok_rgb@224\n  defaults: {scheme: mask, num_steps: 0}\n"
    folder = seven(tmp_path)
    (folder / "modalities.yaml").write_text(rows)
    assert problems(find_model(folder), target_domains="tok_rgb") == (
        "the defaults of tok_rgb@224: unknown scheme 'mask'; did you mean 'maskgit'?",
        "the defaults of tok_rgb@224: 0 decoding steps; give 1 or more",
    )


def test_what_does_not_suit_a_modality_is_told_beside_what_is_wrong_by_itself(model: ModelFiles) -> None:
    temps, steps = problems(model, target_domains="tok_rgb", temps="-1", decoding_steps="10000")
    assert temps == "`temps`: the temperature -1; give 0 or more"
    assert steps.startswith("`steps`: 10000 steps are more than the ")


def test_all_mistakes_are_reported_together(model: ModelFiles) -> None:
    found = problems(model, cond_domains="captoin", temps="x", top_p="2", decoding_steps="1-2-3")
    assert len(found) == 4


WHOLE = st.builds(
    lambda name, words: f"{name}:{','.join(f'{k}={v}' for k, v in words.items())}" if words else name,
    st.sampled_from(["tok_clip", "tok_depth@224", "tok_rgb"]),
    st.fixed_dictionaries(
        {},
        optional={
            "scheme": st.sampled_from(["maskgit", "roar", "halton"]),
            "steps": st.integers(1, 196),
            "temp": st.floats(0, 10),
            "temp-schedule": st.sampled_from(["constant", "linear", "onex:0.5:0.5"]),
            "token-schedule": st.sampled_from(["cosine", "linear", "arccos"]),
            "cfg": st.floats(-5, 5),
        },
    ),
)


@given(
    st.lists(WHOLE, min_size=1, max_size=3, unique_by=lambda text: text[:7]),
    st.sampled_from(["caption", "none", "caption:1.5,det:-2", "det,caption:0.5"]),
    st.sampled_from(["0", "50", "0.25"]),
    st.floats(0, 1),
    st.booleans(),
)
@settings(deadline=None)
def test_a_chain_printed_and_parsed_is_the_same_chain(
    model: ModelFiles, whole: list[str], cond: str, top_k: str, top_p: float, grow: bool
) -> None:
    chain = plan(
        model, target=whole, cond_domains=cond, top_k=top_k, top_p=repr(top_p), cfg_grow_conditioning=grow
    )
    assert parse_chain(chain.to_text(), model) == chain


def test_guidance_schedules_are_printed_and_parsed_and_texts_have_none(model: ModelFiles) -> None:
    targets, curves = "tok_clip-tok_rgb-det", "linear-interval:0.2:0.8-linear"
    chain = plan(model, target_domains=targets, autoregression_schemes="halton,halton,autoregressive",
                 cfg_schedules=curves, cfg_scales="3")  # fmt: skip
    assert [spec.guidance_curve for spec in chain.specs] == ["linear", "interval:0.2:0.8", "constant"]
    assert {step.guidance for step in chain.steps if step.target == "det"} == {3.0}
    assert parse_chain(chain.to_text(), model) == chain


@given(st.text(), st.text() | st.text("0123456789.,-e:n"), st.text("tok_rgbclip@24-,:="))
@settings(deadline=None)
def test_any_text_is_a_chain_or_a_schedule_error(
    model: ModelFiles, any_text: str, number: str, name: str
) -> None:
    options = {"cond_domains": any_text, "temps": number, "target": [name, any_text], "top_k": number}
    try:
        plan(model, **options)
    except ScheduleError:
        return


@pytest.mark.parametrize("text", ["'", "--temps", "--nothing 3", "word", "--cond 'a"])
def test_a_text_that_holds_no_options_is_refused(model: ModelFiles, text: str) -> None:
    with pytest.raises(ScheduleError):
        parse_chain(text, model)


def test_a_text_target_in_the_chain_survives_printing(big: ModelFiles) -> None:
    chain = plan(big, cond_domains="rgb", target_domains="caption-sam_instance-human_poses")
    assert [spec.num_tokens for spec in chain.specs] == [256, 256, 275]
    assert parse_chain(chain.to_text(), big) == chain


def test_all_targets_are_everything_that_is_not_given(big: ModelFiles, model: ModelFiles) -> None:
    order = (
        "tok_clip@224", "tok_dinov2@224", "tok_imagebind@224", "tok_depth@224", "tok_normal@224",
        "tok_semseg@224", "tok_canny_edge@224", "tok_sam_edge@224", "tok_rgb@224", "caption", "det",
        "human_poses", "sam_instance", "color_palette", "metadata",
    )  # fmt: skip
    given = {"rgb": {"tok_rgb@224"}, "caption": {"caption"}, "rgb,depth": {"tok_rgb@224", "tok_depth@224"}}
    for conditions, left_out in given.items():
        chain = plan(big, cond_domains=conditions, target_domains="all")
        assert chain.targets == tuple(name for name in order if name not in left_out)
    assert plan(model, cond_domains="caption", target_domains="all").targets == (
        "tok_clip@224", "tok_depth@224", "tok_normal@224", "tok_semseg@224", "tok_rgb@224", "det",
    )  # fmt: skip


def test_a_condition_named_as_its_values_is_tokenised(big: ModelFiles, sr: ModelFiles) -> None:
    chain = plan(big, cond_domains="depth,caption,tok_normal")
    assert chain.conditions == ("caption", "tok_depth@224", "tok_normal@224")
    assert chain.raw == {"tok_depth@224"}
    assert chain.to_json()["tokenised"] == ["tok_depth@224"]
    assert parse_chain(chain.to_text(), big) == chain
    weighted = plan(big, cond_domains="depth:2.0,clip:-1")
    assert dict(weighted.weights) == {"tok_depth@224": 2.0, "tok_clip@224": -1.0}
    assert parse_chain(weighted.to_text(), big) == weighted
    assert plan(sr, cond_domains="depth,rgb").conditions[-1] == "tok_depth@224"
    assert plan(big, cond_domains="rgb").raw == set()
    assert "'tok_depth@224' is given twice" in problems(big, cond_domains="depth,tok_depth")[0]
    assert "did you mean 'tok_depth@224'" in problems(big, cond_domains="tok_dept")[0]
