"""Colours of maps: a scale for measured values, a palette for classes, three components for features."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GREY = 128  # middle grey level
UNKNOWN = 238  # light grey level, for pixels whose value is not known
NO_CLASS = 255  # class number of pixels without a class


def _colours(table: str) -> NDArray[np.uint8]:
    """(n, 3) of n colours RRGGBB in one text of hexadecimal digits."""
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
class LegendEntry:
    """One class of a map of labels."""

    name: str
    colour: tuple[int, int, int]  # of `label_colours`, 0..255
    share: float  # of the map's pixels, above 0


def to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] -> 0..255, rounded; values outside [0, 1] are clipped."""
    return (np.nan_to_num(values).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


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
    """8-bit grey (H, W) or colours (H, W, 3) as a picture; where an alpha channel is 0, it is light grey."""
    picture = Image.fromarray(pixels)
    if picture.mode not in ("LA", "RGBA"):
        return picture
    paper = Image.new("RGBA", picture.size, (UNKNOWN, UNKNOWN, UNKNOWN, 255))
    return Image.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")


def label_colours(num_labels: int) -> NDArray[np.uint8]:
    """(256, 3) uint8: a colour for each class number, grey for no class; COCO's own for its 134 labels."""
    colours = _COCO_COLOURS
    if num_labels != NUM_COCO_LABELS:
        # Steps of the golden ratio around the colour circle keep any number of classes apart.
        hues = [colorsys.hsv_to_rgb(0.618034 * k % 1.0, 0.75, 0.95) for k in range(max(num_labels - 1, 1))]
        colours = to_bytes(np.array(hues))
    table = np.full((256, 3), GREY, dtype=np.uint8)
    table[: min(len(colours), NO_CLASS)] = colours[:NO_CLASS]
    return table


def legend(labels: NDArray[np.uint8], num_labels: int, names: Sequence[str] = ()) -> tuple[LegendEntry, ...]:
    """The classes that are present in a map (H, W), the largest first, "no class" last.

    names: of the classes from 0 on; by default those of COCO if there are 134 labels, else `class N`.
    """
    if not names and num_labels == NUM_COCO_LABELS:
        names = COCO_NAMES
    counts, colours = np.bincount(labels.reshape(-1)), label_colours(num_labels).tolist()
    known = class_names(names)
    present = sorted(np.flatnonzero(counts).tolist(), key=lambda n: (n == NO_CLASS, -counts[n]))
    return tuple(LegendEntry(known[n], tuple(colours[n]), int(counts[n]) / labels.size) for n in present)


def class_names(names: Sequence[str]) -> list[str]:
    """A name for each of the numbers 0..255: of the classes from 0 on, `class N` beyond them, "no class"."""
    return [*names[:NO_CLASS], *(f"class {n}" for n in range(len(names), NO_CLASS)), "no class"]


def paint_features(
    *maps: NDArray[np.float32], like: NDArray[np.float32] | None = None
) -> list[NDArray[np.uint8]]:
    """Feature maps (C, h, w) -> pictures (h, w, 3) uint8 of their first three principal components.

    Components and scale are those of all maps together, or of the map `like`. The sign of a component is
    that of its largest weight, so that colours are the same on every machine. Constant maps are grey. A map
    with a single place has no components: its C numbers become the pixels of one picture in Turbo colours.
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
            # Of the rectangles of C cells, the one nearest to a square.
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
    """(C, h, w) -> (h * w, C), NaN as 0."""
    return np.nan_to_num(features.reshape(len(features), -1).T.astype(np.float64))
