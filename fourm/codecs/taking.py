"""Converts what a program has in memory to the value of a codec, as if it had been read from a file.

| modality | what is taken |
| --- | --- |
| pictures, normals, edges | a PIL picture; an array (H, W, 3) or (H, W) of uint8 0..255 or floats 0..1; a torch tensor (3, H, W) or (1, H, W) of the same |
| depth | an array (H, W) of float32, or of uint16 levels; a PIL picture of 16 bits or of floats |
| classes (semseg) | an array (H, W) of integers, 255 for none; a grey or palette PIL picture |
| features | an array (C, h, w) of floats |
| captions | a str |
| boxes | a list of `Box`, of (xmin, ymin, xmax, ymax, name), or of dicts as in files; corners in fractions, 0..1 |
| palettes | a list of one to seven (red, green, blue), integers 0..255 |
| other structured values | the value of a result, the data of a JSON file, or words as the model writes them |
| T5 vectors | an array (n, E) of floats |
"""  # noqa: E501

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from fourm.codecs.files import check_ids
from fourm.codecs.images import GridCodec
from fourm.codecs.keeping import WHITE_FROM
from fourm.codecs.maps import Value, pixels_of
from fourm.codecs.table import Codec
from fourm.codecs.texts import CaptionCodec, EmbeddingCodec, StructuredCodec
from fourm.data.layout import Crop
from fourm.errors import SampleError, shown
from fourm.modalities.facts import MAX_COLOURS, Box
from fourm.modalities.registry import Kind, Modality
from fourm.modalities.text import Structured

_NUM_CORNERS, _NUM_LEVELS = 4, 3  # of a box, of a colour


def take_map(codec: GridCodec, given: Any, where: str) -> Value:
    """The whole value of a picture or map, (H, W[, C]), or of features, (C, h, w); dtypes as in files.

    `where` names it in messages. SampleError: another shape, dtype or range than in the table above.
    """
    if isinstance(given, torch.Tensor) and codec.form.resample is not None and given.ndim == 3:
        if given.shape[0] not in (1, 3, 4):
            found = f"a tensor of shape {tuple(given.shape)}"
            raise SampleError(f"{where}: {found}, where (3, H, W) or (1, H, W) belongs")
        given = given.movedim(0, 2) if given.shape[0] != 1 else given[0]
    if not isinstance(given, Image.Image):
        return codec.form.take(_array(given, where), where)
    _load(given, where)
    return codec.form.take(given, where)


def take_mask(given: Any, where: str) -> NDArray[np.bool_]:
    """A mask as (H, W) bool: of bool, of uint8, or of a picture, where levels from 128 on are True.

    SampleError: another shape or dtype.
    """
    if isinstance(given, Image.Image):
        _load(given, where)
        return pixels_of(given, "L", where) >= WHITE_FROM
    mask = _array(given, where)
    if mask.ndim != 2 or mask.dtype not in (np.bool_, np.uint8):
        found = f"{mask.dtype} of shape {mask.shape}"
        raise SampleError(
            f"{where}: {found}, where a mask is rows x columns of booleans, or of levels 0..255"
        )
    return mask if mask.dtype == np.bool_ else mask >= WHITE_FROM


def turn_upright(picture: Image.Image, where: str) -> Image.Image:
    """A picture as its EXIF tag says that it is seen; the same one without such a tag."""
    _load(picture, where)
    if picture.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return picture
    return ImageOps.exif_transpose(picture)


def take(codec: Codec, given: Any, crop: Crop | None, where: str) -> Any:
    """The value of any codec, as `Codec.read` gives it; crop: the part that the model sees, None: all.

    SampleError: the codec cannot use what is given.
    """
    match codec:
        case GridCodec():
            value = take_map(codec, given, where)
            return value if crop is None or codec.form.resample is None else codec.cut(value, crop, where)
        case CaptionCodec() if isinstance(given, str):
            return codec.fitting(given)
        case StructuredCodec() if isinstance(given, str):
            return codec.typed(given)
        case StructuredCodec():
            return _checked(codec, given, lambda data: codec.grammar.from_json(data, crop), where)
        case EmbeddingCodec():
            return codec.check(_array(given, where), where)
    raise SampleError(f"{where}: a {type(given).__name__}, where a text belongs")


def take_whole(codec: Codec, given: Any, where: str) -> Any:
    """The value of a codec for the whole picture, as `take`."""
    if not isinstance(codec, StructuredCodec) or isinstance(given, str):
        return take(codec, given, None, where)
    return _checked(codec, given, codec.grammar.whole_from_json, where)


