"""Converts YAML and JSON data to typed values; errors name the path in the data."""

import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from fourm.errors import near_match, shown
from fourm.files.opening import is_encodable

# How messages name a type.
_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
_MAX_PROBLEMS = 3  # that one message names
_hints = cache(partial(get_type_hints, include_extras=True))


@dataclass(frozen=True, slots=True)
class Limits:
    """Inclusive range of a number, or of the length of a text or list: `Annotated[int, Limits(1, 9)]`."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        most = f"to {self.most}" if self.most < math.inf else "or more"
        return f"{self.least} {most}" if self.least < self.most else f"{self.least}"


def to_type(
    kind: Any, value: object, name: str, strict: bool = True, error: type[Exception] = ValueError
) -> Any:
    """Convert parsed JSON or YAML to a type; `error` names what does not fit (at most three), by its path.

    kind: str, int, float, bool, Any, an Enum, Literal, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`, a
    dataclass (keys with a default may be missing), `X | None`, `X | Y` of simple types, or any of them
    Annotated with Limits. Numbers are finite, texts can be part of a path. name: of the value in messages.
    strict: refuse unknown keys.
    """
    problems = list[str]()
    converted = _to_type(kind, value, name, strict, problems)
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        raise error("; ".join([*problems[:_MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]))
    return converted


def _to_type(kind: Any, value: object, path: str, strict: bool, problems: list[str]) -> Any:
    """The converted value. Adds what does not fit to `problems`; the result is then not used."""
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if _is_plain(kind, value):
        return value
    outer, inner, count = get_origin(kind), get_args(kind), len(problems)
    if outer in (UnionType, Union):
        if value is None and NoneType in inner:
            return None
        one = next((one for one in inner if _is_plain(one, value)), inner[0])
        return _to_type(one, value, path, strict, problems)
    if outer is Annotated:
        converted = _to_type(inner[0], value, path, strict, problems)
        if len(problems) > count:
            return None
        size = len(converted) if isinstance(converted, str | tuple) else converted
        if inner[1].least <= size <= inner[1].most:
            return converted
    elif outer is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_to_type(one, item, f"{path}[{i}]", strict, problems) for i, (one, item) in pairs)
    elif outer is Mapping and isinstance(value, dict):
        for key in value:
            _to_type(str, key, f"{path}: a key", strict, problems)
        items = ((key, f"{path}.{shown(key)}", one) for key, one in value.items())
        return {key: _to_type(inner[1], one, place, strict, problems) for key, place, one in items}
    elif is_dataclass(kind) and isinstance(value, dict):
        hints = _hints(kind)  # type: ignore[arg-type]
        required = (one.name for one in fields(kind) if one.default is one.default_factory is MISSING)
        problems += [f"{path} has no {key!r}" for key in required if key not in value]
        unknown = [shown(ascii(k)) + near_match(str(k), hints) for k in value if strict and k not in hints]
        problems += [f"{path} has an unknown key {key}" for key in unknown]
        given = [key for key in hints if key in value]
        found = {key: _to_type(hints[key], value[key], f"{path}.{key}", strict, problems) for key in given}
        return None if problems else kind(**found)  # type: ignore[operator]
    elif isinstance(kind, type) and issubclass(kind, Enum) and value in [one.value for one in kind]:
        return kind(value)
    problems.append(f"{path} is {shown(ascii(value), 40)}, expected {_expected(kind)}")
    return None


def _is_plain(kind: Any, value: object) -> bool:
    """True for a value of exactly this simple type, a choice of a Literal, and anything for Any."""
    if isinstance(value, str) and kind is not Any:
        is_safe = "\0" not in value and is_encodable(value)  # it can be part of a path
        return is_safe and (kind is str or (get_origin(kind) is Literal and value in get_args(kind)))
    if kind is float:
        return type(value) is float and math.isfinite(value)
    return kind is Any or (kind in (int, bool) and type(value) is kind)


def _expected(kind: Any) -> str:
    """The name of a type in a message."""
    outer, inner = get_origin(kind), get_args(kind)
    if outer is Annotated:
        is_length = inner[0] is str or get_origin(inner[0]) is tuple
        return f"{_expected(inner[0])}{' of length' if is_length else ','} {inner[1]}"
    if outer is tuple:
        return "a list" if inner[-1] is ... else f"a list of {len(inner)}"
    if outer is Literal:
        return f"one of {', '.join(inner)}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(one.value for one in kind)}"
    return _WORDS.get(kind, "a mapping")
