"""What `--keep NAME:WHERE` may say."""

import pytest

from fourm.errors import UsageError
from fourm.modalities.registry import RELEASED
from fourm.schedule.keeps import MARKS, MASK, Keep, kept_of_share, parse_where, split_keep

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
    assert Keep("tok_rgb@224", "0.5").num_kept(RGB) == 98
    assert Keep("tok_rgb@224", MASK).num_kept(RGB) is None
    assert Keep("tok_rgb@224", "box:0.0,0.0,0.5,1.0").box == (0.0, 0.0, 0.5, 1.0)
    assert Keep("caption", MARKS).share is None
