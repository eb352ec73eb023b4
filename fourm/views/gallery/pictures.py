"""Pictures as data of a page: exact where they are small or flat, smaller and lossy where they are photos."""

import base64
import io
from typing import TypedDict

import numpy as np
from PIL import Image

EXACT_SIDE = 128  # pixels: pictures up to this size are kept as they are
MAX_COLOURS = 256  # so are those with so few colours: labels, edges, drawn text
QUALITY = 86  # of WebP


class Embedded(TypedDict):
    """A picture in the JSON of a page."""

    type: str  # "png" or "webp"
    width: int
    height: int
    exact: bool  # every pixel is as it was
    data: str  # base64


def encode(picture: Image.Image, side: int) -> Embedded:
    """A picture for a page; a photo's longest side is at most `side` pixels."""
    picture = picture.convert("RGB")
    exact = True
    if picture.getcolors(MAX_COLOURS) is not None:
        picture = _with_palette(picture)
    elif max(picture.size) > EXACT_SIDE:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        exact = False
    kind, buffer = "png" if exact else "webp", io.BytesIO()
    picture.save(buffer, format=kind, **({"compress_level": 9} if exact else {"quality": QUALITY}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Embedded(type=kind, width=picture.width, height=picture.height, exact=exact, data=data)


def _with_palette(picture: Image.Image) -> Image.Image:
    """The same pixels in fewer bytes. Pillow's own way there merges colours that are alike."""
    pixels = np.asarray(picture).astype(np.uint32) << np.array([16, 8, 0], np.uint32)
    colours, places = np.unique(pixels.sum(axis=-1), return_inverse=True)  # (H, W) -> (N,), (H, W)
    flat = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8))
    flat.putpalette(b"".join(int(colour).to_bytes(3, "big") for colour in colours))
    return flat
