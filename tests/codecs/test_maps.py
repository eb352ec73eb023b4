"""Every sort of picture and map: how files are read, cut and painted; what cannot be one is one sentence."""

import json
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.colours import (
    COCO_NAMES,
    NO_CLASS,
    NUM_COCO_LABELS,
    label_colours,
    legend,
    paint_features,
    to_bytes,
    turbo,
)
from fourm.codecs.files import read_size, write_array
from fourm.codecs.maps import (
    FORMS,
    read_depth,
    read_distance,
    read_features,
    read_levels,
    read_pixels,
    read_valid,
)
from fourm.codecs.table import build_codec
from fourm.data.layout import Crop
from fourm.errors import SampleError
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED
from fourm.networks.state import full_pixels

Array = NDArray[Any]
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
RED = (200, 30, 60)
READERS: list[Callable[[Path], Array]] = [
    read_pixels, partial(read_pixels, mode="L"), read_valid, read_levels, read_depth, read_distance,
    read_features,
]  # fmt: skip


def png(width: int, height: int, depth: int, kind: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG of scan lines as they are; Pillow writes no 16-bit colours."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


MODES = [
    *((mode, ".png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    *((mode, ".tif") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")),
    *((mode, ".jpg") for mode in ("L", "RGB", "CMYK")),
    *((mode, ".gif") for mode in ("1", "L", "P", "RGB")),
    *((mode, ".webp") for mode in ("RGB", "RGBA")),
    ("L", ".pgm"), ("RGB", ".ppm"), ("P", ".bmp"), ("RGB", ".bmp"),
]  # fmt: skip


@pytest.mark.parametrize(("mode", "suffix"), MODES)
def test_pictures_of_every_mode_are_three_channels(tmp_path: Path, mode: str, suffix: str) -> None:
    image = Image.new("RGB", (6, 4), RED)
    image = image.convert(mode, dither=Image.Dither.NONE) if mode != "P" else image.quantize(4)
    path = tmp_path / f"x{suffix}"
    image.save(path, **({"lossless": True} if suffix == ".webp" else {}))
    value = read_pixels(path)
    assert (value.shape, value.dtype) == ((4, 6, 3), np.uint8)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(value.astype(int) - expected).max() <= (6 if suffix == ".jpg" else 1)
    assert read_pixels(path, "L").shape == (4, 6)


def test_a_picture_that_has_no_grey_is_refused(tmp_path: Path) -> None:
    Image.new("LAB", (6, 4)).save(tmp_path / "x.tif")
    with pytest.raises(SampleError, match=r"x\.tif: of mode LAB, not to be read as L"):
        read_pixels(tmp_path / "x.tif", "L")


def test_sixteen_bit_colours_keep_their_high_byte(tmp_path: Path) -> None:
    pixels = np.array([[[0x1234, 0x8001, 0xFFFF], [0x00FF, 0x0100, 0x7F80]]], dtype=">u2")
    (tmp_path / "x.png").write_bytes(png(2, 1, 16, 2, b"\0" + pixels.tobytes()))
    assert np.abs(read_pixels(tmp_path / "x.png").astype(int) - (pixels >> 8).astype(int)).max() <= 1


def test_alpha_is_dropped_and_never_mixed_in(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (*RED, 0))
    clear.save(tmp_path / "alpha.png")
    Image.new("RGB", (4, 4), RED).save(tmp_path / "key.png", transparency=RED)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.save(tmp_path / "palette.png", transparency=b"\x00\x00")
    Image.new("LA", (4, 4), (99, 0)).save(tmp_path / "grey.png")
    with warnings.catch_warnings(action="error"):  # Pillow complains of some
        for name in ("alpha", "key", "palette"):
            assert (read_pixels(tmp_path / f"{name}.png") == RED).all(), name
    assert (read_pixels(tmp_path / "grey.png") == 99).all()
    # Resizing comes after, so that hidden colours do not fade where they are resized.
    half = np.array(clear)
    half[:, 2:, 3] = 255
    half[:, :2, :3] = 0
    Image.fromarray(half).save(tmp_path / "half.png")
    shown = build_codec(RELEASED.get("rgb@224")).read(tmp_path / "half.png", Crop((4, 4), 0, 0, 4, 4))
    plain = Image.fromarray(half[..., :3]).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.array_equal(shown, np.asarray(plain))


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tif"])
def test_of_an_animation_the_first_frame_counts(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (5, 3), colour) for colour in (RED, (0, 0, 0), (9, 9, 9))]
    more = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=frames[1:], **more)
    assert (read_pixels(tmp_path / f"x{suffix}") == RED).all()


