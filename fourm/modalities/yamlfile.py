"""YAML files read with the place of every key, so that a mistake can be shown where it stands."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from fourm.data.opening import read_bytes
from fourm.errors import UsageError, shown

MAX_BYTES = 1 << 17  # of a file: the parser takes seconds for so many
MAX_NODES = 100_000  # of a file, aliases written out
MAX_DEPTH = 32  # lists and mappings within one another, below the value of a key
MAX_DIGITS = 100  # of a number
MAX_KEY = 100  # characters
_DEEP = f"more than {MAX_DEPTH} lists or mappings within one another"
_TAG = "tag:yaml.org,2002:"
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "merge")


class _Loader(yaml.SafeLoader):
    """The plain loader, which stops at what is too deep; its time grows with the square of the depth."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node with all that is in it."""
        if self._depth > MAX_DEPTH + 3:  # rows, a row, its value
            raise RecursionError
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


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
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UsageError(f"{path}, line {line}: not valid YAML ({error.reason})") from None
    # A date is text: no setting is one.
    loader.yaml_implicit_resolvers = {
        first: [one for one in resolvers if one[0] != _TAG + "timestamp"]
        for first, resolvers in loader.yaml_implicit_resolvers.items()
    }
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else loader.line
        problem = error.problem or error.context
        raise UsageError(f"{path}, line {line + 1}: not valid YAML ({shown(problem)})") from None
    # The last ones come from escapes such as "\\UFFFFFFFF" and numbers of directives.
    except (yaml.YAMLError, ValueError, OverflowError):
        raise UsageError(f"{path}, line {loader.line + 1}: not valid YAML") from None
    except RecursionError:
        raise UsageError(f"{path}, line {loader.line + 1}: not valid YAML for settings ({_DEEP})") from None
    if node is not None and _expanded(node, {}) > MAX_NODES:
        raise UsageError(f"{path}: its aliases expand to more than {MAX_NODES:,} values")
    return loader, node


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node stands for when each alias is written out; a circle counts once."""
    if id(node) in sizes:
        return sizes[id(node)]
    sizes[id(node)] = 1
    sizes[id(node)] += sum(_expanded(child, sizes) for child in _children(node))
    return sizes[id(node)]


def _entries(loader: yaml.SafeLoader, node: yaml.Node, path: Path) -> tuple[Entry, ...]:
    where = f"{path}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{where}: 'key: value' lines were expected")
    entries: dict[str, Entry] = {}
    for key_node, value_node in node.value:
        where = f"{path}, line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode) or not _is_word(key_node.value):
            raise UsageError(f"{where}: a key must be a plain word")
        key = str(key_node.value)
        if key in entries:
            raise UsageError(f"{where}: '{key}' is given twice (before: {entries[key].where})")
        entries[key] = Entry(key, _construct(loader, value_node, f"{where}: {key}"), where)
    return tuple(entries.values())


def _is_word(text: str) -> bool:
    return len(text) <= MAX_KEY and text.isprintable()


def _construct(loader: yaml.SafeLoader, node: yaml.Node, where: str) -> object:
    """A value of plain data: texts, numbers, true, false, nothing, lists and mappings of those."""
    if problem := _problem(node, ()):
        raise UsageError(f"{where}: this value cannot be read ({problem})")
    try:
        return loader.construct_object(node, deep=True)
    # PyYAML looks words up, takes first letters and calculates without a check.
    except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError):
        raise UsageError(f"{where}: this value cannot be read") from None


def _problem(node: yaml.Node, above: tuple[yaml.Node, ...]) -> str:
    """Why a node within others cannot become plain data that can be shown and written; "" if it can."""
    kind = node.tag.removeprefix(_TAG)
    if kind not in _PLAIN:
        return f"'{shown(kind)}' is no plain data"
    if node in above or len(above) > MAX_DEPTH:
        return _DEEP
    if isinstance(node, yaml.ScalarNode):
        if kind in ("int", "float") and len(node.value) > MAX_DIGITS:
            return f"a number of {len(node.value):,} digits"
        if any("\ud800" <= letter <= "\udfff" for letter in node.value):
            return "it holds half a character"
    return next(filter(None, (_problem(child, (*above, node)) for child in _children(node))), "")


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
