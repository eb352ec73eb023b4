"""Palettes: the recorded texts and files, whatever a model may write, and what is refused of files."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourm.modalities.palette import (
    Colour,
    palette_from_json,
    palette_grammar,
    palette_to_json,
    palette_to_text,
    parse_palette,
)
from tests.texts import data_with, model_texts, value_or_refusal

palettes = st.lists(st.builds(Colour, *[st.integers(0, 255)] * 3), min_size=1, max_size=7).map(tuple)


def test_recorded_files_become_the_recorded_texts(golden: Path) -> None:
    recorded = json.loads((golden / "data" / "color_palette.json").read_text())
    for case in recorded["encode"]:
        size = case["n_colours"]
        grammar = palette_grammar(size)
        assert grammar.to_text(grammar.from_json(recorded["file_content"], None)) == case["string"]
    # Where no size is asked for, the largest palette is read.
    assert palette_to_text(palette_from_json(recorded["file_content"])) == recorded["encode"][-1]["string"]


def test_recorded_texts_hold_the_recorded_colours(golden: Path) -> None:
    cases = json.loads((golden / "data" / "color_palette.json").read_text())["decode"]
    assert len(cases) == 14
    for case in cases:
        colours, problems = parse_palette(case["string"])
        if case["string"] == "v1=1 v0=999 v0=0 v0=256":
            assert colours == ((255, 0, 255),)  # the reference's colours wrap around
        elif case["picture"] is not None:
            assert [list(colour) for colour in colours] == case["picture"]["stripes_rgb"]
        else:
            assert colours == (((1, 2, 3),) if case["string"].endswith("[S_1]") else ())
        num_words = len(case["string"].removesuffix(" [S_1]").split())
        assert bool(problems) == (not colours or num_words != 3 * len(colours) + 1)


@given(palettes)
def test_what_was_written_is_read_as_it_was(colours: tuple[Colour, ...]) -> None:
    assert parse_palette(palette_to_text(colours)) == (colours, ())
    assert palette_from_json(json.loads(json.dumps(palette_to_json(colours)))) == colours


def test_a_palette_without_colours_is_written_and_read() -> None:
    assert palette_to_text(()) == ""
    assert palette_from_json(json.loads(json.dumps(palette_to_json(())))) == ()


@given(model_texts)
def test_no_text_is_more_than_some_colours_and_some_sentences(text: str) -> None:
    colours, problems = parse_palette(text)
    assert all(0 <= level <= 255 for colour in colours for level in colour)
    assert len(colours) <= 7
    assert all(problem and len(problem) < 120 for problem in problems)
    assert parse_palette(palette_to_text(colours))[0] == colours


@given(data_with(("1", "2", "7")))
def test_no_data_is_more_than_some_colours_or_a_value_error(data: object) -> None:
    colours = value_or_refusal(lambda: palette_from_json(data))
    if colours is not None:
        assert palette_from_json(palette_to_json(colours)) == colours


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "a list with one object of palettes was expected, not 3"),
        ([], "was expected, not a list of 0"),
        ([{}, {}], "was expected, not a list of 2"),
        ([{"8": []}], 'palettes stand under "1" to "7", not under \'8\''),
        ([{"one": []}], "not under 'one'"),
        ([{"2": [[1, 2, 3]]}], 'the palette "2" must be a list of 2 colours, not a list of 1'),
        ([{"1": [[1, 2]]}], r"a colour must be \[red, green, blue\], not a list of 2"),
        ([{"1": [[1, 2, "3"]]}], "every part of a colour must be a number, not '3'"),
        ([{"1": [[1, 2, 256]]}], r"a colour must have whole parts in 0..255, not \[1, 2, 256\]"),
        ([{"1": [[-1, 2, 3]]}], "0..255"),
        ([{"1": [[0.5, 0.25, 1.0]]}], r"whole parts in 0..255, not \[0.5, 0.25, 1.0\]"),
    ],
)
def test_files_that_hold_no_palette_are_refused(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        palette_from_json(data)


def test_a_size_that_a_file_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no palette of 3 colours"):
        palette_from_json([{"1": [[1, 2, 3]]}], size=3)


def test_what_is_passed_over_is_said() -> None:
    colours, problems = parse_palette("cat v1=3 v0=1 v0=2 v0=3 v1=7 v0=9")
    assert colours == ((1, 2, 3),)
    assert problems == (
        "'cat v1=7 v0=9' is no part of a palette",
        "'v1=3' announces a palette, but 1 colours follow",
    )


def test_huge_texts_take_linear_time() -> None:
    started = time.perf_counter()
    assert len(parse_palette("v1=7 " + "v0=255 " * 500_000)[0]) == 7
    assert len(parse_palette("cat " * 500_000)[1]) == 2
    assert time.perf_counter() - started < 10
