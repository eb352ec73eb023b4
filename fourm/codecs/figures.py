"""Draws values whose parts are codes of a tokenizer: people, and the masks of instances.

The eight codes of a pose are decoded to rotations of 23 joints of a fixed skeleton. They were made for the
SMPL body model, which has its own licence and is not used, so the shape of a body (`betas`) is not drawn.
The 16 codes of an instance are decoded to a mask within its box.
"""

import colorsys
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import chain, cycle

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

from fourm.codecs.drawing import Ink, font_for
from fourm.modalities.figures import PICTURE_SIDE, Groups, People, Person

Decode = Callable[[Sequence[tuple[int, ...]]], NDArray[np.float32]]  # codes (n, k) -> (n, C, H, W)
Floats = NDArray[np.float64]
Masks = NDArray[np.float32]
Corners = NDArray[np.int64]  # (n, 4) xmin, ymin, xmax, ymax in pixels

POSE_NUMBERS = 23 * 9  # channels of the pose tokenizer: a rotation matrix of every joint but the pelvis
FOCAL_LENGTH = 5000 / 256 * PICTURE_SIDE  # pixels
_SCALE = 2  # pixels of the drawing per pixel of the picture that the people are in
_SIDE = PICTURE_SIDE * _SCALE
_FINE = 3  # limbs are drawn at this multiple of the size, then reduced for smooth edges
_NEAR = 0.5  # metres: a person nearer to the camera, or behind it, is not drawn
_FAR_OUT = 8 * PICTURE_SIDE  # pixels from the picture's corner beyond which a person is not drawn
_FONT_SIZE = 18

_MIN_CONTRAST = 0.9  # a mask is not drawn if its largest and smallest probability differ by less
# Two masks are of one object if their Dice coefficient and their boxes' intersection over union are larger.
_MIN_DICE, _MIN_IOU = 0.8, 0.9
_SMOOTH = 0.01  # added to both parts of the Dice fraction, so that it is finite for empty masks

# The middle and left half of the skeleton: a joint, its parent, and its offset from the parent in metres,
# with the arms spread; x points to the person's left, y up, z to the front. The order is that of SMPL, in
# which each left joint is followed by its mirror image. The skull is the middle of the head, not a joint.
_HALF = (
    ("pelvis", "", (0.0, -0.20, 0.0)), ("left_hip", "pelvis", (0.09, -0.08, 0.0)),
    ("spine1", "pelvis", (0.0, 0.11, 0.0)), ("left_knee", "left_hip", (0.0, -0.41, 0.0)),
    ("spine2", "spine1", (0.0, 0.13, 0.0)), ("left_ankle", "left_knee", (0.0, -0.41, -0.02)),
    ("spine3", "spine2", (0.0, 0.07, 0.0)), ("left_foot", "left_ankle", (0.02, -0.05, 0.13)),
    ("neck", "spine3", (0.0, 0.20, 0.0)), ("left_collar", "spine3", (0.07, 0.12, 0.0)),
    ("head", "neck", (0.0, 0.09, 0.02)), ("left_shoulder", "left_collar", (0.11, 0.03, 0.0)),
    ("left_elbow", "left_shoulder", (0.27, 0.0, 0.0)), ("left_wrist", "left_elbow", (0.25, 0.0, 0.0)),
    ("left_hand", "left_wrist", (0.09, 0.0, 0.0)), ("skull", "head", (0.0, 0.10, 0.03)),
)  # fmt: skip
# Limbs on the left: both ends, and the radius in metres.
_LEFT_LIMBS = (
    ("left_collar", "left_shoulder", 0.06), ("left_hip", "left_knee", 0.075),
    ("left_knee", "left_ankle", 0.055), ("left_ankle", "left_foot", 0.045),
    ("left_shoulder", "left_elbow", 0.05), ("left_elbow", "left_wrist", 0.04),
    ("left_wrist", "left_hand", 0.038),
)  # fmt: skip


def _mirrored(name: str) -> str:
    return name.replace("left", "right")


