"""Reads and writes files of single values: ids, crops and arrays (.npy, .npz), JSON, text, pictures.

A file may be a member of a tar shard or a cell of a Parquet file. Everything that is wrong with a file is a
SampleError that names it, so that one bad file does not end a run. Pickled arrays are never loaded.
"""

import gzip
import io
import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL import TiffImagePlugin as tiff
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngInfo

from fourm.data.containers import ending_of, read_member, split_path
from fourm.data.dataset import PICTURE_SUFFIXES
from fourm.data.layout import Crop, Fit, Frame, fit_crop
from fourm.errors import SampleError, shown
from fourm.files.opening import SIGNATURE, find_exif, read_bytes, strip_metadata, with_single_keys
from fourm.modalities.typed import to_type

MAX_BYTES = 1 << 30  # of an array or picture file
MAX_MEMBER_BYTES = 1 << 28  # of an array within a .npz file, unpacked
MAX_TEXT_BYTES = 1 << 24  # of a text or JSON file, unpacked
MAX_PIXELS = 1 << 26  # 8192 x 8192: beyond that a small file can fill the memory
# Pillow's other formats run programs (EPS), or read what no dataset holds.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM", "GIF", "JPEG2000")
# Formats, and (in small letters) compressions of TIFF, that change values. WebP has a lossless variant, but
# only for colours, and what has to be exact is grey or has a palette.
_LOSSY = {"JPEG", "JPEG2000", "WEBP", "jpeg", "tiff_jpeg", "webp"}
# By EXIF orientation: whether rows become columns, and then the steps, 1 or -1, through rows and columns.
_TURNS = {
    1: (False, 1, 1), 2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1),
}  # fmt: skip
# First bytes of files, to name the format of a damaged one.
_STARTS = {SIGNATURE: "PNG", b"\xff\xd8\xff": "JPEG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}


def read_array(path: Path) -> NDArray[Any]:
    """The array of a .npy file of numbers or booleans, of any shape."""
    return _parse_array(_read_bytes(path, MAX_BYTES), str(path))


def read_features(path: Path) -> NDArray[Any]:
    """What `fourm embed` wrote of a sample: floats (layers, D), or (layers, N, D) of N tokens."""
    value = read_array(path)
    if value.dtype.kind != "f" or value.ndim not in (2, 3) or not value.size:
        what = f"{value.dtype} of shape {value.shape} is not layers x width, or layers x tokens x width"
        raise SampleError(f"{path}: {what}")
    if not np.isfinite(value).all():
        raise SampleError(f"{path}: holds features that are no finite numbers")
    return value


def read_members(path: Path, *names: str, limit: int = MAX_MEMBER_BYTES) -> tuple[NDArray[Any], ...]:
    """The arrays of a .npz file that have these names; no other member is unpacked.

    limit: bytes of the largest array, unpacked; SampleError: one has more.
    """
    stream, arrays = io.BytesIO(_read_bytes(path, max(MAX_BYTES, limit))), []
    with _parsing(f"{path}: not a .npz file"), zipfile.ZipFile(stream) as archive:
        for name in names:
            if f"{name}.npy" not in archive.namelist():
                raise SampleError(f"{path}: holds no array '{name}'")
            with archive.open(f"{name}.npy") as file:
                data = file.read(limit + 1)
            if len(data) > limit:
                raise SampleError(f"{path}: '{name}' is more than {limit >> 20} MiB")
            arrays.append(_parse_array(data, f"{path}: '{name}'"))
    return tuple(arrays)


def pack_array(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def write_array(array: NDArray[Any], path: Path) -> None:
    """Write a .npy file of exactly this path: np.save alone would append a suffix."""
    path.write_bytes(pack_array(array))


def read_ids(path: Path, count: int, vocab_size: int) -> NDArray[np.int64]:
    """(count,) token ids in 0..vocab_size - 1: an integer vector, or the first row of crops x tokens."""
    return check_ids(read_array(path), count, vocab_size, str(path))


def check_ids(array: NDArray[Any], count: int, vocab_size: int, where: str) -> NDArray[np.int64]:
    """The token ids of an array, as `read_ids`; `where` names it in messages."""
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2) or array.size == 0:
        raise SampleError(f"{where}: {array.dtype} of shape {array.shape} is not a row of token ids")
    row = (array if array.ndim == 1 else array[0]).astype(np.int64)
    if len(row) != count:
        raise SampleError(f"{where}: {len(row)} tokens, where the modality has {count}")
    for token in (row.min(), row.max()):
        if not 0 <= token < vocab_size:
            raise SampleError(f"{where}: token {token} is outside the vocabulary, 0..{vocab_size - 1}")
    return row


def pack_ids(ids: NDArray[Any]) -> bytes:
    """Token ids (L,) or (crops, L) as int16 rows, like the reference; int32 for large vocabularies."""
    rows = np.atleast_2d(np.asarray(ids, dtype=np.int64))
    is_narrow = rows.max(initial=0) <= np.iinfo(np.int16).max
    return pack_array(rows.astype(np.int16 if is_narrow else np.int32))


def read_text(path: Path) -> str:
    """The unchanged text of a file in UTF-8."""
    try:
        return _read_bytes(path, MAX_TEXT_BYTES, may_be_empty=True).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SampleError(f"{path}: not text in UTF-8 (byte {error.start})") from error


def read_caption(path: Path, number: int = 0) -> str:
    """The caption of a text file, or of JSON: a string, an object with `caption`, or a list of either.

    number: of the caption in a list; a list that has fewer gives its first.
    """
    if not (path.name.lower().endswith(".json.gz") or file_ending(path) == ".json"):
        return read_text(path)
    text = read_json(path)
    if isinstance(text, list) and text:
        text = text[number if number < len(text) else 0]
    if isinstance(text, dict):
        text = text.get("caption")
    if not isinstance(text, str):
        raise SampleError(f"{path}: neither a string, nor an object with 'caption', nor a list of either")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise SampleError(f"{path}: holds half a character, which is no text")
    return text


def read_json(path: Path) -> object:
    """The value of a .json or .json.gz file."""
    data = _read_bytes(path, MAX_TEXT_BYTES)
    with _parsing(f"{path}: not valid JSON"):
        if path.suffix.lower() == ".gz":
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(MAX_TEXT_BYTES + 1)
            if len(data) > MAX_TEXT_BYTES:
                raise SampleError(f"{path}: more than {MAX_TEXT_BYTES >> 20} MiB when unpacked")
        return json.loads(
            data, parse_constant=_finite, parse_float=_finite, object_pairs_hook=with_single_keys
        )


def read_picture(path: Path, is_exact: bool = False) -> Image.Image:
    """A fully decoded picture in the mode of its file, as it is stored; of an animation the first frame.

    is_exact: refuse formats that store approximate values, such as JPEG.
    """
    with _opened(path, is_exact) as image:
        return image.copy()


def read_levels(path: Path) -> NDArray[np.uint8]:
    """The stored numbers (H, W) of a grey or palette picture of at most 8 bits.

    Pillow scales grey levels of fewer bits to 0..255; for PNG, whose levels count from black, this is undone.
    """
    with _opened(path, is_exact=True) as image:
        return levels_of(image, str(path))


def levels_of(image: Image.Image, where: str) -> NDArray[np.uint8]:
    """The stored numbers of a picture, as `read_levels`; `where` names it in messages."""
    step, problem = _level_step(image), f"an 8-bit grey or palette picture, not {image.mode}"
    if step and image.mode in ("1", "L", "P"):
        return np.asarray(image).astype(np.uint8) // np.uint8(step)
    if image.mode in ("L", "P"):
        problem = "8 bits, black for 0; these grey levels are scaled"
    raise SampleError(f"{where}: class numbers need {problem}")


def _level_step(image: Image.Image) -> int:
    """The difference of two neighbouring grey levels as Pillow decodes them; 0: unknown, or white is 0."""
    if isinstance(image, tiff.TiffImageFile):
        bits, white_is_0 = image.tag_v2.get(tiff.BITSPERSAMPLE), 0
        return int(bits == (8,) and image.tag_v2.get(tiff.PHOTOMETRIC_INTERPRETATION) != white_is_0)
    args = image.tile[0].args if isinstance(image, ImageFile) and image.tile else ""
    if image.format == "PNG":
        return {"L;2": 85, "L;4": 17}.get(str(args), 1)
    if image.format == "PPM":
        return int(args in ("L", ("L", 255)))
    return int(image.mode != "1")


def file_ending(path: Path) -> str:
    """The extension of a file in lower case; of a cell of a Parquet file, that of what it holds."""
    with _opening(path):
        return ending_of(path)


def read_turn(path: Path) -> int:
    """How a picture is rotated or mirrored to stand upright, 1..8 as EXIF counts; 1 means not at all.

    1 for arrays, and where the tag is missing, damaged or none of these numbers.
    """
    if file_ending(path) not in PICTURE_SUFFIXES:
        return 1
    data, exif, turn = _read_bytes(path, MAX_BYTES), Image.Exif(), 1
    with (
        warnings.catch_warnings(action="ignore"),
        suppress(Exception),
    ):  # damaged tags raise errors of many kinds
        exif.load(data if data.startswith((b"II", b"MM")) else find_exif(data))
        turn = exif.get(ExifTags.Base.Orientation, 1)
    return turn if turn in _TURNS else 1


def turned(value: NDArray[Any], turn: int) -> NDArray[Any]:
    """A picture or map (H, W[, C]), rotated to stand upright; turn: 1..8, as `read_turn` returns it."""
    axes, rows, columns = _TURNS[turn]
    return value.swapaxes(0, 1)[::rows, ::columns] if axes else value[::rows, ::columns]


def read_size(path: Path, turn: int = 1) -> tuple[int, int]:
    """Height and width of a picture that is turned by `turn`, or of a map (H, W) in a .npy; both above 0."""
    height, width = _stored_size(path)
    return (width, height) if _TURNS[turn][0] else (height, width)


def _stored_size(path: Path) -> tuple[int, int]:
    if file_ending(path) == ".npy":
        shape = read_array(path).shape
        if len(shape) != 2 or 0 in shape:
            raise SampleError(f"{path}: an array of shape {shape} is no map of pixels")
        return shape[0], shape[1]
    with _opened(path) as image:
        if isinstance(image, tiff.TiffImageFile):  # Pillow says the size of the turned picture
            return image.tag_v2[tiff.IMAGELENGTH], image.tag_v2[tiff.IMAGEWIDTH]
        return image.height, image.width


@contextmanager
def _opened(path: Path, is_exact: bool = False) -> Iterator[Image.Image]:
    """Open a picture, reading only its header; errors of Pillow, also in the block, become a SampleError."""
    stored = _read_bytes(path, MAX_BYTES)
    data = strip_metadata(stored)
    try:
        problem = f"{path}: not a picture that can be read"
        with _parsing(problem), Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise SampleError(f"{path}: {image.width} x {image.height} pixels are too many to read")
            if is_exact and {image.format, image.info.get("compression")} & _LOSSY:
                what = "class numbers and masks need a lossless picture, such as PNG"
                raise SampleError(f"{path}: {image.format} stores approximate values; {what}")
            # Pixels are decoded as they are stored; of all formats, Pillow rotates only this one by its tag.
            if image.format == "TIFF":
                image.getexif().pop(ExifTags.Base.Orientation, None)
            yield image
    except UnidentifiedImageError as error:  # whose own words name an address in memory
        problem = f"{path}: not a picture in a format that is read ({', '.join(_FORMATS)})"
        if kind := next((name for start, name in _STARTS.items() if stored.startswith(start)), ""):
            problem = f"{path}: not a picture that can be read (a damaged {kind} file)"
        elif stored.startswith((b"\x93NUMPY", b"PK\3\4")):
            problem = f"{path}: holds an array, where a picture belongs"
        raise SampleError(problem) from error


def pack_png(pixels: NDArray[np.uint8], text: Mapping[str, str] | None = None) -> bytes:
    """(H, W[, C]) as PNG with `text` as its text chunks; equal input gives equal bytes.

    C: 2 for grey and alpha, 3 for colours, 4 for colours and alpha.
    """
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value.encode("utf-8", "backslashreplace").decode())
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", pnginfo=chunks, compress_level=6)
    return file.getvalue()