def test_grey_levels_of_sixteen_bits_and_fractions_are_scaled_to_eight(tmp_path: Path) -> None:
    levels = np.array([[0, 32768, 65535]])
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "short.png")
    Image.fromarray(levels.astype(np.uint16)).save(tmp_path / "short.tif")
    Image.fromarray(levels.astype(np.int32)).save(tmp_path / "long.tif")
    (tmp_path / "big.tif").write_bytes(_big_endian(levels.astype(">u2")))
    Image.fromarray((levels / 65535).astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("short.png", "short.tif", "long.tif", "big.tif", "float.tif"):
        assert read_pixels(tmp_path / name)[0, :, 1].tolist() == [0, 128, 255], name
        assert read_pixels(tmp_path / name, "L")[0].tolist() == [0, 128, 255], name
        if name != "float.tif":
            depth = read_depth(tmp_path / name)
            assert (depth.dtype, depth[0].tolist()) == (np.uint16, [0, 32768, 65535])
    for values, problem in (
        (np.array([[0, 65536]], np.int32), "lies in 0 to 65535, not 0 to 65536"),
        (np.array([[-1, 5]], np.int32), "lies in 0 to 65535, not -1 to 5"),
        (np.array([[0, 1.5]], np.float32), "lies in 0 to 1, not 0 to 1.5"),
        (np.array([[0, np.nan]], np.float32), "lies in 0 to 1, not nan"),
    ):
        Image.fromarray(values).save(tmp_path / "bad.tif")
        with pytest.raises(SampleError, match=rf"bad\.tif.*{problem}"):
            read_pixels(tmp_path / "bad.tif")


def _big_endian(levels: Array) -> bytes:
    """A TIFF in the byte order of Motorola, one strip."""
    height, width = levels.shape
    entries = [(256, 3, width), (257, 3, height), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 122),
               (277, 3, 1), (278, 3, height), (279, 4, levels.nbytes)]  # fmt: skip
    table = struct.pack(">H", len(entries))
    for tag, kind, value in entries:
        table += struct.pack(">HHI", tag, kind, 1)
        table += struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value)
    return struct.pack(">2sHI", b"MM", 42, 8) + table + struct.pack(">I", 0) + levels.tobytes()


@pytest.mark.parametrize("junk", [b"", b"no picture", b"%!PS-Adobe-3.0 EPSF-3.0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_told_in_words_that_stay_the_same(tmp_path: Path, junk: bytes) -> None:
    (tmp_path / "x.png").write_bytes(junk)
    said = set()
    for _ in range(3):
        with pytest.raises(SampleError, match=r"x\.png: (is empty|not a picture)") as caught:
            read_pixels(tmp_path / "x.png")
        said.add(str(caught.value))
    assert len(said) == 1
    assert " object at " not in said.pop()


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000), (3, 7)])
def test_the_strangest_sizes_become_squares(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, RED).save(tmp_path / "x.png")
    codec = build_codec(RELEASED.get("rgb@224"))
    value = codec.read(tmp_path / "x.png")
    assert value.shape == (size[1], size[0], 3)
    assert codec.encode([value]).values.shape == (1, 3, 224, 224)


