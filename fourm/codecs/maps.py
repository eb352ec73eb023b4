"""Pictures and maps: how each sort is read, cropped, prepared for its tokenizer, and coloured.

Alpha channels are dropped, and pixels are read as they are stored, as in the reference: existing crops and
tokens refer to them so. A `GridCodec` turns what is read, if a sample asks for it.
"""

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from fourm.codecs.files import MAX_PIXELS, levels_of, read_array, read_levels, read_picture
from fourm.data.layout import Crop, centre_crop
from fourm.errors import SampleError

Value = NDArray[Any]

DEPTH_LEVELS = 65535  # of 16-bit depth pictures
GREY = 128
UNKNOWN = 238  # grey level of what is not known, in pictures to look at
NO_CLASS = 255  # in class numbers


def _colours(table: str) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex(table), dtype=np.uint8).reshape(-1, 3)


# Kirillov et al. 2019, https://cocodataset.org/#panoptic-2019; the suffixes are those of the published table.
_COCO = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, "
    "stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, "
    "backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
    "baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, "
    "bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, "
    "potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave, "
    "oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush, "
    "banner, blanket, bridge, cardboard, counter, curtain, door-stuff, floor-wood, flower, fruit, gravel, "
    "house, light, mirror-stuff, net, pillow, platform, playingfield, railroad, river, road, roof, sand, "
    "sea, shelf, snow, stairs, tent, towel, wall-brick, wall-stone, wall-tile, wall-wood, water-other, "
    "window-blind, window-other, tree-merged, fence-merged, ceiling-merged, sky-other-merged, "
    "cabinet-merged, table-merged, floor-other-merged, pavement-merged, mountain-merged, grass-merged, "
    "dirt-merged, paper-merged, food-other-merged, building-other-merged, rock-merged, wall-other-merged, "
    "rug-merged"
)
COCO_NAMES = tuple(_COCO.split(", "))
NUM_COCO_LABELS = 1 + len(COCO_NAMES)  # with "no class"
# Their public colours, RRGGBB.
_COCO_COLOURS = _colours(
    "dc143c770b2000008e0000e66a00e4003c640050640000460000c0faaa1e64aa1edcdc00af74affa001ea52a2aff4dff"
    "00e2fcb6b6ff00520078a69d6e4c00ae39ffc76400480076ffb3f0007d5cd10097bcd0b600dcb0ff63a45c00498581ff"
    "4eb4ff00e400aefff32d59ff8686679194aeffd0bac5e2ffab86016d3f36cf8aff97005f09503d5469334a4169a6c466"
    "d0c3d2ff6d41008f95b300c2d1636a057900e3ffcd93bad0994501035fa1a3ff007700aa00b6c700a578b782585f2000"
    "8272876e8185a64a76db8eb94fd272b25a3e41460f7fa7733b696a8e6c2dc4ac005f3650804cffc93901f6007abfa2d0"
    "ffff8093d3cb966464a8abac9270c6d2aa645c8859da58b8f18100d911ff7c4ab5464646ffe4ff9ad000c1005c4c5b71"
    "ffb4c36a9ab0e6968c3c8fff8040805c5237fed47c494daeffa062ffffff68546da9a483e1c7ff89364a879edf07f6e7"
    "6bffc83a2995b7798eff49616b8e23be9999928b8d4682b486c79cd1e28c60246c60606040aa4098fb98d0e5e4cebaab"
    "98a14074700000728f66669cfa8dff"
)
# The Turbo colour map (A. Mikhailov, Google 2019, Apache-2.0), 256 colours from low to high, RRGGBB.
_TURBO = _colours(
    "30123b32154333184a341b51351e5836215f37246638276d392a733a2d793b2f803c32863d358b3e38913f3b973f3e9c"
    "4040a24143a74146ac4249b1424bb5434eba4451bf4454c34456c74559cb455ccf455ed34661d64664da4666dd4669e0"
    "466be3476ee64771e94773eb4776ee4778f0477bf2467df44680f64682f84685fa4687fb458afc458cfd448ffe4391fe"
    "4294ff4196ff4099ff3e9bfe3d9efe3ba0fd3aa3fc38a5fb37a8fa35abf833adf731aff52fb2f42eb4f22cb7f02ab9ee"
    "28bceb27bee925c0e723c3e422c5e220c7df1fc9dd1ecbda1ccdd81bd0d51ad2d21ad4d019d5cd18d7ca18d9c818dbc5"
    "18ddc218dec018e0bd19e2bb19e3b91ae4b61ce6b41de7b21fe9af20eaac22ebaa25eca727eea42aefa12cf09e2ff19b"
    "32f29835f39438f4913cf58e3ff68a43f78746f8844af8804ef97d52fa7a55fa7659fb735dfc6f61fc6c65fd6969fd66"
    "6dfe6271fe5f75fe5c79fe597dff5680ff5384ff5188ff4e8bff4b8fff4992ff4796fe4499fe429cfe409ffd3fa1fd3d"
    "a4fc3ca7fc3aa9fb39acfb38affa37b1f936b4f836b7f735b9f635bcf534bef434c1f334c3f134c6f034c8ef34cbed34"
    "cdec34d0ea34d2e935d4e735d7e535d9e436dbe236dde037dfdf37e1dd37e3db38e5d938e7d739e9d539ebd339ecd13a"
    "eecf3aefcd3af1cb3af2c93af4c73af5c53af6c33af7c13af8be39f9bc39faba39fbb838fbb637fcb336fcb136fdae35"
    "fdac34fea933fea732fea431fea130fe9e2ffe9b2dfe992cfe962bfe932afe9029fd8d27fd8a26fc8725fc8423fb8122"
    "fb7e21fa7b1ff9781ef9751df8721cf76f1af66c19f56918f46617f36315f26014f15d13f05b12ef5811ed5510ec530f"
    "eb500eea4e0de84b0ce7490ce5470be4450ae2430ae14109df3f08dd3d08dc3b07da3907d83706d63506d43305d23105"
    "d02f05ce2d04cc2b04ca2a04c82803c52603c32503c12302be2102bc2002b91e02b71d02b41b01b21a01af1801ac1701"
    "a91601a71401a41301a112019e10019b0f01980e01950d01920b018e0a018b09028808028507028106027e05027a0403"
)