def _parse_array(data: bytes, where: str) -> NDArray[Any]:
    stream = io.BytesIO(data)
    with _parsing(f"{where}: not a .npy file"):
        npy = np.lib.format
        is_version_1 = npy.read_magic(stream) == (1, 0)
        read_header = npy.read_array_header_1_0 if is_version_1 else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(stream)
        if dtype.kind not in "biuf":
            raise SampleError(f"{where}: holds {dtype}, not numbers; pickled arrays are never loaded")
        # NumPy would reserve the memory for a shape before it looks for the bytes.
        size, start = math.prod(shape), stream.tell()
        if size * dtype.itemsize != len(data) - start or min(shape, default=0) < 0:
            raise SampleError(f"{where}: truncated or damaged; its header announces {shape} {dtype}")
        flat = np.frombuffer(data, dtype=dtype, count=size, offset=start)
        return flat.reshape(shape, order="F" if fortran_order else "C")


@contextmanager
def _parsing(problem: str) -> Iterator[None]:
    """Turn what a parser raises into a SampleError that begins with `problem`: for malformed bytes, anything.

    Warnings are ignored: they are of damaged metadata beside good pixels, and of headers that Python 2 wrote.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except (SampleError, UnidentifiedImageError):
        raise
    except Exception as error:  # parsers raise errors of any kind for malformed bytes
        # Messages of libraries may hold an address in memory, or the whole file.
        text = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error)) or type(error).__name__
        raise SampleError(f"{problem} ({shown(text, 200)})") from error


def _finite(text: str) -> float:
    """A number of a JSON file. ValueError: NaN, Infinity, or one that is too large, such as 1e999."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no number")
    return number