_JOINTS = tuple(dict.fromkeys(  # joints in the middle are their own mirror images
    joint for name, parent, (x, y, z) in _HALF
    for joint in ((name, parent, (x, y, z)), (_mirrored(name), _mirrored(parent), (-x, y, z)))
))  # fmt: skip
_NAMES = [name for name, _, _ in _JOINTS]
_LIMBS = (
    ("left_hip", "right_hip", 0.09), ("pelvis", "spine2", 0.11), ("spine2", "neck", 0.09),
    ("neck", "head", 0.05), ("skull", "skull", 0.11),
    *_LEFT_LIMBS, *((_mirrored(start), _mirrored(end), radius) for start, end, radius in _LEFT_LIMBS),
)  # fmt: skip
# A limb as drawn: metres from the camera; x, y of both ends, and the radius, in fine pixels; colour.
_Stroke = tuple[float, list[float], float, Ink]


def draw_figures(people: People, decode: Decode | None = None) -> Image.Image:
    """Draw each person as a figure in their box; decode turns pose codes (n, 8) into (n, 207, 1, 1).

    Without `decode`, that is, without a tokenizer for poses, only boxes and numbers are drawn.
    """
    image, notes = Image.new("RGB", (_SIDE, _SIDE), "white"), list[str]()
    if decode is None:
        for person in people:
            first, second = (" ".join(map(str, c)) for c in (person.pose_codes[:4], person.pose_codes[4:]))
            camera = "scale {:.2f}, x {:.2f}, y {:.2f}".format(*person.camera)
            notes.append(f"\n{first}\n{second}\n{camera}")
    elif people:
        figures = [_strokes(places, _colour(n)) for n, places in enumerate(_joints_of(people, decode))]
        notes = ["" if strokes else "\nout of sight" for strokes in figures]
        image = _draw_strokes(chain.from_iterable(figures))
    draw, font = ImageDraw.Draw(image), font_for("", _FONT_SIZE)
    if not people:
        draw.text((_SIDE / 2, _SIDE / 2), "nobody", "dimgrey", font, "mm")
    for index, person in enumerate(people):
        x0, y0, x1, y1 = (min(corner * _SCALE, _SIDE - 1) for corner in person.box)
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        draw.rectangle(corners, outline=_colour(index), width=3)
    # Texts are drawn last, so that no box of another person covers them.
    for index, (person, note) in enumerate(zip(people, notes, strict=True)):
        text = f"{index + 1}{note}"
        _, _, width, height = draw.multiline_textbbox((0, 0), text, font)
        x, y = (min(corner * _SCALE, _SIDE - 1) for corner in person.box[:2])
        # The text stays inside the picture, also where the box is at its edge.
        at = max(min(x + 6, _SIDE - width - 4), 4), max(min(y + 5, _SIDE - height - 4), 4)
        _draw_text(image, at, text, _darkened(_colour(index), 0.5))
    if decode is None and people:
        note = "boxes and numbers: no tokenizer for poses"
        _draw_text(image, (image.width / 2, image.height - 12), note, (0, 0, 0), "mm")
    return image


