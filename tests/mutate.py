"""Would the tests notice? Changes one place of the library at a time and runs the tests nearest to it.

    python -m tests.mutate out/mutations.jsonl --count 100 --seed 1   # goes on where it was stopped
    python -m tests.mutate out/mutations.jsonl --report               # the share caught, and the survivors

Not part of `.ci/run`: a hundred mutations take about an hour. They are made in a copy of the repository, so
the checkout is never changed. A survivor is a missing test, or a change that no caller can see; a person has
to say which.
"""

import argparse
import ast
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "engine", "sampling", "schedule", "checkpoint", "saving", "record", "layout", "hub", "pipeline",
    "superres", "replay",
)  # fmt: skip
FILES = (*(f"fourm/{name}.py" for name in MODULES), "fourm_cli/*.py")
NEAREST = {  # test files beside the one that has the module's name
    "engine": "dense superres weighted_guidance pipeline",
    "sampling": "engine superres",
    "schedule": "plan engine",
    "checkpoint": "loading tokenizers pipeline",
    "saving": "pipeline outputs generate_cli sr_command",
    "record": "pipeline sr_command verify generate_cli torchrun",
    "layout": "pipeline prompts record",
    "hub": "loading download models_command",
    "pipeline": "generate_cli sr_command state",
    "superres": "sr_command",
    "app": "cli generate_cli",
    "console": "cli generate_cli",
    "follow": "sr_command replay",
    "run_options": "generate_cli sr_command cli",
    "options": "cli generate_cli",
    "generate": "cli conditions_cli replay",
    "schedules": "schedule_command",
    "transfers": "download_command",
    "retrieve": "retrieval",
    "models": "names",
}
COPIED = ("fourm", "fourm_cli", "tests", "cfgs", "demo", "docs", "benchmarks", "pyproject.toml", "README.md",
          "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", ".ci")  # fmt: skip
SECONDS = 600  # a mutation that makes the tests hang counts as caught
SWAPS: dict[type[ast.AST], str] = {
    ast.Eq: "!=", ast.NotEq: "==", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Is: "is not",
    ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.Add: "-", ast.Sub: "+", ast.Mult: "+",
    ast.FloorDiv: "*", ast.Div: "*", ast.Mod: "+", ast.BitAnd: "|", ast.BitOr: "&", ast.And: "or",
    ast.Or: "and",
}  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """One place of one file, and what stands there instead."""

    file: str
    line: int
    start: int  # in bytes of the file
    end: int
    before: str
    after: str

    @property
    def name(self) -> str:
        """Tells mutations apart, also after lines above have moved."""
        said = f"{self.file}:{self.start}:{self.before}:{self.after}"
        return hashlib.sha256(said.encode()).hexdigest()[:12]


def mutations_of(file: str) -> Iterator[Mutation]:
    """Every mutation of a file: other operators and constants, turned conditions, no call, no raise."""
    source = (ROOT / file).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(node: ast.expr | ast.stmt, after: str) -> Mutation:
        first = starts[node.lineno - 1] + node.col_offset
        last = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        return Mutation(file, node.lineno, first, last, source[first:last].decode(), after)

    def between(left: ast.expr, right: ast.expr, operator: ast.AST) -> Iterator[Mutation]:
        first = starts[(left.end_lineno or 0) - 1] + (left.end_col_offset or 0)
        last = starts[right.lineno - 1] + right.col_offset
        text = source[first:last].decode()
        if type(operator) in SWAPS and (match := re.search(r"(not in|is not|[^\s()]+)", text)):
            after = text[: match.start()] + SWAPS[type(operator)] + text[match.end() :]
            yield Mutation(file, left.end_lineno or 0, first, last, text, after)

    tree = ast.parse(source)
    docs = {
        id(body[0])
        for node in ast.walk(tree)
        if isinstance(body := getattr(node, "body", None), list) and body and isinstance(body[0], ast.Expr)
        and isinstance(body[0].value, ast.Constant)
    }  # fmt: skip
    hints = {id(part) for node in ast.walk(tree) for hint in _hints(node) for part in ast.walk(hint)}
    for node in ast.walk(tree):
        if id(node) in docs or id(node) in hints:
            continue
        match node:
            case ast.Compare(left=left, ops=operators, comparators=rights):
                for one, operator, other in zip([left, *rights], operators, rights, strict=False):
                    yield from between(one, other, operator)
            case ast.BinOp(left=left, op=operator, right=right):
                yield from between(left, right, operator)
            case ast.BoolOp(op=operator, values=values):
                for one, other in itertools.pairwise(values):
                    yield from between(one, other, operator)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield place(node, ast.unparse(operand) and f"bool({ast.unparse(operand)})")
            case ast.If(test=test) | ast.IfExp(test=test):
                yield place(test, f"not ({ast.unparse(test)})")
            case ast.Constant(value=bool() as value):
                yield place(node, str(not value))
            case ast.Constant(value=int() as number):
                yield place(node, str(number + 1))
            case ast.Raise() | ast.Expr(value=ast.Call()):
                yield place(node, "pass")
            case _:
                pass


