"""Pictures of values: recorded corners and stripes, names that stay inside, text of any sort and length."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from fourm.codecs import drawing
from fourm.codecs.drawing import (
    class_colours,
    corners_of,
    draw_boxes,
    draw_metadata,
    draw_palette,
    font_for,
    text_card,
)
from fourm.modalities.facts import Box, Colour, metadata_from_json, parse_boxes, parse_palette

FEW = settings(max_examples=30, deadline=None)
fractions = st.floats(0, 1)
boxes = st.lists(st.builds(Box, fractions, fractions, fractions, fractions, st.text(min_size=1)), max_size=12)


def is_blank(image: Image.Image) -> bool:
    return all(low == high for low, high in image.convert("RGB").getextrema())


def ink(image: Image.Image) -> tuple[int, int, int, int]:
    """Bounds of what is not white within the frame of a card."""
    inner = image.convert("L").crop((1, 1, image.width - 1, image.height - 1))
    return ImageChops.invert(inner).getbbox() or (0, 0, 0, 0)


def test_recorded_boxes_have_the_recorded_corners(golden: Path) -> None:
    cases = json.loads((golden / "data" / "det_draw.json").read_text())["cases"]
    for case in cases:
        height, width, _ = case["canvas"]
        found = [[*corners_of(box, width, height), box.name] for box in parse_boxes(case["string"])[0]]
        recorded = [  # the outside ones are one pixel in
            [x0, y0, min(x1, width - 1), min(y1, height - 1), name]
            for x0, y0, x1, y1, name in case["pixel_boxes"]
        ]
        assert found == recorded


def test_recorded_boxes_are_drawn_between_the_recorded_corners(golden: Path) -> None:
    """Colours and letters are ours; the picture that is drawn on stays as it was."""
    for case in json.loads((golden / "data" / "det_draw.json").read_text())["cases"]:
        height, width, _ = case["canvas"]
        canvas = Image.new("RGB", (width, height), (case["canvas_value"],) * 3)
        before = canvas.tobytes()
        theirs = np.asarray(Image.open(golden / "data" / case["file"]).convert("RGB"))
        for box, (x0, y0, x1, y1, name) in zip(
            parse_boxes(case["string"])[0], case["pixel_boxes"], strict=True
        ):
            drawn = np.asarray(draw_boxes([box], canvas))
            left, right, lower = x0, min(x1, width - 1), min(y1, height - 1)
            for x, y in (
                (left, lower),
                (right, lower),
                (left, (y0 + lower) // 2),
                (right, (y0 + lower) // 2),
            ):
                assert tuple(drawn[y, x]) == class_colours([name])[name]
                assert tuple(theirs[y, x]) == (255, 0, 0)
            assert (drawn[(y0 + lower) // 2, (left + right) // 2] == case["canvas_value"]).all()
        assert canvas.tobytes() == before


@pytest.mark.parametrize("size", [(256, 256), (64, 64), (300, 40), (40, 300), (9, 9), (1, 1), (1000, 600)])
def test_boxes_of_any_sort_are_drawn_on_pictures_of_any_shape(size: tuple[int, int]) -> None:
    inside_out = [Box(0.9, 0.8, 0.1, 0.2, "swapped"), Box(0, 0, 1, 1, "whole"), Box(1, 1, 1, 1, "corner")]
    drawn = draw_boxes(inside_out, Image.new("L", size, 255))
    assert (drawn.size, drawn.mode) == (size, "RGB")


@FEW
@given(boxes)
def test_any_boxes_are_drawn(drawn: list[Box]) -> None:
    assert draw_boxes(drawn).size == drawing.CANVAS


def test_names_stay_inside_and_beside_each_other() -> None:
    """A name in each corner, and two in one place, on black: bars of a class's colour, whole, everywhere."""
    names = ["upper left", "upper right", "lower left", "lower right"]
    places = [(0.0, 0.0), (0.97, 0.0), (0.0, 0.97), (0.97, 0.97)]
    corners = [Box(x, y, x + 0.03, y + 0.03, name) for (x, y), name in zip(places, names, strict=True)]
    drawn = np.asarray(draw_boxes(corners, Image.new("RGB", (400, 300))))
    colours = class_colours(names)
    for name in names:
        columns = np.nonzero((drawn == colours[name]).all(axis=2))[1]
        assert columns.max() - columns.min() > 40
    box = Box(0.0, 0.0, 0.4, 0.4, "here")
    alone = draw_boxes([box], Image.new("RGB", (400, 300)))
    twice = draw_boxes([box, box], Image.new("RGB", (400, 300)))
    assert ImageChops.difference(alone, twice).getbbox() is not None  # the second name has its own place


