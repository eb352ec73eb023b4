"""Names of samples, the crops that they show, and where their files lie."""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fourm.errors import UsageError
from fourm.files.opening import is_encodable
from fourm.files.writing import PARTIAL, refuse_inside

# What the files of a place hold: token ids; values; of a target of which a part is kept, the value or the ids
# that were given, and the mask of what is kept; features; scores of variations; anything that only some have.
PLACE_FORMS = ("ids", "value", "kept", "kept_ids", "mask", "features", "scores", "extra")
SAMPLES_PER_FOLDER = 1000
MAX_SAMPLES = 10_000_000  # results of one run: more do not fit into the memory of a small machine
MAX_NAME_BYTES = 220  # of a sample; file systems allow 255, the variation and the suffix are added
PICTURES = "rgb"  # folder of a dataset: whole pictures; crops and other maps refer to their size
KEPT_PIXELS = "mask_keep"  # folder of a dataset: which part of a picture stays while the rest is generated
VALID_PIXELS = "mask_valid"  # folder of a dataset: which pixels of a sample mean something
CROP_SETTINGS = "crop_settings"  # folder of a dataset: a row of crops x (top, left, height, width, mirrored)
FRAME = "frame"  # folder of a run: where the square of a sample lies in its picture
Fit = Literal["crop", "pad"]  # how a picture becomes a square: its centre, or all of it with a border
FITS: tuple[Fit, ...] = ("crop", "pad")
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom
_ASPECTS = (0.75, 1.3333)  # least and largest width / height of random crops
_TRIES = 10  # draws of a random crop, of 4 numbers each; one number more decides whether it is mirrored
NUM_UNIFORMS = 4 * _TRIES + 1


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Name of a sample: its files are `root/modality/folder/name.ext`, in the folder of each modality."""

    folder: str  # path components, joined by "/"; "" for a file directly in the folder of its modality
    name: str  # one path component without extension; one that is too long is cut and ends in a hash

    def __post_init__(self) -> None:
        for part in (*(self.folder.split("/") if self.folder else ()), self.name):
            is_name = part not in ("", ".", "..", PARTIAL) and "/" not in part and "\0" not in part
            if not is_name or not is_encodable(part):
                raise UsageError(f"sample {self.path!r}: {part!r} cannot be a file or folder name")
        if len(name := os.fsencode(self.name)) > MAX_NAME_BYTES:
            digest = "~" + hashlib.sha256(name).hexdigest()[:16]
            start = name[: MAX_NAME_BYTES - len(digest)].decode("utf-8", errors="ignore")
            object.__setattr__(self, "name", start + digest)

    @property
    def path(self) -> str:
        """`folder/name`, or the name alone."""
        return f"{self.folder}/{self.name}" if self.folder else self.name

    @property
    def text(self) -> str:
        """The path, which also seeds the sample's noise; names that are not UTF-8 are escaped."""
        return os.fsencode(self.path).decode("utf-8", errors="backslashreplace")