def test_rotation_that_exif_asks_for_is_not_applied_and_spoilt_exif_harms_nothing(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_pixels(tmp_path / "turned.png"), pixels)
    for number, junk in enumerate(
        (b"\xff" * 400, b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*" + b"\0" * 90)
    ):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png", exif=junk)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg", exif=junk, quality=100)
        assert np.array_equal(read_pixels(tmp_path / f"{number}.png"), pixels)
        assert read_pixels(tmp_path / f"{number}.jpg").shape == (4, 6, 3)


def test_masks_are_valid_where_they_are_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 254, 255]], np.uint8)).save(tmp_path / "grey.png")
    assert read_valid(tmp_path / "grey.png")[0].tolist() == [0, 0, 0, 255]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "bits.png")
    assert read_valid(tmp_path / "bits.png")[0].tolist() == [0, 255]


def test_a_mask_that_counts_in_another_way_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(np.array([[0, 1]], np.uint8)).save(path)
    with pytest.raises(SampleError, match="white, 255, for what is valid; nothing is above 1"):
        read_valid(path)
    Image.fromarray(np.array([[0, 0]], np.uint8)).save(path)
    assert not read_valid(path).any()


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_in_the_place_of_a_picture_is_called_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    np.save(path, np.zeros((2, 2), np.uint8)) if suffix == ".npy" else np.savez(path, x=np.zeros(2))
    with pytest.raises(SampleError, match="holds an array, where a picture belongs"):
        read_levels(path)


def test_long_numbers_that_may_be_of_eight_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "long.tif")
    with pytest.raises(SampleError, match=r"long\.tif: has whole numbers of 32 bits below 256"):
        read_pixels(tmp_path / "long.tif")


def test_class_numbers_are_those_of_the_file_whatever_its_palette(tmp_path: Path) -> None:
    numbers = np.array([[0, 7, 132, 255]], np.uint8)
    image = Image.fromarray(numbers)
    image.save(tmp_path / "grey.png")
    image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(tmp_path / "palette.png")
    for name in ("grey", "palette"):
        assert np.array_equal(read_levels(tmp_path / f"{name}.png"), numbers)
    for mode in ("RGB", "RGBA", "I;16", "LA"):
        Image.new("L", (3, 3)).convert(mode).save(tmp_path / "bad.png")
        with pytest.raises(
            SampleError, match=r"bad\.png: class numbers need an 8-bit grey or palette picture"
        ):
            read_levels(tmp_path / "bad.png")


def test_labels_outside_the_picture_have_no_class_and_are_never_mixed(tmp_path: Path) -> None:
    Image.fromarray(np.array([[3, 9], [3, 9]], np.uint8)).save(tmp_path / "x.png")
    codec = build_codec(RELEASED.get("tok_semseg@224"))
    shown = codec.read(tmp_path / "x.png", Crop((2, 2), 0, -1, 2, 3, mirrored=True))
    assert shown.shape == (224, 224)
    assert set(np.unique(shown).tolist()) == {3, 9, 255}
    assert shown[0, 0] == 9
    assert shown[0, -1] == 255


