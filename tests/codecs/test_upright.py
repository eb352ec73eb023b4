"""Real-world picture files: each is read upright, as Pillow turns it, or told in one sentence."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fourm.codecs.files import read_size, read_turn, turned
from fourm.codecs.maps import read_pixels
from fourm.errors import SampleError
from tests.pictures import CORNERS, PHOTOS, Photo, corners_of, save


@pytest.mark.parametrize("photo", PHOTOS, ids=[photo.name for photo in PHOTOS])
@pytest.mark.filterwarnings("error")
def test_every_picture_is_read_upright_or_told(photo: Photo, tmp_path: Path) -> None:
    path = tmp_path / photo.name
    photo.make(path)
    if photo.problem:
        with pytest.raises(SampleError, match=photo.problem):
            read_pixels(path)
        return
    turn = read_turn(path)
    pixels = turned(read_pixels(path), turn)
    assert pixels.shape[:2] == read_size(path, turn) == photo.size
    if photo.is_coloured:
        assert np.abs(corners_of(pixels).astype(int) - CORNERS).max() < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_what_pillow_does(orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    pixels = np.random.default_rng(orientation).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    with Image.open(path) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture))
    assert read_turn(path) == orientation
    assert np.array_equal(turned(pixels, orientation), upright)
    assert np.array_equal(turned(pixels[..., 0], orientation), upright[..., 0])


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_a_tag_that_means_nothing_turns_nothing(orientation: int, tmp_path: Path) -> None:
    save(tmp_path / "x.jpg", orientation=0, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01"
         + orientation.to_bytes(2) + b"\0\0\0\0\0\0")  # fmt: skip
    assert read_turn(tmp_path / "x.jpg") == 1


def test_arrays_have_no_tag(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3)))
    assert (read_turn(tmp_path / "x.npy"), read_size(tmp_path / "x.npy", 6)) == (1, (3, 2))
