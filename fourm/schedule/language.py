"""The text of settings: items, lists, targets and YAML values become plain values that know where they stood.

Meaning is not known here: which names exist, and what fits what, is for `fourm.schedule.plan`.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from fourm.errors import UsageError, near_match, shown
from fourm.modalities.typed import YamlEntry, read_mapping

Value = str | int | float | bool | None
_DECIMAL = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"  # other scripts' digits are mistakes
_NONE = re.compile(r"(?:none|null)(?=\s*(?:[,-]|$))", re.IGNORECASE)
_SEPARATOR = re.compile(r"\s*[,-]\s*")


class Item(Enum):
    """What one piece of a list is: a name for messages, and its text."""

    NAME = ("a name", r"[^\s,:=-]+(?::" + _DECIMAL + ")?")  # with or without a weight: caption:2.0
    COUNT = ("a whole number", r"[+-]?[0-9]+(?![\d.eE])")
    NUMBER = ("a number", _DECIMAL)
    CURVE = ("the name of a schedule", r"[^\s,:=\d-][^\s,:=-]*(?::" + _DECIMAL + ")*")
    FLAG = ("true or false", r"(?i:true|false)")
    COUNT_OR_SHARE = ("a whole number or a share", _DECIMAL)  # top-k: 50, or 0.05 of the vocabulary
    TEXT = ("a text", r"(?s:.+)")  # never split


@dataclass(frozen=True, slots=True)
class Setting:
    """The values of one setting, and the option or line that they come from."""

    values: tuple[Value, ...]
    where: str  # "--temps" or "FILE, line 3: temps"


@dataclass(frozen=True, slots=True)
class Layer:
    """Settings of one source, by key; what could not be read is among the problems."""

    settings: Mapping[str, Setting]
    problems: tuple[str, ...] = ()


def parse_list(text: str, item: Item) -> tuple[Value, ...]:
    """The items of a list separated by commas or hyphens; `None` stands for the default.

    Items are matched greedily from the left, so that `3.0--1.0` is 3 and -1, and `1e-3-0.5` is 0.001 and 0.5.
    """
    pattern, values, at = re.compile(item.value[1]), list[Value](), 0
    text = text.strip()
    while True:
        match = _NONE.match(text, at) or pattern.match(text, at)
        end = match.end() if match else at
        separator = _SEPARATOR.match(text, end)
        if match is None or (end < len(text) and separator is None):
            piece = re.split(r",|(?<=[^eE\s,])-", text[at:])[0].strip() or text
            raise UsageError(f"'{shown(piece)}' is not {item.value[0]}")
        values.append(_value(match[0], item))
        if separator is None:
            return tuple(values)
        at = separator.end()


def parse_value(value: object, item: Item) -> tuple[Value, ...]:
    """The items of an option or YAML value: a text, a number, a truth value, nothing, or a list of those."""
    if isinstance(value, list | tuple):
        return tuple(single for one in value for single in _only_one(one, item))
    if isinstance(value, str) and item is not Item.TEXT:
        return parse_list(value, item) if value.strip() else ()
    return _only_one(value, item)


def parse_target(text: str, items: Mapping[str, tuple[str, Item]], where: str) -> tuple[str, Layer]:
    """A whole target, `NAME:KEY=VALUE,...`, as its name and the settings given to it.

    items: for each KEY the key of the setting and the sort of its value.
    """
    name, _, rest = text.strip().partition(":")
    settings, problems = dict[str, Setting](), list[str]()
    for pair in [p.strip() for p in rest.split(",")] if rest.strip() else []:
        key, equals, value = (part.strip() for part in pair.partition("="))
        key = key.replace("_", "-")
        if key not in items:
            close = near_match(key, items) or f"; known are {', '.join(items)}"
            problems.append(f"{where} {name}: unknown key '{key}'{close}")
        elif not equals or not value:
            problems.append(f"{where} {name}: '{key}' needs a value, for example {key}=...")
        elif items[key][0] in settings:
            problems.append(f"{where} {name}: '{key}' is given twice")
        else:
            try:
                settings[items[key][0]] = Setting(_only_one(value, items[key][1]), f"{where} {name}: {key}")
            except UsageError as error:
                problems.append(f"{where} {name}: {key}: {error}")
    return name.strip(), Layer(settings, tuple(problems))


def parse_options(values: Mapping[str, object], items: Mapping[str, Item], flags: Mapping[str, str]) -> Layer:
    """Options by key, `None` where one was not given."""
    given = [YamlEntry(key, value, flags[key]) for key, value in values.items() if value is not None]
    return _layer(given, items, lambda entry: entry.where)


def load_layer(
    path: Path, items: Mapping[str, Item], known: Collection[str]
) -> tuple[Layer, list[YamlEntry]]:
    """The settings of a YAML file, and its entries with other known keys. An unknown key is a problem."""
    ours, others, unknown, seen = list[YamlEntry](), list[YamlEntry](), list[str](), set[str]()
    for entry in read_mapping(path):
        key = entry.key.replace("-", "_")
        if key in seen:
            unknown.append(f"{entry.where}: '{key}' is given twice, as '{entry.key}' too")
        seen.add(key)
        if key in items:
            ours.append(YamlEntry(key, entry.value, entry.where))
        elif key in known:
            others.append(YamlEntry(key, entry.value, entry.where))
        else:
            unknown.append(f"{entry.where}: unknown key '{entry.key}'{near_match(key, [*items, *known])}")
    layer = _layer(ours, items, lambda entry: f"{entry.where}: {entry.key}")
    return Layer(layer.settings, (*unknown, *layer.problems)), others


def _layer(
    entries: Iterable[YamlEntry], items: Mapping[str, Item], where: Callable[[YamlEntry], str]
) -> Layer:
    settings, problems = dict[str, Setting](), list[str]()
    for entry in entries:
        try:
            settings[entry.key] = Setting(parse_value(entry.value, items[entry.key]), where(entry))
        except UsageError as error:
            problems.append(f"{where(entry)}: {error}")
    return Layer(settings, tuple(problems))


def _only_one(value: object, item: Item) -> tuple[Value, ...]:
    """The one item that a value must be; a list within a list is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        if value is None or (item is Item.FLAG and isinstance(value, bool)):
            return (value,)
        raise UsageError(f"'{shown(value)}' is not {item.value[0]}")
    text = value.strip() if isinstance(value, str) else repr(value)
    if not (_NONE.fullmatch(text) or re.fullmatch(item.value[1], text)):
        raise UsageError(f"'{shown(text)}' is not {item.value[0]}")
    return (_value(text, item),)


def _value(text: str, item: Item) -> Value:
    """One item that matched its pattern."""
    if _NONE.fullmatch(text):
        return None
    if item is Item.COUNT:
        if len(text) > 18:
            raise UsageError(f"'{text[:18]}...' is too large")
        return int(text)
    if item is Item.COUNT_OR_SHARE and re.fullmatch(r"[+-]?\d{1,18}", text):
        return int(text)
    if item in (Item.NUMBER, Item.COUNT_OR_SHARE):
        if not math.isfinite(float(text)):
            raise UsageError(f"'{text[:18]}' is too large")
        return float(text)
    return text.lower() == "true" if item is Item.FLAG else text
