"""Readers of a run's values for display; neither its tokenizers nor its model are needed."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from fourm.codecs.drawing import text_card
from fourm.codecs.files import read_json, read_text
from fourm.codecs.images import GridCodec
from fourm.codecs.maps import FORMS
from fourm.codecs.table import build_codec
from fourm.codecs.texts import STRUCTURED, StructuredForm
from fourm.errors import FourMError, SampleError
from fourm.hub.files import find_model, find_sr
from fourm.modalities.registry import RELEASED, Kind, Modality, Registry
from fourm.runs.inputs import CAPTION


@dataclass(frozen=True, slots=True)
class Reader:
    """How the values of one modality are read from files, drawn, and put into words for a search."""

    row: Modality
    read: Callable[[Path], Any]
    picture: Callable[[Any], Image.Image]
    say: Callable[[Any], str]  # what a text says; "" for pictures
    grid: GridCodec | None = None  # of values that have tokens on a grid


def reader_for(row: Modality) -> Reader:
    """The reader of a row; UsageError where nothing here knows its kind of value."""
    if row.codec == CAPTION:
        return Reader(row, read_text, _caption_card, str)
    if row.codec in STRUCTURED:
        return _structured(row, STRUCTURED[row.codec])
    codec = build_codec(row)
    grid = codec if isinstance(codec, GridCodec) else None
    return Reader(row, codec.read, codec.picture, lambda value: "", grid)


def rows_of(model: str) -> Registry | None:
    """The modalities of a model as a record names it; None where it is not on this machine."""
    with suppress(FourMError):
        return find_model(model).registry
    if model.endswith("/sr"):
        with suppress(FourMError):
            return find_sr(find_model(model.removesuffix("/sr"))).registry
    return None


def find_row(name: str, registry: Registry | None, count: int | None = None) -> Modality | None:
    """The row of a full name, as the model or else the released models have it; None if neither does.

    Another resolution of a released modality has files of the same kind, except that class numbers
    may mean anything; its tokens are a square of `count`.
    """
    for known in (registry, RELEASED):
        if known is not None and name in known.rows:
            return known.rows[name]
    for row in RELEASED.rows.values():
        if row.key == name.partition("@")[0] and not (row.codec in FORMS and FORMS[row.codec].is_labels):
            side = math.isqrt(count or 0)
            is_square = row.kind is Kind.GRID and side > 0 and side * side == count
            return replace(row, grid=(side, side), max_tokens=side * side) if is_square else row
    return None


def _structured(row: Modality, form: StructuredForm) -> Reader:
    grammar = form.grammar

    def read(path: Path) -> Any:
        try:
            return grammar.from_json(read_json(path), None)
        except ValueError as error:
            raise SampleError(f"{path}: {error}") from error

    return Reader(row, read, form.draw, _SAID.get(row.codec, grammar.to_text))


def _caption_card(text: str) -> Image.Image:
    seen = any(character.isprintable() and not character.isspace() for character in text)
    return text_card(text if seen else "no caption")


# What people would search for, where a model's own words are numbers. By the codec name of a row.
_SAID: Mapping[str, Callable[[Any], str]] = {
    "det": lambda boxes: ", ".join(box.name for box in boxes),
    "metadata": lambda facts: ", ".join(f"{f.field.name.replace('_', ' ')} {f.value:g}" for f in facts),
    "color_palette": lambda colours: " ".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in colours),
}
