"""Boxes: the recorded texts and files, whatever a model may write, and what is refused of files."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourm.data.layout import Crop, centre_crop
from fourm.modalities.facts import (
    Box,
    BoxRules,
    box_grammar,
    box_words,
    boxes_from_json,
    boxes_to_json,
    parse_boxes,
)
from tests.texts import data_with, model_texts, value_or_refusal

ORDER_NAMES = {"dist_to_orig": "nearest", "area": "area", "score": "score"}
# Texts on which the reference raises, and what they mean here.
RIGHT = {
    "": [],
    "cat": [],
    "v1=2 v0=1": [],
    "[S_1] v0=1 v1=2 v2=3 v3=4 cat": ["cat"],
    "v0=1 v1=2 v2=3 cat": [],
    "v0=x v1=2 v2=3 v3=4 cat": [],
    "v0=1 v1=2 v2=3 v3=4 v2=9 cat": [],
    "v0=1 v1=2 v2=3 v3=4 a=b": [],
    "v0=1  v1=2 v2=3 v3=4 cat": ["cat"],
}
BINS = st.sampled_from([2, 64, 100, 1000])
names = st.sampled_from(["cat", "dining table", "a b c"])


def boxes_to_text(boxes: Sequence[Box], bins: int = 1000) -> str:
    return box_grammar(BoxRules(bins)).to_text(tuple(boxes))


def file_of(*boxes: object, name: object = "cat", **more: object) -> object:
    return {"instances": [{"boxes": box, "class_name": name, **more} for box in boxes]}


@st.composite
def centred(draw: Callable[..., Any]) -> tuple[tuple[Box, ...], int]:
    """Boxes whose corners are centres of bins, and the number of bins."""
    bins = draw(BINS)
    corner = st.integers(0, bins - 1).map(lambda n: n / (bins - 1))
    return tuple(draw(st.lists(st.builds(Box, corner, corner, corner, corner, names), max_size=5))), bins


def test_recorded_texts_are_read_as_recorded_and_what_the_reference_fails_on_is_passed_over(
    golden: Path,
) -> None:
    cases = json.loads((golden / "data" / "det.json").read_text())["parse"]
    assert len(cases) == 19
    for case in cases:
        boxes, problems = parse_boxes(case["string"], case["bins"])
        if case["boxes"] is None:
            assert [box.name for box in boxes] == RIGHT[case["string"]]
            continue
        assert len(boxes) == len(case["boxes"])
        for box, (*corners, name) in zip(boxes, case["boxes"], strict=True):
            # The reference lets numbers exceed the bins, and keeps marks of the sequence in names.
            assert box.corners == pytest.approx([min(corner, 1.0) for corner in corners], rel=1e-12)
            assert box.name == name.removesuffix(" [S_1]").removesuffix(" [EOS]")
        assert bool(problems) == (
            case["string"] in ("v0=1 v1=2 v2=3 v3=4", "v0=1 v1=2 v2=3 v3=4 cat v0=5 v1=6")
        )


def test_recorded_files_become_the_recorded_texts_under_all_recorded_rules(golden: Path) -> None:
    cases = json.loads((golden / "data" / "det.json").read_text())["encode"]
    assert len(cases) == 12
    for case in cases:
        rules = BoxRules(
            case["settings"]["coord_bins"],
            case["settings"]["det_threshold"],
            case["settings"]["det_max_instances"],
            ORDER_NAMES[case["settings"]["bbox_order"]],
            case["settings"]["min_visibility"],
        )
        crop = Crop(tuple(case["orig_size_hw"]), *case["crop_top_left_h_w"], mirrored=case["flip"])
        boxes = boxes_from_json({"instances": case["instances"]}, crop, rules)
        assert [box.name for box in boxes] == [recorded[4] for recorded in case["ordered_boxes"]]
        for box, recorded in zip(boxes, case["ordered_boxes"], strict=True):
            assert [*box.corners, box.score] == pytest.approx([*recorded[:4], recorded[5]], rel=1e-5)
        assert box_grammar(rules).to_text(boxes) == case["string"], case["id"]


def test_recorded_samples_are_cropped_as_recorded(golden: Path) -> None:
    recorded = json.loads((golden / "data" / "mini_dataset.json").read_text())
    sizes = [(88, 116), (75, 106)]
    first, others = [(0, 14, 88, 88), (0, 15, 75, 75)], [(3, 5, 40, 50), (10, 0, 30, 30)]  # of crop_settings
    for case in recorded["with_tokens"] + recorded["without_tokens"]:
        sample = case["index"]
        number = case.get("crop_number")
        if number is None:
            crop = centre_crop(*sizes[sample])
        else:
            crop = Crop(sizes[sample], *[first[sample], *others][number], mirrored=number == 1)
        path = golden / "data" / "mini_dataset" / "det" / "x" / f"s{sample + 1}.json"
        assert boxes_to_text(boxes_from_json(json.loads(path.read_text()), crop)) == case["det"]


@given(centred())
def test_what_was_written_is_read_as_it_was(case: tuple[tuple[Box, ...], int]) -> None:
    boxes, bins = case
    assert parse_boxes(boxes_to_text(boxes, bins), bins) == (boxes, ())


@given(st.lists(st.builds(Box, *[st.floats(0, 1)] * 4, names), max_size=5), BINS)
def test_what_was_read_is_written_as_it_was(boxes: list[Box], bins: int) -> None:
    text = boxes_to_text(boxes, bins)
    assert boxes_to_text(parse_boxes(text, bins)[0], bins) == text


@given(centred())
def test_a_written_file_is_read_as_the_same_bins_in_order(
    case: tuple[tuple[Box, ...], int],
) -> None:
    boxes, bins = case
    data = json.loads(json.dumps(boxes_to_json(boxes, bins)))
    read = box_grammar(BoxRules(bins)).from_json(data, None)
    assert all(box.xmin < box.xmax and box.ymin < box.ymax for box in read)
    ordered = [
        replace(
            box, xmin=min(box.xmin, box.xmax), xmax=max(box.xmin, box.xmax), ymin=min(box.ymin, box.ymax),
            ymax=max(box.ymin, box.ymax),
        )
        for box in boxes
    ]  # fmt: skip
    assert sorted(box_words(box, bins) for box in read) == sorted(box_words(box, bins) for box in ordered)


@given(model_texts)
def test_no_text_is_more_than_some_boxes_and_some_sentences(text: str) -> None:
    boxes, problems = parse_boxes(text)
    assert all(set(name) and "=" not in name and "\n" not in name for name in (box.name for box in boxes))
    assert all(problem and len(problem) < 120 for problem in problems)
    assert parse_boxes(boxes_to_text(boxes)) == (boxes, ())


@given(data_with(("instances", "boxes", "class_name", "score")))
def test_no_data_is_more_than_some_boxes_or_a_value_error(data: object) -> None:
    for crop in (None, Crop((30, 40), -5, 10, 25, 60, mirrored=True)):
        boxes = value_or_refusal(lambda crop=crop: boxes_from_json(data, crop))
        if boxes is not None:
            assert boxes_from_json(boxes_to_json(boxes)) == boxes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], r"the file is \[\], expected a mapping"),
        ({"instances": {}}, "the file.instances is {}, expected a list"),
        ({"instances": [3]}, r"instances\[0\] is 3, expected a mapping"),
        (file_of([0, 0, 1, 1], [0, 0, 1]), r"instances\[1\].boxes is \[0, 0, 1\], expected a list of 4"),
        (file_of([0, 0, 1, "1"]), r"instances\[0\].boxes\[3\] is '1', expected a finite number"),
        (file_of([0, 0, 1, True]), "is True, expected a finite number"),
        (file_of([0, 0, 1, float("nan")]), "is nan, expected a finite number"),
        (file_of([0, 0, 1, 10**400]), "expected a finite number"),
        (file_of([12, 40, 200, 180]), "must be fractions of the picture's sides, not pixels"),
        (file_of([0.5, 0.5, 0.2, 0.6]), "instance 0: xmax 0.2 is not right of xmin 0.5; boxes are corners"),
        (file_of([0.5, 0.5, 0.6, 0.2]), "instance 0: ymax 0.2 is not below ymin 0.5; boxes are corners"),
        (file_of([0, 0, 1, 1], [0.5, 0, 0.4, 1], score=0.1), "instance 1: xmax 0.4 is not right of xmin 0.5"),
        (file_of([0, 0, 1, 1], name=""), "instance 0: the name '' cannot stand"),
        (file_of([0, 0, 1, 1], name=7), r"instances\[0\].class_name is 7, expected text"),
        (file_of([0, 0, 1, 1], name="v0=3"), "the name 'v0=3' cannot stand in the model's text"),
        (file_of([0, 0, 1, 1], name="a [EOS]"), r"'a \[EOS\]' cannot stand"),
        (file_of([0, 0, 1, 1], name="\ud800"), r"class_name is '\\ud800', expected text"),
        (file_of([0, 0, 1, 1], score="high"), r"instances\[0\].score is 'high', expected a finite number"),
    ],
)
def test_files_that_hold_no_boxes_are_refused_with_the_instance(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boxes_from_json(data)


def test_a_box_without_a_score_is_a_sure_one_and_names_lose_spare_blanks() -> None:
    (box,) = boxes_from_json(file_of([0.1, 0.2, 0.3, 0.4], name=" dining \n table "))
    assert (box.score, box.name) == (1.0, "dining table")


def test_what_is_passed_over_is_said_once_each() -> None:
    text = "cat v0=1 v1=2 cat v0=1 v1=2 v2=3 v3=4 v0=1 v1=2 v2=3 v3=4 dog v1=9 hound v0=1 v1=2 cat"
    boxes, problems = parse_boxes(text)
    assert [box.name for box in boxes] == ["dog"]
    assert problems == (
        "'cat' stands before the first box",
        "'v0=1 v1=2 cat' has 2 numbers where a box has four",
        "'v0=1 v1=2 v2=3 v3=4' names nothing",
        "'v1=9 hound' is no part of a box",
    )


def test_a_crop_decides_what_is_seen_of_a_box() -> None:
    half = Crop((100, 200), 0, 100, 100, 100)  # the right half
    data = file_of([0.25, 0.0, 0.75, 1.0], [0.0, 0.0, 0.5, 1.0])
    (box,) = boxes_from_json(data, half)
    assert box.corners == (0.0, 0.0, 0.5, 1.0)
    assert boxes_from_json(data, half, BoxRules(min_visibility=0.6)) == ()
    (mirrored,) = boxes_from_json(data, replace(half, mirrored=True))
    assert mirrored.corners == (0.5, 0.0, 1.0, 1.0)


def test_huge_texts_and_files_take_linear_time() -> None:
    started = time.process_time()
    text = "v0=1 v1=2 v2=3 v3=4 dining table " * 50_000
    assert len(parse_boxes(text)[0]) == 50_000
    assert len(parse_boxes("v0=1 " * 200_000)[1]) == 1
    assert len(parse_boxes("v0=" + "9" * 5_000_000)[1]) == 1
    assert len(parse_boxes("cat " * 500_000)[1]) == 1
    assert len(boxes_from_json(file_of(*[[0.1, 0.1, 0.2, 0.2]] * 50_000))) == 50_000
    assert time.process_time() - started < 10
