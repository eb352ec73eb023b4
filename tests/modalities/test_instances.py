"""SAM instances: text, values and files, against the recorded reference and as laws."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm.data.layout import Crop
from fourm.modalities.figures import (
    MAX_WORDS,
    PICTURE_SIDE,
    QUERY_POINTS,
    SAM_INSTANCES,
    Group,
    Groups,
    Instance,
    contains,
    instances_from_json,
    instances_to_json,
    join_passes,
    parse_instances,
)
from fourm.modalities.text import Structured, WordPiece, encode_full
from tests.modalities.test_poses import JSON

to_text = SAM_INSTANCES.to_text
CODES = tuple(range(500, 516))
CAT = Instance((10, 20, 60, 90), CODES)
DOG = Instance((100, 20, 200, 120), CODES[::-1])
CAT_WORDS = "polygon v0=10 v1=20 v2=60 v3=90 " + " ".join(
    [*(f"v0={code}" for code in range(500, 512)), "v1=0", "v1=1", "v1=2", "v1=3"]
)
SQUARE = [[10, 10], [20, 10], [20, 20], [10, 20]]


def recorded(golden: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((golden / "data" / "sam_instance.json").read_text())
    return data


def by_area(groups: Groups) -> list[Instance]:
    found = [instance for group in groups for instance in group.instances]
    return sorted(found, key=lambda i: -(i.box[2] - i.box[0]) * (i.box[3] - i.box[1]))


def file_of(case: dict[str, Any], points: list[list[int]] | None = None) -> list[dict[str, Any]]:
    """A recorded case of contours as a file."""
    queries = None if points is None else [{"point": point} for point in points]
    return [
        {
            "points": case["contours_xy"],
            "bbox": case["bbox_ymin_xmin_ymax_xmax"],
            "token_ids": case["token_ids"],
            "queries": queries,
        }
    ]


def crop(number: int) -> Crop:
    return Crop((PICTURE_SIDE, PICTURE_SIDE), 0, 0, PICTURE_SIDE, PICTURE_SIDE, number=number)


corner = st.integers(0, PICTURE_SIDE - 1)
code = st.integers(0, 1023)


@st.composite
def an_instance(draw: st.DrawFn) -> Instance:
    x0, y0 = draw(corner), draw(corner)
    x1, y1 = draw(st.integers(x0 + 1, 999)), draw(st.integers(y0 + 1, 999))
    return Instance((x0, y0, x1, y1), tuple(draw(st.tuples(*[code] * 16))))


@st.composite
def groups_that_fit(draw: st.DrawFn) -> Groups:
    instances = st.lists(an_instance(), max_size=4).map(tuple)
    point = st.tuples(st.integers(0, 999), st.integers(0, 999))
    groups = [Group(draw(point), draw(instances)) for _ in range(draw(st.integers(0, 3)))]
    if groups and groups[0].instances and draw(st.booleans()):
        groups[0] = replace(groups[0], point=None)  # a text that begins without a point
    return tuple(groups)


def queries(numbers: st.SearchStrategy[int]) -> st.SearchStrategy[list[dict[str, Any]]]:
    points = st.none() | st.lists(numbers, min_size=2, max_size=2)
    instances = st.none() | st.lists(st.integers(0, 1), max_size=3)
    return st.lists(st.fixed_dictionaries({"point": points, "instances": instances}), max_size=4)


def test_recorded_texts_become_the_recorded_instances(golden: Path) -> None:
    cases = recorded(golden)["cases"]
    for case in cases:
        found = [
            ([i.box[1], i.box[0], i.box[3], i.box[2]], list(i.codes))
            for i in by_area(parse_instances(case["string"])[0])
        ]
        wanted = [(i["box_ymin_xmin_ymax_xmax"], i["tokens"]) for i in case["instances_largest_box_first"]]
        assert found == wanted, case["id"]
    assert len(cases) == 17


def test_recorded_contours_become_the_recorded_text(golden: Path) -> None:
    cases = recorded(golden)["encode"]
    for case in cases:
        groups = instances_from_json(file_of(case, case["query_points_xy"]))
        assert to_text(groups) == case["string_in_given_order"]
    assert len(cases) == 3


def test_the_recorded_data_set_is_what_the_reference_makes_of_it(golden: Path, tmp_path: Path) -> None:
    from fourm.inputs.convert import read_instances

    cases = json.loads((golden / "data" / "mini_dataset.json").read_text())["sam_strings"]
    grid = [{"point": [x, y]} for x, y in recorded(golden)["grid_query_points_xy"]]
    for case in cases:
        name = f"s{case['index'] + 1}.npy"
        crops: list[Any] = read_instances(golden / "data" / "mini_dataset" / "sam_instance" / "x" / name)
        crops = [{**entry, "queries": grid} for entry in crops]
        groups = instances_from_json(crops, crop(case["crop_number"]))
        assert (groups, ()) == parse_instances(case["string_grid_points_in_order"])
        # The reference's text is longer than the 290 tokens that the model reads.
        assert case["string_grid_points_in_order"].startswith(to_text(groups))
        assert MAX_WORDS - 24 < len(to_text(groups).split()) <= MAX_WORDS
    assert len(cases) == 6


def test_boxes_that_break_the_reference_are_passed_over(golden: Path) -> None:
    failures = recorded(golden)["reference_failures"]
    for case in failures[:2]:
        assert case["reference_error"] == "IndexError"
        groups, problems = parse_instances(case["string"])
        assert groups == ()
        assert problems == ("point 1, polygon 1: its box is empty or outside the picture",)


@given(groups_that_fit())
def test_a_text_says_what_it_was_made_of(groups: Groups) -> None:
    assert len(to_text(groups).split()) <= MAX_WORDS
    assert parse_instances(to_text(groups)) == (groups, ())


@given(groups_that_fit())
def test_a_file_says_what_it_was_made_of(groups: Groups) -> None:
    assert instances_from_json(json.loads(json.dumps(instances_to_json(groups)))) == groups


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("point v0=1 v1=2", "point 1: neither a polygon nor 'none'"),
        ("point none", "point 1: no coordinates"),
        ("point v0=1 v1=1000 none", "point 1: no coordinates"),
        ("point v0=1 v1=2 cat", "point 1: 'cat' means nothing here"),
        ("none", "before the first point: 'none' means nothing here"),
        ("polygon", "before the first point, polygon 1: 0 words instead of 20"),
        (
            CAT_WORDS.replace("v2=60", "v2=-6"),
            "before the first point, polygon 1: not 4 numbers and 16 codes",
        ),
        (
            CAT_WORDS.replace("v1=3", "v1=512"),
            "before the first point, polygon 1: not 4 numbers and 16 codes",
        ),
        (
            CAT_WORDS.replace("v0=10 v1=20 v2=60", "v0=224 v1=20 v2=260"),
            "before the first point, polygon 1: its box is empty or outside the picture",
        ),
    ],
)
def test_what_is_malformed_is_passed_over_and_told(text: str, problem: str) -> None:
    assert parse_instances(text) == ((), (problem,))


def test_one_malformed_polygon_does_not_spoil_the_others() -> None:
    text = f"point v0=1 v1=2 polygon v0=3 {CAT_WORDS} point v0=5 v1=6 none point v0=7"
    groups, problems = parse_instances(f"[PAD] {text} [EOS]")
    assert groups == (Group((2, 1), (CAT,)), Group((6, 5)))
    assert problems == ("point 1, polygon 1: 1 words instead of 20", "point 3: no coordinates")


def test_instances_without_a_point_are_kept() -> None:
    groups, problems = parse_instances(f"point {CAT_WORDS}")
    assert groups == (Group(None, (CAT,)),)
    assert problems == ("point 1: no coordinates",)


@given(
    st.text() | st.lists(st.sampled_from([*CAT_WORDS.split()[:9], "point", "none", CAT_WORDS])).map(" ".join)
)
def test_any_text_is_read_without_an_error(text: str) -> None:
    groups, problems = parse_instances(text)
    assert groups or problems or not [w for w in text.split() if not w.startswith("[")]
    instances = [instance for group in groups for instance in group.instances]
    assert all(0 <= i.box[0] < i.box[2] <= 999 and len(i.codes) == 16 for i in instances)
    assert instances_from_json(instances_to_json(groups)) == groups


def test_a_huge_text_is_read_quickly() -> None:
    groups, problems = parse_instances("point v0=1 v1=2 " + f"{CAT_WORDS} " * 5000 + "polygon " * 100_000)
    assert (len(groups[0].instances), len(problems)) == (5000, 100_000)


def test_a_text_ends_where_the_model_reads_no_further() -> None:
    groups = (Group((1, 2), (CAT,) * 9), Group((3, 4), (DOG,) * 9), Group((5, 6)))
    text = to_text(groups)
    assert parse_instances(text)[0] == (Group((1, 2), (CAT,) * 9), Group((3, 4), (DOG,) * 4))
    assert len(text.split()) <= MAX_WORDS
    many = (Group((1, 2)),) * 100
    assert to_text(many).split() == "point v0=2 v1=1 none".split() * (MAX_WORDS // 4)
    # Nothing is said to be none because it did not fit.
    full = (Group((1, 2), (CAT,) * 13), Group((3, 4), (DOG,)))
    assert parse_instances(to_text(full))[0] == full[:1]


def test_every_word_is_one_token_of_the_released_tokenizer(golden: Path) -> None:
    path = golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json"
    wordpiece = WordPiece.load(path)
    text = to_text((Group((1, 2)), Group((1, 2), (CAT,) * 20)))
    ids = encode_full(text, wordpiece)
    assert len(ids) == len(text.split()) + 1 <= 290
    assert wordpiece.text_of(ids) == text


def test_passes_join_to_one_dense_value(golden: Path) -> None:
    texts = [case["string"] for case in recorded(golden)["cases"]]
    passes = [Structured(*_split(text)) for text in texts]
    dense = join_passes(passes)
    assert dense.text == " ".join(texts)
    assert len(dense.value) == sum(len(one.value) for one in passes)
    # A truncated last polygon of one pass does not reach into the next.
    assert "pass 9: point 1, polygon 2: 6 words instead of 20" in dense.problems
    assert join_passes([]) == Structured(())


def _split(text: str) -> tuple[Groups, str, tuple[str, ...]]:
    groups, problems = parse_instances(text)
    return groups, text, problems


@pytest.mark.parametrize(
    ("point", "inside"),
    [
        ((15, 15), True), ((10, 10), True), ((20, 15), True), ((15, 20), True), ((9, 15), False),
        ((21, 10), False), ((15, 9), False), ((0, 10), False), ((30, 20), False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("turned", [False, True])
def test_a_contour_contains_its_border(point: tuple[int, int], inside: bool, turned: bool) -> None:
    contour = [(float(x), float(y)) for x, y in (SQUARE[::-1] if turned else SQUARE)]
    assert contains(contour, point) is inside


def test_contours_that_are_no_areas_contain_their_points_only() -> None:
    assert not contains([], (0, 0))
    assert contains([(3, 4)], (3, 4))
    assert not contains([(3, 4)], (3, 5))
    assert contains([(0, 0), (10, 10)], (5, 5))
    assert not contains([(0, 0), (10, 10)], (5, 6))


@given(st.lists(st.tuples(corner, corner), min_size=3, max_size=8), corner, corner)
def test_a_contour_contains_the_same_points_wherever_it_begins(
    contour: list[tuple[int, int]], x: int, y: int
) -> None:
    wanted = contains(contour, (x, y))
    assert contains(contour[1:] + contour[:1], (x, y)) is wanted
    assert contains(contour[::-1], (x, y)) is wanted
    assert contains([(y, x) for x, y in contour], (y, x)) is wanted


def test_without_query_points_the_same_seven_are_asked_for_every_file(golden: Path) -> None:
    for case in recorded(golden)["encode"]:
        groups = instances_from_json(file_of(case))
        assert tuple(group.point for group in groups) == QUERY_POINTS
        assert groups == instances_from_json(file_of(case, [list(point) for point in QUERY_POINTS]))


def test_queries_and_contours_that_take_minutes_to_compare_are_refused() -> None:
    square = [[i % 224, i % 7] for i in range(5000)]
    entry = {"bbox": [[20, 100, 120, 200]], "token_ids": [[1] * 16], "points": [square]}
    queries = [{"point": [1, 1]}] * 2001
    with pytest.raises(ValueError, match=r"2,001 queries without 'instances' and 5,000 points are too many"):
        instances_from_json([{**entry, "queries": queries}])
    named = [{"point": [1, 1], "instances": [0]}] * 3000
    assert len(instances_from_json([{**entry, "queries": [*named, *queries[:3]]}])) == 3003


def test_the_crop_chooses_its_entry() -> None:
    crops = [
        {"bbox": [[10, 10, 20, 20 + n]], "token_ids": [list(CODES)], "points": [SQUARE],
         "queries": [{"point": [15, 15]}]}
        for n in range(2)
    ]  # fmt: skip
    assert instances_from_json(crops) == instances_from_json(crops, crop(0))
    assert instances_from_json(crops, crop(1))[0].instances[0].box == (10, 10, 21, 20)
    with pytest.raises(ValueError, match="holds 2 crops; there is no crop 2"):
        instances_from_json(crops, crop(2))


def test_boxes_are_truncated_and_what_nobody_sees_is_left_out() -> None:
    boxes = [[10.9, 10.2, 20.7, 20.99], [10.2, 10.2, 10.8, 20.0], [230, 0, 240, 9], [-3.5, -1, 9, 9]]
    query = {"point": [1, 1], "instances": [0, 1, 2, 3]}
    entry = {"bbox": boxes, "token_ids": [list(CODES)] * 4, "queries": [query]}
    (group,) = instances_from_json([entry])
    assert [instance.box for instance in group.instances] == [(10, 10, 20, 20), (0, 0, 9, 9)]


GOOD: dict[str, Any] = {"bbox": [[10, 10, 20, 20]], "token_ids": [list(CODES)], "points": [SQUARE]}
BAD = [
    (
        {"bbox": [[5, 5, 4, 9]]},
        r"bbox 0: \[ymin, xmin, ymax, xmax\] is not in order: \[5.0,",
    ),
    ({"bbox": None}, "bbox is None, expected a list"),
    ({"bbox": "x"}, "bbox is 'x', expected a list"),
    ({"bbox": [[1, 2, 3]]}, r"bbox\[0\] is \[1, 2, 3\], expected a list of 4"),
    ({"bbox": [[1, 2, 3, 1e999]]}, r"bbox\[0\]\[3\] is inf, expected a finite number"),
    ({"token_ids": []}, "token_ids has 0 entries, and bbox has 1"),
    ({"token_ids": [[1, 2]]}, r"token_ids\[0\] is \[1, 2\], expected a list of length 16"),
    ({"token_ids": [[1024] * 16]}, r"token_ids\[0\]\[0\] is 1024, expected a whole number, 0 to 1023"),
    ({"token_ids": [[True] * 16]}, r"token_ids\[0\]\[0\] is True, expected a whole number"),
    ({"points": None}, "neither 'points' .* nor 'queries'"),
    ({"points": [5]}, r"points\[0\] is 5, expected a list"),
    ({"points": [[[1]]]}, r"points\[0\]\[0\] is \[1\], expected a list of 2"),
    ({"queries": 5}, "queries is 5, expected a list"),
    ({"queries": [5]}, r"queries\[0\] is 5, expected a mapping"),
    ({"queries": [{}]}, "a query needs its 'point'"),
    ({"queries": [{"point": [1]}]}, r"queries\[0\].point is \[1\], expected a list of 2"),
    ({"queries": [{"point": [1, 1]}], "points": None}, "a query needs its 'point' and the 'points'"),
    ({"queries": [{"instances": [1]}]}, "a query has instance 1, where 1 instances are"),
    ({"queries": [{"instances": [False]}]}, r"queries\[0\].instances\[0\] is False, expected a whole number"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_malformed_files_are_refused_in_a_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^crop 0[:.] ?{message}"):
        instances_from_json([GOOD | change])


@pytest.mark.parametrize("data", [None, {}, [], "x", 5, GOOD])
def test_a_file_is_a_list_of_crops(data: object) -> None:
    with pytest.raises(ValueError, match="where a list of crops belongs"):
        instances_from_json(data)


@settings(max_examples=200)
@given(JSON, st.sampled_from(["", *GOOD, "queries"]))
def test_any_json_is_read_or_refused(data: object, key: str) -> None:
    try:
        groups = instances_from_json([{**GOOD, key: data}] if key else data)
    except ValueError:
        return
    assert parse_instances(to_text(groups))[0] == groups


@given(queries(st.integers(-5, 1005)))
def test_the_queries_of_a_file_are_what_its_text_asks(queries: list[dict[str, Any]]) -> None:
    two = {"bbox": [[10, 10, 20, 20], [12, 12, 30, 30]], "token_ids": [list(CODES)] * 2}
    try:
        groups = instances_from_json([{**two, "points": [SQUARE, SQUARE], "queries": queries}])
    except ValueError:
        assert {"point": None, "instances": None} in queries
    else:
        assert parse_instances(to_text(groups))[0] == groups
        assert instances_from_json(instances_to_json(groups)) == groups


def test_the_file_in_the_documentation_is_read_as_it_says() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    example = json.loads(text.split("```json\n")[1].split("```")[0])
    dog = Instance((100, 20, 200, 120), CODES)
    assert instances_from_json(example) == (Group((112, 112), (dog,)), Group((42, 112)))
    named = ", ".join(f"({x}, {y})" for x, y in QUERY_POINTS)
    assert named in text