def test_classes_keep_their_colours_and_a_dozen_have_different_ones() -> None:
    names = [f"class {i}" for i in range(12)]
    assert len(set(class_colours(names).values())) == 12
    assert class_colours(["cat"]) == class_colours(["cat", "cat"])
    assert class_colours(["cat", "dog"])["cat"] == class_colours(["cat"])["cat"]


def test_recorded_palettes_are_the_recorded_stripes(golden: Path) -> None:
    for case in json.loads((golden / "data" / "color_palette.json").read_text())["decode"][:7]:
        drawn = np.asarray(draw_palette(parse_palette(case["string"])[0]))
        assert list(drawn.shape) == case["picture"]["shape"]
        wanted = np.repeat(np.array(case["picture"]["stripes_rgb"], dtype=np.uint8), 25, axis=0)
        assert (drawn == wanted[None]).all()


def test_without_boxes_or_colours_a_card_says_so() -> None:
    assert draw_palette(()).tobytes() == text_card("no colours").tobytes()
    assert draw_boxes(()).tobytes() == text_card("no boxes", 256).tobytes()
    assert is_blank(draw_boxes((), Image.new("RGB", (30, 20), "navy")))


def test_a_palette_of_one_colour_is_one_stripe() -> None:
    assert draw_palette([Colour(1, 2, 3)]).size == (25, 25)


def test_metadata_is_a_table_with_a_line_for_each_fact() -> None:
    one = draw_metadata(metadata_from_json({"n_humans": 2}))
    three = draw_metadata(metadata_from_json({"n_humans": 2, "entropy": 7.31, "geometric_complexity": 1e300}))
    assert three.height - 2 == 3 * (one.height - 2)
    assert not is_blank(one)
    other = draw_metadata(metadata_from_json({"n_humans": 3}))
    assert ImageChops.difference(one, other).getbbox() is not None
    assert draw_metadata(()).tobytes() == text_card("no metadata").tobytes()


@pytest.mark.parametrize("side", [64, 224, 512])
@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        "dog " * 5000,
        "x" * 100_000,
        "a " + "y" * 300 + " b",
        "one\n\ntwo\tthree \x00 four",
        "Ä" * 400,
    ],
)
def test_a_text_of_any_length_stays_within_its_card(text: str, side: int) -> None:
    card = text_card(text, side)
    assert card.size == (side, side)
    left, upper, right, lower = ink(card)
    assert 0 < left < right < side - 2
    assert 0 < upper < lower < side - 2


def test_short_texts_are_large_and_long_ones_small() -> None:
    _, upper, _, lower = ink(text_card("ab"))
    _, small_upper, _, _ = ink(text_card("ab " * 200))
    assert lower - upper > 10
    assert small_upper < 30


def test_a_card_without_text_is_an_empty_frame() -> None:
    assert ink(text_card("")) == (0, 0, 0, 0)
    assert not is_blank(text_card(""))


@FEW
@given(st.text() | st.text(st.characters()))
def test_any_text_is_drawn(text: str) -> None:
    text_card(text)


def test_what_no_font_has_is_drawn_as_its_plain_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "_SYSTEM_FONTS", ())
    drawing._fonts.cache_clear()
    try:
        assert text_card("café Å").tobytes() == text_card("cafe A").tobytes()
        assert not is_blank(text_card("中"))
        assert text_card("half \ud800").tobytes() == text_card("half ?").tobytes()
        named = [Box(0, 0.5, 1, 1, letter * 16) for letter in "中?"]  # of 16 letters both have one colour
        assert [class_colours([box.name])[box.name] for box in named] == [(250, 190, 212)] * 2
        unknown, asked = (draw_boxes([box], Image.new("RGB", (900, 300))) for box in named)
        assert unknown.tobytes() == asked.tobytes()
    finally:
        drawing._fonts.cache_clear()


def test_a_font_of_the_machine_is_taken_where_pillows_own_lacks_letters() -> None:
    own = font_for("", 14)
    assert font_for("plain text", 14) is own
    if len(drawing._fonts(14)) > 1:
        assert len(drawing._missing("Ελληνικά", font_for("Ελληνικά", 14))) < 8


@pytest.mark.parametrize(
    "draw",
    [
        lambda: text_card("word " * 1_000_000),
        lambda: draw_boxes([Box(0.1, 0.1, 0.9, 0.9, f"name {i}") for i in range(20_000)]),
        lambda: draw_boxes([Box(0.1, 0.1, 0.9, 0.9, "n" * 1_000_000)]),
        lambda: class_colours(f"name {i}" for i in range(100_000)),
    ],
)
def test_huge_values_are_drawn_in_seconds(draw: Callable[[], object]) -> None:
    started = time.perf_counter()
    draw()
    assert time.perf_counter() - started < 15
