"""The rules of the house: who may import whom, what stays free of torch, how long things may be."""

import ast
import importlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
# A room imports only from rooms before it.
ROOMS = (
    "files", "data", "modalities", "hub", "schedule", "output", "checks", "sources", "networks", "decoding",
    "codecs", "inputs", "results", "runs", "batch", "measures", "evaluation", "views", "api",
)  # fmt: skip
WITHOUT_TORCH = ROOMS[: ROOMS.index("networks")]
MAX_LINES = 500


def find_modules() -> dict[str, Path]:
    """Every module of the library and the command line by its dotted name."""
    found = {}
    for path in sorted([*(ROOT / "fourm").rglob("*.py"), *(ROOT / "fourm_cli").rglob("*.py")]):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = find_modules()


def room_of(module: str) -> str:
    """The room of a module; "" for `fourm` and `fourm.errors`, which every room may import."""
    parts = module.split(".")
    return parts[0] if parts[0] != "fourm" else parts[1] if len(parts) > 1 and parts[1] in ROOMS else ""


@cache
def imported_names(path: Path) -> set[tuple[str, str]]:
    """(module, name) of all imports anywhere in a file; name is "" for `import module`. Type checks aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checking = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.walk(node)
    }
    found = set[tuple[str, str]]()
    for node in set(ast.walk(tree)) - checking:
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add((whole, "") if whole in MODULES else (node.module, alias.name))
    return {(module, name) for module, name in found if module in MODULES}


def modules_of(room: str) -> list[str]:
    return [name for name in MODULES if room_of(name) == room]


def public_of(room: str) -> set[tuple[str, str]]:
    """(module, name) of everything that a room lets others use."""
    table = importlib.import_module(f"fourm.{room}").PUBLIC
    return {(f"fourm.{room}.{file}", name) for file, names in table.items() for name in names.split()}


def test_every_module_is_in_a_room() -> None:
    assert [name for name in MODULES if not room_of(name)] == ["fourm", "fourm.errors"]
    folders = {path.name for path in (ROOT / "fourm").iterdir() if any(path.glob("*.py"))}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_few_files_and_not_too_many_lines(room: str) -> None:
    files = [path for path in (ROOT / "fourm" / room).glob("*.py") if path.name != "__init__.py"]
    assert 4 <= len(files) <= 10
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in files) <= 3200


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_public_names_of_rooms_before_it(room: str) -> None:
    before = {"", room, *ROOMS[: ROOMS.index(room)]}
    public = set[tuple[str, str]]().union(*(public_of(one) for one in ROOMS[: ROOMS.index(room)]))
    for module in modules_of(room):
        used = imported_names(MODULES[module])
        assert {room_of(other) for other, _ in used} <= before, module
        assert {one for one in used if room_of(one[0]) not in ("", room)} <= public, module


def test_the_command_line_imports_only_public_names() -> None:
    public = set[tuple[str, str]]().union(*map(public_of, ROOMS))
    for module in modules_of("fourm_cli"):
        used = {one for one in imported_names(MODULES[module]) if room_of(one[0]) not in ("", "fourm_cli")}
        assert used <= public, module


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_exist_and_are_used_outside_their_room(room: str) -> None:
    package = importlib.import_module(f"fourm.{room}")
    for module, name in public_of(room):
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    outside = [path for name, path in MODULES.items() if room_of(name) != room]
    outside += [
        path for top in ("benchmarks", "demo", "docs", "tests") for path in (ROOT / top).rglob("*.py")
    ]
    assert public_of(room) <= set[tuple[str, str]]().union(*map(imported_names, outside))


@pytest.mark.parametrize("room", [*ROOMS, "fourm_cli"])
def test_imports_inside_a_room_have_no_circle(room: str) -> None:
    left = {
        module: {other for other, _ in imported_names(MODULES[module]) if room_of(other) == room} - {module}
        for module in modules_of(room)
    }
    while free := {module for module, needs in left.items() if not needs & left.keys()}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert not left


def test_rooms_before_the_networks_and_the_command_line_never_import_torch() -> None:
    names = [name for room in (*WITHOUT_TORCH, "fourm_cli") for name in modules_of(room)]
    listed = ", ".join(name for name in names if not name.endswith("__main__"))
    code = f"import sys, {listed}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_says_what_it_is_for_in_one_sentence(room: str) -> None:
    sentence = ast.get_docstring(ast.parse(MODULES[f"fourm.{room}"].read_text(encoding="utf-8")))
    assert sentence
    assert "\n" not in sentence
    assert sentence in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_short(name: str) -> None:
    text = MODULES[name].read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            counted = [one for one in arguments if one.arg not in ("self", "cls")]
            assert len(counted) <= 8 or name.startswith("fourm_cli"), f"{node.name} has {len(counted)}"


# Functions that open a file by its path, and their calls that do not: of bytes, of open files, for writing.
OPENERS = {"open", "read_text", "read_bytes", "safe_open", "load_file", "fromfile", "memmap", "from_file",
           "ZipFile", "loadtxt", "genfromtxt", "FileIO"}  # fmt: skip
OPEN_ALREADY = (
    "Image.open(io.BytesIO(data)", "Image.open(file,", "gzip.open(io.BytesIO(data))", "archive.open(f'{name}",
    "archive.open(f'{top}data/{key}')",
    "zipfile.ZipFile(stream)", "zipfile.ZipFile(file)", "tarfile.open(fileobj=",
    "files('fourm.views').joinpath(",
)  # fmt: skip
OPENS = {
    "fourm.files.opening": (
        "os.open(path, _FLAGS)",
        "open(path, mode + 'b', opener=",
        "os.open(path, flags | ",
    ),
    # The library maps a file by its name; the file's header was read through `open_file` just before.
    "fourm.networks.checkpoint": ("safe_open(path, framework='pt')",),
    "fourm_cli.app": ("open(os.devnull, mode)", "os.open(os.devnull, os.O_WRONLY)"),
}


@pytest.mark.parametrize("name", MODULES)
def test_files_are_opened_for_reading_in_one_place_only(name: str) -> None:
    for call in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        text, function = ast.unparse(call), call.func
        is_method = isinstance(function, ast.Attribute)
        opener = function.attr if is_method else getattr(function, "id", "")
        is_ours = not is_method and opener in ("read_text", "read_bytes")
        writes = any(
            ast.unparse(argument) in ("'w'", "'wb'", "'x'", "'xb'", "'a'", "'ab'", "_WRITE")
            for argument in call.args
        )
        if text.startswith(("np.load(", "torch.load(")) or (opener in OPENERS and not is_ours and not writes):
            assert text.startswith((*OPEN_ALREADY, *OPENS.get(name, ())))


# Commands and lines of options that modules write, where options are named as one types them.
COMMANDS = {
    "fourm.batch.slurm": """--executor --workers --sbatch --gpus-per-worker --dry-run --resume --shard --out
        --array --chdir --job-name --parsable --requeue""",
    "fourm.hub.download": "--list",
    "fourm.hub.files": "--revision",
    "fourm.schedule.chain": "--cond --keep --keep-guided --target --top-k --top-p --grow-cond --no-grow-cond",
    "fourm.schedule.configs": "--configs",
    "fourm.schedule.plan": "--no-",
    "fourm.views.album": "--by",
    "fourm.views.gallery": "--replay --out",
}


def texts_of(path: Path) -> list[str]:
    """All texts of a module but its docstrings; what is filled into one is left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    constants = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in told)
    return [node.value for node in constants if isinstance(node.value, str)]


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("fourm.")])
def test_messages_of_the_library_name_settings_and_no_options(name: str) -> None:
    """A setting stands between backticks, as `batch_size` or `out=DIR`, and is an option of some command.

    Those of the room of calls may also be arguments of a call.
    """
    import typer

    from fourm.api.calls import ARGUMENTS
    from fourm_cli.app import app

    def flags(command: Any) -> set[str]:
        own = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)}
        return own.union(*(flags(one) for one in getattr(command, "commands", {}).values()))

    known = flags(typer.main.get_command(app))
    known |= {f"--{one}" for one in ARGUMENTS if room_of(name) == "api"}
    for text in texts_of(MODULES[name]):
        typed = re.findall(r"(?<![\w!-])--[a-z][a-z-]*", text)
        assert {*typed} <= {*COMMANDS.get(name, "").split()}, text
        named = re.findall(r"`([a-z][a-z_]*)(?:=[^`]*)?`", text) + re.findall(r"`([a-z][a-z_]*)=$", text)
        assert {f"--{one.replace('_', '-')}" for one in named} <= known, text
