"""The main colours of a picture (`color_palette`): one to seven of them.

Text: `v1=<count>`, then `v0=<red> v0=<green> v0=<blue>` for each colour. JSON: a list with one object, which
has a palette of n colours `[red, green, blue]` under each key "n".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from fourm.data.layout import Crop
from fourm.modalities.structured import Grammar, finite, number_of, quoted, shown, words_of

MAX_COLOURS = 7


class Colour(NamedTuple):
    """Red, green and blue, each 0..255."""

    red: int
    green: int
    blue: int


Palette = tuple[Colour, ...]


def parse_palette(text: str) -> tuple[Palette, tuple[str, ...]]:
    """The complete colours of a text, seven at most, and what was passed over.

    Only `v0=` words behind the first `v1=` are read. Their number counts, not the one that `v1=` announces.
    """
    words = words_of(text)
    start = next((i for i, word in enumerate(words) if word.startswith("v1=")), len(words))
    levels, ignored = list[int](), words[:start]
    for word in words[start + 1 :]:
        level = number_of(word) if word.startswith("v0=") else None
        if level is None:
            ignored.append(word)
        else:
            levels.append(min(max(level, 0), 255))
    count = min(len(levels) // 3, MAX_COLOURS)
    ignored += [f"v0={level}" for level in levels[3 * count :]]
    problems = [f"{quoted(ignored)} is no part of a palette"] if ignored else []
    if start == len(words):
        problems.append("no word v1= begins a palette")
    elif number_of(words[start]) != count:
        problems.append(f"{quoted(words[start : start + 1])} announces a palette, but {count} colours follow")
    return tuple(Colour(*levels[3 * i : 3 * i + 3]) for i in range(count)), tuple(problems)


def palette_to_text(colours: Sequence[Colour]) -> str:
    """A palette as the model reads it; "" for one without colours."""
    if not colours:
        return ""
    levels = [f"v0={level}" for colour in colours for level in colour]
    return " ".join([f"v1={len(colours)}", *levels])


def palette_from_json(data: object, crop: Crop | None = None, size: int | None = None) -> Palette:
    """The palette of `size` colours of a file; by default the largest one there, which tells most.

    Colours are of the whole picture, whatever the crop shows. A file without any palette gives no colours.
    """
    if isinstance(data, list) and len(data) == 1:
        data = data[0]
    if not isinstance(data, dict):
        raise ValueError(f"a list with one object of palettes was expected, not {shown(data)}")
    palettes = {_read_size(key): palette for key, palette in data.items()}
    if size is not None and size not in palettes:
        raise ValueError(f"holds no palette of {size} colours")
    chosen = max(palettes, default=0) if size is None else size
    colours = palettes.get(chosen, [])
    if not isinstance(colours, list) or len(colours) != chosen:
        raise ValueError(f'the palette "{chosen}" must be a list of {chosen} colours, not {shown(colours)}')
    return tuple(_read_colour(colour) for colour in colours)


def palette_to_json(colours: Sequence[Colour]) -> object:
    """The data of a file with this palette alone."""
    return [{str(len(colours)): [list(colour) for colour in colours]} if colours else {}]


def palette_grammar(size: int | None = None) -> Grammar[Palette]:
    """The grammar of palettes; of a file the one of `size` colours is read, by default the largest."""
    return Grammar(
        parse=parse_palette,
        to_text=palette_to_text,
        from_json=partial(palette_from_json, size=size),
        to_json=palette_to_json,
    )


def _read_size(key: object) -> int:
    size = number_of(f"={key}")
    if size is None or not 1 <= size <= MAX_COLOURS:
        raise ValueError(f'palettes stand under "1" to "{MAX_COLOURS}", not under {shown(key)}')
    return size


def _read_colour(data: object) -> Colour:
    if not isinstance(data, list) or len(data) != 3:
        raise ValueError(f"a colour must be [red, green, blue], not {shown(data)}")
    levels = [finite(level, "every part of a colour") for level in data]
    if min(levels) < 0 or max(levels) > 255 or any(level != round(level) for level in levels):
        raise ValueError(f"a colour must have whole parts in 0..255, not {data}")
    return Colour(*map(round, levels))