def test_mirrored_normals_point_the_other_way(tmp_path: Path, golden: Path) -> None:
    recorded = np.load(golden / "data" / "image_preprocess.npz")
    Image.fromarray(recorded["normal/png"]).save(tmp_path / "x.png")
    form, (height, width) = FORMS["tok_normal"], recorded["normal/png"].shape[:2]
    row = RELEASED.get("tok_normal@224")
    small = build_codec(replace(row, image_size=height))
    plain, turned = (
        small.read(tmp_path / "x.png", Crop((height, width), 0, 0, height, width, m)) for m in (False, True)
    )
    np.testing.assert_allclose(form.prepare(plain).numpy(), recorded["normal/tensor"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        form.prepare(turned).numpy(), recorded["normal/flipped_tensor"], rtol=1e-5, atol=1e-6
    )
    colours = build_codec(replace(RELEASED.get("tok_rgb@224"), image_size=height))
    as_rgb = colours.read(tmp_path / "x.png", Crop((height, width), 0, 0, height, width, True))
    assert np.array_equal(as_rgb[..., 1:], turned[..., 1:])
    assert np.array_equal(255 - as_rgb[..., 0], turned[..., 0])


def test_depth_is_a_picture_of_sixteen_bits_or_an_array(tmp_path: Path) -> None:
    fractions = np.array([[0.5, 30.0]], np.float32)
    write_array(fractions, tmp_path / "x.npy")
    write_array(fractions, tmp_path / "X.NPY")
    Image.fromarray(fractions).save(tmp_path / "x.tif")
    for name in ("x.npy", "X.NPY", "x.tif"):
        assert np.array_equal(read_depth(tmp_path / name), fractions)
        assert np.array_equal(read_distance(tmp_path / name), fractions)
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(tmp_path / "x.png")
    assert read_distance(tmp_path / "x.png").tolist() == [[-1.0, 1.0]]
    assert read_distance(tmp_path / "x.png").dtype == np.float32
    for mode in ("L", "RGB", "P"):
        Image.new("L", (3, 3)).convert(mode).save(tmp_path / "bad.png")
        with pytest.raises(SampleError, match=r"bad\.png: depth needs a 16-bit grey picture or \.npy"):
            read_depth(tmp_path / "bad.png")
    for array in (np.zeros((2, 2, 2)), np.zeros((2, 2), np.int64), np.zeros((0, 2)), np.array(1.0)):
        write_array(array, tmp_path / "bad.npy")
        with pytest.raises(SampleError, match=r"bad\.npy: .*where 2 axes of floats or 16-bit levels"):
            read_depth(tmp_path / "bad.npy")
    for value in (np.inf, -np.inf, 1e300):
        write_array(np.array([[0.0, value]]), tmp_path / "bad.npy")
        with pytest.raises(SampleError, match="no finite numbers"):
            read_depth(tmp_path / "bad.npy")


def test_features_are_arrays_and_cannot_be_cropped(tmp_path: Path) -> None:
    write_array(np.zeros((512, 14, 14), np.float32), tmp_path / "x.npy")
    codec = build_codec(RELEASED.get("tok_clip@224"))
    assert codec.read(tmp_path / "x.npy").shape == (512, 14, 14)
    crop = Crop((224, 300), 0, 38, 224, 224)
    assert codec.read(tmp_path / "x.npy", crop).shape == (512, 14, 14)  # they are of what the crop shows
    with pytest.raises(SampleError, match=r"x\.npy: features cannot be cropped"):
        codec.cut(codec.read(tmp_path / "x.npy"), crop, tmp_path / "x.npy")
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(SampleError, match=r"x\.png: features are read from \.npy files"):
        codec.read(tmp_path / "x.png")


@pytest.mark.parametrize(
    "name",
    ["rgb@224", "tok_rgb@224", "tok_normal@224", "tok_semseg@224", "tok_depth@224", "tok_canny_edge@224"],
)
def test_a_crop_of_everything_is_the_size_of_the_row(tmp_path: Path, name: str) -> None:
    levels = np.arange(48, dtype=np.uint16).reshape(6, 8)
    image = levels if "depth" in name else levels.astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    codec = build_codec(RELEASED.get(name))
    crop = Crop((6, 8), 1, 2, 4, 3)
    assert codec.read(tmp_path / "x.png", crop).shape[:2] == (224, 224)
    assert codec.read(tmp_path / "x.png").shape[:2] == (6, 8)


@FEW
@given(junk=st.binary(max_size=300), start=st.sampled_from(["png", "tif", "npy", "gif", "jpg"]))
def test_whatever_the_bytes_every_reader_has_a_value_or_a_sentence(
    tmp_path: Path, junk: bytes, start: str
) -> None:
    good = tmp_path / f"good.{start}"
    if not good.exists():
        pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
        np.save(good, pixels) if start == "npy" else Image.fromarray(pixels).save(good)
    whole = good.read_bytes()
    path = tmp_path / f"bad.{start}"
    path.write_bytes(whole[: len(whole) // 2] + junk + whole[len(whole) // 2 + len(junk) :])
    for read in READERS:
        try:
            value = read(path)
        except SampleError as error:
            said = str(error)
        else:
            said = str(path)
            assert value.size > 0
        assert str(path) in said


def test_levels_of_depth_are_the_same_from_a_picture_and_an_array(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 65535], [7, 300, 40_000]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "x.png")
    np.save(tmp_path / "x.npy", levels)
    for suffix in ("png", "npy"):
        found = read_depth(tmp_path / f"x.{suffix}")
        assert (found.dtype, found.tolist()) == (np.uint16, levels.tolist())


def low_bits(numbers: NDArray[np.uint8], bits: int) -> bytes:
    """A grey PNG whose levels (H, W) have 1, 2 or 4 bits."""
    packed = np.packbits(
        np.unpackbits(numbers[..., None], axis=2)[..., -bits:].reshape(len(numbers), -1), axis=1
    )
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    head = struct.pack(">IIBBBBB", numbers.shape[1], numbers.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(name, data) for name, data in chunks)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_class_numbers_of_few_bits_are_not_scaled(tmp_path: Path, bits: int) -> None:
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8) % (1 << bits)
    (tmp_path / "x.png").write_bytes(low_bits(numbers, bits))
    assert np.array_equal(read_levels(tmp_path / "x.png"), numbers)
    image = Image.fromarray(numbers)
    image.putpalette([(50 * i + c) % 256 for i in range(1 << bits) for c in range(3)])
    image.save(tmp_path / "palette.png", bits=bits)
    assert (tmp_path / "palette.png").read_bytes()[24:26] == bytes((bits, 3))
    assert np.array_equal(read_levels(tmp_path / "palette.png"), numbers)


def test_class_numbers_that_other_formats_scale_or_invert_are_refused(tmp_path: Path) -> None:
    (tmp_path / "15.pgm").write_bytes(b"P5 2 1 15\n\x01\x0f")
    (tmp_path / "plain.pgm").write_bytes(b"P2 2 1 7\n1 7\n")
    (tmp_path / "bits.pbm").write_bytes(b"P4 8 1\n\xf0")
    numbers = Image.fromarray(np.array([[0, 3]], np.uint8))
    numbers.save(tmp_path / "white.tif", tiffinfo={262: 0})
    numbers.convert("1").save(tmp_path / "bits.tif")
    for name in ("15.pgm", "plain.pgm", "bits.pbm", "white.tif", "bits.tif"):
        with pytest.raises(SampleError, match=rf"{name}: class numbers need"):
            read_levels(tmp_path / name)
    (tmp_path / "255.pgm").write_bytes(b"P5 2 1 255\n\x00\x03")
    (tmp_path / "text.pgm").write_bytes(b"P2 2 1 255\n0 3\n")
    for name in ("black.tif", "lzw.tif", "x.bmp"):
        numbers.save(tmp_path / name, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
    for name in ("255.pgm", "text.pgm", "black.tif", "lzw.tif", "x.bmp"):
        assert read_levels(tmp_path / name).tolist() == [[0, 3]], name


@pytest.mark.parametrize("name", ["x.jpg", "x.webp", "x.jp2", "jpeg.tif"])
def test_formats_that_change_numbers_hold_no_class_numbers_and_no_masks(tmp_path: Path, name: str) -> None:
    more = {"compression": "jpeg"} if name.endswith("tif") else {}
    Image.new("L", (16, 16), 255).save(tmp_path / name, **more)
    for read in (read_levels, read_valid):
        with pytest.raises(SampleError, match=rf"{name}: \w+ stores approximate values; .* such as PNG"):
            read(tmp_path / name)
    assert read_pixels(tmp_path / name, "L").shape == (16, 16)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_no_format_turns_its_pixels(tmp_path: Path, orientation: int, compression: str) -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "x.tif", exif=exif, compression=compression)
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "x.webp", exif=exif, lossless=True)
    for name in ("x.tif", "x.png", "x.webp"):
        assert np.array_equal(read_pixels(tmp_path / name), pixels), name
        assert read_size(tmp_path / name) == (4, 6), name


