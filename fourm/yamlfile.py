"""YAML files read with the place of every key, so that a mistake can be shown where it stands."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from fourm.errors import UsageError
from fourm.opening import read_bytes

MAX_BYTES = 1 << 20  # of a file
MAX_NODES = 1_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a mapping."""

    key: str
    value: object  # plain YAML data: str, int, float, bool, None, list, dict
    where: str  # "FILE, line N"


def read_mapping(path: Path) -> tuple[Entry, ...]:
    """The entries of a file that holds one flat mapping; an empty file has none."""
    loader, node = _parse(path)
    if node is None or _is_null(node):
        return ()
    return _entries(loader, node, path)


def read_rows(path: Path) -> tuple[tuple[Entry, ...], ...]:
    """The entries of each row of a file that holds a list of mappings."""
    loader, node = _parse(path)
    if not isinstance(node, yaml.SequenceNode):
        raise UsageError(f"{path}: a list of rows was expected, each beginning with '- name: ...'")
    return tuple(_entries(loader, row, path) for row in node.value)


def _parse(path: Path) -> tuple[yaml.SafeLoader, yaml.Node | None]:
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read as text (byte {error.start} is not UTF-8)") from None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None and _expanded(node, {}) > MAX_NODES:
            raise UsageError(f"{path}: its aliases expand to more than {MAX_NODES:,} values")
        return loader, node
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path}{line}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for when each alias is written out; a circle counts once."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = 1
    if isinstance(node, yaml.SequenceNode):
        sizes[id(node)] += sum(_expanded(one, sizes) for one in node.value)
    elif isinstance(node, yaml.MappingNode):
        sizes[id(node)] += sum(_expanded(one, sizes) for pair in node.value for one in pair)
    return sizes[id(node)]


def _entries(loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> tuple[Entry, ...]:
    where = f"{path}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{where}: 'key: value' lines were expected")
    entries: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UsageError(f"{where}: a key must be a plain word")
        key = str(key_node.value)
        if key in entries:
            raise UsageError(f"{where}: '{key}' is given twice (before: {entries[key].where})")
        entries[key] = Entry(key, _construct(loader, value_node, f"{where}: {key}"), where)
    return tuple(entries.values())


def _construct(loader: yaml.SafeLoader, node: yaml.Node, where: str) -> object:
    try:
        return loader.construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise UsageError(f"{where}: this value cannot be read") from None


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
