"""The codec of pictures and maps: RGB that the model reads as pixels, and all values with a tokenizer.

Values are arrays: uint8 (H, W, 3) colours, uint8 (H, W) edges or class numbers (255 = none), float32 or
uint16 (H, W) depth, float32 (C, h, w) features. 8-bit values are written as PNG, others as .npy.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from fourm.codecs import colours, maps
from fourm.codecs.colours import NO_CLASS, LegendEntry
from fourm.codecs.files import pack_array, pack_png, turned
from fourm.codecs.maps import Form, Value, restore_map, to_unit_range
from fourm.data.layout import Crop
from fourm.decoding.sampling import Noise
from fourm.errors import MissingError, SampleError
from fourm.modalities.registry import Kind, Modality
from fourm.networks.state import Slot, full_grid, full_pixels, to_device
from fourm.networks.tokenizers import AnyTokenizer
from fourm.networks.tokenizers.diffusion import DiVAE
from fourm.networks.tokenizers.vq import IMAGENET
from fourm.schedule.solvers import Solver

_MEAN, _STD = torch.tensor(IMAGENET, dtype=torch.float32, device="cpu").T.contiguous().view(2, 3, 1, 1)
# Convolutions choose their order of sums by the shape of the batch. On a CPU a network always sees one row;
# elsewhere, where no such promise is made, it sees one of few shapes, so that kernels are chosen only once.
_SIZES = {"cpu": (1,)}
_SIZES_ON_GPU = (1, 2, 4, 8)

# What to do where something cannot be turned with its picture.
TURN_ADVICE = "store the sample upright, without an EXIF tag, or read all as it is stored (`upright=False`)"


@dataclass(frozen=True, slots=True)
class Diffusion:
    """Settings of tokenizers that decode by diffusion: the steps, the noise of each row, and the solver."""

    steps: int
    noise: Noise
    solver: Solver | None = None  # None: the tokenizer's own steps


def rows_at_once(device: torch.device) -> int:
    """The largest number of rows that are decoded together on a device."""
    return _SIZES.get(device.type, _SIZES_ON_GPU)[-1]


def check_finite(results: Iterable[Tensor], row: Modality) -> None:
    """Refuse results of a tokenizer that are infinite or NaN."""
    if not all(bool(result.isfinite().all()) for result in results):
        cause = "the weights are damaged, or float16 is too narrow for them (dtype float32 has more room)"
        raise SampleError(f"{row.name}: its tokenizer's results are not finite numbers; {cause}")


@dataclass(frozen=True, slots=True)
class GridCodec:
    """Pictures and maps. A tokenizer turns them into the row's grid of tokens and back; pixels need none."""

    row: Modality
    form: Form
    tokenizer: AnyTokenizer | None
    num_labels: int = 0  # of a codec whose tokenizer was let go: its number of classes

    def detached(self) -> "GridCodec":
        """The same without the tokenizer, which it would keep in memory; it can draw and write."""
        return replace(self, tokenizer=None, num_labels=self._num_labels())

    def read(self, path: Path, crop: Crop | None = None, turn: int = 1) -> Value:
        """A whole value, or the part in a crop at the row's size; features stay as they are.

        turn: how stored pixels are turned first (see `files.read_turn`); the crop is of the turned picture.
        """
        value = self.form.read(path)
        if self.form.resample is None:
            return value
        if self.form.is_normal and turn != 1:
            raise SampleError(f"{path}: its normals point another way in the turned picture; {TURN_ADVICE}")
        value = turned(value, turn)
        return value if crop is None else self.cut(value, crop, path)

    def cut(self, value: Value, crop: Crop, where: Path | str) -> Value:
        """The part of a whole value in a crop, at the row's size. SampleErrors begin with `where`."""
        form = self.form
        if form.resample is None:
            raise SampleError(f"{where}: features cannot be cropped; compute them from the cropped picture")
        shown = maps.cut(value, crop, self.row.image_size, form.resample, form.outside, where)
        is_inverted = crop.mirrored and form.is_normal
        return np.where((True, False, False), 255 - shown, shown) if is_inverted else shown

    def read_mask(self, path: Path, crop: Crop) -> NDArray[np.uint8]:
        """The part of a mask in a crop: 255 where values are valid, 0 elsewhere and outside the picture."""
        return maps.cut(maps.read_valid(path), crop, self.row.image_size, where=path)

    def pack(self, value: Value, text: Mapping[str, str] | None = None) -> bytes:
        """A file: PNG with `text` as its text chunks for 8-bit values, .npy for others."""
        return pack_png(value, text) if value.dtype == np.uint8 else pack_array(value)

    def restore(self, value: Value, crop: Crop) -> Value:
        """A value of the square as a map of the whole picture; see `restore_map`."""
        return restore_map(value, crop, self.form)

    def encode(self, values: Sequence[Value]) -> Slot:
        """A slot of the centre squares at the row's size: tokens (B, L), or pixels (B, 3, H, W).

        Pixels are standardised by the mean and deviation of ImageNet. Errors as of `prepare` and `tokenize`.
        """
        if self.row.kind is Kind.PIXELS:
            fitted = (maps.fit_square(value, self.row.image_size, Resampling.BICUBIC) for value in values)
            images = torch.stack([(to_unit_range(value) - _MEAN) / _STD for value in fitted])
            return full_pixels(images, self.row.patch_size)
        return full_grid(self.tokenize([self.prepare(value) for value in values]))

    @property
    def takes_mask(self) -> bool:
        """True where the tokenizer has one more channel, which says which pixels are valid."""
        channels = self._need_tokenizer().config.n_channels
        return self.form.channels > 0 and channels in (self.form.channels + 1, 4)

    def prepare(self, value: Value, valid: NDArray[np.uint8] | None = None) -> Tensor:
        """The input of the tokenizer: the centre square of a value, (C, H, W) float or (H, W) int64.

        valid: (H, W), 0 where the value is not valid; used where the tokenizer `takes_mask`.
        """
        form, config, side = self.form, self._need_tokenizer().config, self.row.image_size
        if form.resample is not None:
            value = maps.fit_square(value, side, form.resample)
            if value.dtype.kind == "f" and np.isnan(value).any():
                raise SampleError(f"{self.row.name}: what is read of it holds NaN, which stands for unknown")
        x, is_map = form.prepare(value), form.resample is not None
        if form.is_labels:
            count = self._num_labels() - 1
            if len(strange := x[x > count]):
                allowed = f"the {count} classes of its tokenizer, 0..{count - 1} and {NO_CLASS} for none"
                raise SampleError(f"{self.row.name}: class {strange.min() - 1} is not among {allowed}")
            return x
        if is_map and config.undo_std:
            x = ((x + 1) / 2 - _MEAN) / _STD
        if is_map and len(x) == 1:  # grey can be repeated
            x = x.expand(config.n_channels - self.takes_mask, -1, -1)
        if self.takes_mask:
            mask = torch.ones(1, side, side) if valid is None else to_unit_range(maps.fit_square(valid, side))
            x = torch.cat([x * mask, 2 * mask - 1])
        if len(x) != (wanted := config.n_channels):
            found = f"{len(x)} channels" if is_map else f"features of width {len(x)}"
            raise SampleError(f"{self.row.name}: {found}, where its tokenizer reads {wanted}")
        places = (1, 1) if config.token_rank == 4 else self.row.grid or ()
        if not is_map and x.shape[1:] != places:
            found, right = (" x ".join(map(str, numbers)) for numbers in (x.shape[1:], places))
            raise SampleError(f"{self.row.name}: features of {found} places, not {right}")
        return x

    @torch.no_grad()
    def tokenize(self, prepared: Sequence[Tensor]) -> Tensor:
        """Prepared values, all of one shape -> tokens (B, L) int64; in groups, like `decode`."""
        tokenizer, made = self._need_tokenizer(), list[Tensor]()
        device = next(tokenizer.parameters()).device
        for rows in _groups(len(prepared), device):
            x = to_device(torch.stack([prepared[row] for row in rows]), device)
            try:
                latents = tokenizer.encode(x)
            except ValueError as error:
                raise SampleError(f"{self.row.name}: {error}") from error
            check_finite([latents], self.row)
            tokens = tokenizer.quantize.indices(latents).flatten(1).cpu()
            made += tokens[: len(prepared) - rows[0]]
        if made and (found := len(made[0])) != self.row.max_tokens:
            raise SampleError(f"{self.row.name}: the value has {found} tokens, not {self.row.max_tokens}")
        return torch.stack(made)

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[Value]:
        """Values of the tokens, or the pictures whose pixels the model was shown."""
        if self.row.kind is Kind.PIXELS:
            return [self.form.finish(2 * x - 1) for x in slot.values.float().cpu() * _STD + _MEAN]
        steps = self.decode_stepwise(slot, diffusion)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def decode_stepwise(
        self, slot: Slot, diffusion: Diffusion | None = None
    ) -> Generator[tuple[int, int], None, list[Value]]:
        """Values of the tokens, decoded in `_groups`; yields (done, total) after each step of a diffusion."""
        tokenizer = self._need_tokenizer()
        ids = slot.values.to(next(tokenizer.parameters()).device)
        form = (-1, 1, 1) if tokenizer.config.token_rank == 4 else self.row.grid or ()
        decoded, groups = list[Tensor](), _groups(len(ids), ids.device)
        for index, group in enumerate(groups):
            rows = to_device(torch.tensor(group), ids.device)
            tokens = out = ids.index_select(0, rows).view(len(group), *form)
            if isinstance(tokenizer, DiVAE):
                if diffusion is None:
                    raise ValueError(f"{self.row.name} is decoded by diffusion, which needs steps and noise")
                noise = diffusion.noise.select(torch.tensor(group, device=diffusion.noise.streams.device))
                shape = tokenizer.output_shape((int(tokens.shape[-2]), int(tokens.shape[-1])))
                states = tokenizer.sample(
                    tokens, partial(noise.normals, shape=shape), diffusion.steps, solver=diffusion.solver
                )
                for done, state in enumerate(states, start=index * diffusion.steps + 1):
                    out = state
                    yield done, len(groups) * diffusion.steps
            else:
                with torch.no_grad():
                    out = tokenizer.decode_tokens(tokens)
            decoded += out.cpu()[: len(ids) - group[0]]
        check_finite(decoded, self.row)
        return [self.form.finish(one) for one in decoded]

    def picture(self, value: Value) -> Image.Image:
        """The value in colours, at its own size; light grey where it is not known."""
        if self.form.is_labels:
            return Image.fromarray(colours.label_colours(self._num_labels())[value])
        return colours.picture_of(self.form.paint(value))

    def pictures(self, values: Sequence[Value], like: Value | None = None) -> list[Image.Image]:
        """Pictures of several values; depth and features have one scale of colours in all of them.

        like: the value whose scale it is, by default that of all values together.
        """
        if self.form.is_measured:
            limits = colours.limits_of(values if like is None else [like])
            return [Image.fromarray(colours.turbo(value, limits)) for value in values]
        widths = {len(value) for value in (*values, *([] if like is None else [like]))}
        if self.form.resample is not None or len(widths) != 1:
            return [self.picture(value) for value in values]
        return [Image.fromarray(picture) for picture in colours.paint_features(*values, like=like)]

    def limits(self, values: Sequence[Value]) -> tuple[float, float] | None:
        """The numbers at the ends of the scale of `pictures`; None if colours stand for something else."""
        return colours.limits_of(values) if self.form.is_measured else None

    def legend(self, value: Value) -> tuple[LegendEntry, ...]:
        """The classes in a map of class numbers, with their colours in its picture; () for other values."""
        return colours.legend(value, self._num_labels(), self.row.labels) if self.form.is_labels else ()

    def _num_labels(self) -> int:
        """The number of classes, "no class" included."""
        if self.tokenizer is not None and self.tokenizer.config.n_labels is not None:
            return self.tokenizer.config.n_labels
        if self.num_labels:
            return self.num_labels
        return 1 + len(self.row.labels) if self.row.labels else colours.NUM_COCO_LABELS

    def _need_tokenizer(self) -> AnyTokenizer:
        if self.tokenizer is None:
            raise MissingError(f"{self.row.name}: its tokenizer '{self.row.tokenizer}' is not here")
        return self.tokenizer


def _groups(count: int, device: torch.device) -> list[list[int]]:
    """Rows 0..count - 1 in groups of a device's sizes; the last group is filled up with the last row."""
    sizes, groups = _SIZES.get(device.type, _SIZES_ON_GPU), list[list[int]]()
    for at in range(0, count, sizes[-1]):
        size = next(size for size in sizes if size >= min(sizes[-1], count - at))
        groups.append([min(row, count - 1) for row in range(at, at + size)])
    return groups