def test_levels_of_any_byte_order_are_read(tmp_path: Path) -> None:
    levels = np.array([[0, 1, 65535]], np.uint16)
    for order in "<>=":
        np.save(tmp_path / "x.npy", levels.astype(f"{order}u2"))
        read = read_depth(tmp_path / "x.npy")
        assert (read.tolist(), read.dtype) == (levels.tolist(), np.uint16)
        assert read_distance(tmp_path / "x.npy").tolist() == [pytest.approx([-1, 2 / 65535 - 1, 1])]


@pytest.mark.parametrize(
    "metadata",
    [
        png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"tEXt", b"Comment\0good")[:-1] + b"\0",
        png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2_000_000))),
        png_chunk(b"iCCP", b"no profile"),
        png_chunk(b"eXIf", b"\xff" * 40),
        png_chunk(b"gAMA", b"")[:-1] + b"\1",
        png_chunk(b"pHYs", b"1"),
        png_chunk(b"tRNS", b"12345"),
        png_chunk(b"acTL", b"1"),
    ],
    ids=lambda data: data[4:8].decode(),
)
def test_good_pixels_beside_spoilt_or_large_metadata_are_read(tmp_path: Path, metadata: bytes) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    plain = (tmp_path / "x.png").read_bytes()
    for at in (33, len(plain) - 12):  # before the pixels and behind them
        (tmp_path / "x.png").write_bytes(plain[:at] + metadata + plain[at:])
        assert np.array_equal(read_pixels(tmp_path / "x.png"), pixels)
        assert read_size(tmp_path / "x.png") == (4, 4)


