"""Files that no reader can use: each reader refuses them in one sentence that names the file.

Readers of codecs are taken from the table of codecs, so a new codec is tested here without further code.
"""

import gzip
import io
import json
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from fourm.codecs.files import read_array, read_ids, read_json, read_picture, read_text
from fourm.codecs.maps import read_pixels
from fourm.codecs.table import build_codec
from fourm.errors import MAX_SENTENCE, SampleError, printable
from fourm.files.tars import read_tar
from fourm.modalities.registry import RELEASED
from fourm.modalities.text import FIRST_SENTINEL, RESERVED, WordPiece

Reader = Callable[[Path], Any]
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
MANY = settings(FEW, max_examples=400)
MIB = 1 << 20
FILES: dict[str, Reader] = {
    "array": read_array,
    "ids": lambda path: read_ids(path, 16, 1000),
    "text": read_text,
    "json": read_json,
    "picture": read_picture,
    "rgb": read_pixels,
    "grey": partial(read_pixels, mode="L"),
}


def codec_readers() -> dict[str, Reader]:
    """One reader for each codec that a released modality has."""
    tokens = [*RESERVED, *(f"[S_{k}]" for k in range(4)), "red"]
    vocabulary = WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]")
    wordpiece = WordPiece(Tokenizer(vocabulary), range(FIRST_SENTINEL, FIRST_SENTINEL + 4))
    rows = {row.codec: row for row in RELEASED.rows.values()}
    return {f"codec {codec}": build_codec(row, wordpiece=wordpiece).read for codec, row in rows.items()}


READERS = FILES | codec_readers()


