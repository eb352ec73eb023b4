"""What is special about each sort of value on a grid: its files, its filter, what its tokenizer reads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fourm.codecs.colours import NO_CLASS, paint_features, paint_labels, to_bytes, turbo
from fourm.codecs.pictures import (
    DEPTH_LEVELS,
    Value,
    read_classes,
    read_depth,
    read_distance,
    read_features,
    read_grey,
    read_rgb,
)


@dataclass(frozen=True, slots=True)
class Form:
    """What is special about one sort of value on a grid."""

    read: Callable[[Path], Value]
    resample: Image.Resampling | None  # how a value is brought to the row's size; None: it stays
    prepare: Callable[[Value], Tensor]  # value -> (C, H, W) float or (H, W) int64 for the tokenizer
    finish: Callable[[Tensor], Value]  # (C, H, W) of the tokenizer -> value
    paint: Callable[[Value, int], NDArray[np.uint8]]  # value, number of labels -> 8-bit picture
    channels: int = 0  # of `prepare`, where a tokenizer may take one more for valid pixels
    outside: int = 0  # the value of what lies outside a picture
    is_normal: bool = False  # the red channel is a direction from left to right
    is_labels: bool = False  # class numbers


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


def _finish_labels(logits: Tensor) -> Value:
    """Label 0 is "no class": class numbers start at 0 for label 1, and no class wraps around to 255."""
    return logits.argmax(dim=0).numpy().astype(np.uint8) - np.uint8(1)


def _prepare_labels(classes: Value) -> Tensor:
    return torch.from_numpy((classes + np.uint8(1)).astype(np.int64))


def _prepare_distance(depth: Value) -> Tensor:
    return torch.tensor(depth).unsqueeze(0)


_BICUBIC, _NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
_COLOURS = Form(read_rgb, _BICUBIC, _signed_unit, _finish_colours, lambda value, _: value, 3)
_NORMALS = Form(
    read_rgb, _BICUBIC, _signed_unit, _finish_colours, lambda value, _: value, 3, is_normal=True
)  # fmt: skip
_DEPTH = Form(
    read_depth, _BICUBIC, standardise_depth, lambda x: x[0].numpy(), lambda value, _: turbo(value), 1
)
_DISTANCE = Form(
    read_distance, _BICUBIC, _prepare_distance, lambda x: x[0].numpy(), lambda value, _: turbo(value), 1
)
_EDGES = Form(read_grey, _BICUBIC, _signed_unit, _finish_edges, lambda value, _: value, 1)
_LABELS = Form(
    read_classes, _NEAREST, _prepare_labels, _finish_labels, paint_labels, outside=NO_CLASS, is_labels=True
)
_FEATURES = Form(
    read_features, None, torch.from_numpy, lambda x: x.numpy(), lambda value, _: paint_features(value)
)

# By the codec name of a row; `tok_edge`, `tok_feature` and `tok_distance` are for rows of one's own.
FORMS: dict[str, Form] = {
    "tok_rgb": _COLOURS,
    "tok_normal": _NORMALS,
    "tok_depth": _DEPTH,
    "tok_distance": _DISTANCE,
    "tok_semseg": _LABELS,
    "tok_edge": _EDGES,
    "tok_canny_edge": _EDGES,
    "tok_sam_edge": _EDGES,
    "tok_feature": _FEATURES,
    "tok_clip": _FEATURES,
    "tok_dinov2": _FEATURES,
    "tok_imagebind": _FEATURES,
    "tok_dinov2_global": _FEATURES,
    "tok_imagebind_global": _FEATURES,
}