@dataclass(frozen=True, slots=True)
class Form:
    """What is special about one sort of value on a grid."""

    read: Callable[[Path], Value]
    # What a program has, as `read` gives it: an array, or of pictures and maps also a PIL picture; the text
    # names it in messages.
    take: Callable[[Any, str], Value]
    resample: Resampling | None  # how a value is brought to the row's size; None: it stays
    prepare: Callable[[Value], Tensor]  # value -> (C, H, W) float or (H, W) int64 for the tokenizer
    finish: Callable[[Tensor], Value]  # (C, H, W) of the tokenizer -> value
    paint: Callable[[Value], NDArray[np.uint8]] = np.asarray  # value -> 8-bit picture, but for labels
    channels: int = 0  # of `prepare`, where a tokenizer may take one more for valid pixels
    outside: int = 0  # the value of what lies outside a picture
    is_normal: bool = False  # the red channel is a direction from left to right
    is_labels: bool = False  # class numbers

    @property
    def is_measured(self) -> bool:
        """Whether colours stand for numbers, from the lowest to the highest."""
        return self.paint is turbo


def read_pixels(path: Path, mode: str = "RGB", is_exact: bool = False) -> NDArray[np.uint8]:
    """(H, W, 3) of any picture, or (H, W) in mode "L"; the rest is as in `read_picture`."""
    return pixels_of(read_picture(path, is_exact), mode, str(path))


def pixels_of(image: Image.Image, mode: str, where: str) -> NDArray[np.uint8]:
    """The pixels of a picture, as `read_pixels`; `where` names it in messages."""
    if image.mode[0] in "IF":  # Pillow would clip instead of scaling
        levels = _checked_levels(image, where)
        if levels.itemsize == 4 and image.mode != "F" and 0 < levels.max() < 256:
            raise SampleError(f"{where}: has whole numbers of 32 bits below 256; save it with 8 or 16 bits")
        image = Image.fromarray(to_bytes(levels) if image.mode == "F" else (levels >> 8).astype(np.uint8))
    elif "transparency" in image.info:  # dropped like an alpha channel
        image = image.copy()
        image.info.pop("transparency")
    try:
        return np.asarray(image.convert(mode))
    except (ValueError, OSError) as error:
        raise SampleError(f"{where}: of mode {image.mode}, not to be read as {mode} ({error})") from error


