"""Every codec's picture of extreme values: any shape, constants, nothing. No crash, no silent blank."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.maps import FORMS
from fourm.codecs.table import build_codec
from fourm.codecs.texts import STRUCTURED
from fourm.hub.files import find_model
from fourm.modalities.facts import Box
from fourm.modalities.figures import Group, Instance, Person
from fourm.modalities.registry import RELEASED
from fourm.modalities.text import Structured, WordPiece

SIZES = [(1, 1), (1, 2), (2, 1), (3, 2000), (2000, 3), (64, 64)]  # height, width
Shaped = Callable[[tuple[int, int]], NDArray[Any]]


def colours(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def grey(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)


def distance(size: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def classes(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).choice(np.array([0, 7, 132, 255], np.uint8), size)


def features(size: tuple[int, int]) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(6, *size)).astype(np.float32)


# By the codec; those that read the same values of their own rows are left out.
GRIDS: dict[str, Shaped] = {
    "rgb": colours, "tok_rgb": colours, "tok_normal": colours, "tok_depth": distance, "tok_semseg": classes,
    "tok_canny_edge": grey, "tok_sam_edge": grey, "tok_clip": features, "tok_dinov2": features,
    "tok_imagebind": features, "tok_dinov2_global": features, "tok_imagebind_global": features,
}  # fmt: skip
SOMEBODY = Person((52, 12, 172, 212), ((1, 0, 0), (0, -1, 0), (0, 0, -1)), (1,) * 8, (0,) * 10, (0.9, 0, 0))
# Values of which there is nothing, and something.
OTHERS: dict[str, tuple[Any, Any]] = {
    "caption": ("", "a cat"),
    "t5_caption": (np.zeros((1, 4096), np.float32), np.zeros((77, 4096), np.float32)),
    "det": (Structured(()), Structured((Box(0, 0, 1, 1, "cat"),))),
    "metadata": (Structured(()), None),
    "color_palette": (Structured(()), None),
    "human_poses": (Structured(()), Structured((SOMEBODY,))),
    "sam_instance": (
        Structured(()), Structured((Group((1, 2), (Instance((5, 5, 90, 90), (1,) * 16),)),)),
    ),
}  # fmt: skip


def picture_of(key: str, value: Any) -> Image.Image:
    files = find_model("demo")
    assert files.text_tokenizer is not None
    row = next(row for row in RELEASED.rows.values() if row.key == key)
    return build_codec(row, None, WordPiece.load(files.text_tokenizer)).picture(value).convert("RGB")


def is_blank(image: Image.Image) -> bool:
    return all(low == high for low, high in image.getextrema())


def test_every_codec_of_the_released_modalities_is_tried() -> None:
    assert {row.codec for row in RELEASED.rows.values()} == set(GRIDS) | set(OTHERS)
    assert set(FORMS) - set(GRIDS) == {"tok_edge", "tok_feature", "tok_distance"}  # for rows of one's own
    assert set(STRUCTURED) <= set(OTHERS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", GRIDS)
def test_values_of_any_size_are_shown_whole_and_never_blank(key: str, size: tuple[int, int]) -> None:
    picture = picture_of(key, GRIDS[key](size))
    if GRIDS[key] is features and size == (1, 1):
        assert picture.size == (3, 2)  # its numbers
    else:
        assert picture.size == (size[1], size[0])
    differing = GRIDS[key](size)
    assert is_blank(picture) == (len(np.unique(differing.reshape(-1, *differing.shape[2:]), axis=0)) == 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("key", GRIDS)
@pytest.mark.parametrize("constant", [0, 1])
def test_what_is_constant_has_one_colour(key: str, size: tuple[int, int], constant: int) -> None:
    assert is_blank(picture_of(key, np.full_like(GRIDS[key](size), constant)))


@pytest.mark.parametrize("extreme", [3e38, 1e-38])
@pytest.mark.parametrize("key", ["tok_depth", "tok_clip"])
def test_fractions_at_the_ends_of_their_range_have_colours(key: str, extreme: float) -> None:
    value = GRIDS[key]((5, 4)).clip(-1, 1) * np.float32(extreme)
    with np.errstate(all="raise", under="ignore"):
        assert np.ptp(np.asarray(picture_of(key, value))) > 200


@pytest.mark.parametrize("key", [key for key in OTHERS if key != "sam_instance"])
def test_nothing_is_said_to_be_nothing(key: str) -> None:
    assert not is_blank(picture_of(key, OTHERS[key][0]))


@pytest.mark.parametrize("text", ["", " \n\t", "\x00\x01", "\u200b"])
def test_a_caption_without_anything_to_see_is_said_to_be_none(text: str) -> None:
    assert picture_of("caption", text).tobytes() == picture_of("caption", "no caption").tobytes()


def test_instances_are_black_only_if_there_are_none_and_no_note_hides_it() -> None:
    nothing, something = (np.asarray(picture_of("sam_instance", value)) for value in OTHERS["sam_instance"])
    assert (nothing[-20:] > 150).any()  # the note about the missing tokenizer
    assert (something[:150] > 100).any()
    assert not nothing[:150].any()


@pytest.mark.parametrize("key", [key for key, (_, value) in OTHERS.items() if value is not None])
def test_something_is_shown_otherwise_than_nothing(key: str) -> None:
    nothing, something = OTHERS[key]
    assert picture_of(key, nothing).tobytes() != picture_of(key, something).tobytes()
