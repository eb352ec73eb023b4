"""Pictures and maps: RGB pixels, and everything that a tokenizer turns into a grid of tokens.

Values are arrays: uint8 (H, W, 3) colours, uint8 (H, W) edges or class numbers (255 = none), float32 (H, W)
depth, float32 (C, h, w) features. 8-bit values are written as PNG, others as .npy.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fourm.codecs.colours import NUM_COCO_LABELS, paint_features, paint_labels, to_bytes, turbo
from fourm.codecs.files import read_array, read_picture, write_array, write_png
from fourm.crops import Crop
from fourm.errors import MissingError, SampleError
from fourm.modalities import Modality
from fourm.sampling import Noise
from fourm.state import Slot, full_grid, full_pixels
from fourm.tokenizers.build import AnyTokenizer
from fourm.tokenizers.divae import DiVAE
from fourm.tokenizers.vq import IMAGENET

Value = NDArray[Any]

_MEAN, _STD = torch.tensor(IMAGENET).T.contiguous().view(2, 3, 1, 1)
_DEPTH_LEVELS = 65535  # of 16-bit depth pictures
# Convolutions choose their order of sums by the shape of the batch, so a network always sees this many rows.
_ROWS = {"cpu": 1}
_ROWS_ON_GPU = 8


@dataclass(frozen=True, slots=True)
class Diffusion:
    """How tokens become values by diffusion: steps, and the noise of each row."""

    steps: int
    noise: Noise


def rows_at_once(device: torch.device) -> int:
    """Rows that are decoded together on a device."""
    return _ROWS.get(device.type, _ROWS_ON_GPU)


@dataclass(frozen=True, slots=True)
class Form:
    """What is special about one sort of value on a grid."""

    read: Callable[[Path], Value]
    resample: Image.Resampling | None  # how a value is brought to the row's size; None: it stays
    prepare: Callable[[Value], Tensor]  # value -> (C, H, W) float or (H, W) int64 for the tokenizer
    finish: Callable[[Tensor], Value]  # (C, H, W) of the tokenizer -> value
    paint: Callable[[Value, int], NDArray[np.uint8]]  # value, number of labels -> 8-bit picture


@dataclass(frozen=True, slots=True)
class PixelsCodec:
    """RGB pictures that the model reads as pixels."""

    row: Modality

    def read(self, path: Path, crop: Crop | None = None) -> Value:
        """Any picture, as uint8 (H, W, 3) of its own size."""
        return _read_rgb(path)

    def write(self, value: Value, path: Path, text: Mapping[str, str] | None = None) -> None:
        """PNG with `text` as its text chunks."""
        write_png(value, path, text)

    def encode(self, values: Sequence[Value]) -> Slot:
        """The centre square at the row's size, ImageNet-normalised."""
        side = self.row.image_size
        fitted = [fit_square(value, side, Image.Resampling.BICUBIC) for value in values]
        images = torch.stack([(_unit(value) - _MEAN) / _STD for value in fitted])
        return full_pixels(images, self.row.patch_size)

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[Value]:
        """The pictures that the model was shown."""
        pixels = slot.values.float().cpu() * _STD + _MEAN
        return [to_bytes(rearrange(image, "c h w -> h w c").numpy()) for image in pixels]

    def picture(self, value: Value) -> Image.Image:
        """The value itself."""
        return Image.fromarray(value)


