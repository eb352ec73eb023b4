"""Parsed JSON to dataclasses, with every type checked: a user may have edited the file."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints


def fit(kind: Any, value: Any, name: str) -> Any:
    """Convert a value to a type: dataclass, `tuple[X, ...]`, `Mapping[str, X]`, `X | None`, plain type, Any.

    ValueError if it does not fit; the message calls the value `name`.
    """
    outer, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(value, dict):
        return _fields(kind, value, name)
    if outer is tuple and isinstance(value, list):
        return tuple(fit(inner[0], item, f"{name}[{number}]") for number, item in enumerate(value))
    if outer is Mapping and isinstance(value, dict):
        return {fit(str, key, name): fit(inner[1], item, f"{name}.{key}") for key, item in value.items()}
    if outer is UnionType:
        return None if value is None else fit(inner[0], value, name)
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        value = float(value)
    if type(value) is not kind or not _is_plain(value):
        raise ValueError(f"{name} is {_shown(value)}")
    return value


def _fields(kind: Any, value: dict[str, Any], name: str) -> Any:
    """A dataclass from a dict with exactly its fields."""
    hints = get_type_hints(kind)
    if missing := sorted(hints.keys() - value.keys()):
        raise ValueError(f"{name} has no {missing[0]}")
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"{name} has an unknown {unknown[0]!r}")
    return kind(**{key: fit(hint, value[key], f"{name}.{key}") for key, hint in hints.items()})


def _is_plain(value: object) -> bool:
    """True for finite numbers, and for texts that can be part of a path."""
    if isinstance(value, float):
        return math.isfinite(value)
    if not isinstance(value, str):
        return True
    try:
        return b"\0" not in os.fsencode(value)
    except UnicodeEncodeError:
        return False


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
