"""Masks of what stays: sizes, patches, hidden pixels and the seam."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from fourm.codecs import maps
from fourm.codecs.colours import NO_CLASS
from fourm.codecs.keeping import (
    box_mask,
    check_keep_mask,
    cut_mask,
    hide_pixels,
    lay_over,
    mask_of_tokens,
    read_keep_mask,
    seam,
    tokens_of_mask,
    tokens_of_share,
    whole_mask,
)
from fourm.codecs.maps import FORMS
from fourm.data.layout import Crop, centre_crop, pad_crop
from fourm.errors import SampleError


def save(mask: np.ndarray, path: Path) -> Path:
    Image.fromarray(mask).save(path)
    return path


def test_grey_from_128_on_stays(tmp_path: Path) -> None:
    levels = np.array([[0, 127], [128, 255]], dtype=np.uint8)
    assert read_keep_mask(save(levels, tmp_path / "m.png")).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize(
    ("level", "size", "said"),
    [
        (255, (4, 6), "keeps all of the picture"),
        (0, (4, 6), "keeps nothing"),
        (None, (4, 7), "6 x 4 pixels, but its picture has 7 x 4"),
    ],
)
def test_masks_that_say_nothing_or_have_another_size_are_refused(tmp_path, level, size, said) -> None:
    mask = np.full((4, 6), 255 if level is None else level, dtype=np.uint8)
    mask[0, 0] = 0 if level is None else level
    with pytest.raises(SampleError, match=said):
        check_keep_mask(read_keep_mask(save(mask, tmp_path / "m.png")), size, "m.png")


def test_a_box_is_cut_like_its_picture() -> None:
    mask = box_mask((0.0, 0.0, 0.5, 1.0), (100, 200))
    assert mask[:, :100].all()
    assert not mask[:, 100:].any()
    square = cut_mask(mask, centre_crop(100, 200), 64)  # columns 50 to 150
    assert square[:, :32].all()
    assert not square[:, 32:].any()


def test_a_pixel_that_was_partly_hidden_is_hidden() -> None:
    mask = np.ones((8, 8), dtype=np.bool_)
    mask[3, 5] = False
    assert cut_mask(mask, centre_crop(8, 8), 4).tolist() == [
        [(r, c) != (1, 2) for c in range(4)] for r in range(4)
    ]


@given(arrays(np.bool_, (5, 16)), st.booleans())
def test_a_padded_mask_repeats_its_edge(mask: np.ndarray, is_tall: bool) -> None:
    square = np.pad(mask, ((6, 5), (0, 0)), mode="edge").reshape(8, 2, 8, 2).all(axis=(1, 3))
    mask, square = (mask.T, square.T) if is_tall else (mask, square)
    assert np.array_equal(cut_mask(mask, pad_crop(*mask.shape), 8), square)


def test_one_hidden_pixel_of_a_long_picture_is_hidden_in_its_square() -> None:
    mask = np.ones((20, 9000), dtype=np.bool_)
    mask[3, 4400] = False
    assert np.argwhere(~cut_mask(mask, pad_crop(20, 9000), 64)).tolist() == [[31, 31]]


@given(arrays(np.bool_, (16, 16)))
def test_a_token_stays_if_all_of_its_patch_does(mask: np.ndarray) -> None:
    tokens = tokens_of_mask(mask, (4, 4))
    patches = mask.reshape(4, 4, 4, 4).transpose(0, 2, 1, 3).reshape(16, 16)
    assert tokens.tolist() == patches.all(axis=1).tolist()
    assert not (mask_of_tokens(tokens, (4, 4), 16) & ~mask).any()
    assert (tokens_of_mask(mask_of_tokens(tokens, (4, 4), 16), (4, 4)) == tokens).all()


@given(st.floats(0, 1), arrays(np.float32, 20, elements=st.floats(0, 0.875, width=32), unique=True))
def test_a_share_keeps_the_tokens_with_the_lowest_numbers(share: float, uniforms: np.ndarray) -> None:
    tokens = tokens_of_share(share, uniforms)
    assert abs(tokens.sum() - 20 * share) <= 0.5
    if tokens.any() and not tokens.all():
        assert uniforms[tokens].max() < uniforms[~tokens].min()


@given(arrays(np.uint8, (6, 6, 3)), arrays(np.uint8, (6, 6, 3)), arrays(np.bool_, (6, 6)))
def test_hidden_pixels_tell_nothing(first: np.ndarray, second: np.ndarray, mask: np.ndarray) -> None:
    other = np.where(mask[..., None], first, second)
    form = FORMS["tok_rgb"]
    assert (hide_pixels(first, mask, form) == hide_pixels(other, mask, form)).all()
    assert (hide_pixels(first, mask, form)[mask] == first[mask]).all()


def test_what_hides_maps_of_each_sort() -> None:
    mask = np.array([[True, False], [True, True]])
    labels = np.array([[3, 4], [5, 6]], dtype=np.uint8)
    assert hide_pixels(labels, mask, FORMS["tok_semseg"]).tolist() == [[3, NO_CLASS], [5, 6]]
    depth = np.array([[1.0, 50.0], [2.0, 3.0]], dtype=np.float32)
    assert hide_pixels(depth, mask, FORMS["tok_depth"]).tolist() == [[1.0, 2.0], [2.0, 3.0]]
    features = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    hidden = hide_pixels(features, mask, FORMS["tok_clip"])
    assert hidden[:, 0, 1].tolist() == pytest.approx([(0 + 2 + 3) / 3, (4 + 6 + 7) / 3])


@given(arrays(np.bool_, (12, 12)), st.integers(0, 4))
def test_the_seam_lies_inside_what_is_kept(mask: np.ndarray, width: int) -> None:
    weights = seam(mask, width)
    assert (weights[~mask] == 0).all()
    assert weights.min() >= 0
    assert weights.max() <= 1
    kept, made = np.full((12, 12, 3), 200, dtype=np.uint8), np.full((12, 12, 3), 10, dtype=np.uint8)
    joined = lay_over(kept, made, mask, width)
    assert (joined[~mask] == 10).all()
    assert (joined[weights == 1] == 200).all()
    assert mask.all() <= bool((weights == 1).all())


@given(
    st.lists(st.booleans(), min_size=16, max_size=16), st.integers(-6, 20), st.integers(-6, 30), st.booleans()
)
def test_tokens_of_a_crop_are_found_in_the_whole_picture(bits, top, left, mirrored) -> None:
    tokens, crop = np.array(bits), Crop((30, 40), top, left, 16, 16, mirrored)
    whole = whole_mask(tokens, (4, 4), crop)
    assert whole.shape == (30, 40)
    inside = maps.cut(np.ones((30, 40), np.uint8), crop, 16) > 0  # not beyond the picture
    shown = maps.cut(whole.astype(np.uint8), crop, 16) > 0
    assert np.array_equal(shown[inside], mask_of_tokens(tokens, (4, 4), 16)[inside])
    outside = np.ones((30, 40), bool)
    outside[max(top, 0) : max(top + 16, 0), max(left, 0) : max(left + 16, 0)] = False
    assert whole[outside].all()