def parse_key(path: str) -> Key:
    """The key of `folder/name`, or of a name alone; UsageError if a part of it cannot be a file name."""
    folder, slash, name = path.rpartition("/")
    return Key(folder or slash, name)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of the input: texts that the user typed, and files or values by modality."""

    key: Key
    caption: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    varied: Sequence[Mapping[str, Path]] = ()  # files that differ from variation to variation
    typed: Mapping[str, str] = field(default_factory=dict)  # texts of other modalities, typed by the user
    values: Mapping[str, Any] = field(default_factory=dict)  # in memory, as `codecs/taking` takes them
    problem: str = ""  # if set, the sample fails with this; found when the dataset was listed
    # Turns pictures by their EXIF tag: each by its own ("own"), or all maps by that of the sample's picture
    # ("all"). "": pixels stay as they are stored.
    upright: Literal["", "own", "all"] = ""

    def files_of(self, variation: int) -> Mapping[str, Path]:
        """Files of one variation, by condition modality."""
        return {**self.files, **self.varied[variation]} if self.varied else self.files


@dataclass(frozen=True, slots=True)
class Place:
    """One kind of file that a run writes: its folder, suffix and contents."""

    folder: str  # "tok_rgb@64", "rgb": directly under the root
    suffix: str  # ".npy"
    shared: bool = False  # one file for all variations
    modality: str = ""  # full name: "tok_rgb@64"; "" for files that are not of one
    form: str = "value"  # one of PLACE_FORMS
    is_condition: bool = False


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle in pixels of the whole picture, and whether it is mirrored left to right.

    A rectangle may reach outside the picture, as random crops of the reference do; there is nothing there.
    """

    whole: tuple[int, int]  # height, width of the whole picture
    top: int
    left: int
    height: int
    width: int
    mirrored: bool = False
    number: int = 0  # row in token files, caption lists and SAM files of several crops

    @property
    def shown(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the part inside the picture, in pixels of the whole picture."""
        (height, width), top, left = self.whole, max(self.top, 0), max(self.left, 0)
        right, bottom = min(self.left + self.width, width), min(self.top + self.height, height)
        return left, top, max(right, left), max(bottom, top)

    @property
    def is_whole(self) -> bool:
        """True if it shows all of the picture as it is, without a border."""
        return (self.top, self.left, self.height, self.width, self.mirrored) == (0, 0, *self.whole, False)

    @property
    def is_padded(self) -> bool:
        """True for the smallest square around a picture that is no square: `pad_crop`."""
        padded, (height, width) = pad_crop(*self.whole), self.whole
        place = self.top, self.left, self.height, self.width, self.mirrored
        return height != width and place == (padded.top, padded.left, padded.height, padded.width, False)

    def restore_box(self, box: Rectangle) -> Rectangle | None:
        """A box in fractions of the crop, as pixels of the whole picture, clipped; None if outside."""
        (height, width), (left, top, right, bottom) = self.whole, box
        left, right = (1.0 - right, 1.0 - left) if self.mirrored else (left, right)
        across = self.left + left * self.width, self.left + right * self.width
        down = self.top + top * self.height, self.top + bottom * self.height
        if max(across) < 0 or min(across) > width or max(down) < 0 or min(down) > height:
            return None
        left, right = (min(max(x, 0.0), float(width)) for x in across)
        top, bottom = (min(max(y, 0.0), float(height)) for y in down)
        return left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the square of a sample lies in its picture, as runs record it."""

    crop: Crop
    fit: Fit = "crop"  # how the crop was chosen; one that the dataset says counts as "crop"
    restored: bool = False  # values of the run are of the whole picture, not of the square


def number_keys(count: int, first: int = 0) -> list[Key]:
    """Keys for samples without names: `00000/000000`, a folder for each 1000; first: of the first one."""
    return [Key(f"{i // SAMPLES_PER_FOLDER:05d}", f"{i:06d}") for i in range(first, first + count)]


def samples_of_prompts(prompts: Sequence[str], first: int = 0) -> list[Sample]:
    """One sample for each prompt, named by its position; first: that of the first one."""
    keys = number_keys(len(prompts), first)
    return [Sample(key, prompt) for key, prompt in zip(keys, prompts, strict=True)]


def path_of(root: Path, folder: str, key: Key, suffix: str, variation: int | None = None) -> Path:
    """`root/folder/key.folder/key.name[-vK]suffix`."""
    return root / file_name(folder, key, suffix, variation)


def file_name(folder: str, key: Key, suffix: str, variation: int | None = None) -> str:
    """`folder/key.folder/key.name[-vK]suffix`: the path of a sample's file below its root."""
    end = "" if variation is None else f"-v{variation}"
    return f"{folder}/{key.path}{end}{suffix}"


def escape_dots(name: str) -> str:
    """A name without dots, as WebDataset needs it; see `unescape_dots`."""
    return name.replace("%", "%25").replace(".", "%2E")


def unescape_dots(name: str) -> str:
    """The name that was escaped."""
    return name.replace("%2E", ".").replace("%25", "%")


def check_apart(out: Path, samples: Iterable[Sample]) -> None:
    """UsageError if `out` lies in a modality's folder that is read: it would add samples to the dataset."""
    # One file for each folder and modality: a thousand samples share a folder, and there may be a million.
    files = {(name, sample.key.folder): path for sample in samples for name, path in sample.files.items()}
    tops = set[Path]()
    for (name, folder), path in files.items():
        if folder and path.parent.as_posix().endswith(f"/{folder}"):
            tops.add(path.parents[folder.count("/") + 1])
        elif not folder and path.parent.name in (key := name.partition("@")[0], key.removeprefix("tok_")):
            tops.add(path.parent)  # other folders hold pictures of any kind, and may hold results too
    for top in sorted(tops):
        refuse_inside(out, top)


def centre_crop(height: int, width: int) -> Crop:
    """The largest centred square of a picture, its offset rounded down."""
    side = min(height, width)
    return Crop((height, width), (height - side) // 2, (width - side) // 2, side, side)


def pad_crop(height: int, width: int) -> Crop:
    """The smallest square around a picture, which lies in its middle; the border holds nothing."""
    side = max(height, width)
    return Crop((height, width), (height - side) // 2, (width - side) // 2, side, side)


def fit_crop(fit: Fit, height: int, width: int) -> Crop:
    """The square of a picture that the model sees: its centre, or with "pad" all of it."""
    return (pad_crop if fit == "pad" else centre_crop)(height, width)


def random_crop(height: int, width: int, min_scale: float, uniforms: Sequence[float], number: int) -> Crop:
    """A random resized crop of a picture, drawn by NUM_UNIFORMS numbers in [0, 1).

    Its area is a share of the picture's between min_scale and 1, its aspect log-uniform, its place uniform
    (Szegedy et al. 2015, arXiv:1409.4842); every other crop is mirrored. A picture in which ten draws find
    no room gives its centre, as much of it as the aspects allow.
    """
    mirrored = uniforms[-1] < 0.5
    low, high = (math.log(aspect) for aspect in _ASPECTS)
    for at in range(0, 4 * _TRIES, 4):
        share, shape, down, right = uniforms[at : at + 4]
        area = height * width * (min_scale + share * (1 - min_scale))
        aspect = math.exp(low + shape * (high - low))
        tall, wide = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < tall <= height and 0 < wide <= width:
            top, left = int(down * (height - tall + 1)), int(right * (width - wide + 1))
            return Crop((height, width), top, left, tall, wide, mirrored, number)
    tall = min(height, max(1, round(width / _ASPECTS[0])))
    wide = min(width, max(1, round(height * _ASPECTS[1])))
    return Crop((height, width), (height - tall) // 2, (width - wide) // 2, tall, wide, mirrored, number)
