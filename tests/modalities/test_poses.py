"""Human poses: text, values and files, against the recorded reference and as laws."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm.data.layout import Crop
from fourm.modalities.figures import (
    HUMAN_POSES,
    MAX_PEOPLE,
    PICTURE_SIDE,
    People,
    Person,
    parse_people,
    people_from_json,
    people_to_json,
)
from fourm.modalities.text import WordPiece, encode_full

to_text = HUMAN_POSES.to_text
BLOCKS = {"human": 5, "global": 10, "pose": 9, "shape": 11, "camera": 4}  # words, in our order
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
numbers = st.integers(0, 999)


def recorded(golden: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((golden / "data" / "human_poses.json").read_text())
    return data


def reordered(text: str) -> str:
    """A text with the blocks of every person in our order."""
    people: list[dict[str, list[str]]] = []
    name = ""
    for word in text.split():
        if word == "human":
            people.append({})
        if word in BLOCKS:
            name = word
            people[-1][name] = []
        if people:
            people[-1][name].append(word)
    return " ".join(word for one in people for block in BLOCKS for word in one[block]) or text


def crop_of(case: dict[str, Any], mirrored: bool = False) -> Crop | None:
    size = case["orig_size_hw"]
    return Crop((size[0], size[1]), *case["crop_top_left_h_w"], mirrored=mirrored) if size else None


@st.composite
def people_on_bins(draw: st.DrawFn) -> People:
    """People whose numbers are those that words stand for."""

    def some(count: int, scale: float, shift: float) -> tuple[float, ...]:
        return tuple((draw(numbers) - shift) / scale for _ in range(count))

    def person() -> Person:
        turn = some(9, 499.5, 499.5)
        return Person(
            box=tuple(draw(numbers) / 999 * PICTURE_SIDE for _ in range(4)),  # type: ignore[arg-type]
            orientation=(turn[:3], turn[3:6], turn[6:]),  # type: ignore[arg-type]
            pose_codes=tuple(draw(st.integers(0, 1023)) for _ in range(8)),
            betas=some(10, 166.5, 499.5),
            camera=some(3, 49.95, 49.95),  # type: ignore[arg-type]
        )

    return tuple(person() for _ in range(draw(st.integers(0, 3))))


STANDING = Person(
    (10.0, 20.0, 110.0, 220.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)), tuple(range(8)),
    (0.0,) * 10, (1.0, 0.5, 0.25),
)  # fmt: skip


def test_recorded_people_become_the_recorded_words(golden: Path) -> None:
    cases = recorded(golden)["encode"]
    for case in cases[:-2] + cases[-1:]:
        assert to_text(people_from_json(case["people"], crop_of(case))) == reordered(case["string"])
    assert len(cases) == 6


def test_shapes_are_limited_to_words_that_exist_where_the_reference_does_not(golden: Path) -> None:
    case = recorded(golden)["encode"][4]
    assert "v0=1032" in case["string"]
    assert "v0=-17" in case["string"]
    wanted = case["string"].replace("v0=1032", "v0=999").replace("v0=-17", "v0=0")
    assert to_text(people_from_json(case["people"], crop_of(case))) == reordered(wanted)


def test_recorded_texts_become_the_recorded_people(golden: Path) -> None:
    checked = 0
    for case in recorded(golden)["decode"]:
        people, _ = parse_people(case["string"])
        for person, wanted in zip(people, case["people"], strict=True):
            assert list(person.pose_codes) == wanted["pose_tokens"]
            for found, key in (
                (person.betas, "betas"), (person.orientation, "global_orient"), (person.camera, "pred_cam"),
                (person.box, "bbox_xyxy_224"),
            ):  # fmt: skip
                assert np.allclose(found, wanted[key], rtol=1e-5, atol=1e-7), key
            checked += 1
    assert checked == 6


def test_a_truncated_last_person_is_passed_over_and_told(golden: Path) -> None:
    people, problems = parse_people(recorded(golden)["decode"][3]["string"])
    assert len(people) == 2
    assert problems == ("person 3: 'global' needs 9 numbers",)


def test_the_recorded_data_set_has_nobody_in_it(golden: Path) -> None:
    for path in (golden / "data" / "mini_dataset" / "human_poses" / "x").iterdir():
        assert to_text(people_from_json(json.loads(path.read_text()))) == "none"


@given(people_on_bins())
def test_a_text_says_what_it_was_made_of(people: People) -> None:
    assert parse_people(to_text(people)) == (people, ())


@given(people_on_bins())
def test_a_file_says_what_it_was_made_of(people: People) -> None:
    assert people_from_json(json.loads(json.dumps(people_to_json(people)))) == people


@given(people_on_bins(), st.permutations(list(BLOCKS)[1:]))
def test_blocks_may_come_in_any_order(people: People, order: list[str]) -> None:
    words = to_text(people).split()
    shuffled = []
    for first in range(0, len(words) - 1, sum(BLOCKS.values())):
        person = words[first : first + sum(BLOCKS.values())]
        shuffled += person[:5]
        for block in order:
            start = person.index(block)
            shuffled += person[start : start + BLOCKS[block]]
    assert parse_people(" ".join(shuffled) or "none") == (people, ())


@pytest.mark.parametrize("data", [{}, []])
def test_nobody_is_none(data: object) -> None:
    assert people_from_json(data) == ()
    assert (to_text(()), people_to_json(()), parse_people("none"), parse_people("[PAD] none [EOS]")) == (
        "none", {}, ((), ()), ((), ()),
    )  # fmt: skip


def test_codes_from_512_on_are_counted_anew() -> None:
    person = replace(STANDING, pose_codes=(0, 1, 511, 512, 513, 1022, 1023, 7))
    assert " pose v0=0 v0=1 v0=511 v1=0 v1=1 v1=510 v1=511 v0=7 shape" in to_text((person,))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "neither 'none' nor 'human'"),
        ("v0=3 none", "2 words before the first 'human'"),
        ("human v0=1 v1=2", "person 1: 'human' needs 4 numbers"),
        ("human v0=1 v1=2 v2=3 v3=4 cat", "person 1: 'global' is missing"),
        (to_text((STANDING,)).replace("v1=", "v1=x"), "person 1: 'human' needs 4 numbers"),
        (
            to_text((STANDING,)).replace("pose v0=0", "pose v1=999"),
            "person 1: 'pose' needs 8 codes, 0..1023",
        ),
        (to_text((STANDING,)).replace("camera", "kamera"), "person 1: 'camera' is missing"),
    ],
)
def test_whoever_is_incomplete_is_passed_over_and_told(text: str, problem: str) -> None:
    assert parse_people(text) == ((), (problem,))


def test_a_missing_block_never_takes_the_place_of_another_persons() -> None:
    text = to_text((STANDING, STANDING))
    start = text.rindex(" camera")
    people, problems = parse_people(text[:start])
    assert people == parse_people(to_text((STANDING,)))[0]
    assert problems == ("person 2: 'camera' is missing",)


def test_words_too_many_are_told_and_numbers_beyond_words_limited() -> None:
    text = to_text((STANDING,)).replace("human v0=45", "human v0=1032") + " cat v0=1"
    people, problems = parse_people(text)
    assert people[0].box[0] == PICTURE_SIDE
    assert problems == ("person 1: 2 words too many",)


@given(
    st.text() | st.lists(st.sampled_from(["human", *BLOCKS, "v0=3", "v1=999", "none", "[S_1]"])).map(" ".join)
)
def test_any_text_is_read_without_an_error(text: str) -> None:
    people, problems = parse_people(text)
    assert people or problems or text.split().count("none") == 1
    assert parse_people(to_text(people))[1] == ()


def test_a_huge_text_is_read_quickly() -> None:
    people, problems = parse_people(f"{to_text((STANDING,))} " * 2000 + "human " * 100_000)
    assert (len(people), len(problems)) == (2000, 100_000)


def test_a_text_has_as_many_people_as_the_model_reads(golden: Path) -> None:
    path = golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json"
    text = to_text((STANDING,) * 9)
    assert text == to_text((STANDING,) * MAX_PEOPLE)
    ids = encode_full(text, WordPiece.load(path))
    assert len(ids) == 39 * MAX_PEOPLE + 1 <= 275  # every word is one id
    assert WordPiece.load(path).text_of(ids) == text


def test_a_mirrored_crop_mirrors_where_people_are_but_not_how_they_stand(golden: Path) -> None:
    case = recorded(golden)["encode"][0]
    (plain,) = people_from_json(case["people"], crop_of(case))
    (mirrored,) = people_from_json(case["people"], crop_of(case, mirrored=True))
    left, top, right, bottom = plain.box
    assert np.allclose(mirrored.box, (PICTURE_SIDE - right, top, PICTURE_SIDE - left, bottom))
    assert mirrored.camera == (plain.camera[0], -plain.camera[1], plain.camera[2])
    assert (mirrored.orientation, mirrored.pose_codes) == (plain.orientation, plain.pose_codes)


def test_people_are_seen_as_long_as_a_part_of_their_box_is() -> None:
    data = people_to_json((STANDING,))
    whole = (PICTURE_SIDE, PICTURE_SIDE)
    (seen,) = people_from_json(data, Crop(whole, 0, 100, 100, 100))
    assert seen.box == pytest.approx((0, 20 * 2.24, 10 * 2.24, PICTURE_SIDE))
    assert people_from_json(data, Crop(whole, 0, 111, 100, 100)) == ()
    assert people_from_json(data, Crop(whole, 0, 0, 19, 200)) == ()


GOOD = people_to_json((STANDING,))
BAD = [
    (None, "the file is None, expected a mapping"),
    ("nobody", "the file is 'nobody', expected a mapping"),
    ([1], r"the file is \[1\], expected a mapping"),
    ({"people": []}, "the file has no 'bbox_xyxy'"),
    ({"bbox_xyxy": {}}, "the file has no 'pred_cam'"),
    ({"bbox_xyxy": []}, "has no 'pred_smpl_params'"),
    ({"pred_cam": []}, "different numbers of people: 1, 1, 1, 1, 0"),
    ({"pred_cam": [[1, 2]]}, r"pred_cam\[0\] is \[1, 2\], expected a list of 3"),
    ({"pred_cam": [[1, 2, float("nan")]]}, r"pred_cam\[0\]\[2\] is nan, expected a finite number"),
    ({"pred_cam": [[1, 2, 10**400]]}, r"pred_cam\[0\]\[2\] is 10+\.\.\., expected a finite number"),
    ({"pred_cam": [[1, 2, True]]}, r"pred_cam\[0\]\[2\] is True, expected a finite number"),
    ({"bbox_xyxy": [["a", 2, 3, 4]]}, r"bbox_xyxy\[0\]\[0\] is 'a', expected a finite number"),
    ({"pose_tokenized": [[1] * 7]}, r"pose_tokenized\[0\] is \[1, .*, expected a list of length 8"),
    ({"pose_tokenized": [[1] * 7 + [1024]]}, "is 1024, expected a whole number, 0 to 1023"),
    ({"pose_tokenized": [[1] * 7 + [1.5]]}, "is 1.5, expected a whole number"),
    ({"pred_smpl_params": {"betas": [[0] * 10]}}, "pred_smpl_params has no 'global_orient'"),
    (
        {"pred_smpl_params": {"global_orient": [[[1, 0, 0]]], "betas": [[0] * 10]}},
        r"\[0\]\[0\]\[0\] is 1, expected a list of 3; ",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_malformed_files_are_refused_in_a_sentence(change: object, message: str) -> None:
    is_part = isinstance(change, dict) and bool(
        change.keys() & {"pred_cam", "pose_tokenized", "pred_smpl_params"}
    )
    is_box = isinstance(change, dict) and bool(change.get("bbox_xyxy"))
    data = {**GOOD, **change} if (is_part or is_box) else change  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=message):
        people_from_json(data)


@settings(max_examples=200)
@given(JSON, st.sampled_from(["", *GOOD]))  # type: ignore[misc]
def test_any_json_is_read_or_refused(data: object, key: str) -> None:
    try:
        people = people_from_json({**GOOD, key: data} if key else data)  # type: ignore[dict-item]
    except ValueError:
        return
    assert parse_people(to_text(people))[1] == ()