def read_valid(path: Path) -> NDArray[np.uint8]:
    """(H, W) of a mask: 255 where the pixels of other maps are valid, else 0.

    A mask without white that is not all black is refused: it may use another number, such as 1, for valid.
    """
    mask = read_pixels(path, "L", is_exact=True)
    if 0 < (highest := mask.max()) < 255:
        raise SampleError(f"{path}: a mask has white, 255, for what is valid; nothing is above {highest}")
    return np.where(mask == 255, np.uint8(255), np.uint8(0))


def read_depth(path: Path) -> Value:
    """(H, W): uint16 levels of a 16-bit picture or .npy, or float32 of a .npy or a picture of fractions.

    Fractions of an array may be NaN where depth is not known.
    """
    is_array = path.suffix.lower() == ".npy"
    return depth_of(read_array(path) if is_array else read_picture(path), str(path))


def depth_of(given: Image.Image | Value, where: str) -> Value:
    """The depth in a picture or array, as `read_depth`; `where` names it in messages."""
    if not isinstance(given, Image.Image):
        if given.dtype.newbyteorder("=") == np.uint16 and given.ndim == 2 and given.size > 0:
            return given.astype(np.uint16)
        return _fractions(given, where, 2, "or 16-bit levels (uint16) ", may_be_unknown=True)
    if given.mode == "F":
        return _fractions(np.asarray(given), where, 2)
    if not given.mode.startswith("I"):
        raise SampleError(f"{where}: depth needs a 16-bit grey picture or .npy, not {given.mode}")
    return _checked_levels(given, where).astype(np.uint16)


def read_distance(path: Path) -> NDArray[np.float32]:
    """(H, W) float32 as a tokenizer reads it: a .npy as it is, 16-bit levels from -1 to 1."""
    return _distance(read_depth(path))


def _distance(depth: Value) -> NDArray[np.float32]:
    scaled = 2 * depth.astype(np.float32) / DEPTH_LEVELS - 1 if depth.dtype == np.uint16 else depth
    return scaled.astype(np.float32)


def read_features(path: Path) -> NDArray[np.float32]:
    """(C, h, w) float32."""
    if path.suffix.lower() != ".npy":
        raise SampleError(f"{path}: features are read from .npy files, channels x rows x columns")
    return _fractions(read_array(path), str(path), 3)


def _take_features(given: Image.Image | Value, where: str) -> NDArray[np.float32]:
    if isinstance(given, Image.Image):
        raise SampleError(f"{where}: features are an array, channels x rows x columns, not a picture")
    return _fractions(given, where, 3)


def _take_pixels(given: Image.Image | Value, where: str, mode: str = "RGB") -> NDArray[np.uint8]:
    """(H, W, 3), or (H, W) in mode "L": of a picture; of uint8 0..255 or of fractions 0..1."""
    if isinstance(given, Image.Image):
        return pixels_of(given, mode, where)
    is_shape = (given.ndim == 2 or (given.ndim == 3 and given.shape[2] in (3, 4))) and given.size > 0
    is_range = given.dtype in (np.uint8, np.bool_)
    if is_shape and given.dtype.kind == "f" and given.min() >= 0 and given.max() <= 1:  # nor is NaN
        given, is_range = to_bytes(given), True
    if not (is_shape and is_range):
        found = f"{given.dtype} of shape {given.shape}"
        if is_shape and given.dtype.kind in "iuf":
            found += f" from {given.min():.7g} to {given.max():.7g}"
        due = "rows x columns (x 3) of uint8 (0..255) or of fractions (0..1)"
        raise SampleError(f"{where}: {found}, where a picture is {due}")
    levels = given.astype(np.uint8) * np.uint8(255) if given.dtype == np.bool_ else given
    return pixels_of(Image.fromarray(levels), mode, where)


def _take_labels(given: Image.Image | Value, where: str) -> NDArray[np.uint8]:
    """(H, W) class numbers: of a grey or palette picture, or of whole numbers 0..255."""
    if isinstance(given, Image.Image):
        return levels_of(given, where)
    if given.ndim != 2 or given.dtype.kind not in "iu" or given.size == 0:
        found = f"{given.dtype} of shape {given.shape}"
        raise SampleError(f"{where}: {found}, where class numbers are rows x columns of whole numbers")
    for number in (given.min(), given.max()):
        if not 0 <= number <= NO_CLASS:
            raise SampleError(f"{where}: class {number} is outside 0..{NO_CLASS} ({NO_CLASS} is none)")
    return given.astype(np.uint8)


