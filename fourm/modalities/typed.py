"""Converts YAML and JSON data to typed values; errors name the file and line, or the path in the data."""

import math
import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from fourm.data.opening import read_bytes
from fourm.errors import UsageError, near_match, shown

# Of a YAML file.
MAX_BYTES = 1 << 17  # the parser takes seconds for so many
MAX_NODES = 100_000  # aliases written out
MAX_DEPTH = 32  # lists and mappings within one another, below the value of a key
MAX_DIGITS = 100  # of a number
MAX_KEY = 100  # characters
_DEEP = f"more than {MAX_DEPTH} lists or mappings within one another"
_TAG = "tag:yaml.org,2002:"
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")  # of plain data
_WORDS = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
_MAX_PROBLEMS = 3  # that one message names


@dataclass(frozen=True, slots=True)
class Limits:
    """Inclusive range of a number, or of the length of a text or list: `Annotated[int, Limits(1, 9)]`."""

    least: float
    most: float = math.inf

    def __str__(self) -> str:
        most = f"to {self.most}" if self.most < math.inf else "or more"
        return f"{self.least} {most}" if self.least < self.most else f"{self.least}"


def fit(kind: Any, value: object, name: str, strict: bool = True) -> Any:
    """Convert parsed JSON or YAML to a type; a ValueError names everything that does not fit, by its path.

    kind: str, int, float, bool, Any, an Enum, Literal, `tuple[X, ...]`, `tuple[X, Y]`, `Mapping[str, X]`, a
    dataclass (keys with a default may be missing), `X | None`, or any of them Annotated with Limits. Numbers
    are finite, texts can be part of a path. name: of the value in messages. strict: refuse unknown keys.
    """
    problems = list[str]()
    fitted = _fit(kind, value, name, strict, problems)
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        raise ValueError("; ".join([*problems[:_MAX_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]))
    return fitted


def _fit(kind: Any, value: object, path: str, strict: bool, problems: list[str]) -> Any:
    """The fitted value; adds what does not fit to the problems, in which case the result means nothing."""
    if kind is float and type(value) is int and abs(value) <= sys.float_info.max:
        return float(value)
    if _is_plain(kind, value):
        return value
    outer, inner, count = get_origin(kind), get_args(kind), len(problems)
    if outer in (UnionType, Union):
        return None if value is None else _fit(inner[0], value, path, strict, problems)
    if outer is Annotated:
        fitted = _fit(inner[0], value, path, strict, problems)
        if len(problems) > count:
            return None
        if inner[1].least <= (len(fitted) if isinstance(fitted, str | tuple) else fitted) <= inner[1].most:
            return fitted
    elif outer is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(kinds) == len(value):
            items = enumerate(zip(kinds, value, strict=True))
            return tuple(_fit(one, item, f"{path}[{i}]", strict, problems) for i, (one, item) in items)
    elif outer is Mapping and isinstance(value, dict):
        for key in value:
            _fit(str, key, f"{path}: a key", strict, problems)
        return {k: _fit(inner[1], one, f"{path}.{shown(k)}", strict, problems) for k, one in value.items()}
    elif is_dataclass(kind) and isinstance(value, dict):
        hints, required = _hints(kind)  # type: ignore[arg-type]
        problems += [f"{path} has no {key!r}" for key in required if key not in value]
        for key in value if strict else ():
            if key not in hints:
                guess = near_match(str(key), hints)
                problems.append(f"{path} has an unknown key {shown(ascii(key))}{guess}")
        found = {k: _fit(hints[k], value[k], f"{path}.{k}", strict, problems) for k in hints if k in value}
        return None if problems else kind(**found)  # type: ignore[operator]
    elif isinstance(kind, type) and issubclass(kind, Enum) and value in [one.value for one in kind]:
        return kind(value)
    problems.append(f"{path} is {shown(ascii(value), 40)}, expected {_expected(kind)}")
    return None


@cache
def _hints(kind: type) -> tuple[dict[str, Any], list[str]]:
    """The types of a dataclass's fields, and the fields that have no default."""
    required = [one.name for one in fields(kind) if one.default is one.default_factory is MISSING]
    return get_type_hints(kind, include_extras=True), required


def _is_plain(kind: Any, value: object) -> bool:
    """True for a value of exactly this type, one of the choices of a Literal, and for Any."""
    if isinstance(value, str) and kind is not Any:
        try:
            is_safe = b"\0" not in os.fsencode(value)
        except UnicodeEncodeError:
            return False
        return is_safe and (kind is str or (get_origin(kind) is Literal and value in get_args(kind)))
    if kind is float:
        return type(value) is float and math.isfinite(value)
    return kind is Any or (kind in (int, bool) and type(value) is kind)


def _expected(kind: Any) -> str:
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


class _Loader(yaml.SafeLoader):
    """A loader of plain data only, which refuses files that would take minutes to read. A date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as declared by the base class)
        first: [one for one in resolvers if one[0] != _TAG + "timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._sizes = dict[int, tuple[int, int]]()  # of nodes by id: values and levels, aliases written out

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node with all that is in it."""
        is_alias = self.check_event(yaml.AliasEvent)
        if self._depth > MAX_DEPTH + 3:  # rows, a row, its value
            raise yaml.MarkedYAMLError(problem=_DEEP)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None and (problem := self._measure(node, is_alias)):
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return node

    def _measure(self, node: yaml.Node, is_alias: bool) -> str:
        """Note the size of a node; returns what is wrong with it, or ""."""
        if is_alias:
            return "" if id(node) in self._sizes else "a value that holds itself"
        kind, value, children = node.tag.removeprefix(_TAG), node.value, list[yaml.Node]()
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = value
        elif kind in ("int", "float") and len(value) > MAX_DIGITS:
            return f"a number of {len(value):,} digits"
        elif any("\ud800" <= letter <= "\udfff" for letter in value):
            return "half a character"
        if kind not in _TAGS:
            return f"'{shown(kind)}' is no plain data"
        counts, levels = zip((1, 0), *(self._sizes[id(child)] for child in children), strict=True)
        self._sizes[id(node)] = count, level = sum(counts), 1 + max(levels)
        if count > MAX_NODES:
            return f"its aliases expand to more than {MAX_NODES:,} values"
        return _DEEP if level > MAX_DEPTH + 3 else ""


@dataclass(frozen=True, slots=True)
class YamlEntry:
    """One `key: value` of a mapping."""

    key: str
    value: object  # plain YAML data: str, int, float, bool, None, list, dict
    where: str  # "FILE, line N"


def read_mapping(path: Path) -> tuple[YamlEntry, ...]:
    """The entries of a file that holds one flat mapping; an empty file has none."""
    loader, node = _parse(path)
    return () if node is None or node.tag == f"{_TAG}null" else _entries(loader, node, path)


def read_rows(path: Path) -> tuple[tuple[YamlEntry, ...], ...]:
    """The entries of each row of a file that holds a list of mappings."""
    loader, node = _parse(path)
    if not isinstance(node, yaml.SequenceNode):
        raise UsageError(f"{path}: a list of rows was expected, each beginning with '- name: ...'")
    return tuple(_entries(loader, row, path) for row in node.value)


def _parse(path: Path) -> tuple[_Loader, yaml.Node | None]:
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read as text (byte {error.start} is not UTF-8)") from None
    reason = ""
    try:
        loader = _Loader(text)
        return loader, loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line, reason = text.count("\n", 0, error.position), error.reason
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else loader.line
        reason = shown(error.problem or error.context)
    # The last ones come from escapes such as "\\UFFFFFFFF" and numbers of directives.
    except (yaml.YAMLError, ValueError, OverflowError):
        line = loader.line
    raise UsageError(f"{path}, line {line + 1}: not valid YAML{reason and f' ({reason})'}")


def _entries(loader: _Loader, node: yaml.Node, path: Path) -> tuple[YamlEntry, ...]:
    where = f"{path}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{where}: 'key: value' lines were expected")
    entries: dict[str, YamlEntry] = {}
    for key_node, value_node in node.value:
        where, key = f"{path}, line {key_node.start_mark.line + 1}", key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or len(key) > MAX_KEY or not key.isprintable():
            raise UsageError(f"{where}: a key must be a plain word")
        if key in entries:
            raise UsageError(f"{where}: '{key}' is given twice (before: {entries[key].where})")
        try:
            value = loader.construct_object(value_node, deep=True)
        # PyYAML looks words up, takes first letters and calculates without a check.
        except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError):
            raise UsageError(f"{where}: {key}: this value cannot be read") from None
        entries[key] = YamlEntry(key, value, where)
    return tuple(entries.values())