def draw_instances(groups: Groups, decode: Decode | None = None) -> Image.Image:
    """Draw the instances at all query points; decode turns codes (n, 16) into logits (n, 1, H, W).

    Without `decode`, that is, without a tokenizer for masks, only boxes are drawn.
    """
    found = [instance for group in groups for instance in group.instances]
    boxes = np.array([instance.box for instance in found], dtype=np.int64).reshape(-1, 4)
    if decode is not None:
        codes = [instance.codes for instance in found]
        logits = decode(codes)[:, 0] if codes else np.zeros((0, 1, 1), dtype=np.float32)
        probabilities = 0.5 + 0.5 * np.tanh(0.5 * logits)  # the sigmoid; `exp` in its usual form overflows
        return Image.fromarray(paint_instances(boxes, probabilities))
    image = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE))
    draw = ImageDraw.Draw(image)
    largest_first = boxes[np.argsort(-_areas(boxes), kind="stable")].clip(max=PICTURE_SIDE - 1).tolist()
    distinct = dict.fromkeys(map(tuple, largest_first))
    bright = (instance_colours() // 2 + 128).tolist()  # some colours are too dark for a thin line
    for box, colour in zip(distinct, cycle(bright), strict=False):
        draw.rectangle(box, outline=tuple(colour), width=2)
    note, font = "boxes only: no tokenizer for masks", font_for("", 12)
    place = (PICTURE_SIDE / 2, PICTURE_SIDE - 10)
    draw.rectangle(draw.textbbox(place, note, font, "mm"), "black")
    draw.text(place, note, "white", font, "mm")
    return image


def paint_instances(boxes: Corners, masks: Masks) -> NDArray[np.uint8]:
    """Paint masks (n, H, W), probabilities for the inside of their boxes; returns RGB pixels (224, 224, 3).

    Large boxes are painted first, so that small objects stay visible; masks of the same object are averaged.
    """
    picture = np.zeros((PICTURE_SIDE, PICTURE_SIDE, 3), dtype=np.uint8)
    order = np.argsort(-_areas(boxes), kind="stable")
    order = order[np.ptp(masks[order], axis=(1, 2)) >= _MIN_CONTRAST]
    boxes, masks = boxes[order], masks[order]
    for members, colour in zip(_group_instances(boxes, masks), cycle(instance_colours()), strict=False):
        x0, y0, x1, y1 = boxes[members].mean(axis=0).astype(np.int64).tolist()
        # Bicubic with the coefficient -0.75 and without antialiasing, as in the reference.
        mask = torch.from_numpy(masks[members].mean(axis=0))[None, None]  # (1, 1, H, W)
        mask = interpolate(mask, (y1 - y0, x1 - x0), mode="bicubic", align_corners=False)[0, 0]
        seen = picture[y0:y1, x0:x1]
        seen[mask.numpy()[: seen.shape[0], : seen.shape[1]] > 0.5] = colour
    return picture


@cache
def instance_colours() -> NDArray[np.uint8]:
    """RGB colours (1000, 3) in [0, 254], the same as in the reference; the caller repeats them."""
    return np.random.default_rng(0).integers(0, 255, (1000, 3)).astype(np.uint8)


def camera_translation(person: Person) -> tuple[float, float, float]:
    """The position of a person relative to a camera at the picture's middle: metres right, down, ahead."""
    left, top, right, bottom = person.box
    scale, x, y = person.camera
    size = max(right - left, bottom - top) * scale + 1e-9
    across, down = (left + right) / 2 - PICTURE_SIDE / 2, (top + bottom) / 2 - PICTURE_SIDE / 2
    return 2 * across / size + x, 2 * down / size + y, 2 * FOCAL_LENGTH / size


def nearest_rotations(matrices: Floats) -> Floats:
    """The rotation matrices nearest to (..., 3, 3) matrices; a tokenizer decodes only approximate ones."""
    u, _, v = np.linalg.svd(matrices)
    u[..., -1] *= np.linalg.det(u @ v)[..., None]
    return u @ v


def place_joints(orientation: Floats, rotations: Floats) -> Floats:
    """Places (25, 3) in metres: the 24 joints of SMPL in its order, then the middle of the head.

    orientation: (3, 3) of the body. rotations: (23, 3, 3) of the other joints, each relative to its parent.
    """
    (root, _, place), *others = _JOINTS
    places, turns = {root: np.array(place)}, {root: orientation}
    # The middle of the head is not a joint, so it has no rotation of its own.
    for (name, parent, offset), rotation in zip(others, [*rotations, np.eye(3)], strict=True):
        places[name] = places[parent] + turns[parent] @ np.array(offset)
        turns[name] = turns[parent] @ rotation
    return np.stack(list(places.values()))


def find_joints(people: People, decode: Decode) -> Floats:
    """Joints (n, 25, 2) of n people in pixels of the picture; NaN for those behind the camera.

    Their order is that of `place_joints`; decode is as in `draw_figures`.
    """
    places = _joints_of(people, decode)
    return _seen(np.where(places[..., 2:] > 0, places, np.nan))


def _joints_of(people: People, decode: Decode) -> Floats:
    """Joints (n, 25, 3) of n people in metres from the camera: to its right, down, ahead."""
    if not people:
        return np.zeros((0, len(_NAMES), 3))
    decoded = decode([person.pose_codes for person in people]).astype(np.float64)
    rotations, places = nearest_rotations(decoded.reshape(len(people), -1, 3, 3)), list[Floats]()
    for person, turns in zip(people, rotations, strict=True):
        orientation = nearest_rotations(np.array(person.orientation))
        places.append(place_joints(orientation, turns) + np.array(camera_translation(person)))
    return np.stack(places)


def _seen(places: Floats) -> Floats:
    """Where places (..., 3) in metres from the camera are in the picture, (..., 2) pixels."""
    return FOCAL_LENGTH * places[..., :2] / places[..., 2:] + PICTURE_SIDE / 2


def _strokes(places: Floats, colour: Ink) -> list[_Stroke]:
    """The limbs of a person with joints (25, 3); [] for a person out of sight."""
    depths = places[:, 2]
    if depths.min() < _NEAR:
        return []
    seen = _seen(places)
    if np.abs(seen).max() > _FAR_OUT:
        return []
    fine, found = _SCALE * _FINE, list[_Stroke]()
    for start, end, radius in _LIMBS:
        ends = [_NAMES.index(start), _NAMES.index(end)]
        depth = float(depths[ends].mean())
        # The front of a body is lighter than its back, which shows which arm is nearer.
        light = 1.0 - 0.5 * float(np.clip(depth - depths.mean() + 0.3, 0.0, 0.6))
        thickness = max(FOCAL_LENGTH * radius / depth * fine, 1.0)
        found.append((depth, (seen[ends] * fine).flatten().tolist(), thickness, _darkened(colour, light)))
    return found


def _draw_strokes(strokes: Iterable[_Stroke]) -> Image.Image:
    """Draw limbs on white, the farthest first."""
    image = Image.new("RGB", (_SIDE * _FINE, _SIDE * _FINE), "white")
    draw = ImageDraw.Draw(image)
    for _, ends, inner, colour in sorted(strokes, key=lambda stroke: -stroke[0]):
        for radius, ink in ((inner + _FINE, _darkened(colour, 0.5)), (inner, colour)):  # edge first
            draw.line(ends, ink, round(2 * radius))
            for x, y in (ends[:2], ends[2:]):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), ink)
    return image.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)


