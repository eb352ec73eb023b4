"""Values of files, as measures take them, and partners at the size of what they are compared with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fourm.codecs.files import read_array, read_caption, read_features, read_picture
from fourm.data.layout import Crop, Place, fit_crop
from fourm.errors import SampleError
from fourm.measures.tables import Sort
from fourm.modalities.registry import TOKENS, Kind, Modality
from fourm.output.samples import Run
from fourm.schedule.features import Features

# Stands for what `fourm embed` writes, which is of no modality.
ENCODER = Modality("encoder", Kind.EMBEDDING, 1, title="Features of the encoder")
MAPS = ("picture", "depth", "normal", "labels", "edges")  # sorts that are fitted to each other
_LEVELS = np.iinfo(np.uint16).max  # of depth in 16 bits
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Held:
    """One kind of value in a folder."""

    name: str  # its folder: "rgb", "tok_rgb@64"
    row: Modality
    sort: Sort
    run: Run | None = None  # that wrote it
    place: Place | None = None  # of the run

    @property
    def kind(self) -> str:
        """What partners have in common: the full name of tokens; of values, `rgb` of `tok_rgb@64`."""
        return self.row.name if self.sort == "tokens" else self.row.key.removeprefix(TOKENS)

    @property
    def variations(self) -> tuple[int | None, ...]:
        """Those of a run that makes several, unless all share this value; else (None,)."""
        return (None,) if self.run is None or self.place is None or self.place.shared else self.run.variations

    @property
    def features(self) -> Features | None:
        """Those that `fourm embed` has made; None: another command made this."""
        return None if self.run is None else self.run.record.features


def read_value(held: Held, path: Path, crop: Crop | None = None) -> tuple[Any, Mask | None]:
    """A value as `measure` describes it, and which of its pixels are known; None: all of them.

    crop: the square of the other folder's value; boxes and poses of a dataset are read in it.
    """
    if held.sort == "tokens":
        ids = read_array(path)
        if ids.dtype.kind not in "iu" or ids.size == 0:
            raise SampleError(f"{path}: {ids.dtype} of shape {ids.shape} is not a row of token ids")
        return ids.astype(np.int64).ravel(), None
    if held.sort == "text":
        return read_caption(path), None
    if held.row is ENCODER:
        return np.moveaxis(read_features(path), -1, 0), None
    from fourm.codecs.maps import FORMS, pixels_of  # imports torch, which texts and tokens do not need
    from fourm.codecs.texts import STRUCTURED, read_structured, read_whole
    from fourm.modalities.facts import BoxRules, box_grammar

    codec = held.row.codec
    if codec in STRUCTURED:
        is_box = codec == "det"
        grammar = box_grammar(BoxRules(order="written")) if is_box else STRUCTURED[codec].grammar
        if held.run is not None and held.run.record.restore and grammar.cut is not None:
            return read_whole(path, grammar), None
        return read_structured(path, grammar, crop), None
    if held.sort in ("picture", "normal"):
        picture = read_picture(path)
        pixels, known = pixels_of(picture, "RGB", str(path)), None
        if picture.mode in ("LA", "RGBA"):
            known = np.asarray(picture.getchannel("A")) > 0
            pixels = np.where(known[..., None], pixels, np.uint8(0))
        return pixels, None if known is None or known.all() else known
    value = FORMS[codec].read(path)
    if codec == "tok_distance":  # 2 d - 1, whose zero is no zero of distances
        value = (value + 1) / 2
    return (value / _LEVELS).astype(np.float32) if value.dtype == np.uint16 else value, None


def fitted(
    held: Held, value: Any, other: Any, known: Mask | None, crop: Crop | None
) -> tuple[Any, Mask | None]:
    """A partner's map at the size of a square value: the recorded crop of it, or its centre; others stay.

    A partner of another size than the picture gets a border where one was recorded. Pixels beyond the
    picture, which a padded crop shows, are not known.
    """
    if held.sort not in MAPS or value.shape[0] != value.shape[1]:
        return other, known
    if crop is None or crop.whole != other.shape[:2]:
        crop = fit_crop("pad" if crop is not None and crop.is_padded else "crop", *other.shape[:2])
    if crop.is_whole and value.shape[:2] == other.shape[:2]:
        return other, known
    from fourm.codecs.maps import FORMS, cut

    form, side = FORMS["tok_rgb" if held.row.codec == "rgb" else held.row.codec], value.shape[0]
    assert form.resample is not None
    if held.sort == "depth" and not (other < 0).any():  # 0 is no depth, and must not become a part of others
        other = np.where(other == 0, np.float32(np.nan), other)
    inside = _inside(crop, side)
    if known is not None:
        inside &= cut(known.astype(np.uint8), crop, side) > 0
    return cut(other, crop, side, form.resample, form.outside), None if inside.all() else inside


def _inside(crop: Crop, side: int) -> Mask:
    """(side, side): the pixels of a crop whose middle lies in the picture."""
    middle = (np.arange(side) + 0.5) / side
    down, across = crop.top + middle * crop.height, crop.left + middle * crop.width
    across = across[::-1] if crop.mirrored else across
    rows, columns = ((at >= 0) & (at < size) for at, size in zip((down, across), crop.whole, strict=True))
    return rows[:, None] & columns