def take_ids(row: Modality, given: Any, where: str) -> NDArray[np.int64]:
    """(L,) token ids of a list, array or tensor of shape (L,), (1, L) or that of the row's grid.

    A text has any number up to L. SampleError: another number of ids, or ids outside of the vocabulary.
    """
    ids = _array(given, where, "token ids belong")
    ids = ids.reshape(-1) if ids.shape == row.grid else ids
    count = row.max_tokens if row.kind is Kind.GRID else min(ids.shape[-1], row.max_tokens)
    return check_ids(ids, count, row.vocab_size, where)


def _load(picture: Image.Image, where: str) -> None:
    """Decode a picture that was only opened."""
    try:
        picture.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise SampleError(f"{where}: not a picture that can be read ({error})") from error
    if 0 in picture.size:
        raise SampleError(f"{where}: a picture of {picture.width} x {picture.height} pixels shows nothing")


def _array(
    given: Any, where: str, wanted: str = "a picture, an array of numbers or a path belongs"
) -> NDArray[Any]:
    """An array or tensor, or a list of numbers, as an array of numbers; float16 becomes float32."""
    try:
        if isinstance(given, torch.Tensor):  # numpy has no bfloat16
            given = (given.float() if given.is_floating_point() else given).numpy(force=True)
        array = np.asarray(given)
    # Rows of different lengths; tensors that are sparse or hold no data; what an object's __array__ raises.
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise SampleError(f"{where}: not an array of numbers ({reason})") from error
    if array.dtype.kind not in "biuf" or array.ndim == 0:
        kind = f"a {type(given).__name__}"
        found = f"{array.dtype} of shape {array.shape}" if isinstance(given, np.ndarray) else kind
        raise SampleError(f"{where}: {found}, where {wanted}")
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _checked(
    codec: StructuredCodec, given: Any, parse: Callable[[object], Any], where: str
) -> Structured[Any]:
    try:
        return codec.fitting(parse(_data(codec, given)))
    except (ValueError, TypeError, AttributeError) as error:
        raise SampleError(f"{where}: {error}") from error


def _data(codec: StructuredCodec, given: Any) -> object:
    """What a JSON file with this value would hold.

    given: a value of the grammar, a list of boxes or colours, or the data of such a file.
    """
    if isinstance(given, Structured):
        given = given.value
    if isinstance(given, Mapping):
        return {name: one.item() if isinstance(one, np.generic) else one for name, one in given.items()}
    if not isinstance(given, list | tuple | np.ndarray):
        return given
    match codec.row.codec:
        case "det":
            return {"instances": [_detection(codec, one) for one in given]}
        case "color_palette" if len(given) != 1 or not isinstance(given[0], Mapping):
            if len(given) > MAX_COLOURS:
                raise ValueError(f"a palette has at most {MAX_COLOURS} colours, not {len(given)}")
            colours = [_colour(one) for one in given]
            return [{str(len(colours)): colours} if colours else {}]
    return codec.grammar.to_json(given) if isinstance(given, tuple) else given


def _detection(codec: StructuredCodec, box: Any) -> object:
    """One box as a file has it. Its corners lie in the picture; those in data of a file are clipped to it."""
    if isinstance(box, Mapping):
        return box
    given = [*box.corners, box.name] if isinstance(box, Box) else box
    if (
        not isinstance(given, list | tuple)
        or len(given) != _NUM_CORNERS + 1
        or not isinstance(given[-1], str)
    ):
        raise ValueError(f"a box is (xmin, ymin, xmax, ymax, name), not {shown(repr(box))}")
    xmin, ymin, xmax, ymax = corners = _numbers(given[:-1])
    if not all(0 <= corner <= 1 for corner in corners):
        raise ValueError(f"corners of boxes are fractions of the picture, 0 to 1, not {shown(given[:-1])}")
    if isinstance(box, Box):  # a model may write corners in any order; its file has them put in order
        return codec.grammar.to_json([box])["instances"][0]  # type: ignore[index]
    if xmin == xmax or ymin == ymax:
        raise ValueError(f"the box {shown(given)} has no area")
    return {"boxes": corners, "class_name": given[-1]}


def _colour(given: Any) -> list[float]:
    levels = _numbers(given) if isinstance(given, list | tuple | np.ndarray) else []
    if len(levels) != _NUM_LEVELS or not all(level in range(256) for level in levels):
        what = "(red, green, blue), whole numbers from 0 to 255"
        raise ValueError(f"a colour is {what}, not {shown(given)}")
    return levels


def _numbers(given: Iterable[Any]) -> list[float]:
    """Each as a number; NaN for what is none."""
    found = list[float]()
    for one in given:
        try:
            found.append(float(one))
        except (TypeError, ValueError):
            found.append(math.nan)
    return found
