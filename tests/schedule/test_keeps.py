"""What `--keep NAME:WHERE` may say."""

import pytest

from fourm.errors import ScheduleError, UsageError
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED
from fourm.schedule.chain import KEPT, Chain
from fourm.schedule.keeps import MARKS, MASK, Keep, kept_of_share, parse_where, split_keep
from fourm.schedule.plan import parse_chain

RGB = RELEASED.get("tok_rgb@224")


def test_a_name_and_what_is_kept_of_it_are_told_apart_by_the_first_colon() -> None:
    assert split_keep("rgb:box:0,0,0.5,1") == ("rgb", "box:0,0,0.5,1")
    assert split_keep("rgb:C:/masks/a.png") == ("rgb", "C:/masks/a.png")
    assert split_keep("caption") == ("caption", "")
    with pytest.raises(UsageError, match="names no modality"):
        split_keep(":0.5")


def test_every_form_has_one_spelling() -> None:
    assert parse_where("box:0,0,.5,1", RGB) == ("box:0.0,0.0,0.5,1.0", "")
    assert parse_where("0.50", RGB) == ("0.5", "")
    assert parse_where("0", RGB) == ("0.0", "")
    assert parse_where("mask", RGB) == (MASK, "")
    assert parse_where("a/mask.png", RGB) == (MASK, "a/mask.png")
    assert parse_where("", RELEASED.get("caption")) == (MARKS, "")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("", "lacks what is kept"),
        ("1.5", "between 0 and 1"),
        ("-0.1", "between 0 and 1"),
        ("nan", "between 0 and 1"),
        ("box:0,0,1", "four fractions"),
        ("box:0.5,0,0.5,1", "left < right"),
        ("box:0,0,2,1", "in 0..1"),
        ("box:a,b,c,d", "four fractions"),
    ],
)
def test_what_cannot_be_kept_is_refused(where: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_where(where, RGB)


def test_only_a_share_is_kept_of_tokens_without_places() -> None:
    row = RELEASED.get("tok_dinov2_global")
    assert parse_where("0.25", row) == ("0.25", "")
    for where in ("mask", "a.png", "box:0,0,1,0.5"):
        with pytest.raises(UsageError, match="no places in a picture"):
            parse_where(where, row)
    for name in ("rgb@224", "t5_caption"):
        with pytest.raises(UsageError, match="cannot be generated"):
            parse_where("0.5", RELEASED.get(name))
    with pytest.raises(UsageError, match="is a text"):
        parse_where("0.5", RELEASED.get("caption"))


def test_a_share_counts_tokens_and_other_forms_depend_on_the_sample() -> None:
    assert [kept_of_share(share, 196) for share in (0.0, 0.5, 0.0025, 0.0026, 1.0)] == [0, 98, 0, 1, 196]
    assert Keep("tok_rgb@224", "0.5").num_kept(196) == 98
    assert Keep("tok_rgb@224", MASK).num_kept(196) is None
    assert Keep("tok_rgb@224", "box:0.0,0.0,0.5,1.0").box == (0.0, 0.0, 0.5, 1.0)
    assert Keep("caption", MARKS).share is None


def plan(options: str) -> Chain:
    return parse_chain(options, find_model("demo"))


def test_what_is_kept_becomes_a_target_and_is_no_condition() -> None:
    chain = plan("--cond caption,rgb@64 --keep rgb:0.5")
    assert chain.conditions == ("caption",)
    assert chain.targets == ("tok_rgb@64",)
    assert chain.given == ("caption", "tok_rgb@64")
    assert chain.keeps == (Keep("tok_rgb@64", "0.5", raw=True),)
    assert plan("--cond caption --keep tok_rgb:0.5").keeps == (Keep("tok_rgb@64", "0.5", raw=False),)
    chained = plan(
        "--cond caption,tok_depth --keep tok_depth:0.25 --keep rgb:mask --targets tok_semseg-tok_rgb"
    )
    assert chained.targets == ("tok_depth@64", "tok_semseg@64", "tok_rgb@64")
    whole = plan("--cond caption --keep rgb:0.5 --target tok_depth:steps=3")
    assert [spec.target for spec in whole.specs] == ["tok_rgb@64", "tok_depth@64"]
    assert whole.specs[1].num_steps == 3


def test_a_chain_with_kept_parts_is_read_back_from_its_text() -> None:
    text = (
        "--cond caption --keep rgb:box:0,0,.5,1 --keep tok_depth:mask --keep-guided --targets tok_rgb --cfg 2"
    )
    chain = plan(text)
    assert plan(chain.to_text()) == chain
    assert "box:0.0,0.0,0.5,1.0" in chain.to_text()
    assert chain.to_json()["kept"][0] == {
        "target": "tok_rgb@64", "where": "box:0.0,0.0,0.5,1.0", "tokenised": True
    }  # fmt: skip


def test_guided_parts_are_hidden_from_the_unguided_pass_even_without_conditions() -> None:
    plain, guided = (
        plan("--cond none --keep rgb:0.5 --cfg 2"),
        plan("--cond none --keep rgb:0.5 --keep-guided --cfg 2"),
    )
    assert plain.steps[0].branches == ()
    assert guided.steps[0].guided == {"tok_rgb@64" + KEPT}
    assert [branch.weight for branch in guided.steps[0].branches] == [2.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--keep rgb:0.5 --keep tok_rgb:mask", "'tok_rgb@64' is given twice"),
        ("--keep tok_rbg:0.5", "unknown modality 'tok_rbg'; did you mean"),
        ("--keep rgb", "lacks what is kept"),
        ("--keep det:0.5", "is a text"),
        ("--keep rgb@64:7", "between 0 and 1"),
    ],
)
def test_mistakes_in_what_is_kept_are_told_with_the_others(options: str, said: str) -> None:
    with pytest.raises(ScheduleError, match=said) as caught:
        plan(f"--cond caption --targets tok_rgb --temps -1 {options}")
    assert "temperature" in str(caught.value)
