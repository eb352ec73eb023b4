"""Draws values whose parts are codes of a tokenizer: people, and the masks of instances.

Eight codes of a pose are decoded to the rotations of 23 joints, which bend a skeleton of round numbers. The
SMPL body, for which they are meant, is licensed separately and not used: shapes of bodies (`betas`) are not
drawn. Sixteen codes of a mask are decoded to a mask within a box; masks of one thing are painted as one.
"""

import colorsys
from collections.abc import Callable, Sequence
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

POSE_NUMBERS = 23 * 9  # that the pose tokenizer gives: a rotation matrix of every joint but the pelvis
FOCAL_LENGTH = 5000 / 256 * PICTURE_SIDE  # pixels
_SCALE = 2  # pixels of the drawing per pixel of the picture that poses are for
_SIDE = PICTURE_SIDE * _SCALE
_FINE = 3  # further pixels while limbs are drawn, for smooth edges
_NEAR = 0.5  # metres: whoever is nearer to the camera, or behind it, is not drawn
_FONT_SIZE = 18
_FAR_OUT = 8 * PICTURE_SIDE  # pixels: nor is who lies that far beside the picture

_FLAT = 0.9  # a mask whose probabilities differ by less says nothing
_ALIKE, _SAME_PLACE = 0.8, 0.9  # masks and boxes of one thing agree by more
_SMOOTH = 0.01  # keeps the similarity of empty masks finite

# The skeleton: a joint, the joint that it hangs on, and where it is from there, in metres: arms spread, y up,
# x to the person's left, z to the front. Each joint on the left is followed by its mirror image, as in SMPL;
# the skull is no joint, but the middle of the head.
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
# What is drawn between two of them on the left, and how thick it is.
_LEFT_LIMBS = (
    ("left_collar", "left_shoulder", 0.06), ("left_hip", "left_knee", 0.075),
    ("left_knee", "left_ankle", 0.055), ("left_ankle", "left_foot", 0.045),
    ("left_shoulder", "left_elbow", 0.05), ("left_elbow", "left_wrist", 0.04),
    ("left_wrist", "left_hand", 0.038),
)  # fmt: skip


def _right(name: str) -> str:
    return name.replace("left", "right")


_JOINTS = tuple(dict.fromkeys(  # those in the middle are their own mirror images
    joint for name, parent, (x, y, z) in _HALF
    for joint in ((name, parent, (x, y, z)), (_right(name), _right(parent), (-x, y, z)))
))  # fmt: skip
_NAMES = [name for name, _, _ in _JOINTS]
_LIMBS = (
    ("left_hip", "right_hip", 0.09), ("pelvis", "spine2", 0.11), ("spine2", "neck", 0.09),
    ("neck", "head", 0.05), ("skull", "skull", 0.11),
    *_LEFT_LIMBS, *((_right(start), _right(end), radius) for start, end, radius in _LEFT_LIMBS),
)  # fmt: skip
# Metres from the camera; x and y of both ends and the radius, in pixels of the fine drawing; colour.
_Stroke = tuple[float, list[float], float, Ink]


def draw_figures(people: People, decode: Decode | None = None) -> Image.Image:
    """Draw each person as a figure in their box; decode turns pose codes (n, 8) into (n, 207, 1, 1).

    Without it, that is, without a tokenizer for poses, only boxes and numbers are drawn.
    """
    image, notes = Image.new("RGB", (_SIDE, _SIDE), "white"), list[str]()
    if decode is None:
        for person in people:
            codes = (" ".join(map(str, some)) for some in (person.pose_codes[:4], person.pose_codes[4:]))
            notes.append("\n".join(("", *codes, "scale {:.2f}, x {:.2f}, y {:.2f}".format(*person.camera))))
    elif people:
        decoded = decode([person.pose_codes for person in people]).astype(np.float64)
        rotations = nearest_rotations(decoded.reshape(len(people), -1, 3, 3))
        figures = [_strokes(person, rotations[n], _colour(n)) for n, person in enumerate(people)]
        notes = ["" if strokes else "\nout of sight" for strokes in figures]
        fine = Image.new("RGB", (_SIDE * _FINE, _SIDE * _FINE), "white")
        draw = ImageDraw.Draw(fine)
        for _, ends, inner, colour in sorted(chain(*figures), key=lambda stroke: -stroke[0]):
            for radius, ink in ((inner + _FINE, _scaled(colour, 0.5)), (inner, colour)):  # edge first
                draw.line(ends, ink, round(2 * radius))
                for x, y in (ends[:2], ends[2:]):
                    draw.ellipse((x - radius, y - radius, x + radius, y + radius), ink)
        image = fine.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    draw, font = ImageDraw.Draw(image), font_for("", _FONT_SIZE)
    if not people:
        draw.text((_SIDE / 2, _SIDE / 2), "nobody", "dimgrey", font, "mm")
    for index, person in enumerate(people):
        x0, y0, x1, y1 = (min(corner * _SCALE, _SIDE - 1) for corner in person.box)
        corners = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        draw.rectangle(corners, outline=_colour(index), width=3)
    # Texts come last, so that no box of somebody else runs through them.
    for index, (person, note) in enumerate(zip(people, notes, strict=True)):
        text = f"{index + 1}{note}"
        # Inside of the picture, also where the box is at its edge.
        _, _, width, height = draw.multiline_textbbox((0, 0), text, font)
        x, y = (min(corner * _SCALE, _SIDE - 1) for corner in person.box[:2])
        at = max(min(x + 6, _SIDE - width - 4), 4), max(min(y + 5, _SIDE - height - 4), 4)
        _write(image, at, text, _scaled(_colour(index), 0.5))
    if decode is None and people:
        note = "boxes and numbers: no tokenizer for poses"
        _write(image, (image.width / 2, image.height - 12), note, (0, 0, 0), "mm")
    return image