def _checked_levels(image: Image.Image, where: str) -> Value:
    levels = np.asarray(image)
    most, what = (1, "fractions") if image.mode == "F" else (DEPTH_LEVELS, "16 bits")
    if not (levels.min() >= 0 and levels.max() <= most):
        found = f"{levels.min():.7g} to {levels.max():.7g}"
        raise SampleError(f"{where}: a picture of {what} lies in 0 to {most}, not {found}")
    return levels


def _fractions(
    array: Value, where: str, rank: int, other: str = "", may_be_unknown: bool = False
) -> NDArray[np.float32]:
    """An array of this rank as finite float32; `other` is what messages name as also allowed.

    may_be_unknown: NaN is allowed, too.
    """
    if array.ndim != rank or array.dtype.kind != "f" or array.size == 0:
        found = f"{array.dtype} of shape {array.shape}"
        raise SampleError(f"{where}: {found}, where {rank} axes of fractions {other}belong")
    if may_be_unknown:
        unknown = np.isnan(array)
        return np.where(unknown, np.float32(np.nan), finite(np.where(unknown, 0, array), where))
    return finite(array, where)


def finite(array: Value, where: Path | str) -> NDArray[np.float32]:
    """The array as float32. SampleError: it holds NaN, infinity, or a number too large for float32."""
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise SampleError(f"{where}: holds values that are no finite numbers")
    return narrow


def cut(
    value: Value, crop: Crop, side: int, resample: Resampling = Resampling.NEAREST, outside: int = 0,
    path: Path | str | None = None,
) -> Value:  # fmt: skip
    """(H, W[, C]) -> the rectangle of a crop at side x side pixels, mirrored if the crop is mirrored.

    outside: the value of pixels beyond the whole picture; where it is padded, they repeat its edge.
    SampleError: the map is not as large as that.
    """
    if value.shape[:2] != crop.whole:
        found, whole = (f"{width} x {height}" for height, width in (value.shape[:2], crop.whole))
        both = f"{found} pixels, but the picture of this sample has {whole}"
        raise SampleError(f"{path}: {both}; one crop cannot mean the same in both")
    if crop.is_padded:
        return _pad(value, crop, side, resample, path)
    left, top, right, bottom = crop.shown
    seen = value[top:bottom, left:right]
    square = np.full((crop.height, crop.width, *value.shape[2:]), outside, dtype=value.dtype)
    above, before = top - crop.top, left - crop.left
    square[above : above + len(seen), before : before + seen.shape[1]] = seen
    if square.shape[:2] != (side, side):
        square = np.asarray(Image.fromarray(square).resize((side, side), resample))
    return np.ascontiguousarray(square[:, ::-1]) if crop.mirrored else square


def _pad(value: Value, crop: Crop, side: int, resample: Resampling, path: Path | str | None) -> Value:
    """All of a map in the middle of a square, between borders that repeat its edge."""
    height, width = crop.whole
    if max(crop.whole) * side > MAX_PIXELS:
        raise SampleError(f"{path}: {width} x {height} pixels are too long for a square around them")

    def resize(part: Value, size: tuple[int, int]) -> Value:
        return part if part.shape[1::-1] == size else np.asarray(Image.fromarray(part).resize(size, resample))

    # The longer axis is resized before the border is added, so that a long picture takes little memory.
    strip = resize(value, (side, height) if width > height else (width, side))
    before = (-crop.top, 0) if width > height else (0, -crop.left)
    missing = (crop.height - height - before[0], crop.width - width - before[1])
    after = (missing[0], 0) if width > height else (0, missing[1])
    borders = [*zip(before, after, strict=True), *[(0, 0)] * (value.ndim - 2)]
    return resize(np.pad(strip, borders, mode="edge"), (side, side))


def fit_square(value: Value, side: int, resample: Resampling = Resampling.NEAREST) -> Value:
    """The largest centred square of (H, W[, C]), offset rounded down, at side x side pixels."""
    return cut(value, centre_crop(*value.shape[:2]), side, resample)


def unit(value: Value) -> Tensor:
    """uint8 (H, W, 3) or (H, W) -> (C, H, W) in [0, 1]."""
    x = torch.from_numpy(value.astype(np.float32)) / 255
    return x.unsqueeze(0) if x.ndim == 2 else rearrange(x, "h w c -> c h w")


