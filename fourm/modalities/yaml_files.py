"""Reads YAML files of plain data: their entries with file and line, or an error that names the line.

Only what reads such a file imports this, for `import yaml` takes as long as a tenth of `fourm --help`.
"""

from pathlib import Path

import yaml

from fourm.errors import UsageError, shown
from fourm.files.opening import read_bytes

MAX_BYTES = 1 << 17  # the parser takes seconds for so many
MAX_NODES = 100_000  # aliases written out
MAX_DEPTH = 32  # lists and mappings within one another, below the value of a key
_MAX_LEVELS = MAX_DEPTH + 3  # with the list of rows, a row, its value
MAX_DIGITS = 100  # of a number
MAX_KEY = 100  # characters
_DEEP = f"more than {MAX_DEPTH} lists or mappings within one another"
_TAG = "tag:yaml.org,2002:"
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map", "merge")  # of plain data

YamlEntries = dict[str, tuple[object, str]]  # by key: plain data of Python, and its place, "FILE, line N"


def read_mapping(path: Path) -> YamlEntries:
    """The entries of a file that holds one flat mapping; an empty file has none."""
    loader, node = _parse(path)
    return {} if node is None or node.tag == f"{_TAG}null" else _entries(loader, node, path)


def read_rows(path: Path) -> list[YamlEntries]:
    """The entries of each row of a file that holds a list of mappings."""
    loader, node = _parse(path)
    if not isinstance(node, yaml.SequenceNode):
        raise UsageError(f"{path}: a list of rows was expected, each beginning with '- name: ...'")
    return [_entries(loader, row, path) for row in node.value]


class _Loader(yaml.SafeLoader):
    """A loader that stops at lists that are too deep, which take it minutes. A date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (as declared by the base class)
        first: [one for one in resolvers if one[0] != _TAG + "timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.level > _MAX_LEVELS:
            raise yaml.MarkedYAMLError(problem=_DEEP)
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        return node


def _parse(path: Path) -> tuple[_Loader, yaml.Node | None]:
    reason = ""
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _check_plain(node)
        return loader, node
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: cannot be read as text (byte {error.start} is not UTF-8)") from None
    except yaml.reader.ReaderError as error:
        line, reason = text.count("\n", 0, error.position), error.reason
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else loader.line
        reason = shown(error.problem or error.context)
    # The last ones come from escapes such as "\\UFFFFFFFF" and numbers of directives.
    except (yaml.YAMLError, ValueError, OverflowError):
        line = loader.line
    raise UsageError(f"{path}, line {line + 1}: not valid YAML{reason and f' ({reason})'}")


def _check_plain(root: yaml.Node) -> None:
    """MarkedYAMLError for what is no plain data, or takes minutes to construct; aliases are written out."""
    count, left = 0, [(root, 0)]
    while left:
        node, level = left.pop()
        count, kind, children, problem = count + 1, node.tag.removeprefix(_TAG), list[yaml.Node](), ""
        if isinstance(node, yaml.MappingNode):
            children = [one for pair in node.value for one in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        elif kind in ("int", "float") and len(node.value) > MAX_DIGITS:
            problem = f"a number of {len(node.value):,} digits"
        elif any("\ud800" <= letter <= "\udfff" for letter in node.value):
            problem = "half a character"
        if level > _MAX_LEVELS:  # or a value holds itself
            problem = _DEEP
        elif count > MAX_NODES:
            problem = f"its aliases expand to more than {MAX_NODES:,} values"
        elif kind not in _TAGS:
            problem = f"'{shown(kind)}' is no plain data"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        left += [(child, level + 1) for child in reversed(children)]


def _entries(loader: _Loader, node: yaml.Node, path: Path) -> YamlEntries:
    where = f"{path}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{where}: 'key: value' lines were expected")
    entries: YamlEntries = {}
    for key_node, value_node in node.value:
        where, key = f"{path}, line {key_node.start_mark.line + 1}", key_node.value
        if not isinstance(key_node, yaml.ScalarNode) or len(key) > MAX_KEY or not key.isprintable():
            raise UsageError(f"{where}: a key must be a plain word")
        if key in entries:
            raise UsageError(f"{where}: '{key}' is given twice (before: {entries[key][1]})")
        try:
            value = loader.construct_object(value_node, deep=True)
        # PyYAML looks words up, takes first letters and calculates without a check.
        except (yaml.YAMLError, ValueError, TypeError, LookupError, ArithmeticError):
            raise UsageError(f"{where}: {key}: this value cannot be read") from None
        entries[key] = value, where
    return entries
