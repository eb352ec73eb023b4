"""Crops: the rectangles, drawn and centred; their files; what they show of a picture."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.files import (
    pack_png,
    read_crop,
    read_crop_rows,
    read_crops,
    read_size,
    write_array,
    write_crops,
)
from fourm.codecs.images import GridCodec
from fourm.codecs.maps import cut, fit_square
from fourm.codecs.table import build_codec
from fourm.data.layout import NUM_UNIFORMS, Crop, Key, centre_crop, random_crop
from fourm.errors import SampleError
from fourm.modalities.registry import RELEASED, Kind, Modality
from fourm.runs.tokens import draw_crops

Array = NDArray[Any]
BICUBIC, BILINEAR, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST
FILTERS = {"None": BICUBIC, "bilinear": BILINEAR, "nearest": NEAREST}
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


def noise(height: int, width: int, *channels: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)


def pixels_of(side: int) -> GridCodec:
    return build_codec(Modality(f"rgb@{side}", Kind.PIXELS, 1, 0, (1, 1), side, side, codec="rgb"))


@st.composite
def crops(draw: st.DrawFn) -> tuple[tuple[int, int], Crop]:
    """A size, and a rectangle that overlaps a picture of it, with more or less of it outside."""
    height, width = draw(SIZES)
    top, left = draw(st.integers(-20, height - 1)), draw(st.integers(-20, width - 1))
    tall, wide = draw(st.integers(max(1, 1 - top), 80)), draw(st.integers(max(1, 1 - left), 80))
    return (height, width), Crop((height, width), top, left, tall, wide, draw(st.booleans()))


@pytest.mark.parametrize("name", ["img_landscape", "img_portrait", "img_gray", "img_rgba"])
def test_recorded_crops_show_the_recorded_pixels(golden: Path, name: str) -> None:
    data = golden / "data"
    (case,) = (
        case for case in json.loads((data / "image_preprocess.json").read_text())["cases"]
        if case["source"] == f"{name}.png"
    )  # fmt: skip
    recorded = np.load(data / "image_preprocess.npz")
    whole = tuple(case["size_hw"])
    codec, value = pixels_of(48), build_codec(RELEASED.get("rgb@224")).read(data / f"{name}.png")
    flipped = Crop(whole, *case["crop48_flip"]["crop_top_left_h_w"], mirrored=True)
    for word, key in case["crop48_flip"]["keys"].items():
        assert np.array_equal(cut(value, flipped, 48, FILTERS[word]), recorded[key])
    assert np.array_equal(codec.read(data / f"{name}.png", flipped), recorded[f"{name}/crop48_flip_None"])
    outside = Crop(whole, *case["crop48_outside"]["crop_top_left_h_w"])
    assert np.array_equal(codec.read(data / f"{name}.png", outside), recorded[f"{name}/crop48_outside"])


@pytest.mark.parametrize("name", ["img_landscape", "img_portrait", "img_gray", "img_rgba"])
def test_without_settings_the_crop_is_the_recorded_centre(golden: Path, name: str) -> None:
    data = golden / "data"
    for case in json.loads((data / "image_preprocess.json").read_text())["cases"]:
        if case["source"] != f"{name}.png":
            continue
        crop = read_crop(None, data / f"{name}.png")
        assert crop == centre_crop(*case["size_hw"])
        assert [crop.top, crop.left, crop.height, crop.width] == case["folder_loader"]["crop_top_left_h_w"]
        expected = data / case["folder_loader"].get("expected_uint8", f"{name}_notebook224.png")
        shown = pixels_of(224).read(data / f"{name}.png", crop)
        assert np.array_equal(shown, np.asarray(Image.open(expected).convert("RGB")))


def test_recorded_crop_settings_show_what_the_loaders_recorded(golden: Path) -> None:
    root = golden / "data" / "mini_dataset"
    recorded = np.load(golden / "data" / "mini_dataset.npz")
    codec = pixels_of(48)
    for index, name in enumerate(("s1", "s2")):
        picture, file = root / f"rgb/x/{name}.png", root / f"crop_settings/x/{name}.npy"
        every = read_crops(file, read_size(picture))
        assert [crop.number for crop in every] == [0, 1, 2]
        assert read_crop(file, picture) == every[0]
        assert len(read_crop_rows(file)) == 3
        for crop in every:
            slot = codec.encode([codec.read(picture, crop)])
            expected = recorded[f"{index}_{crop.number}/rgb48"]
            np.testing.assert_allclose(slot.values[0].numpy(), expected, rtol=1e-5, atol=1e-6)
        plain = codec.encode([codec.read(picture, read_crop(None, picture))])
        np.testing.assert_allclose(
            plain.values[0].numpy(), recorded[f"{index}_plain/rgb48"], rtol=1e-5, atol=1e-6
        )


@FEW
@given(size=SIZES, side=st.integers(1, 40))
def test_the_centre_crop_is_what_fits_the_square(size: tuple[int, int], side: int) -> None:
    value, crop = noise(*size, 3), centre_crop(*size)
    edge = min(size)
    assert (crop.height, crop.width, crop.mirrored, crop.number) == (edge, edge, False, 0)
    assert (crop.top, crop.left) == ((size[0] - edge) // 2, (size[1] - edge) // 2)
    square = value[crop.top : crop.top + edge, crop.left : crop.left + edge]
    resized = np.asarray(Image.fromarray(square).resize((side, side), BICUBIC))
    assert np.array_equal(cut(value, crop, side, BICUBIC), resized)
    assert np.array_equal(fit_square(value, side, BICUBIC), resized)


@FEW
@given(case=crops())
def test_mirroring_twice_is_the_identity(case: tuple[tuple[int, int], Crop]) -> None:
    size, crop = case
    value = noise(*size, 3)
    other = Crop(crop.whole, crop.top, crop.left, crop.height, crop.width, not crop.mirrored)
    one, two = cut(value, crop, 16, BICUBIC), cut(value, other, 16, BICUBIC)
    assert np.array_equal(one[:, ::-1], two)
    assert np.array_equal(one, two[:, ::-1])


@FEW
@given(case=crops(), outside=st.sampled_from([0, 255]))
def test_outside_the_picture_is_nothing_and_inside_it_are_its_pixels(
    case: tuple[tuple[int, int], Crop], outside: int
) -> None:
    (height, width), crop = case
    value = noise(height, width).clip(1, 254)
    side = max(crop.height, crop.width)
    plain = Crop(crop.whole, crop.top, crop.left, side, side)
    assume(not plain.is_padded)  # the border of such a one repeats the picture's edge
    shown = cut(value, plain, side, NEAREST, outside)
    for y in range(0, side, 7):
        for x in range(0, side, 7):
            row, column = y + crop.top, x + crop.left
            inside = 0 <= row < height and 0 <= column < width
            assert shown[y, x] == (value[row, column] if inside else outside)


@FEW
@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)), seed=st.integers(0, 2**40),
    min_scale=st.floats(0.01, 1.0), count=st.integers(1, 6),
)  # fmt: skip
def test_random_crops_lie_inside_the_picture_and_within_their_limits(
    size: tuple[int, int], seed: int, min_scale: float, count: int
) -> None:
    key = Key("f", "x")
    drawn = draw_crops(seed, key, size, count, min_scale)
    assert drawn[0] == centre_crop(*size)
    assert [crop.number for crop in drawn] == list(range(count))
    for crop in drawn[1:]:
        assert crop.whole == size
        assert 0 <= crop.top <= size[0] - crop.height
        assert 0 <= crop.left <= size[1] - crop.width
        if min(size) > 100:  # otherwise whole pixels alone may leave the limits
            assert 0.74 < crop.width / crop.height < 1.35
        if min(size) > 100 and 0.8 < size[0] / size[1] < 1.25:  # there is room for every share
            assert crop.height * crop.width >= min_scale * size[0] * size[1] * 0.95
    assert draw_crops(seed, key, size, count, min_scale) == drawn
    assert draw_crops(seed, key, size, count + 1, min_scale)[:count] == drawn


def test_random_crops_belong_to_the_sample_and_the_seed() -> None:
    def drawn(seed: int, name: str) -> tuple[Crop, ...]:
        return draw_crops(seed, Key("f", name), (300, 400), 4, 0.3)[1:]

    several = {drawn(0, "a"), drawn(0, "b"), drawn(1, "a")}
    assert len(several) == 3
    many = [crop for i in range(200) for crop in drawn(0, str(i))]
    mirrored = sum(crop.mirrored for crop in many) / len(many)
    assert 0.4 < mirrored < 0.6
    assert len({(c.top, c.left, c.height, c.width) for c in many}) > 590
    shares = sorted(c.height * c.width / (300 * 400) for c in many)
    assert 0.29 < shares[0] < 0.32
    assert 0.85 < shares[-1] <= 1


def test_the_crops_of_a_seed_stay_the_same_for_ever() -> None:
    """So that a dataset which was begun today can be ended in a year."""
    crops = draw_crops(3, Key("a", "b"), (300, 400), 4, 0.5)
    assert [(c.top, c.left, c.height, c.width, c.mirrored) for c in crops] == [
        (0, 50, 300, 300, False), (23, 47, 236, 272, False), (6, 104, 249, 270, True),
        (20, 77, 278, 220, False),
    ]  # fmt: skip


def test_random_crops_reach_every_border() -> None:
    middle, last = 0.5, 1 - 2**-24  # of the area and the aspect; of the places
    low = random_crop(100, 100, 0.5, [0.0, middle, 0.0, 0.0] * 10 + [last], 0)
    high = random_crop(100, 100, 0.5, [0.0, middle, last, last] * 10 + [0.0], 0)
    assert (low.top, low.left, low.mirrored) == (0, 0, False)
    assert (high.top + high.height, high.left + high.width, high.mirrored) == (100, 100, True)
    assert (low.height, low.width) == (high.height, high.width) == (71, 71)


@pytest.mark.parametrize("size", [(1, 20000), (20000, 1), (1, 1), (2, 2)])
def test_where_no_random_crop_has_room_the_centre_serves(size: tuple[int, int]) -> None:
    for crop in draw_crops(0, Key("f", "x"), size, 8, 0.5)[1:]:
        assert max(crop.height, crop.width) <= 2
        if max(size) > 2:
            assert (crop.top, crop.left) == ((size[0] - crop.height) // 2, (size[1] - crop.width) // 2)


def test_a_random_crop_with_no_room_has_the_widest_aspect_that_is_allowed() -> None:
    zeros = [1 - 2**-24] * NUM_UNIFORMS  # the whole area, every time
    assert random_crop(100, 400, 1.0, zeros, 0) == Crop((100, 400), 0, 133, 100, 133)
    assert random_crop(400, 100, 1.0, [0.0] * NUM_UNIFORMS, 0) == Crop((400, 100), 133, 0, 133, 100, True)


@FEW
@given(case=crops(), more=st.lists(crops(), max_size=4))
def test_crops_survive_their_file(
    tmp_path: Path, case: tuple[tuple[int, int], Crop], more: list[tuple[tuple[int, int], Crop]]
) -> None:
    whole = (80, 80)
    rectangles = [case[1], *(crop for _, crop in more)]
    every = [Crop(whole, c.top, c.left, c.height, c.width, c.mirrored, i) for i, c in enumerate(rectangles)]
    write_crops(every, tmp_path / "x.npy")
    stored = np.load(tmp_path / "x.npy")
    assert (stored.dtype, stored.shape) == (np.int64, (len(every), 5))
    assert read_crops(tmp_path / "x.npy", whole) == tuple(every)


def test_neither_settings_nor_picture_is_no_crop_and_settings_alone_are_refused(tmp_path: Path) -> None:
    assert read_crop(None, None) is None
    write_array(np.array([[0, 0, 4, 4, 0]]), tmp_path / "x.npy")
    with pytest.raises(SampleError, match=r"x\.npy: the sample has no picture"):
        read_crop(tmp_path / "x.npy", None)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([[0, 0, 4, 4]], "where rows of top, left"),
        ([0, 0, 4, 4, 0], "where rows of top, left"),
        (np.zeros((0, 5)), "where rows of top, left"),
        ([[0, 0, 0, 4, 0]], "holds no pixel"),
        ([[0, 0, 4, -4, 0]], "holds no pixel"),
        ([[0, 0, 4, 4, 2]], "says 2 where mirrored is 0 or 1"),
        ([[0, np.nan, 4, 4, 0]], "no places in a picture"),
        ([[0, 0, np.inf, 4, 0]], "no places in a picture"),
        ([[0, 0.5, 4, 4, 0]], "holds fractions"),
        ([[-(2**62), 0, 4, 4, 0]], "no places in a picture"),
        (np.array([[2**64 - 1, 0, 4, 4, 0]], dtype=np.uint64), "no places in a picture"),
        ([[0, 0, 2**20, 2**20, 0]], "too large to be read"),
        ([[8, 0, 4, 4, 0]], "lies wholly outside the picture of 6 x 8 pixels"),
        ([[0, 6, 4, 4, 0]], "lies wholly outside"),
        ([[-4, 0, 4, 4, 0]], "lies wholly outside"),
        ([[0, -9, 4, 4, 0]], "lies wholly outside"),
        ([[0, 0, 4, 4, 0], [9, 9, 4, 4, 0]], "crop 1, 4 x 4 pixels"),
    ],
)
def test_bad_crop_settings_are_named(tmp_path: Path, rows: Any, problem: str) -> None:
    write_array(np.asarray(rows), tmp_path / "bad.npy")
    (tmp_path / "x.png").write_bytes(pack_png(noise(8, 6, 3)))
    with pytest.raises(SampleError, match=rf"bad\.npy.*{problem}"):
        read_crop(tmp_path / "bad.npy", tmp_path / "x.png")


def test_damaged_crop_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(pack_png(noise(8, 6, 3)))
    write_array(np.array([[0, 0, 4, 4, 0]]), tmp_path / "x.npy")
    for bytes_ in (b"", (tmp_path / "x.npy").read_bytes()[:-1], b"PK\x03\x04 not an array"):
        (tmp_path / "bad.npy").write_bytes(bytes_)
        with pytest.raises(SampleError, match=r"bad\.npy"):
            read_crop(tmp_path / "bad.npy", tmp_path / "x.png")
    np.save(tmp_path / "pickled.npy", np.array([{"top": 0}], dtype=object), allow_pickle=True)
    with pytest.raises(SampleError, match="pickled"):
        read_crop(tmp_path / "pickled.npy", tmp_path / "x.png")


def test_the_size_of_a_picture_is_that_of_its_stored_pixels(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(pack_png(noise(8, 6, 3)))
    write_array(np.zeros((5, 9), dtype=np.float32), tmp_path / "x.npy")
    assert read_size(tmp_path / "x.png") == (8, 6)
    assert read_size(tmp_path / "x.npy") == (5, 9)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(noise(8, 6, 3)).save(tmp_path / "x.jpg", exif=exif)
    assert read_size(tmp_path / "x.jpg") == (8, 6)
    assert build_codec(RELEASED.get("rgb@224")).read(tmp_path / "x.jpg").shape == (8, 6, 3)
    write_array(np.zeros((7, 5, 9), dtype=np.float32), tmp_path / "features.npy")
    with pytest.raises(SampleError, match="no map of pixels"):
        read_size(tmp_path / "features.npy")


def test_a_crop_of_another_size_of_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(pack_png(noise(8, 6, 3)))
    with pytest.raises(
        SampleError, match=r"x\.png: 6 x 8 pixels, but the picture of this sample has 12 x 16"
    ):
        pixels_of(16).read(tmp_path / "x.png", centre_crop(16, 12))