def camera_translation(person: Person) -> tuple[float, float, float]:
    """The position of a person seen from a camera at the picture's middle: right, down, ahead."""
    left, top, right, bottom = person.box
    scale, x, y = person.camera
    size = max(right - left, bottom - top) * scale + 1e-9
    across, down = (left + right) / 2 - PICTURE_SIDE / 2, (top + bottom) / 2 - PICTURE_SIDE / 2
    return 2 * across / size + x, 2 * down / size + y, 2 * FOCAL_LENGTH / size


def nearest_rotations(matrices: Floats) -> Floats:
    """(..., 3, 3) -> the nearest rotation matrices; those that a tokenizer decodes are only close to one."""
    u, _, v = np.linalg.svd(matrices)
    u[..., -1] *= np.linalg.det(u @ v)[..., None]
    return u @ v


def place_joints(orientation: Floats, rotations: Floats) -> Floats:
    """(3, 3) of the body, (23, 3, 3) of the other joints -> (25, 3) joints and the middle of the head."""
    (root, _, place), *others = _JOINTS
    places, turns = {root: np.array(place)}, {root: orientation}
    for (name, parent, offset), rotation in zip(others, [*rotations, np.eye(3)], strict=True):
        places[name] = places[parent] + turns[parent] @ np.array(offset)
        turns[name] = turns[parent] @ rotation
    return np.stack(list(places.values()))


def _strokes(person: Person, rotations: Floats, colour: Ink) -> list[_Stroke]:
    """The limbs of a person; none for a person out of sight."""
    orientation = nearest_rotations(np.array(person.orientation))
    places = place_joints(orientation, rotations) + np.array(camera_translation(person))  # (25, 3)
    depths = places[:, 2]
    if depths.min() < _NEAR:
        return []
    seen = FOCAL_LENGTH * places[:, :2] / depths[:, None] + PICTURE_SIDE / 2
    if np.abs(seen).max() > _FAR_OUT:
        return []
    fine, found = _SCALE * _FINE, list[_Stroke]()
    for start, end, radius in _LIMBS:
        ends = [_NAMES.index(start), _NAMES.index(end)]
        depth = float(depths[ends].mean())
        # The front of a body is lighter than its back, so that one can tell which arm is nearer.
        light = 1.0 - 0.5 * float(np.clip(depth - depths.mean() + 0.3, 0.0, 0.6))
        thickness = max(FOCAL_LENGTH * radius / depth * fine, 1.0)
        found.append((depth, (seen[ends] * fine).flatten().tolist(), thickness, _scaled(colour, light)))
    return found


def _write(image: Image.Image, at: tuple[float, float], text: str, colour: Ink, anchor: str = "la") -> None:
    """Draw text on a white rectangle."""
    draw, font = ImageDraw.Draw(image), font_for("", _FONT_SIZE)
    x0, y0, x1, y1 = draw.multiline_textbbox(at, text, font, anchor)
    draw.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), "white")
    draw.multiline_text(at, text, colour, font, anchor)