def read(reader: Reader, path: Path) -> Any:
    """The value, or None where it is refused as it should be: by one line that names the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would be a line on somebody's terminal
        try:
            return reader(path)
        except SampleError as error:
            line = str(error)
    assert line.startswith(printable(str(path))[:MAX_SENTENCE]), line
    assert line.isprintable()
    assert len(line) <= MAX_SENTENCE + 4
    assert " at 0x" not in line
    return None


def refused(reader: Reader, path: Path) -> str:
    """The sentence of a file that must be refused."""
    with pytest.raises(SampleError) as caught:
        reader(path)
    read(reader, path)
    return str(caught.value)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def array_file(array: NDArray[Any], version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that old NumPy cannot read it
        np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


def real_files() -> dict[str, bytes]:
    """Files as people have them, small; the name's end is the file's."""
    colours = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    rgb, grey = Image.fromarray(colours), Image.fromarray(colours[..., 0])
    deep = Image.fromarray(colours[..., 0].astype(np.uint16) * 257)
    alpha, palette, frames = rgb.convert("RGBA"), rgb.quantize(16), [rgb, rgb.rotate(90), rgb.rotate(180)]
    exif = Image.Exif()
    exif[0x0112] = 6
    ids = np.arange(16, dtype=np.int16).reshape(1, 16)
    archive = io.BytesIO()
    np.savez(archive, emb=np.zeros((2, 3, 4)), mask_valid=np.ones((2, 3)))
    boxes = {"instances": [{"boxes": [0.1, 0.2, 0.5, 0.9], "class_name": "cat", "score": 0.9}]}
    return {
        "rgb.png": saved(rgb, "PNG"),
        "alpha.png": saved(alpha, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "bits.png": saved(grey.convert("1"), "PNG"),
        "deep.png": saved(deep, "PNG"),
        "palette.png": saved(palette, "PNG", transparency=bytes(range(16))),
        "animated.png": saved(rgb, "PNG", save_all=True, append_images=frames),
        "text.png": saved(rgb, "PNG", exif=exif),
        "rgb.jpg": saved(rgb, "JPEG", exif=exif),
        "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(rgb, "JPEG", progressive=True),
        "lossy.webp": saved(rgb, "WEBP"),
        "animated.webp": saved(rgb, "WEBP", save_all=True, append_images=frames),
        "rgb.tif": saved(rgb, "TIFF"),
        "lzw.tiff": saved(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tiff": saved(rgb, "TIFF", compression="jpeg"),
        "deep.tif": saved(deep, "TIFF"),
        "float.tif": saved(grey.convert("F"), "TIFF"),
        "lab.tif": saved(Image.merge("LAB", rgb.split()), "TIFF"),
        "pages.tif": saved(rgb, "TIFF", save_all=True, append_images=frames),
        "animated.gif": saved(rgb, "GIF", save_all=True, append_images=frames),
        "rgb.bmp": saved(rgb, "BMP"),
        "rgb.ppm": saved(rgb, "PPM"),
        "plain.ppm": b"P3 # a comment\n2 1\n255\n1 2 3 4 5 6\n",
        "deep.pgm": b"P5 2 1 65535\n\x00\x10\xff\xff",
        "rgb.jpx": saved(rgb, "JPEG2000"),
        "ids1.npy": array_file(ids),
        "ids2.npy": array_file(ids, (2, 0)),
        "ids3.npy": array_file(ids, (3, 0)),
        "depth.npy": array_file(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)),
        "features.npy": array_file(np.zeros((4, 2, 2), dtype=">f8")),
        "fortran.npy": array_file(np.asfortranarray(np.arange(12.0).reshape(3, 4))),
        "scalar.npy": array_file(np.float32(3.0).reshape(())),
        "words.npy": array_file(np.array(["a", "b"])),
        "fields.npy": array_file(np.zeros(2, dtype=[("a", "i4"), ("b", "f8")])),
        "complex.npy": array_file(np.zeros(2, dtype=complex)),
        "date.npy": array_file(np.zeros(2, dtype="M8[s]")),
        "emb.npz": archive.getvalue(),
        "det.json": json.dumps(boxes).encode(),
        "caption.json": json.dumps(["a red circle", {"caption": "ä"}]).encode(),
        "caption.json.gz": gzip.compress(json.dumps({"caption": "a red circle"}).encode()),
        "caption.txt": "ein roter Kreis, 赤い円 🙂\n".encode(),
        "utf16.txt": "a red circle".encode("utf-16"),
        "page.txt": b"<!DOCTYPE html><html><body>404</body></html>",
        "pickle.npy": pickle.dumps(os.system),
    }


REAL = real_files()


def end_of(name: str) -> str:
    """`.json.gz` of `caption.json.gz`."""
    return name[name.index(".") :]


@pytest.mark.parametrize("name", REAL)
def test_every_reader_reads_or_refuses_every_real_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(REAL[name])
    for reader in READERS.values():
        read(reader, path)


@pytest.mark.parametrize(
    ("reader", "names"),
    [
        (
            "codec rgb",
            [n for n in REAL if end_of(n) in (".png", ".jpg", ".webp", ".ppm", ".bmp", ".jpx", ".pgm")],
        ),
        (
            "codec rgb",
            ["rgb.tif", "lzw.tiff", "jpeg.tiff", "deep.tif", "lab.tif", "pages.tif", "animated.gif"],
        ),
        ("codec tok_semseg", ["grey.png", "palette.png"]),
        ("codec tok_depth", ["deep.png", "deep.tif", "deep.pgm", "depth.npy"]),
        ("codec tok_clip", ["features.npy"]),
        ("codec caption", ["caption.json", "caption.json.gz", "caption.txt", "page.txt"]),
        ("ids", ["ids1.npy", "ids2.npy", "ids3.npy"]),
    ],
)
def test_real_files_of_the_right_kind_are_read(tmp_path: Path, reader: str, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(REAL[name])
        assert read(READERS[reader], tmp_path / name) is not None, name
        shouted = tmp_path / name.upper()
        shouted.write_bytes(REAL[name])
        assert read(READERS[reader], shouted) is not None, shouted


# Spoilt in every way.


@FEW
@given(data=st.binary(max_size=400), start=st.sampled_from(sorted(REAL)), kept=st.integers(0, 16))
def test_random_bytes_are_refused_or_read(tmp_path: Path, data: bytes, start: str, kept: int) -> None:
    path = tmp_path / f"x{end_of(start)}"
    path.write_bytes(REAL[start][:kept] + data)
    for reader in READERS.values():
        read(reader, path)


@MANY
@given(data=st.data())
def test_spoilt_files_are_refused_or_read(tmp_path: Path, data: st.DataObject) -> None:
    """Cut off anywhere, some bytes or bits changed, some repeated."""
    name = data.draw(st.sampled_from(sorted(REAL)))
    spoilt = bytearray(REAL[name][: data.draw(st.integers(0, len(REAL[name])))])
    for _ in range(data.draw(st.integers(0, 5)) if spoilt else 0):
        at = data.draw(st.integers(0, len(spoilt) - 1))
        match data.draw(st.sampled_from(["byte", "bit", "repeat", "large"])):
            case "byte":
                spoilt[at] = data.draw(st.integers(0, 255))
            case "bit":
                spoilt[at] ^= 1 << data.draw(st.integers(0, 7))
            case "repeat":
                spoilt[at:at] = spoilt[at : at + data.draw(st.integers(1, 40))]
            case "large":
                spoilt[at : at + 4] = data.draw(
                    st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0"])
                )
    path = tmp_path / f"x{end_of(name)}"
    path.write_bytes(spoilt)
    for reader in READERS.values():
        read(reader, path)


@pytest.mark.parametrize("name", REAL)
def test_files_cut_off_at_every_length_are_refused_or_read(tmp_path: Path, name: str) -> None:
    path, whole = tmp_path / name, REAL[name]
    fitting = (
        ("array", "ids") if end_of(name) == ".npy" else ("json", "codec caption", "rgb", "codec tok_depth")
    )
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        for reader in fitting:
            read(READERS[reader], path)


DESCRIPTIONS = st.sampled_from(
    ["'<i2'", "'|O'", "'<U9'", "'|V8'", "'|S0'", "'<M8[ns]'", "'<f16'", "'V2147483647'", "[('a', '<i4')]",
     "()", "None", "('<i2', (2, 3))", "'<i2, <f4'", "{'names': ['a'], 'formats': ['<i4']}",
     "'__import__(\"os\")'", "'<i2' * 9"]
)  # fmt: skip
SHAPES = st.sampled_from(
    ["(4,)", "()", "(4, -1)", "(-4, -1)", "(0,)", "(2**70,)", "(1e9,)", "(True, 4)", "4", "'4'", "((4,),)",
     "(999999999999, 999999)", "(1,) * 99", "[4]", "(0, 99999999999999999999)"]
)  # fmt: skip


@MANY
@given(
    descr=DESCRIPTIONS, shape=SHAPES, order=st.sampled_from(["True", "False", "1", "'C'"]),
    version=st.sampled_from([b"\1\0", b"\2\0", b"\3\0", b"\4\0", b"\0\0"]),
    extra=st.sampled_from(["", ", 'x': 1", ", 'shape': (4,)", "L", "}{", "\0", "ä", "(" * 300, "\\"]),
    body=st.integers(0, 64),
)  # fmt: skip
def test_headers_of_arrays_can_say_anything(
    tmp_path: Path, descr: str, shape: str, order: str, version: bytes, extra: str, body: int
) -> None:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}{extra}}}\n".encode()
    length = struct.pack("<H" if version[0] < 2 else "<I", len(text))
    path = tmp_path / "x.npy"
    path.write_bytes(b"\x93NUMPY" + version + length + text + b"\0" * body)
    for name in ("array", "ids", "codec tok_depth", "codec tok_clip"):
        read(READERS[name], path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
KEYS = """instances boxes class_name score caption bbox_xyxy pred_cam pose_tokenized pred_smpl_params
global_orient body_pose betas points token_ids bbox 1 2 3 4 5 6 7""".split()
LIKELY = st.recursive(
    st.sampled_from(
        [0, 1, -1, 0.5, 1e300, 10**30, True, None, "", "cat", "v0=1", [], {}, [0, 0, 1, 1], [[0, 0]]]
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=16,
)


@MANY
@given(value=JSON | LIKELY, suffix=st.sampled_from([".json", ".json.gz"]))
@example(value={"caption": "\ud800"}, suffix=".json")
@example(
    value={"instances": [{"boxes": [0, 0, 1, 1], "class_name": "cat", "score": float("nan")}]}, suffix=".json"
)
def test_any_json_is_refused_or_read(tmp_path: Path, value: Any, suffix: str) -> None:
    data = json.dumps(value).encode()
    path = tmp_path / f"x{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    for reader in READERS.values():
        read(reader, path)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", "[-1e400]"])
def test_nan_and_infinity_in_json_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert "is no number" in refused(read_json, tmp_path / "x.json")


def test_a_key_of_json_that_stands_there_twice_has_no_value(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('[{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}]')
    assert "'c' stands in one object twice" in refused(read_json, tmp_path / "x.json")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "1" * 10_000, "", " ", '"', "[1,]", "\ufeff\ufeff1"]
)
def test_json_without_an_end_or_beginning_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert refused(read_json, tmp_path / "x.json").startswith(f"{tmp_path}/x.json: ")


def test_numbers_beyond_float32_are_no_values(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((2, 2), 1e39))
    assert "finite numbers" in refused(READERS["codec tok_depth"], tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.full((2, 2), 1e38))
    assert np.isfinite(READERS["codec tok_depth"](tmp_path / "x.npy")).all()


# What pictures can be.


def test_pictures_are_not_turned_and_animations_show_their_first_picture(tmp_path: Path) -> None:
    plain, names = (
        Image.open(io.BytesIO(REAL["rgb.png"])),
        ["text.png", "animated.png", "pages.tif", "rgb.bmp"],
    )
    for name in names:
        (tmp_path / name).write_bytes(REAL[name])
        assert np.array_equal(READERS["codec rgb"](tmp_path / name), np.asarray(plain))
    for name in ("rgb.jpg", "animated.gif", "animated.webp", "cmyk.jpg", "progressive.jpg", "palette.png"):
        (tmp_path / name).write_bytes(REAL[name])
        value = READERS["codec rgb"](tmp_path / name)
        assert value.shape == (12, 10, 3)
    sixteen = READERS["codec rgb"](_write(tmp_path / "deep.pgm", REAL["deep.pgm"]))
    assert sixteen[0, :, 0].tolist() == [0, 255]


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_pictures_that_hold_other_numbers_than_grey_levels_are_refused(tmp_path: Path) -> None:
    deep = saved(Image.fromarray(np.array([[-5, 70_000]], dtype=np.int32)), "TIFF")
    for data, said in ((REAL["float.tif"], "a picture of floats"), (deep, "a picture of 16 bits")):
        path = _write(tmp_path / "x.tif", data)
        assert f"{said} lies in 0 to" in refused(READERS["codec rgb"], path)


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (3, 8_000)])
def test_pictures_of_any_shape_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    codec = build_codec(RELEASED.get("rgb@224"))
    Image.new("RGB", size, (10, 200, 30)).save(tmp_path / "x.png")
    slot = codec.encode([codec.read(tmp_path / "x.png")])
    assert np.abs(codec.decode(slot)[0].astype(int) - (10, 200, 30)).max() <= 1


# Little files that want much memory or time.


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 2) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """`count` zeros, packed."""
    packer, packed = zlib.compressobj(9), b""
    for _ in range(count // MIB):
        packed += packer.compress(bytes(MIB))
    return packed + packer.flush()


def tiff(width: int, height: int, **tags: int) -> bytes:
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 4}
    entries |= {int(tag[1:]): value for tag, value in tags.items()}
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<I", 12) + b"\0\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0" * 4


@cache
def bombs() -> dict[str, bytes]:
    """Files of at most some hundred kB, by name and what the name ends with."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (%s), }\n"
    arrays = {
        f"array{i}.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + b"\0" * 64
        for i, text in enumerate(
            header % shape for shape in (b"10**9,", b"1000000000, 1000000000", b"100000000,")
        )
    }
    return arrays | {
        "wide.png": png(60_000, 60_000, chunk(b"IDAT", zeros(64 * MIB)), bits=1, colour=0),
        "promised.png": png(8192, 8192, chunk(b"IDAT", zeros(MIB))),
        "text.png": png(4, 4, chunk(b"zTXt", b"a\0\0" + zeros(100 * MIB)), chunk(b"IDAT", zeros(0))),
        "texts.png": png(4, 4, *[chunk(b"zTXt", b"a%d\0\0" % i + zeros(MIB - MIB // 8)) for i in range(200)]),
        "profile.png": png(4, 4, chunk(b"iCCP", b"a\0\0" + zeros(100 * MIB)), chunk(b"IDAT", zeros(0))),
        "chunk.png": b"\x89PNG\r\n\x1a\n" + b"\x7f\xff\xff\xffIHDR",
        "wide.bmp": b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24) + bytes(24),
        "wide.ppm": b"P6 60000 60000 255\n",
        "promised.ppm": b"P6 8000 8000 255\n",
        "wide.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\0;",
        "frame.gif": b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
        + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\0;",
        "wide.tif": tiff(60_000, 60_000),
        "promised.tif": tiff(8000, 8000),
        "strips.tif": tiff(8000, 8000, t278=1, t279=4_000_000_000),
        "samples.tif": tiff(8000, 8000, t277=60_000),
        "wide.jpg": bytes.fromhex("ffd8ffc0001108ffffffff03012200021101031101"),
        "wide.webp": b"RIFF\x64\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6,
        "wide.jpx": bytes.fromhex("ff4fff51002f0000") + struct.pack(">8I", *(60_000, 60_000, 0, 0) * 2)
        + bytes.fromhex("0003070101070101070101"),
        "packed.json.gz": gzip.compress(b'"' + b"a" * (100 * MIB) + b'"'),
        "lists.json": b"[" + b"[]," * (5 * MIB) + b"[]]",
        "nested.json": b"[" * (10 * MIB),
        "digits.json": b"1" * (10 * MIB),
    }  # fmt: skip


def measured(reader: Reader, path: Path) -> tuple[int, float]:
    """MiB that reading added to the process at most, and its CPU seconds; in a process of its own."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        try:
            reader(path)
        except SampleError:
            pass
        except BaseException:
            os._exit(1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        os.write(into, json.dumps([peak >> 10, time.process_time() - began]).encode())
        os._exit(0)
    os.close(into)
    _, status = os.waitpid(child, 0)
    assert status == 0
    with os.fdopen(out, "rb") as stream:
        mebibytes, seconds = json.loads(stream.read())
    return mebibytes, seconds


def test_little_files_never_take_much_memory_or_time(tmp_path: Path) -> None:
    for name, data in bombs().items():
        path = _write(tmp_path / name, data)
        fitting = {".npy": ["ids", "codec tok_depth"], ".json": ["json", "codec caption"]}
        fitting[".json.gz"] = fitting[".json"]
        for reader in fitting.get(end_of(name), ["codec rgb", "codec tok_depth"]):
            mebibytes, seconds = measured(READERS[reader], path)
            assert mebibytes < 700, (name, reader, mebibytes)
            assert seconds < 20, (name, reader, seconds)


@pytest.mark.parametrize(
    "name", ["array0.npy", "wide.png", "text.png", "wide.gif", "frame.gif", "wide.tif", "wide.jpg"]
)
def test_small_files_that_unpack_to_huge_ones_are_refused(tmp_path: Path, name: str) -> None:
    reader = "ids" if name.endswith(".npy") else "codec rgb"
    assert refused(READERS[reader], _write(tmp_path / name, bombs()[name]))


# What is no file, or no longer, or has a strange name.


def test_folders_pipes_devices_and_dangling_links_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)
        server.bind("socket.png")
        began = time.monotonic()
        for name in ("folder", "pipe", "zero", "gone", "self", "socket", "missing", "missing/deeper"):
            for reader in READERS.values():
                assert refused(reader, tmp_path / f"{name}.png")
    assert time.monotonic() - began < 5
    assert "a link to nowhere.png, which is not there" in refused(read_picture, tmp_path / "gone.png")
    assert "not a file, but a folder" in refused(read_picture, tmp_path / "folder.png")


def test_refused_files_stay_closed(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for name in ("folder.png", "pipe.png", "bad.png") * 5:
        refused(read_picture, tmp_path / name)
    assert not opened or len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize(
    "name", ["a\nb", "\x1b[31mred", "x" * 250, "ä" * 125, "..", "a\u2028b", "\udcff\udcfe"]
)
def test_a_sentence_is_one_line_whatever_the_file_is_called(tmp_path: Path, name: str) -> None:
    for suffix in (".png", ".npy", ".txt", ".json"):
        path = _write(tmp_path / (name + suffix), b"\xff nothing")
        for reader in READERS.values():
            assert refused(reader, path).startswith(printable(str(path)))
    assert refused(read_text, tmp_path / name / "deeper" / f"{name}.txt")


def test_messages_of_samples_are_printable_and_limited() -> None:
    assert len(str(SampleError("x" * 100_000))) < MAX_SENTENCE + 10
    assert str(SampleError("a\r\nb\x00")) == "a\\r\\nb\\x00"


def test_nothing_is_printed_about_spoilt_pictures(tmp_path: Path) -> None:
    """Not even by the decoders' own libraries, which write past Python (libtiff alone does, for TIFF)."""
    for name in ("rgb.jpg", "progressive.jpg", "rgb.jpx", "lossy.webp", "rgb.png"):
        for i, cut in enumerate((40, 60, 80)):
            data = bytearray(REAL[name])
            data[len(data) * cut // 100 :: 7] = b"\xff" * len(data[len(data) * cut // 100 :: 7])
            _write(tmp_path / f"{i}{name}", bytes(data))
    code = """
import sys
from pathlib import Path
from fourm.codecs.files import read_picture
from fourm.errors import SampleError
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_picture(path)
    except SampleError:
        pass
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=root, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_spoilt_member_of_a_shard_is_named_as_a_file_is(tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in REAL.items():
            member = tarfile.TarInfo(name)
            member.size = len(data) // 2
            tar.addfile(member, io.BytesIO(data))
    places = read_tar(tmp_path / "s.tar").members.values()
    assert [type(place) for place in places] == [tuple] * len(REAL)
    for name in REAL:
        for reader in READERS.values():
            read(reader, tmp_path / "s.tar" / name)