def _draw_text(
    image: Image.Image, at: tuple[float, float], text: str, colour: Ink, anchor: str = "la"
) -> None:
    """Draw text on a white rectangle."""
    draw, font = ImageDraw.Draw(image), font_for("", _FONT_SIZE)
    x0, y0, x1, y1 = draw.multiline_textbbox(at, text, font, anchor)
    draw.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), "white")
    draw.multiline_text(at, text, colour, font, anchor)


def _colour(index: int) -> Ink:
    """The colour of a person; steps of the golden ratio around the colour circle give distinct hues."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + 0.618034 * index) % 1.0, 0.65, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _darkened(colour: Ink, light: float) -> Ink:
    """The colour times light, in [0, 1]."""
    red, green, blue = colour
    return int(red * light), int(green * light), int(blue * light)


def _group_instances(boxes: Corners, masks: Masks) -> list[list[int]]:
    """Indices grouped by object: each instance joins the first group whose first member it resembles."""
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    areas, sums = _areas(boxes), flat.sum(axis=1)
    groups = dict[int, list[int]]()  # by their first members
    for index, box in enumerate(boxes):
        firsts = np.array(list(groups), dtype=np.int64)
        low, high = np.maximum(boxes[firsts, :2], box[:2]), np.minimum(boxes[firsts, 2:], box[2:])
        intersection = (high - low).clip(min=0).prod(axis=1)
        iou = intersection / (areas[firsts] + areas[index] - intersection)
        near = firsts[iou > _MIN_IOU]
        dice = 2 * (flat[near] @ flat[index] + _SMOOTH) / (sums[near] + sums[index] + _SMOOTH)
        alike = near[dice > _MIN_DICE].tolist()
        groups.setdefault(alike[0] if alike else index, []).append(index)
    return list(groups.values())


def _areas(boxes: Corners) -> NDArray[np.int64]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
