"""Pictures as people have them, made in code: EXIF orientations, odd sizes, modes, formats, damaged files.

Each stands for the same upright scene: red at the top left, green at the top right, blue at the bottom left,
yellow at the bottom right.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

CORNERS = ((220, 30, 30), (30, 180, 60), (30, 60, 220), (230, 210, 40))  # top left and right, bottom left ...
ORIENTATION = 0x0112
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TURNED_BACK = {6: 8, 8: 6}  # all other turns are their own opposite
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


@dataclass(frozen=True)
class Photo:
    """One file: how it is made, the size of the upright picture in it, or what is said of it."""

    name: str
    make: Callable[[Path], None]
    size: tuple[int, int] = (0, 0)  # height, width; (0, 0) for a file that cannot be read
    problem: str = ""  # a part of the sentence
    is_coloured: bool = True  # the corners have their colours, more or less


def scene(height: int, width: int) -> NDArray[np.uint8]:
    """(H, W, 3): four quarters."""
    pixels = np.empty((height, width, 3), np.uint8)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    pixels[:rows, :columns], pixels[:rows, columns:] = CORNERS[0], CORNERS[1]
    pixels[rows:, :columns], pixels[rows:, columns:] = CORNERS[2], CORNERS[3]
    return pixels


def stored(picture: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera stores it that notes this orientation."""
    back = _TURNED_BACK.get(orientation, orientation)
    return picture if back == 1 else picture.transpose(_TRANSPOSES[back])


def exif_of(orientation: int, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for tag, value in more.items():
        exif[int(tag.removeprefix("tag"))] = value
    return exif.tobytes()


def save(
    path: Path, height: int = 48, width: int = 72, mode: str = "RGB", orientation: int = 0, **how: Any
) -> None:
    """Save the scene; orientation: with this EXIF tag, 0 for none."""
    picture = Image.fromarray(scene(height, width))
    if orientation:
        picture, how = stored(picture, orientation), {**how, "exif": exif_of(orientation)}
    picture.convert(mode).save(path, **how)


def save_tiff(path: Path, orientation: int) -> None:
    picture = stored(Image.fromarray(scene(48, 72)), orientation)
    picture.save(path, tiffinfo={ORIENTATION: orientation})


def save_array(path: Path, array: NDArray[Any]) -> None:
    Image.fromarray(array).save(path)


def save_16_bit_colours(path: Path) -> None:
    """A PNG of three channels of 16 bits, which Pillow does not write."""
    rows = scene(48, 72).astype(">u2") * 257
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 72, 48, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)))
    path.write_bytes(_png(*chunks, (b"IEND", b"")))


def save_with_alpha(path: Path, mode: str) -> None:
    picture = Image.fromarray(scene(48, 72)).convert("L" if mode == "LA" else "RGB")
    picture.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 72).astype(np.uint8), (48, 1))))
    picture.save(path)


def save_animated(path: Path, **how: Any) -> None:
    """The scene, then two grey pictures."""
    first = Image.fromarray(scene(48, 72))
    others = [Image.new("RGB", (72, 48), (level,) * 3) for level in (60, 200)]
    first.save(path, save_all=True, append_images=others, **how)


def save_with_metadata(path: Path) -> None:
    """A JPEG with a long comment, a colour profile that is none, and an EXIF block whose tags are spoilt."""
    spoilt = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40
    save(path, exif=spoilt, comment=b"x" * 60_000, icc_profile=b"no profile" * 9)


def save_as(path: Path, kind: str, **how: Any) -> None:
    """In another format than the ending says."""
    data = io.BytesIO()
    Image.fromarray(scene(48, 72)).save(data, format=kind, **how)
    path.write_bytes(data.getvalue())


def save_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 72, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, format="JPEG")
    path.write_bytes(data.getvalue()[:1500])


def save_huge(path: Path) -> None:
    """A PNG of a few hundred bytes that announces 9000 x 9000 pixels."""
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    path.write_bytes(_png((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 300)), (b"IEND", b"")))


def save_with_text(path: Path) -> None:
    """A PNG whose text chunk unpacks to far more than it says."""
    info = PngInfo()
    info.add_text("comment", "x" * 5_000_000, zip=True)
    save(path, pnginfo=info)