def standardise_depth(depth: Value) -> Tensor:
    """(H, W) -> (1, H, W), centred and scaled by the middle 80 % of its values; uint16 means 0 to 1."""
    x = torch.from_numpy(depth.astype(np.float64))  # so that a constant map is exactly 0
    x = x / DEPTH_LEVELS if depth.dtype == np.uint16 else x
    ordered = x.flatten().sort().values
    kept = ordered[int(0.1 * len(ordered)) : int(0.9 * len(ordered))]
    return ((x - kept.mean()) / (kept.var() + 1e-6).sqrt()).float().unsqueeze(0)


def _signed_unit(value: Value) -> Tensor:
    """uint8 -> (C, H, W) in [-1, 1]."""
    return (unit(value) - 0.5) / 0.5


def _finish_colours(x: Tensor) -> Value:
    return to_bytes(rearrange((x[:3] + 1) / 2, "c h w -> h w c").numpy())


def _finish_edges(x: Tensor) -> Value:
    edges = x[:3] if len(x) > 2 else x[:1]  # one channel more would be a mask
    return to_bytes((edges.mean(dim=0).numpy() + 1) / 2)


# Label 0 is "no class": class numbers start at 0 for label 1, and no class wraps around to 255.
def _prepare_labels(classes: Value) -> Tensor:
    return torch.from_numpy((classes + np.uint8(1)).astype(np.int64))


def _finish_labels(logits: Tensor) -> Value:
    return logits.argmax(dim=0).numpy().astype(np.uint8) - np.uint8(1)


