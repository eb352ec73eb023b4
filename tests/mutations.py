"""Changes of one place of a Python file, for `tests.mutate`."""

import ast
import hashlib
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SWAPS: dict[type[ast.AST], str] = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.Add: "-", ast.Sub: "+", ast.Mult: "+",
    ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "+", ast.BitAnd: "|", ast.BitOr: "&", ast.And: "or",
    ast.Or: "and", ast.LShift: ">>", ast.RShift: "<<",
}  # fmt: skip
# What no result depends on: clocks, waits, the layout of classes, checks of lengths that are equal.
TIMING = re.compile(r"perf_counter|monotonic|time\.sleep|SECONDS|TIMEOUT|WAIT")
# Paths and hints, which only fail with another operator.
CRASHES = re.compile(r"\| None$|^None \||\b(out|root|folder|path|home|cache|parent|snapshot)\b.* / ")
LAYOUT = ("dataclass", "TypeVar")


@dataclass(frozen=True)
class Mutation:
    """One place of one file, and what stands there instead."""

    file: str
    line: int
    start: int  # in bytes of the file
    end: int
    function: str  # the outermost one, with its class; "" for what is done at import
    before: str
    after: str

    @property
    def name(self) -> str:
        """Tells mutations apart, also when the file's other lines change a little."""
        said = f"{self.file}:{self.start}:{self.before}:{self.after}"
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before!r} -> {self.after!r}"


class Source:
    """A file, and every mutation of it."""

    def __init__(self, root: Path, file: str) -> None:
        self.file, self.data = file, (root / file).read_bytes()
        self._starts = [0, *itertools.accumulate(map(len, self.data.splitlines(keepends=True)))]

    def mutations(self) -> Iterator[Mutation]:
        """Those that Python can read."""
        for mutation in self._below(ast.parse(self.data), ""):
            changed = self.changed(mutation)
            try:
                compile(changed, self.file, "exec")
            except (SyntaxError, ValueError):
                continue
            yield mutation

    def changed(self, mutation: Mutation) -> bytes:
        """The file with a mutation."""
        return self.data[: mutation.start] + mutation.after.encode() + self.data[mutation.end :]

    def _below(self, node: ast.AST, function: str, scope: str = "") -> Iterator[Mutation]:
        for child in ast.iter_child_nodes(node):
            if _is_passed_over(child, node):
                continue
            inner, name = scope, function
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                inner = f"{scope}{child.name}."
                if isinstance(child, ast.FunctionDef) and not function:
                    name = inner.removesuffix(".")
            yield from self._of(child, name)
            if not isinstance(child, ast.Raise):
                yield from self._below(child, name, inner)

    def _of(self, node: ast.AST, function: str) -> Iterator[Mutation]:
        match node:
            case ast.Compare(left=left, ops=operators, comparators=rights):
                for one, operator, other in zip([left, *rights], operators, rights, strict=False):
                    yield from self._between(one, other, operator, function)
            case ast.BinOp(left=left, op=operator, right=right) if not CRASHES.search(ast.unparse(node)):
                yield from self._between(left, right, operator, function)
            case ast.BoolOp(op=operator, values=values):
                for one, other in itertools.pairwise(values):
                    yield from self._between(one, other, operator, function)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._place(node, f"bool({ast.unparse(operand)})", function)
            case ast.Constant(value=bool() as value):
                yield self._place(node, str(not value), function)
            case ast.Constant(value=int() as number):
                yield self._place(node, str(number + 1), function)
            case ast.Raise() | ast.Expr(value=ast.Call() | ast.Yield()):
                yield self._place(node, "pass", function)
            case _:
                pass
        if isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
            yield self._place(node.test, f"(not ({ast.unparse(node.test)}))", function)

    def _place(self, node: ast.expr | ast.stmt, after: str, function: str) -> Mutation:
        first = self._starts[node.lineno - 1] + node.col_offset
        last = self._starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        return Mutation(self.file, node.lineno, first, last, function, self.data[first:last].decode(), after)

    def _between(
        self, left: ast.expr, right: ast.expr, operator: ast.AST, function: str
    ) -> Iterator[Mutation]:
        first = self._starts[(left.end_lineno or 0) - 1] + (left.end_col_offset or 0)
        last = self._starts[right.lineno - 1] + right.col_offset
        text = self.data[first:last].decode()
        if type(operator) in SWAPS and (match := re.search(r"(not in|is not|[^\s()]+)", text)):
            after = text[: match.start()] + SWAPS[type(operator)] + text[match.end() :]
            yield Mutation(self.file, left.end_lineno or 0, first, last, function, text, after)


def _is_passed_over(node: ast.AST, parent: ast.AST) -> bool:
    """Docstrings, hints, texts with values in them, and what no result depends on."""
    if node in (getattr(parent, "annotation", None), getattr(parent, "returns", None)):
        return True
    match node:
        case ast.Expr(value=ast.Constant()) | ast.JoinedStr() | ast.keyword(arg="strict"):
            return True
        case ast.If(test=test) if ast.unparse(test).endswith("TYPE_CHECKING"):
            return True
        case ast.Call(func=function) if ast.unparse(function).split(".")[-1] in LAYOUT:
            return True
        case ast.BinOp() | ast.Expr() | ast.Assign() | ast.AnnAssign():
            return bool(TIMING.search(ast.unparse(node)))
        case _:
            return False
