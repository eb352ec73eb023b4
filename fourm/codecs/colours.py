"""Colours for values that have none: depth, labels, features. Arrays in, 8-bit RGB arrays out."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm.codecs.coco import COCO_COLOURS, COCO_NAMES, NUM_COCO_LABELS

GREY = 128
NO_CLASS = 255  # in class numbers

# The Turbo colour map (A. Mikhailov, Google 2019, Apache-2.0), 256 colours from low to high, RRGGBB.
_TURBO = bytes.fromhex(
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


def turbo(values: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) of any range -> (H, W, 3): lowest dark blue, highest dark red, a constant map lowest."""
    x = np.nan_to_num(values.astype(np.float64))
    low, high = x.min(), x.max()
    x = (x - low) / (high - low) if high > low else np.zeros_like(x)
    # As Matplotlib maps [0, 1] to 256 colours, the highest value to the last one.
    return _colours(_TURBO)[(x * 256).astype(np.int64).clip(0, 255)]


def paint_labels(labels: NDArray[np.uint8], num_labels: int) -> NDArray[np.uint8]:
    """(H, W) class numbers, 255 = none -> (H, W, 3); COCO's own colours where there are COCO's 134 labels."""
    return _label_colours(num_labels)[labels]


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """One class of a map of labels."""

    name: str
    colour: tuple[int, int, int]  # as `paint_labels` paints it, 0..255
    share: float  # of the map's pixels, above 0


def legend(labels: NDArray[np.uint8], num_labels: int, names: Sequence[str] = ()) -> tuple[LegendEntry, ...]:
    """The classes that are present in a map (H, W), the largest first, "no class" last.

    names: of the classes from 0 on; without them COCO's, where there are COCO's 134 labels.
    """
    if not names and num_labels == NUM_COCO_LABELS:
        names = COCO_NAMES
    table = _label_colours(num_labels)
    found, counts = np.unique(labels, return_counts=True)
    order = sorted(
        zip(found.tolist(), counts.tolist(), strict=True), key=lambda fc: (fc[0] == NO_CLASS, -fc[1], fc[0])
    )
    entries = []
    for number, count in order:
        name = (
            "no class" if number == NO_CLASS else names[number] if number < len(names) else f"class {number}"
        )
        red, green, blue = table[number].tolist()
        entries.append(LegendEntry(name, (red, green, blue), count / labels.size))
    return tuple(entries)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureColours:
    """Three directions of features as red, green and blue, and the range that they share."""

    mean: NDArray[np.float64]  # (C,)
    components: NDArray[np.float64]  # (3, C); zeros where there are fewer than three
    low: float
    high: float  # above low


def feature_colours(maps: Sequence[NDArray[np.float32]]) -> FeatureColours | None:
    """The three principal components of maps (C, h, w), on one common scale; None where all is constant.

    In the colours of several maps a colour means the same in each of them. Signs are fixed by the largest
    weight of each component, so equal maps have equal colours, always and everywhere.
    """
    rows = np.concatenate([_places(one) for one in maps])
    if (rows == rows[0]).all():
        return None
    mean = rows.mean(axis=0)
    _, _, found = np.linalg.svd(rows - mean, full_matrices=False)
    found = found[:3]
    largest = np.abs(found).argmax(axis=1)
    components = np.zeros((3, rows.shape[1]))
    components[: len(found)] = found * np.sign(found[np.arange(len(found)), largest])[:, None]
    projected = (rows - mean) @ components.T
    return FeatureColours(mean, components, float(projected.min()), float(projected.max()))


def paint_features(features: NDArray[np.float32], colours: FeatureColours | None = None) -> NDArray[np.uint8]:
    """(C, h, w) -> (h, w, 3): features in these colours, by default in those of this one map.

    Where there are fewer than three components, the colours that are left over stay in the middle. A map of
    a single place has nothing to compare: its numbers themselves are shown, row by row, in the Turbo colours.
    What is constant is mid-grey.
    """
    channels, height, width = features.shape
    rows = _places(features)
    if len(rows) == 1 and np.ptp(rows) > 0:
        return turbo(rows.reshape(_shorter_side(channels), -1))
    colours = colours or feature_colours([features])
    if colours is None:
        return np.full((height, width, 3), GREY, dtype=np.uint8)
    projected = (rows - colours.mean) @ colours.components.T
    return to_bytes((projected - colours.low) / (colours.high - colours.low)).reshape(height, width, 3)


def _places(features: NDArray[np.float32]) -> NDArray[np.float64]:
    """(C, h, w) -> (h * w, C)."""
    return np.nan_to_num(features.reshape(len(features), -1).T.astype(np.float64))


def to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """[0, 1] -> 0..255, rounded; what lies outside is clipped."""
    return (np.nan_to_num(values).clip(0.0, 1.0) * 255.0).round().astype(np.uint8)


def _shorter_side(count: int) -> int:
    """Of the rectangle of this many cells that is nearest to a square."""
    return next(side for side in range(int(count**0.5), 0, -1) if count % side == 0)


def _label_colours(num_labels: int) -> NDArray[np.uint8]:
    """(256, 3): the colour of every class number; grey where there is no class."""
    if num_labels == NUM_COCO_LABELS:
        colours = _colours(COCO_COLOURS)
    else:
        # Steps of the golden ratio around the colour circle keep any number of classes apart.
        hues = [colorsys.hsv_to_rgb(0.618034 * k % 1.0, 0.75, 0.95) for k in range(max(num_labels - 1, 1))]
        colours = to_bytes(np.array(hues))
    table = np.full((256, 3), GREY, dtype=np.uint8)
    table[: min(len(colours), NO_CLASS)] = colours[:NO_CLASS]
    return table


def _colours(table: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(table, dtype=np.uint8).reshape(-1, 3)