def turbo(values: NDArray[Any], limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """(H, W) of any range -> (H, W, 3) from dark blue to dark red, light grey where a value is not known.

    limits: the values at the two ends of the scale, by default the lowest and the highest; others beyond them
    have the colours of the ends. A constant map is dark blue.
    """
    low, high = limits or limits_of([values])
    is_known = np.isfinite(values)
    x = (np.where(is_known, values, low).astype(np.float64) - low) / ((high - low) or 1.0)
    # As Matplotlib maps [0, 1] to 256 colours, the highest value to the last one.
    colours = _TURBO[(x.clip(0, 1) * 256).astype(np.int64).clip(0, 255)]
    return np.where(is_known[..., None], colours, np.uint8(UNKNOWN))


def limits_of(values: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """The lowest and the highest known value of some maps; (0, 0) if there is none."""
    known = np.concatenate([one[np.isfinite(one)].astype(np.float64) for one in values])
    return (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)


def picture_of(pixels: NDArray[np.uint8]) -> Image.Image:
    """8-bit grey (H, W) or colours (H, W, 3) as a picture; with a channel more, light grey where it is 0."""
    picture = Image.fromarray(pixels)
    if picture.mode not in ("LA", "RGBA"):
        return picture
    paper = Image.new("RGBA", picture.size, (UNKNOWN, UNKNOWN, UNKNOWN, 255))
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")


def label_colours(num_labels: int) -> NDArray[np.uint8]:
    """(256, 3): a colour for each class number, grey for 255 = none; COCO's own for its 134 labels."""
    colours = _COCO_COLOURS
    if num_labels != NUM_COCO_LABELS:
        # Steps of the golden ratio around the colour circle keep any number of classes apart.
        hues = [colorsys.hsv_to_rgb(0.618034 * k % 1.0, 0.75, 0.95) for k in range(max(num_labels - 1, 1))]
        colours = to_bytes(np.array(hues))
    table = np.full((256, 3), GREY, dtype=np.uint8)
    table[: min(len(colours), NO_CLASS)] = colours[:NO_CLASS]
    return table


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One class of a map of labels."""

    name: str
    colour: tuple[int, int, int]  # of `label_colours`, 0..255
    share: float  # of the map's pixels, above 0


def legend(labels: NDArray[np.uint8], num_labels: int, names: Sequence[str] = ()) -> tuple[LegendEntry, ...]:
    """The classes that are present in a map (H, W), the largest first, "no class" last.

    names: of the classes from 0 on; without them COCO's, where there are COCO's 134 labels.
    """
    if not names and num_labels == NUM_COCO_LABELS:
        names = COCO_NAMES
    counts, colours = np.bincount(labels.reshape(-1)), label_colours(num_labels).tolist()
    known = [*names[:NO_CLASS], *(f"class {n}" for n in range(len(names), NO_CLASS)), "no class"]
    present = sorted(np.flatnonzero(counts).tolist(), key=lambda n: (n == NO_CLASS, -counts[n]))
    return tuple(LegendEntry(known[n], tuple(colours[n]), int(counts[n]) / labels.size) for n in present)


def paint_features(
    *maps: NDArray[np.float32], like: NDArray[np.float32] | None = None
) -> list[NDArray[np.uint8]]:
    """(C, h, w) each -> (h, w, 3) each: three principal components, on one scale for all maps.

    like: the map whose components and scale they are, by default those of all maps together.
    Signs are fixed by the largest weight of each component, so that colours are the same on every machine.
    Missing components are 128, and constant maps are mid-grey. A map of a single place has nothing to
    compare: its numbers are shown row by row in the Turbo colours.
    """
    rows = [_rows_of(one) for one in maps]
    everything = np.concatenate(rows) if like is None else _rows_of(like)
    mean = everything.mean(axis=0)
    found = np.linalg.svd(everything - mean, full_matrices=False)[2][:3]
    largest = np.abs(found).argmax(axis=1)
    components = np.zeros((3, everything.shape[1]))
    components[: len(found)] = found * np.sign(found[np.arange(len(found)), largest])[:, None]
    projected = (everything - mean) @ components.T
    low, high = projected.min(), projected.max()
    pictures = list[NDArray[np.uint8]]()
    for one, places in zip(maps, rows, strict=True):
        channels, height, width = one.shape
        if len(places) == 1 and np.ptp(places) > 0:
            # Of the rectangles of this many cells the one nearest to a square.
            shorter = next(side for side in range(int(channels**0.5), 0, -1) if channels % side == 0)
            limits = None if like is None else limits_of([like])
            pictures.append(turbo(places.reshape(shorter, -1), limits))
        elif (everything == everything[0]).all():
            pictures.append(np.full((height, width, 3), GREY, dtype=np.uint8))
        else:
            scaled = ((places - mean) @ components.T - low) / (high - low)
            pictures.append(to_bytes(scaled).reshape(height, width, 3))
    return pictures


def _rows_of(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """(C, h, w) -> (h * w, C)."""
    return np.nan_to_num(features.reshape(len(features), -1).T.astype(np.float64))


def to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] -> 0..255, rounded; values outside [0, 1] are clipped."""
    return (np.nan_to_num(values).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


_BICUBIC, _NEAREST = Resampling.BICUBIC, Resampling.NEAREST
_COLOURS = Form(read_pixels, _take_pixels, _BICUBIC, _signed_unit, _finish_colours, channels=3)
_DEPTH = Form(read_depth, depth_of, _BICUBIC, standardise_depth, lambda x: x[0].numpy(), turbo, channels=1)
_DISTANCE = replace(
    _DEPTH, read=read_distance, take=lambda given, where: _distance(depth_of(given, where)),
    prepare=lambda depth: torch.tensor(depth)[None],
)  # fmt: skip
_EDGES = Form(
    partial(read_pixels, mode="L"), partial(_take_pixels, mode="L"), _BICUBIC, _signed_unit, _finish_edges,
    channels=1,
)  # fmt: skip
_LABELS = Form(
    read_levels, _take_labels, _NEAREST, _prepare_labels, _finish_labels, outside=NO_CLASS, is_labels=True
)
_FEATURES = Form(
    read_features, _take_features, None, torch.from_numpy, Tensor.numpy, lambda x: paint_features(x)[0]
)
# By the codec name of a row; `tok_edge`, `tok_feature` and `tok_distance` are for rows of one's own.
FORMS: dict[str, Form] = {
    "tok_rgb": _COLOURS,
    "tok_normal": replace(_COLOURS, is_normal=True),
    "tok_depth": _DEPTH,
    "tok_distance": _DISTANCE,
    "tok_semseg": _LABELS,
    **dict.fromkeys(("tok_edge", "tok_canny_edge", "tok_sam_edge"), _EDGES),
    **dict.fromkeys(("tok_feature", "tok_clip", "tok_dinov2", "tok_imagebind"), _FEATURES),
    **dict.fromkeys(("tok_dinov2_global", "tok_imagebind_global"), _FEATURES),
}
