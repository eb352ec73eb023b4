"""One result: a sample in one variation, with its values, tokens and pictures."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.keeping import Mask
from fourm.codecs.table import Codec
from fourm.codecs.texts import in_square
from fourm.data.layout import Key
from fourm.errors import FourMError, SampleError, UsageError, near_match, shown
from fourm.files.opening import output_path
from fourm.inputs.request import Request
from fourm.modalities.registry import TOKENS, Modality
from fourm.modalities.text import Structured
from fourm.output.joining import check_output
from fourm.output.processes import Launch, now
from fourm.output.record import SR
from fourm.results.values import ResultValues
from fourm.runs.pipeline import save_made, sr_request
from fourm.schedule.best import Scores
from fourm.views.panels import Panel, make_view, panel_of, panel_of_part
from fourm.views.plots import draw_sample

KEPT = "kept"  # the role of what was given of a target
ROLES = ("condition", "target", SR)  # of several values with one name, the last role is meant
_WORDS = {KEPT: "kept", "condition": "given", "target": "made", SR: "finer"}
_MAX_TEXT = 70  # characters of a value in the text form


class NoValueError(UsageError, AttributeError, KeyError):
    """A result has no such value."""

    __str__ = Exception.__str__  # that of KeyError quotes the sentence


@dataclass(frozen=True, slots=True)
class Item:
    """One modality of a result. Its value and ids are read from files only when they are asked for."""

    row: Modality
    role: str  # one of ROLES, or KEPT
    load: Callable[[], Any] | None  # the value; None: it was given as tokens, or never decoded
    ids: Callable[[], NDArray[np.int64]] | None  # (L,); None: it has no tokens
    draw: Callable[[Any], Image.Image]  # value -> picture
    mask: Callable[[], Mask] | None = None  # of what is kept of a grid: (h, w), True for what stays
    show: Callable[[Any], Any] | None = None  # value -> what of it is drawn; None: all of it

    @property
    def names(self) -> tuple[str, ...]:
        """How its value can be called: `depth`, `depth@64`."""
        return self.row.value_names or (self.row.name, self.row.key)

    def shown(self, value: Any) -> Any:
        """The value as it is drawn."""
        return value if self.show is None else self.show(value)

    @property
    def rank(self) -> tuple[int, int]:
        """Of several items with one name, the one of the highest rank is meant."""
        return ROLES.index(self.role), self.row.resolution


@dataclass(frozen=True, slots=True)
class Part:
    """What one run made of a sample: the base, or super-resolution."""

    request: Request  # of this sample alone
    codecs: Mapping[str, Codec]  # by modality
    made: ResultValues

    def items(self) -> Iterator[Item]:
        """Conditions as used, then targets; of super-resolution only targets, as the base made the others."""
        made, chain, is_sr = self.made, self.request.chain, self.request.stage == SR
        for name in dict.fromkeys((*(() if is_sr else chain.conditions), *chain.targets)):
            role = SR if is_sr else "target" if name in chain.targets else "condition"
            value, ids, codec = made.values.get(name), made.tokens.get(name), self.codecs[name]
            load, load_ids = (None if one is None else partial(_copied, one) for one in (value, ids))
            crop = made.frame.crop if made.frame is not None and self.request.restore else None
            show = None if crop is None else partial(in_square, codec.row, crop)
            yield Item(codec.row, role, load, load_ids, codec.picture, show=show)

    def kept(self) -> Iterator[Item]:
        """What was given of targets, as it was used."""
        for keep in self.request.chain.keeps:
            part, codec = self.made.kept[keep.target], self.codecs[keep.target]
            value, mask = part.whole or (part.value, part.mask)
            load = partial(_copied, value) if keep.raw or keep.is_text else None
            hold = None if mask is None else partial(_copied, mask)
            yield Item(codec.row, KEPT, load, None, codec.picture, hold)


class Tokens(Mapping[str, NDArray[np.int64]]):
    """Token ids of a result by modality, each (L,) int64; names may be short (`tok_depth`)."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = {item.row.name: item for item in items if item.ids is not None}

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        fitting = [item for item in self._items.values() if name in (item.row.name, item.row.key)]
        if not fitting:
            near = near_match(name, self._items) or f"; there are {', '.join(self._items) or 'none'}"
            raise NoValueError(f"no tokens '{name}'{near}")
        ids = max(fitting, key=lambda item: item.rank).ids
        assert ids is not None
        return ids()

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"Tokens({', '.join(self._items)})"


