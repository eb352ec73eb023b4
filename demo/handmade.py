"""Values made by hand, of modalities that the embedded model does not have; see `demo.album`."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.figures import POSE_NUMBERS, draw_figures, draw_instances
from fourm.modalities.figures import QUERY_POINTS, Group, Groups, Instance, People, Person

Floats = NDArray[np.float64]

# Joints whose rotation is set, by their number among the 23, and the axes of turns.
_LEFT_HIP, _RIGHT_HIP, _LEFT_KNEE, _RIGHT_KNEE = 0, 1, 3, 4
_LEFT_SHOULDER, _RIGHT_SHOULDER, _LEFT_ELBOW, _RIGHT_ELBOW = 15, 16, 17, 18
_X, _Y, _Z = 0, 1, 2
# What is turned, about which axis, and how far in radians: one waves, the other walks.
_WAVING = (
    (_LEFT_SHOULDER, _Z, 0.5), (_LEFT_ELBOW, _Z, 1.0), (_RIGHT_SHOULDER, _Z, 1.25), (_RIGHT_ELBOW, _Z, 0.2),
    (_LEFT_HIP, _Z, 0.12), (_RIGHT_HIP, _Z, -0.12),
)  # fmt: skip
_WALKING = (
    (_LEFT_SHOULDER, _Z, -1.3), (_RIGHT_SHOULDER, _Z, 1.3), (_LEFT_ELBOW, _Y, -0.9), (_RIGHT_ELBOW, _Y, 0.5),
    (_LEFT_HIP, _X, -0.6), (_RIGHT_HIP, _X, 0.45), (_LEFT_KNEE, _X, 0.3), (_RIGHT_KNEE, _X, 0.5),
)  # fmt: skip
_POSES = {1: _WAVING, 2: _WALKING}  # by the first code, which stands for the whole pose here


def two_people() -> People:
    """Somebody who waves at us, and somebody who walks to the side."""
    facing = np.diag([1.0, -1.0, -1.0])  # the camera's y axis points down
    waving = _person((6.0, 16.0, 116.0, 216.0), facing, 1)
    walking = _person((110.0, 24.0, 218.0, 220.0), facing @ _turn(_Y, 0.95), 2)
    return waving, walking


def figures(people: People) -> Image.Image:
    """People as the codec draws them, with rotations set by hand in place of the tokenizer's."""
    return draw_figures(people, _rotations)


def some_instances() -> Groups:
    """Three things at three query points; the first code of each names its shape."""
    things = (
        ((10, 118, 214, 218), 2), ((26, 22, 126, 134), 0), ((128, 40, 208, 170), 1), ((150, 150, 206, 206), 0)
    )  # fmt: skip
    instances = [Instance(box, (code,) * 16) for box, code in things]
    return tuple(Group(point, (one,)) for point, one in zip(QUERY_POINTS, instances, strict=False))


def painted(groups: Groups) -> Image.Image:
    """Instances as the codec paints them, with masks of formulas in place of the tokenizer's."""
    return draw_instances(groups, _masks)


def sam_edges() -> NDArray[np.uint8]:
    """(224, 224): borders of painted instances, as a picture of edges."""
    picture = np.asarray(painted(some_instances())).astype(np.int64).sum(axis=2)
    edge = np.zeros_like(picture, dtype=bool)
    edge[1:] |= picture[1:] != picture[:-1]
    edge[:, 1:] |= picture[:, 1:] != picture[:, :-1]
    return np.where(edge, 255, 0).astype(np.uint8)


def valid_pixels() -> NDArray[np.uint8]:
    """(64, 64): a mask that leaves out a border and a disc."""
    y, x = np.mgrid[:64, :64]
    valid = (np.hypot(x - 40, y - 24) > 9) & (np.minimum(x, y) > 5) & (np.maximum(x, y) < 58)
    return np.where(valid, 255, 0).astype(np.uint8)


def feature_map(width: int, seed: int) -> NDArray[np.float32]:
    """(width, 16, 16) of smooth waves."""
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16] / 15
    waves = [np.sin(a * x + b * y + c) for a, b, c in draws.uniform(-5, 5, (6, 3))]
    mixture = draws.normal(size=(width, 6)) * np.array([3.0, 2.4, 2.0, 0.5, 0.3, 0.1])
    return np.einsum("cn,nhw->chw", mixture, np.stack(waves)).astype(np.float32)


def feature_vector(width: int, seed: int) -> NDArray[np.float32]:
    """(width, 1, 1) of normal numbers."""
    return np.random.default_rng(seed).normal(size=(width, 1, 1)).astype(np.float32)


def _person(box: tuple[float, float, float, float], turned: Floats, code: int) -> Person:
    first, second, third = (tuple(row) for row in turned.tolist())
    return Person(box, (first, second, third), (code,) * 8, (0.0,) * 10, (0.92, 0.0, 0.28))


def _rotations(codes: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """(n, 207, 1, 1): the poses above."""
    made = np.tile(np.eye(3), (len(codes), 23, 1, 1))
    for turned, code in zip(made, codes, strict=True):
        for joint, axis, angle in _POSES[code[0]]:
            turned[joint] = turned[joint] @ _turn(axis, angle)
    return made.reshape(len(codes), POSE_NUMBERS, 1, 1).astype(np.float32)


def _turn(axis: int, angle: float) -> Floats:
    """A rotation about an axis."""
    a, b = (k for k in range(3) if k != axis)
    matrix = np.eye(3)
    matrix[[a, b], [a, b]] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix


def _masks(codes: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """(n, 1, 64, 64) logits: a disc, a square with round corners, a hill."""
    y, x = np.meshgrid(np.linspace(-1, 1, 64), np.linspace(-1, 1, 64), indexing="ij")
    shapes = (0.95 - np.hypot(x, y), 0.9 - np.hypot(x**2, y**2), y - 0.6 * np.abs(x) ** 2 + 0.5)
    return np.stack([12 * shapes[one[0]] for one in codes]).astype(np.float32)[:, None]