@dataclass(frozen=True, slots=True)
class GridCodec:
    """Values that a tokenizer turns into the row's grid of tokens and back."""

    row: Modality
    form: Form
    tokenizer: AnyTokenizer | None

    def read(self, path: Path, crop: Crop | None = None) -> Value:
        """A value (not token ids: those are read by `files.read_ids`)."""
        return self.form.read(path)

    def write(self, value: Value, path: Path, text: Mapping[str, str] | None = None) -> None:
        """PNG with `text` as its text chunks for 8-bit values, .npy for others."""
        if value.dtype == np.uint8:
            write_png(value, path, text)
        else:
            write_array(value, path)

    @torch.no_grad()
    def encode(self, values: Sequence[Value]) -> Slot:
        """Tokens of the centre square at the row's size, one value after the other."""
        return full_grid(torch.stack([self._tokenize(value) for value in values]))

    @property
    def diffuses(self) -> bool:
        """True where values are made by diffusion, step by step."""
        return isinstance(self.tokenizer, DiVAE)

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[Value]:
        """Values of the tokens."""
        steps = self.decode_stepwise(slot, diffusion)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def decode_stepwise(
        self, slot: Slot, diffusion: Diffusion | None = None
    ) -> Generator[tuple[int, int], None, list[Value]]:
        """Values of the tokens; on the way, (done, total) after each step of a diffusion.

        Rows go through the network in groups of one size, so that no row's result depends on the batch.
        """
        tokenizer = self._need_tokenizer()
        ids = slot.values.to(_device_of(tokenizer))
        group = rows_at_once(ids.device)
        form = (-1, 1, 1) if tokenizer.config.token_rank == 4 else self._grid()
        decoded = list[Tensor]()
        for first in range(0, len(ids), group):
            rows = torch.arange(first, first + group).clamp(max=len(ids) - 1)  # the last ones are repeated
            tokens = ids[rows.to(ids.device)].view(group, *form)
            if isinstance(tokenizer, DiVAE):
                groups = -(-len(ids) // group)
                out = yield from self._diffuse(tokenizer, tokens, rows, diffusion, first // group, groups)
            else:
                with torch.no_grad():
                    out = tokenizer.decode_tokens(tokens)
            decoded += out.cpu()[: len(ids) - first]
        if not all(bool(one.isfinite().all()) for one in decoded):
            raise SampleError(
                f"{self.row.name}: its tokenizer's results are not finite numbers; the weights are damaged"
            )
        return [self.form.finish(one) for one in decoded]

    def _diffuse(
        self, tokenizer: DiVAE, tokens: Tensor, rows: Tensor, diffusion: Diffusion | None, index: int, of: int
    ) -> Generator[tuple[int, int], None, Tensor]:
        """Group `index` of `of`: tokens (B, h, w) -> (B, C, H, W)."""
        if diffusion is None:
            raise ValueError(f"{self.row.name} is decoded by diffusion, which needs steps and noise")
        noise, steps = diffusion.noise.select(rows.to(diffusion.noise.streams.device)), diffusion.steps
        shape = tokenizer.output_shape((int(tokens.shape[-2]), int(tokens.shape[-1])))
        value = tokens
        states = tokenizer.sample(tokens, partial(noise.normals, shape=shape), steps)
        for done, state in enumerate(states, start=1):
            value = state
            yield index * steps + done, of * steps
        return value

    def picture(self, value: Value) -> Image.Image:
        """The value in colours, at its own size."""
        labels = self.tokenizer.config.n_labels if self.tokenizer else None
        return Image.fromarray(self.form.paint(value, labels or NUM_COCO_LABELS))

    def _tokenize(self, value: Value) -> Tensor:
        tokenizer, name = self._need_tokenizer(), self.row.name
        if self.form.resample is not None:
            value = fit_square(value, self.row.image_size, self.form.resample)
        x = self.form.prepare(value).to(_device_of(tokenizer))
        if self.form.resample is not None and x.ndim == 3:
            x = _with_channels(x, tokenizer.config.n_channels)
        try:
            tokens = tokenizer.tokenize(x.unsqueeze(0)).flatten()
        except ValueError as error:
            raise SampleError(f"{name}: {error}") from error
        if len(tokens) != self.row.max_tokens:
            raise SampleError(f"{name}: the value has {len(tokens)} tokens, not {self.row.max_tokens}")
        return tokens

    def _grid(self) -> tuple[int, int]:
        if self.row.grid is None:
            raise ValueError(f"{self.row.name} has no grid")
        return self.row.grid

    def _need_tokenizer(self) -> AnyTokenizer:
        if self.tokenizer is None:
            raise MissingError(f"{self.row.name}: its tokenizer '{self.row.tokenizer}' is not here")
        return self.tokenizer


def fit_square(value: Value, side: int, resample: Image.Resampling) -> Value:
    """The largest centred square of (H, W[, C]), offset rounded down, at side x side pixels."""
    height, width = value.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = np.ascontiguousarray(value[top : top + edge, left : left + edge])
    if edge == side:
        return square
    return np.asarray(Image.fromarray(square).resize((side, side), resample))


def standardise_depth(depth: Value) -> Tensor:
    """(H, W) -> (1, H, W), centred and scaled by the middle 80 % of its values."""
    x = torch.from_numpy(depth.astype(np.float64))  # so that a constant map is exactly 0
    ordered = x.flatten().sort().values
    kept = ordered[int(0.1 * len(ordered)) : int(0.9 * len(ordered))]
    return ((x - kept.mean()) / (kept.var() + 1e-6).sqrt()).float().unsqueeze(0)


def _device_of(tokenizer: AnyTokenizer) -> torch.device:
    return next(tokenizer.parameters()).device


def _with_channels(x: Tensor, count: int) -> Tensor:
    """(C, H, W) as a tokenizer wants it: one channel more is a mask of valid pixels, grey can be repeated."""
    if count == x.shape[0] + 1:
        return torch.cat([x, torch.ones_like(x[:1])])
    return x.expand(count, -1, -1) if x.shape[0] == 1 else x


def _unit(value: Value) -> Tensor:
    """uint8 (H, W, 3) or (H, W) -> (C, H, W) in [0, 1]."""
    x = torch.from_numpy(value.astype(np.float32)) / 255
    return x.unsqueeze(0) if x.ndim == 2 else rearrange(x, "h w c -> c h w")


def _signed_unit(value: Value) -> Tensor:
    """uint8 -> (C, H, W) in [-1, 1]."""
    return (_unit(value) - 0.5) / 0.5


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


def _read_rgb(path: Path) -> Value:
    return np.asarray(read_picture(path, "RGB"))


def _read_edges(path: Path) -> Value:
    return np.asarray(read_picture(path, "L"))


def _read_labels(path: Path) -> Value:
    image = read_picture(path)
    if image.mode not in ("L", "P"):
        raise SampleError(f"{path}: class numbers need an 8-bit grey or palette picture, not {image.mode}")
    return np.asarray(image)


def _read_depth(path: Path) -> Value:
    if path.suffix.lower() == ".npy":
        return _read_floats(path, 2)
    image = read_picture(path)
    if not image.mode.startswith("I"):
        raise SampleError(f"{path}: depth needs a 16-bit grey picture or .npy, not {image.mode}")
    return np.asarray(image).astype(np.float32) / _DEPTH_LEVELS


def _read_features(path: Path) -> Value:
    return _read_floats(path, 3)


def _read_floats(path: Path, rank: int) -> Value:
    array = read_array(path)
    is_sound = array.ndim == rank and array.dtype.kind == "f" and array.size > 0
    with np.errstate(over="ignore"):
        floats = array.astype(np.float32) if is_sound else array
    if not is_sound or not np.isfinite(floats).all():  # also numbers too large for float32
        raise SampleError(
            f"{path}: {array.dtype} of shape {array.shape} is not {rank} axes of finite numbers"
        )
    return floats


_COLOURS = Form(_read_rgb, Image.Resampling.BICUBIC, _signed_unit, _finish_colours, lambda value, _: value)
_DEPTH = Form(_read_depth, Image.Resampling.BICUBIC, standardise_depth, lambda x: x[0].numpy(),
              lambda value, _: turbo(value))  # fmt: skip
_EDGES = Form(_read_edges, Image.Resampling.BICUBIC, _signed_unit, _finish_edges, lambda value, _: value)
_LABELS = Form(_read_labels, Image.Resampling.NEAREST, _prepare_labels, _finish_labels, paint_labels)
_FEATURES = Form(_read_features, None, torch.from_numpy, lambda x: x.numpy(),
                 lambda value, _: paint_features(value))  # fmt: skip

# By the codec name of a row; `tok_edge` and `tok_feature` are for rows of one's own.
FORMS: dict[str, Form] = {
    "tok_rgb": _COLOURS,
    "tok_normal": _COLOURS,
    "tok_depth": _DEPTH,
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