@pytest.mark.parametrize(
    ("data", "form"), [(b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG"), (b"\xff\xd8\xff\xe0 cut", "JPEG")]
)
def test_a_damaged_picture_is_not_told_to_be_of_another_format(
    data: bytes, form: str, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(data)
    match = rf"x\.png: not a picture that can be read \(a damaged {form} file\)"
    with pytest.raises(SampleError, match=match):
        read_pixels(tmp_path / "x.png")


def test_spoilt_metadata_of_other_formats_harms_nothing(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    image = Image.fromarray(pixels)
    for junk in (b"\xff" * 60, b"Exif\0\0MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + b"\xee" * 40):
        image.save(tmp_path / "x.webp", exif=junk, xmp=junk, icc_profile=junk, lossless=True)
        assert np.array_equal(read_pixels(tmp_path / "x.webp"), pixels)
        image.save(tmp_path / "x.jpg", exif=junk, icc_profile=junk)
        assert read_pixels(tmp_path / "x.jpg").shape == (4, 4, 3)
    for tag in (
        34665,
        34853,
        37724,
        34675,
        700,
        33723,
    ):  # pointers to EXIF and GPS, Photoshop, ICC, XMP, IPTC
        image.save(tmp_path / "x.tif", tiffinfo={tag: 0x7FFFFFFF if tag in (34665, 34853) else b"\xff" * 9})
        assert np.array_equal(read_pixels(tmp_path / "x.tif"), pixels), tag


@pytest.mark.parametrize(
    "segment",
    [b"\xff\xe0\0\x07JFIF\0", b"\xff\xe0\0\x08JFIF\0\1", b"\xff\xee\0\x07Adobe", b"\xff\xfe\0\x05abc",
     b"\xff\xe2\0\x0eICC_PROFILE\0", b"\xff\xe2\0\x0fICC_PROFILE\0\1", b"\xff\xff\xff\xe5\0\x02"],
)  # fmt: skip
def test_spoilt_segments_of_a_jpeg_change_no_pixel(tmp_path: Path, segment: bytes) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for mode in ("RGB", "CMYK", "L"):
        Image.fromarray(pixels).convert(mode).save(tmp_path / "x.jpg")
        plain = (tmp_path / "x.jpg").read_bytes()
        with Image.open(tmp_path / "x.jpg") as image:
            whole = np.asarray(image.convert("RGB"))
        for at in (2, 4 + int.from_bytes(plain[4:6], "big")):  # before and behind the first segment
            (tmp_path / "x.jpg").write_bytes(plain[:at] + segment + plain[at:])
            assert np.array_equal(read_pixels(tmp_path / "x.jpg"), whole)


SHAPES = st.tuples(st.integers(3, 12), st.integers(2, 6), st.integers(2, 6))


def test_recorded_pixels_are_shown_as_recorded(golden: Path) -> None:
    import torch

    recorded = np.load(golden / "data" / "pictures.npz")
    slot = full_pixels(torch.from_numpy(recorded["rgb_input/tensor"]), 6)
    (value,) = build_codec(RELEASED.get("rgb@224")).decode(slot)
    assert np.abs(value / 255 - recorded["rgb_input/picture"].clip(0, 1)).max() <= 0.5 / 255 + 1e-6


def test_the_table_of_classes_is_the_public_one(golden: Path) -> None:
    labels = json.loads((golden / "data" / "semseg_palette.json").read_text())["labels"]
    assert [row["name"] for row in labels[1:]] == list(COCO_NAMES)
    everything = np.array([[(row["label"] - 1) % 256 for row in labels]], np.uint8)
    entries = {entry.name: entry.colour for entry in legend(everything, NUM_COCO_LABELS)}
    assert entries == {row["name"]: tuple(row["colour"]) for row in labels[1:]} | {"no class": (128,) * 3}


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 255), min_size=1, max_size=40),
    num_labels=st.sampled_from([2, 4, 134, 300]),
)
def test_a_legend_has_every_class_of_the_picture_in_its_colour(numbers: list[int], num_labels: int) -> None:
    labels = np.array([numbers], np.uint8)
    entries = legend(labels, num_labels)
    assert len(entries) == len(set(numbers))
    assert sum(entry.share for entry in entries) == pytest.approx(1)
    painted = label_colours(num_labels)[labels]
    assert {entry.colour for entry in entries} == {tuple(colour) for colour in painted[0].tolist()}
    shares = [entry.share for entry in entries if entry.name != "no class"]
    assert shares == sorted(shares, reverse=True)
    assert [entry.name for entry in entries].count("no class") == (NO_CLASS in numbers)
    if NO_CLASS in numbers:
        assert entries[-1].name == "no class"


def test_classes_have_the_names_of_their_row() -> None:
    row = find_model("demo").registry.get("tok_semseg@64")
    value = np.array([[0, 1, 1, 2, 255, 255, 255, 255]], np.uint8)
    codec = build_codec(row)
    assert [(e.name, e.share) for e in codec.legend(value)] == [
        ("square", 0.25), ("circle", 0.125), ("triangle", 0.125), ("no class", 0.5)
    ]  # fmt: skip
    colours = np.asarray(codec.picture(value))[0, [1, 0, 3, 4]].tolist()
    assert [list(entry.colour) for entry in codec.legend(value)] == colours
    assert legend(value, 10)[0].name == "class 1"


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1))
def test_a_mirrored_map_of_features_has_the_mirrored_picture(shape: tuple[int, int, int], seed: int) -> None:
    """Components are those of the set of places, so that colours do not depend on where things stand."""
    features = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    picture = paint_features(features)[0].astype(int)
    for axis, there in ((2, 1), (1, 0)):
        turned = paint_features(np.flip(features, axis))[0].astype(int)
        assert np.abs(np.flip(turned, there) - picture).max() <= 1