def _hints(node: ast.AST) -> Iterator[ast.AST]:
    for name in ("annotation", "returns"):
        if (hint := getattr(node, name, None)) is not None:
            yield hint


def nearest_tests(file: str) -> list[str]:
    """Test files of a module: that of its name, and those in `NEAREST`."""
    name = Path(file).stem
    names = (name, f"{name}_command", f"{name}_cli", *NEAREST.get(name, "").split())
    paths = (f"tests/test_{one}.py" for one in dict.fromkeys(names))
    return [path for path in paths if (ROOT / path).exists()] or ["tests/test_cli.py"]


def is_caught(mutation: Mutation, copy: Path) -> bool:
    """Whether a test fails, or does not end, with this mutation."""
    path = copy / mutation.file
    whole = (ROOT / mutation.file).read_bytes()
    path.write_bytes(whole[: mutation.start] + mutation.after.encode() + whole[mutation.end :])
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        *nearest_tests(mutation.file),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    if (golden := ROOT.parent / "shared" / "golden").is_dir():
        environment.setdefault("FOURM_GOLDEN", str(golden))
    try:
        ended = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=SECONDS)
        return ended.returncode != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_bytes(whole)


def run(log: Path, count: int, seed: int) -> None:
    """Try mutations until `count` of them are in the log; those that are there already count."""
    files = sorted({p.relative_to(ROOT).as_posix() for pattern in FILES for p in ROOT.glob(pattern)})
    every = {file: list(mutations_of(file)) for file in files}
    order = random.Random(seed)
    # As many from each file, so that the short ones are not forgotten.
    chosen = [order.choice(every[file]) for _ in range(count) for file in files if every[file]][:count]
    done = {entry["name"] for entry in _read(log)}
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "fourm"
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                copy.mkdir(exist_ok=True)
                shutil.copy(source, copy / name)
        for mutation in dict.fromkeys(chosen):
            if mutation.name in done:
                continue
            started = time.perf_counter()
            caught = is_caught(mutation, copy)
            entry = {
                "name": mutation.name,
                "caught": caught,
                "seconds": round(time.perf_counter() - started, 1),
            }
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry | asdict(mutation)) + "\n")
            said = f"{mutation.file}:{mutation.line}: {mutation.before!r} -> {mutation.after!r}"
            print("caught  " if caught else "SURVIVED", said, flush=True)


def report(log: Path) -> None:
    """The share that was caught, by file, and every survivor."""
    entries = _read(log)
    for file in sorted({entry["file"] for entry in entries}):
        mine = [entry["caught"] for entry in entries if entry["file"] == file]
        print(f"{sum(mine):4} of {len(mine):3}  {file}")
    print(f"{sum(e['caught'] for e in entries):4} of {len(entries):3}  in all")
    for entry in entries:
        if not entry["caught"]:
            print(f"{entry['file']}:{entry['line']}: {entry['before']!r} -> {entry['after']!r}")


def _read(log: Path) -> list[dict[str, object]]:
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("log", type=Path, help="one line of JSON for each mutation")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if not options.report:
        run(options.log, options.count, options.seed)
    report(options.log)
