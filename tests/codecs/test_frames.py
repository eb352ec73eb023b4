"""Maps of the model's square, laid back into the picture that it was cut from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourm.codecs.frames import restore_map, restore_points
from fourm.codecs.maps import FORMS, NO_CLASS, cut
from fourm.data.layout import Crop, centre_crop, pad_crop

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(SIZES)
def test_a_padded_square_holds_the_whole_picture(whole: tuple[int, int]) -> None:
    crop = pad_crop(*whole)
    assert crop.height == crop.width == max(whole)
    assert crop.top <= 0
    assert crop.left <= 0
    assert crop.top + crop.height >= whole[0]
    assert crop.left + crop.width >= whole[1]
    assert abs((crop.top + crop.height - whole[0]) + crop.top) <= 1  # as much border on both sides
    assert abs((crop.left + crop.width - whole[1]) + crop.left) <= 1


@given(SIZES, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_was_cut_out_is_laid_back_where_it_was(whole, padded: bool, mirrored: bool, seed: int) -> None:
    """Without a change of size, everything in the crop comes back exactly, and nothing else is known."""
    crop = pad_crop(*whole) if padded else centre_crop(*whole)
    crop = Crop(crop.whole, crop.top, crop.left, crop.height, crop.width, mirrored)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 20, whole).astype(np.uint8)
    back = restore_map(cut(labels, crop, crop.height, outside=NO_CLASS), crop, FORMS["tok_semseg"])
    assert back.shape == whole
    seen = back != NO_CLASS
    assert (back[seen] == labels[seen]).all()
    assert seen.sum() == (labels.size if padded else min(whole) ** 2)
    depth = rng.random(whole, dtype=np.float32)
    back = restore_map(cut(depth, crop, crop.height), crop, FORMS["tok_depth"])
    assert back.dtype == np.float32
    assert (~np.isnan(back) == seen).all()
    assert (back[seen] == depth[seen]).all()
    colours = rng.integers(0, 256, (*whole, 3)).astype(np.uint8)
    back = restore_map(cut(colours, crop, crop.height), crop, FORMS["tok_rgb"])
    assert back.shape == (*whole, 4)
    assert ((back[..., 3] == 255) == seen).all()
    assert (back[seen][:, :3] == colours[seen]).all()


def test_labels_are_never_blended_and_normals_keep_their_length() -> None:
    crop = pad_crop(30, 47)
    labels = np.zeros((8, 8), dtype=np.uint8)
    labels[:, 4:] = 9
    assert set(np.unique(restore_map(labels, crop, FORMS["tok_semseg"]))) == {0, 9}
    normals = np.full((8, 8, 3), 128, dtype=np.uint8)
    normals[:, :4] = (255, 128, 128)
    normals[:, 4:] = (128, 255, 128)
    grown = restore_map(normals, crop, FORMS["tok_normal"])[..., :3].astype(np.float64) / 127.5 - 1
    assert np.linalg.norm(grown, axis=-1) == pytest.approx(np.ones((30, 47)), abs=0.02)


def test_a_mirrored_crop_turns_normals_back() -> None:
    crop = Crop((8, 8), 0, 0, 8, 8, mirrored=True)
    normals = np.zeros((8, 8, 3), dtype=np.uint8)
    normals[..., 0] = 200
    assert (restore_map(normals, crop, FORMS["tok_normal"])[..., 0] == 55).all()


def test_points_are_laid_back_like_pixels() -> None:
    crop = Crop((100, 200), 10, 60, 80, 80)
    corners = np.array([[0.0, 0.0], [224.0, 224.0], [112.0, 56.0]])
    assert restore_points(corners, crop, 224).tolist() == [[60, 10], [140, 90], [100, 30]]
    mirrored = Crop((100, 200), 10, 60, 80, 80, mirrored=True)
    assert restore_points(corners, mirrored, 224).tolist() == [[140, 10], [60, 90], [100, 30]]