def test_colours_of_features_stay_where_the_map_hardly_changes() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 4)))[0]
    weights = rng.normal(size=(4, 14, 14)) * np.array([9.0, 6.0, 4.0, 0.3])[:, None, None]
    features = np.einsum("cn,nhw->chw", basis, weights) + 3
    before = paint_features(features.astype(np.float32))[0].astype(int)
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=features.shape) * 1e-3
        after = paint_features((features + noise).astype(np.float32))[0].astype(int)
        assert np.abs(after - before).max() <= 2


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_small_and_very_large_values_have_colours_too(scale: float) -> None:
    ramp = (np.arange(12.0).reshape(3, 4) * scale).astype(np.float32)
    assert np.array_equal(turbo(ramp), turbo(np.arange(12.0).reshape(3, 4)))
    features = (np.random.default_rng(0).normal(size=(5, 6, 6)) * scale).astype(np.float32)
    assert paint_features(features)[0].shape == (6, 6, 3)


def test_in_shared_colours_equal_features_look_equal_in_different_maps() -> None:
    generator = np.random.default_rng(5)
    kinds = generator.normal(size=(4, 12)).astype(np.float32)
    labels = [generator.integers(0, 4, (6, 6)), np.full((3, 8), 2), generator.integers(0, 2, (5, 5))]
    maps = [np.ascontiguousarray(np.moveaxis(kinds[one], -1, 0)) for one in labels]
    looks = {}
    for one, shown in zip(labels, paint_features(*maps), strict=True):
        for label, colour in zip(one.ravel(), shown.reshape(-1, 3), strict=True):
            looks.setdefault(int(label), set()).add(tuple(colour.tolist()))
    assert all(len(seen) == 1 for seen in looks.values())
    assert len({next(iter(seen)) for seen in looks.values()}) == 4
    assert (np.array(paint_features(*[np.ones((4, 2, 2), np.float32)] * 2)) == 128).all()