def _read_bytes(path: Path, limit: int, may_be_empty: bool = False) -> bytes:
    """All bytes of a file, or of a member of a container."""
    with _opening(path):
        place = split_path(path)
        data = read_bytes(path, limit) if place is None else read_member(*place, limit)
    if len(data) > limit:
        raise SampleError(f"{path}: more than {limit >> 20} MiB")
    if not data and not may_be_empty:
        raise SampleError(f"{path}: is empty")
    return data


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Turn an OSError into a SampleError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            reason = f"a link to {os.readlink(path)}, which is not there"
        raise SampleError(f"{path}: cannot be read ({reason})") from error


def read_frame(path: Path) -> Frame:
    """Where the square of a sample lies in its picture, from a file of the text of `format_frame`."""
    try:
        frame: Frame = to_type(Frame, read_json(path), "it", strict=False)
        problem = _crop_problem(frame.crop)
        if min(frame.crop.whole) < 1 or math.prod(frame.crop.whole) > MAX_PIXELS:
            problem = "is of a picture that no run reads"
        if problem:
            raise ValueError(f"its crop {problem}")
    except ValueError as error:
        raise SampleError(f"{path}: does not say where a square lies in its picture ({error})") from error
    return frame


def format_frame(frame: Frame) -> str:
    """The text of a file that `read_frame` reads; equal frames give equal texts."""
    return json.dumps(asdict(frame)) + "\n"