def _colour(index: int) -> Ink:
    """Steps of the golden ratio around the colour circle keep any number of people apart."""
    red, green, blue = colorsys.hsv_to_rgb((0.58 + 0.618034 * index) % 1.0, 0.65, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


def _scaled(colour: Ink, light: float) -> Ink:
    red, green, blue = colour
    return int(red * light), int(green * light), int(blue * light)


def draw_instances(groups: Groups, decode: Decode | None = None) -> Image.Image:
    """Draw the instances at all query points; decode turns codes (n, 16) into logits (n, 1, H, W).

    Without it, that is, without a tokenizer for masks, only boxes are drawn.
    """
    found = [instance for group in groups for instance in group.instances]
    boxes = np.array([instance.box for instance in found], dtype=np.int64).reshape(-1, 4)
    if decode is not None:
        codes = [instance.codes for instance in found]
        logits = decode(codes)[:, 0] if codes else np.zeros((0, 1, 1), dtype=np.float32)
        # Does not overflow where a plain sigmoid would.
        return Image.fromarray(paint_instances(boxes, 0.5 + 0.5 * np.tanh(0.5 * logits)))
    image = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE))
    draw, place, font = ImageDraw.Draw(image), (PICTURE_SIDE / 2, PICTURE_SIDE - 10), font_for("", 12)
    largest_first = boxes[np.argsort(-_areas(boxes), kind="stable")].clip(max=PICTURE_SIDE - 1).tolist()
    bright = (instance_colours() // 2 + 128).tolist()  # some colours are too dark for a thin line
    for box, colour in zip(dict.fromkeys(map(tuple, largest_first)), cycle(bright), strict=False):
        draw.rectangle(box, outline=tuple(colour), width=2)
    note = "boxes only: no tokenizer for masks"
    draw.rectangle(draw.textbbox(place, note, font, "mm"), "black")
    draw.text(place, note, "white", font, "mm")
    return image


def paint_instances(boxes: Corners, masks: Masks) -> NDArray[np.uint8]:
    """(n, 4) xmin, ymin, xmax, ymax in pixels, (n, H, W) probabilities within them -> (224, 224, 3).

    Large boxes come first, so that small things lie on top; masks of one thing are averaged.
    """
    picture = np.zeros((PICTURE_SIDE, PICTURE_SIDE, 3), dtype=np.uint8)
    order = np.argsort(-_areas(boxes), kind="stable")
    order = order[np.ptp(masks[order], axis=(1, 2)) >= _FLAT]
    boxes, masks = boxes[order], masks[order]
    for members, colour in zip(_merge(boxes, masks), cycle(instance_colours()), strict=False):
        x0, y0, x1, y1 = boxes[members].mean(axis=0).astype(np.int64).tolist()
        # Bicubic with the coefficient -0.75 and without antialiasing, as the reference's.
        mask = torch.from_numpy(masks[members].mean(axis=0))[None, None]  # (1, 1, H, W)
        mask = interpolate(mask, (y1 - y0, x1 - x0), mode="bicubic", align_corners=False)[0, 0]
        seen = picture[y0:y1, x0:x1]
        seen[mask.numpy()[: seen.shape[0], : seen.shape[1]] > 0.5] = colour
    return picture


@cache
def instance_colours() -> NDArray[np.uint8]:
    """(1000, 3) colours, the reference's: draws of NumPy's default generator. More groups start over."""
    return np.random.default_rng(0).integers(0, 255, (1000, 3)).astype(np.uint8)


def _merge(boxes: Corners, masks: Masks) -> list[list[int]]:
    """Groups of instances that are one thing: each joins the first group whose first member it resembles."""
    flat = masks.reshape(len(masks), masks.shape[1] * masks.shape[2])
    areas, sums, groups = _areas(boxes), flat.sum(axis=1), dict[int, list[int]]()  # by their first members
    for index, box in enumerate(boxes):
        firsts = np.array(list(groups), dtype=np.int64)
        low, high = np.maximum(boxes[firsts, :2], box[:2]), np.minimum(boxes[firsts, 2:], box[2:])
        shared = (high - low).clip(min=0).prod(axis=1)
        near = firsts[shared / (areas[firsts] + areas[index] - shared) > _SAME_PLACE]
        shared = flat[near] @ flat[index]
        alike = near[2 * (shared + _SMOOTH) / (sums[near] + sums[index] + _SMOOTH) > _ALIKE].tolist()
        groups.setdefault(alike[0] if alike else index, []).append(index)
    return list(groups.values())


def _areas(boxes: Corners) -> NDArray[np.int64]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