@pytest.mark.parametrize("count", [1, 2, 7, 768, 1280])
def test_a_single_vector_is_shown_as_its_numbers(count: int) -> None:
    vector = np.random.default_rng(0).permutation(count).astype(np.float32).reshape(count, 1, 1)
    picture = paint_features(vector)[0]
    assert picture.shape[0] * picture.shape[1] == count
    assert picture.shape[0] <= picture.shape[1]
    if count > 1:
        assert np.array_equal(picture.reshape(-1, 3), turbo(vector[:, 0]).reshape(-1, 3))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) == min(count, 256)


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 3, 4), (9, 1, 2), (5, 2, 1)])
def test_few_channels_or_places_have_colours_where_they_differ(shape: tuple[int, int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    colours = np.unique(paint_features(features)[0].reshape(-1, 3), axis=0)
    assert len(colours) == shape[1] * shape[2]


def test_features_that_differ_by_little_have_colours_too() -> None:
    features = (np.random.default_rng(0).normal(size=(5, 6, 6)) * 1e-30).astype(np.float32)
    assert np.ptp(paint_features(features)[0]) == 255


def test_recorded_pixels_are_rounded_where_the_reference_cuts_them_off(golden: Path) -> None:
    """Defect 27: `output_files.json` has what truncation stores; the nearest level is right."""
    cases = json.loads((golden / "data" / "output_files.json").read_text())["pixel_conversion"]
    values = np.array([case["value"] for case in cases])
    assert (values * 255).astype(np.uint8).tolist() == [case["stored"] for case in cases]
    assert to_bytes(values).tolist() == [0, 0, 128, 127, 255, 255]