def read_crop(settings: Path | None, picture: Path | None, turn: int = 1, fit: Fit = "crop") -> Crop | None:
    """The crop of a sample: the first row of its settings, else the square of its picture, else None.

    turn: how the picture is turned first (see `read_turn`). Either file may be missing. SampleError: one of
    them cannot be read; the settings come without a picture, so the size of the whole is not known; their
    crop lies outside the picture or is too large; or they say which part is read, but `fit` is "pad".
    """
    if picture is not None:
        whole = read_size(picture, turn)
        if settings is None:
            return fit_crop(fit, *whole)
        crop = read_crops(settings, whole)[0]
        if fit == "pad" and crop != fit_crop(fit, *whole):
            raise SampleError(f"{settings}: says which part is read, but `fit=pad` reads the whole picture")
        return crop
    if settings is not None:
        raise SampleError(f"{settings}: the sample has no picture, so the size of the whole is not known")
    return None


def read_crops(path: Path, whole: tuple[int, int]) -> tuple[Crop, ...]:
    """All crops of a file of crops x (top, left, height, width, mirrored), for a picture (height, width).

    SampleError: not such rows (see `read_crop_rows`), or a crop without a pixel of the picture, or too large.
    """
    crops = list[Crop]()
    for number, (top, left, height, width, mirrored) in enumerate(read_crop_rows(path).tolist()):
        crops.append(Crop(whole, top, left, height, width, bool(mirrored), number))
        problem = "" if mirrored in (0, 1) else f"says {mirrored} where mirrored is 0 or 1"
        if problem := _crop_problem(crops[-1]) or problem:
            place = f"crop {number}, {width} x {height} pixels at ({left}, {top})"
            raise SampleError(f"{path}: {place}, {problem}")
    return tuple(crops)


def _crop_problem(crop: Crop) -> str:
    """Why a crop cannot be read, to follow its name in a message; "" if it can."""
    (height, width), size = crop.whole, crop.height * crop.width
    if crop.height < 1 or crop.width < 1:
        return "holds no pixel"
    if size > MAX_PIXELS and not crop.is_padded:
        return "is too large to be read"
    is_outside = crop.top >= height or crop.left >= width
    if is_outside or crop.top + crop.height <= 0 or crop.left + crop.width <= 0:
        return f"lies wholly outside the picture of {width} x {height} pixels"
    return ""


def read_crop_rows(path: Path) -> NDArray[np.int64]:
    """(crops, 5) int64: top, left, height, width, mirrored; for a picture of any size.

    SampleError: another shape, fractions, or numbers too large for any picture.
    """
    rows = read_array(path)
    if rows.ndim != 2 or rows.shape[1] != 5 or len(rows) == 0:
        found = f"{rows.dtype} of shape {rows.shape}"
        raise SampleError(f"{path}: {found}, where rows of top, left, height, width, mirrored belong")
    if not (np.abs(rows.astype(np.float64)) <= MAX_PIXELS).all():  # nor is NaN
        raise SampleError(f"{path}: holds numbers that are no places in a picture")
    if (rows != rows.astype(np.int64)).any():
        raise SampleError(f"{path}: holds fractions, where whole pixels belong")
    return rows.astype(np.int64)


def pack_crops(crops: Sequence[Crop]) -> bytes:
    """A file that `read_crops` reads, in the form that the reference writes."""
    rows = [(c.top, c.left, c.height, c.width, int(c.mirrored)) for c in crops]
    return pack_array(np.array(rows, dtype=np.int64))


def write_crops(crops: Sequence[Crop], path: Path) -> None:
    """Write the file of `pack_crops`."""
    path.write_bytes(pack_crops(crops))