class Result:
    """One sample in one variation: what was given and what was made of it.

    `key` names the sample ("00000/000000"), `variation` is its number, from 0; `tokens` has all token ids.
    A value is an attribute or an item by the name of its modality: `result.rgb`, `result["rgb@64"]`. Of
    several resolutions a short name means the finest, and what was made comes before what was given.

    | value | is |
    | --- | --- |
    | `rgb` | a PIL picture |
    | `depth` | numpy (H, W) float32, standardised: larger is farther |
    | `normal` | numpy (H, W, 3) uint8: x, y, z from -1..1 as 0..255 |
    | `semseg` | numpy (H, W) uint8: class numbers, 255 for none |
    | `canny_edge`, `sam_edge` | numpy (H, W) uint8: 0 no edge, 255 edge |
    | `clip`, `dinov2`, `imagebind` and other features | numpy (C, h, w) float32 |
    | `caption` | str |
    | `det` | a tuple of `Box`: xmin, ymin, xmax, ymax in fractions of the picture, name, score 0..1 |
    | `metadata` | a tuple of facts, each with a field and a value |
    | `color_palette` | a tuple of colours, red, green and blue in 0..255 |
    | `human_poses`, `sam_instance` | tuples of people, of groups of instances |
    | `tok_depth` and other names of tokens | numpy (L,) int64, as in `tokens` |

    A result whose sample failed has a `problem`, one sentence; it is raised as SampleError where a value is
    asked for. UsageError: there is no such value.
    """

    def __init__(
        self, key: str, variation: int, items: Sequence[Item], about: str, parts: Sequence[Part] = (),
        problem: str = "", scores: Callable[[], Scores | None] = lambda: None,
    ) -> None:  # fmt: skip
        self.key, self.variation, self.problem = key, variation, problem
        self._items = tuple(item for item in items if item.role != KEPT)
        self._kept = tuple(item for item in items if item.role == KEPT)
        self._about, self._parts, self._scores = about, tuple(parts), scores
        self.tokens = Tokens(self._items)

    def __getitem__(self, name: str) -> Any:
        """The value of a modality, by its short or full name; FourMError if there is none."""
        if str(name).startswith(TOKENS):
            self._check()
            return self.tokens[name]
        item, value = self._value(name)
        return in_python(item.row, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # of protocols: copying, pickling, notebooks
            raise AttributeError(name)
        return self[name]

    def __contains__(self, name: object) -> bool:
        return any(name in (item.row.name, item.row.key, *item.names) for item in self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.names]

    @property
    def names(self) -> tuple[str, ...]:
        """Short names of all values: first those that were given, then those that were made."""
        values = [item for item in self._items if item.load is not None]
        return tuple(dict.fromkeys(item.row.key.removeprefix(TOKENS) for item in values))

    @property
    def scores(self) -> Scores | None:
        """How likely the conditions are under all variations, of which `best` kept this one; else None.

        `by` names the conditions, `scores` has the mean log-likelihood of a token of each for each variation,
        `kept` the numbers of the variations that are results, the best one first.
        """
        self._check()
        return self._scores()

    def picture(self, name: str) -> Image.Image:
        """A value drawn: maps in colours, texts on a card, boxes and palettes as pictures.

        name: short or full. FourMError: there is no such value.
        """
        item, value = self._value(name)
        return item.draw(item.shown(value))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the files that `fourm generate` would write for this result, and return the folder.

        UsageError: the folder is not empty, or the result was read from files.
        """
        self._check()
        if not self._parts:
            raise UsageError(f"result {self.key}: was read from files, which can be copied as they are")
        out = output_path(folder)
        check_output(out, Launch(0, 1, now()), False, False)
        base = replace(self._parts[0].request, out=out)
        for part in self._parts:
            request = base
            if part.request.stage == SR:
                request = sr_request(base, replace(part.request, out=out, is_beside=True))
            save_made(request, part.codecs, part.made)
        return out

    def sheet(self) -> Image.Image:
        """A picture of everything that was given and made, as `fourm plot` draws it."""
        self._check()
        panels = [_panel_of_part(item) for item in self._kept]
        valued = [(item, item.load) for item in self._items if item.load is not None]
        panels += [panel_of(item.row, item.shown(load()), item.role) for item, load in valued]
        folder, _, name = self.key.rpartition("/")
        return draw_sample(make_view(Key(folder, name), panels, self._about))

    def _repr_png_(self) -> bytes | None:
        """The sheet, as notebooks show it; None for a result whose sample failed."""
        if self.problem:
            return None
        stream = io.BytesIO()
        self.sheet().save(stream, "PNG")
        return stream.getvalue()

    def __repr__(self) -> str:
        name = f"Result {self.key}" + (f", variation {self.variation}" if self.variation else "")
        if self.problem:
            return f"{name}: failed: {self.problem}"
        lines = [f"{name} of {self._about}"]
        items = (*self._kept, *self._items)
        width = max((len(_title(item)) for item in items), default=0)
        for item in items:
            lines.append(f"  {_WORDS[item.role]:5}  {_title(item):{width}}  {_described(item)}")
        return "\n".join(lines)

    def _find(self, name: str) -> Item:
        self._check()
        fitting = [item for item in self._items if name in (item.row.name, *item.names)]
        if not fitting:
            near = near_match(name, self.names) or f"; it has {', '.join(self.names) or 'none'}"
            raise NoValueError(f"result {self.key} has no value '{name}'{near}")
        return max(fitting, key=lambda item: (item.load is not None, *item.rank))

    def _value(self, name: str) -> tuple[Item, Any]:
        """The item that a name means, and its value as its codec has it."""
        item = self._find(name)
        if item.load is None:
            raise NoValueError(f"{name} is there as tokens only; model.decode makes values of them")
        return item, item.load()

    def _check(self) -> None:
        if self.problem:
            raise SampleError(self.problem)


def in_python(row: Modality, value: Any) -> Any:
    """The value of a codec as a program gets it: a colour picture of PIL, a structured value by itself."""
    if isinstance(value, Structured):
        return value.value
    return Image.fromarray(value) if row.is_rgb else value


def _panel_of_part(item: Item) -> Panel:
    value = None if item.load is None else item.load()
    return panel_of_part(item.row, value, None if item.mask is None else item.mask())


def _copied(value: Any) -> Any:
    """A value that its caller may change."""
    return value.copy() if isinstance(value, np.ndarray) else value


def _title(item: Item) -> str:
    return item.names[0] if item.load is not None else item.row.name


def _described(item: Item) -> str:
    if item.load is None:
        return f"{'some of ' if item.role == KEPT else ''}{item.row.max_tokens} tokens"
    try:
        value = in_python(item.row, item.load())
    except FourMError as error:
        return f"cannot be read: {error}"
    if isinstance(value, Image.Image):
        return f"picture, {value.width} x {value.height}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return shown(panel_of(item.row, value).text.replace("\n", " "), _MAX_TEXT)
