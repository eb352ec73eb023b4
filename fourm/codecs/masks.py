"""SAM instances as a picture: masks decoded, those of one thing merged, each painted in its own colour."""

from functools import cache
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

from fourm.codecs.drawing import font_for
from fourm.codecs.parts import Decode
from fourm.modalities.instances import Groups
from fourm.modalities.text import PICTURE_SIDE

Masks = NDArray[np.float32]
Boxes = NDArray[np.int64]

MASK_CODES = (4, 4)  # the grid of one mask's codes
_NUM_COLOURS = 1000  # more groups than that start over
_FLAT = 0.9  # a mask whose probabilities differ by less says nothing
_ALIKE, _SAME_PLACE = 0.8, 0.9  # masks and boxes of one thing agree by more
_SMOOTH = 0.01  # keeps the similarity of empty masks finite


def draw_instances(groups: Groups, decode: Decode) -> Image.Image:
    """The instances at all query points; decode gives logits (n, 1, H, W) of codes (n, 16)."""
    instances = [instance for group in groups for instance in group.instances]
    if not instances:
        return Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE))
    logits = decode([instance.codes for instance in instances])[:, 0]
    # tanh does not overflow where a plain sigmoid would.
    masks = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return Image.fromarray(paint_instances(_boxes_of(groups), masks))


def outline_instances(groups: Groups) -> Image.Image:
    """The boxes alone, where there is no tokenizer that decodes masks."""
    image = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE))
    draw = ImageDraw.Draw(image)
    boxes = dict.fromkeys(
        tuple(box) for box in _by_area(_boxes_of(groups)).clip(max=PICTURE_SIDE - 1).tolist()
    )
    bright = (palette() // 2 + 128).tolist()  # some colours are too dark for a thin line
    for box, colour in zip(boxes, cycle(bright), strict=False):
        draw.rectangle(box, outline=tuple(colour), width=2)
    place, note, font = (
        (PICTURE_SIDE / 2, PICTURE_SIDE - 10),
        "boxes only: no tokenizer for masks",
        font_for("", 12),
    )
    draw.rectangle(draw.textbbox(place, note, font, "mm"), "black")
    draw.text(place, note, "white", font, "mm")
    return image


def paint_instances(boxes: Boxes, masks: Masks) -> NDArray[np.uint8]:
    """(n, 4) xmin, ymin, xmax, ymax in pixels, (n, H, W) probabilities within them -> (224, 224, 3).

    Large boxes come first, so that small things lie on top; masks of one thing are averaged.
    """
    picture = np.zeros((PICTURE_SIDE, PICTURE_SIDE, 3), dtype=np.uint8)
    order = np.argsort(-_areas(boxes), kind="stable")
    boxes, masks = boxes[order], masks[order]
    says_something = np.ptp(masks, axis=(1, 2)) >= _FLAT
    boxes, masks = boxes[says_something], masks[says_something]
    for members, colour in zip(_merge(boxes, masks), cycle(palette()), strict=False):
        x0, y0, x1, y1 = boxes[members].mean(axis=0).astype(np.int64).tolist()
        mask = _resize(masks[members].mean(axis=0), y1 - y0, x1 - x0)
        seen = picture[y0:y1, x0:x1]
        seen[mask[: seen.shape[0], : seen.shape[1]] > 0.5] = colour
    return picture


@cache
def palette() -> NDArray[np.uint8]:
    """(1000, 3) colours, the reference's: draws of NumPy's default generator with seed 0."""
    return np.random.default_rng(0).integers(0, 255, (_NUM_COLOURS, 3)).astype(np.uint8)


def _merge(boxes: Boxes, masks: Masks) -> list[list[int]]:
    """Groups of instances that are one thing: each joins the first group whose first member it resembles."""
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    sums = flat.sum(axis=1)
    groups = list[list[int]]()
    for index in range(len(boxes)):
        firsts = np.array([group[0] for group in groups], dtype=np.int64)
        near = np.flatnonzero(_overlap(boxes[firsts], boxes[index]) > _SAME_PLACE)
        those = firsts[near]
        shared = flat[those] @ flat[index]
        alike = 2 * (shared + _SMOOTH) / (sums[those] + sums[index] + _SMOOTH) > _ALIKE
        if alike.any():
            groups[near[alike.argmax()]].append(index)
        else:
            groups.append([index])
    return groups


def _overlap(boxes: Boxes, box: Boxes) -> NDArray[np.float64]:
    """(n, 4), (4,) -> (n,) intersection over union."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    shared = (high - low).clip(min=0).prod(axis=1)
    return shared / (_areas(boxes) + _areas(box[None]) - shared)


def _resize(mask: Masks, height: int, width: int) -> Masks:
    """Bicubic with the coefficient -0.75 and without antialiasing, as the reference's."""
    x = torch.from_numpy(mask)[None, None]  # (1, 1, H, W)
    return interpolate(x, (height, width), mode="bicubic", align_corners=False)[0, 0].numpy()


def _by_area(boxes: Boxes) -> Boxes:
    return boxes[np.argsort(-_areas(boxes), kind="stable")]


def _areas(boxes: Boxes) -> NDArray[np.int64]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _boxes_of(groups: Groups) -> Boxes:
    found = [instance.box for group in groups for instance in group.instances]
    return np.array(found, dtype=np.int64).reshape(-1, 4)