def _png(*chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    return _SIGNATURE + b"".join(chunk(*one) for one in chunks)


_grey16 = (np.mean(scene(48, 72), axis=2) * 257).astype(np.uint16)
PHOTOS = (
    *(Photo(f"turned-{n}.jpg", partial(save, orientation=n), (48, 72)) for n in range(1, 9)),
    Photo("turned-png.png", partial(save, orientation=6), (48, 72)),
    Photo("turned-webp.webp", partial(save, orientation=8, quality=95), (48, 72)),
    Photo("turned-tiff.tif", partial(save_tiff, orientation=6), (48, 72)),
    Photo("portrait.jpg", partial(save, height=96, width=40), (96, 40)),
    Photo("panorama.jpg", partial(save, height=80, width=400), (80, 400)),
    Photo("tower.jpg", partial(save, height=400, width=80), (400, 80)),
    Photo("one-pixel.png", partial(save, height=1, width=1), (1, 1), is_coloured=False),
    Photo("one-row.png", partial(save, height=1, width=64), (1, 64), is_coloured=False),
    Photo("odd-size.jpeg", partial(save, height=47, width=63, subsampling=2), (47, 63)),
    Photo("large.jpg", partial(save, height=1200, width=1600), (1200, 1600)),
    Photo("cmyk.jpg", partial(save, mode="CMYK"), (48, 72)),
    Photo("grey.jpg", partial(save, mode="L"), (48, 72), is_coloured=False),
    Photo("grey-16-bit.png", partial(save_array, array=_grey16), (48, 72), is_coloured=False),
    Photo("colours-16-bit.png", save_16_bit_colours, (48, 72)),
    Photo("two-levels.png", partial(save, mode="1"), (48, 72), is_coloured=False),
    Photo("palette.png", partial(save, mode="P"), (48, 72)),
    Photo("palette-transparent.png", partial(save, mode="P", transparency=0), (48, 72)),
    Photo("alpha.png", partial(save_with_alpha, mode="RGBA"), (48, 72)),
    Photo("grey-alpha.png", partial(save_with_alpha, mode="LA"), (48, 72), is_coloured=False),
    Photo("animated.gif", save_animated, (48, 72)),
    Photo("animated-png.apng", partial(save_animated, format="PNG"), (48, 72)),
    Photo("animated-webp.webp", partial(save_animated, quality=95), (48, 72)),
    Photo("pages.tiff", save_animated, (48, 72)),
    Photo("of-a-phone.jpg", partial(save_animated, format="MPO"), (48, 72)),
    Photo("progressive.jpg", partial(save, progressive=True), (48, 72)),
    Photo("spoilt-metadata.jpg", save_with_metadata, (48, 72)),
    Photo("long-text.png", save_with_text, (48, 72)),
    Photo("bitmap.bmp", save, (48, 72)),
    Photo("plain.ppm", save, (48, 72)),
    Photo("jpeg-2000.jp2", save, (48, 72)),
    Photo("lossless.webp", partial(save, lossless=True), (48, 72)),
    Photo("tiff-16-bit.tif", partial(save_array, array=_grey16), (48, 72), is_coloured=False),
    Photo("UPPER CASE.JPG", save, (48, 72)),
    Photo("caf\N{LATIN SMALL LETTER E WITH ACUTE}, 12:30-13:00.jpg", save, (48, 72)),
    Photo("jpeg-named.png", partial(save_as, kind="JPEG"), (48, 72)),
    Photo("truncated.jpg", save_truncated, problem="not a picture that can be read"),
    Photo("empty.png", Path.touch, problem="is empty"),
    Photo("words.jpg", lambda path: path.write_text("a cat") and None, problem="not a picture in a format"),
    Photo("huge.png", save_huge, problem="9000 x 9000 pixels are too many to read"),
    Photo("page.gif", lambda path: path.write_text("<html>") and None, problem="not a picture in a format"),
)
UNREAD = ("phone.heic", "raw.dng", "vector.svg")  # endings of formats that are not read


def make_photos(folder: Path) -> dict[str, Path]:
    """Make all of them; returns the paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in PHOTOS:
        photo.make(folder / photo.name)
    return {photo.name: folder / photo.name for photo in PHOTOS}


def corners_of(pixels: NDArray[Any]) -> NDArray[Any]:
    """(4, 3): the colours of the quarters of a picture (H, W, 3), in the order of CORNERS."""
    height, width = pixels.shape[:2]
    places = [(y, x) for y in (height // 4, height * 3 // 4) for x in (width // 4, width * 3 // 4)]
    return np.array([pixels[place] for place in places])
