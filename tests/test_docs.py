"""What the documents say is true: code runs, links lead somewhere, the command reference is current.

UPDATE_DOCS=1 writes docs/cli.md anew.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from textwrap import fill

import pytest
from PIL import Image

from demo import album
from fourm.checks.findings import (
    ALTERED,
    FOREIGN,
    MISSING,
    OLDER,
    TRUNCATED,
    UNFINISHED,
    UNLISTED,
    UNREADABLE,
)
from fourm.data.layout import Place
from fourm.measures.tables import MEASURES
from fourm.modalities.registry import RELEASED
from fourm.output.joining import NOT_COMPARED
from fourm.output.processes import Failure, Launch
from fourm.output.record import RunRecord
from fourm.output.samples import RecordedSample
from tests.test_structure import ROOMS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = (
    "", "convert", "convert sam-instances", "download", "generate", "sr", "tokenize", "embed", "retrieve",
    "eval", "plot", "schedule", "schedule validate", "schedule show", "models", "models show", "verify",
    "env",
)  # fmt: skip
PLAIN = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of one language in a document."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@cache
def reference() -> str:
    """docs/cli.md as it should be."""
    says = "What `--help-all` says (`--help`, where that is all), at 100 columns."
    parts = ["# Commands", f"{says} Results go to stdout, all else to stderr."]
    for command in COMMANDS:
        for flag in ("--help-all", "--help"):
            words = [sys.executable, "-m", "fourm_cli", *command.split(), flag]
            done = subprocess.run(words, cwd=ROOT, env=PLAIN, text=True, capture_output=True, check=False)
            if done.returncode == 0:
                break
        text = "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())
        parts += [f"## fourm {command}".rstrip(), f"```text\n{text}\n```"]
    return "\n\n".join(parts) + "\n"


def test_the_command_reference_is_current() -> None:
    path, text = ROOT / "docs" / "cli.md", reference()
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(text, encoding="utf-8")
    page = path.read_text(encoding="utf-8")
    if f"typer=={version('typer')}\n" not in (ROOT / "constraints.txt").read_text(encoding="utf-8"):
        page, text = (" ".join(re.findall(r"^## .*|--[\w-]+", said, re.MULTILINE)) for said in (page, text))
    assert page == text, "UPDATE_DOCS=1 pytest tests/test_docs.py writes it anew"


def modules() -> str:
    """What each file of the library and the command line is for: the first lines of their docstrings."""
    parts = [
        "# What each file is for",
        "From docstrings; [architecture.md](architecture.md) shows the rooms.",
    ]
    folders = [ROOT / "fourm" / room for room in ROOMS] + [ROOT / "fourm_cli"]
    for folder in folders:
        parts.append(f"## {folder.relative_to(ROOT).as_posix()}\n\n| file | is for |\n| --- | --- |")
        for path in sorted(folder.rglob("*.py")):
            says = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]
            if not path.name.startswith("__"):
                name = path.relative_to(folder).with_suffix("").as_posix()
                parts[-1] += f"\n| `{name}` | {says.replace('|', chr(92) + '|')} |"
    return "\n\n".join(parts) + "\n"


def test_the_table_of_modules_is_current() -> None:
    path, text = ROOT / "docs" / "modules.md", modules()
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text, "UPDATE_DOCS=1 pytest tests/test_docs.py writes it anew"


def measures() -> str:
    """The table of measures, and how each is taken, from `MEASURES`."""
    lines = ["| measure | of | numbers | needs | source |", "| --- | --- | --- | --- | --- |"]
    for row in MEASURES.values():
        arrows = {"higher": "↑", "lower": "↓"}
        numbers = ", ".join(f"`{name}` {arrows[better]}" for name, better in row.results.items())
        partner = [] if row.needs_partner else ["no partner"]
        needs = [
            *partner,
            *(["captions"] if row.needs_caption else []),
            row.package,
            row.weights and f"`{row.weights}`",
        ]
        told = ", ".join(filter(None, needs))
        lines.append(f"| `{row.name}` | {', '.join(row.sorts)} | {numbers} | {told} | {row.source} |")
    wrapped = partial(fill, width=200, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join([*lines, "", *(wrapped(f"* `{row.name}`: {row.how}.") for row in MEASURES.values())])


def test_the_table_of_measures_is_current() -> None:
    path = ROOT / "docs" / "evaluate.md"
    head, rest = path.read_text(encoding="utf-8").split("<!-- measures -->\n")
    table, tail = rest.split("<!-- end -->")
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(f"{head}<!-- measures -->\n{measures()}\n<!-- end -->{tail}", encoding="utf-8")
        return
    assert table == f"{measures()}\n", "UPDATE_DOCS=1 pytest tests/test_docs.py writes it anew"


def test_the_python_of_the_readme_runs_as_written(tmp_path: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MKL_CBWR": "AUTO,STRICT"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("rgb/00000/*.png"))) == 1


def test_the_commands_about_datasets_run_as_written(tmp_path: Path) -> None:
    lines = ["set -e", f'fourm() {{ {shlex.quote(sys.executable)} -m fourm_cli "$@"; }}']
    lines += blocks(ROOT / "docs" / "datasets.md", "sh")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)], cwd=tmp_path, env=env, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "exit code 3\n" in done.stdout
    assert '"key": "00000/000001"' in done.stdout
    assert not (tmp_path / "maps" / "failures.jsonl").exists()
    for out in ("from-shards", "maps"):
        names = sorted(p.name for p in (tmp_path / out / "tok_depth@64" / "00000").iterdir())
        assert names == ["000000.npy", "000001.npy", "000002.npy"]


@pytest.mark.more
def test_the_commands_about_modalities_run_as_written_and_their_results_have_the_pictures(
    tmp_path: Path,
) -> None:
    """All that the page names, of what the commands made, is there; committed pictures are of that kind."""
    page = album.PAGE.read_text(encoding="utf-8")
    assert album.commands() == "".join(blocks(album.PAGE, "sh"))
    album.run_commands(tmp_path)
    made = re.findall(r"`((?:drawn|said|large|photo|from-[a-z]+)/[a-z_@0-9]+)`", page)
    assert len(made) > 12
    assert [name for name in made if not list((tmp_path / name).rglob("*.*"))] == []
    for name, sheet in album.draw(tmp_path).items():
        with Image.open(album.FOLDER / name) as committed:
            assert committed.size == sheet.size, f"{name}: python -m demo.album draws it anew"
        low, high = sheet.convert("L").getextrema()
        assert high - low > 100


def test_the_pictures_of_modalities_are_those_of_the_album_and_small() -> None:
    page = album.PAGE.read_text(encoding="utf-8")
    named = re.findall(r"!\[[^\]]+\]\(images/modalities/([^)]+)\)", page)
    there = [path.name for path in album.FOLDER.iterdir()]
    assert sorted(named) == sorted(there) == sorted(album.SHEETS)
    assert sum((album.FOLDER / name).stat().st_size for name in there) < 400_000


def test_every_modality_is_in_the_table_of_modalities() -> None:
    page = album.PAGE.read_text(encoding="utf-8")
    table = page.partition("| modality |")[2].partition("\n\n")[0]
    missing = [row.key for row in RELEASED.rows.values() if f"`{row.key}" not in table]
    assert missing == []
    headings = {line[3:].lower().replace(" ", "-") for line in page.splitlines() if line.startswith("## ")}
    assert set(re.findall(r"\]\(#([a-z-]+)\)", table)) <= headings


def described(page: str, start: str, end: str) -> tuple[list[str], list[str]]:
    """First cells of the tables between two headings, and the names in them."""
    part = page.partition(start)[2].partition(end)[0]
    rows = [row.split(" | ")[0] for row in part.splitlines() if row.startswith("| `")]
    return rows, [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_every_field_of_a_record_is_described_and_those_that_may_differ_are_marked() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    rows, told = described(page, "### run.json", "### samples")
    names = [f.name for kind in (RunRecord, Place) for f in fields(kind)]
    assert sorted(told) == sorted([*names, "format", "identity", "sha256"])
    marked = {name for row in rows if row.endswith(r"\*") for name in re.findall(r"`(\w+)`", row)}
    assert marked == {*NOT_COMPARED, "identity", "sha256"}
    assert sorted(described(page, "### samples", "### processes")[1]) == sorted(
        f.name for f in fields(RecordedSample)
    )
    rest = page.partition("### processes")[2]
    assert [f.name for kind in (Launch, Failure) for f in fields(kind) if f"`{f.name}`" not in rest] == []


def test_every_kind_of_finding_is_described() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").partition("## fourm verify")[2]
    for kind in (MISSING, TRUNCATED, ALTERED, FOREIGN, UNREADABLE):
        assert f"\n| `{kind}` | " in page
    assert all(f"`{kind}`" in page for kind in (UNFINISHED, UNLISTED, OLDER))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_a_table_tells_of_each_thing_once(path: Path) -> None:
    """Two rows of one thing are what a merge leaves, and only one of them is kept true."""
    for table in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        first = [row.split("|")[1].strip() for row in table.splitlines()]
        named = [name for name in first if re.fullmatch(r"`[^`]*[^`a-z][^`]*`", name)]
        assert len(named) == len(set(named))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_schedule_commands_of_the_documents_work(path: Path) -> None:
    for line in "\n".join(blocks(path, "sh")).splitlines():
        if not line.startswith("fourm schedule"):
            continue
        words = shlex.split(line, comments=True)
        words = words[: words.index("|")] if "|" in words else words
        command = [sys.executable, "-m", "fourm_cli", *words[1:]]
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        if "--json" in words:
            json.loads(done.stdout)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_options_that_documents_name_exist(path: Path) -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", reference())) | {"--help"}
    for line in "\n".join([*blocks(path, "sh"), *blocks(path, "console")]).splitlines():
        if "fourm generate" in line or "fourm_cli generate" in line:
            own = line.split("#")[0].partition(" generate")[2]  # before it are options of torchrun or srun
            own = re.sub(r'--sbatch "[^"]*"', "--sbatch", own)
            unknown = set(re.findall(r"(?<=\s)--[a-z][a-z-]+", own)) - known
            assert not unknown, line


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "docs" / "quickstart.md"], ids=lambda p: p.name)
def test_commands_typed_one_after_the_other_find_their_folders_free(path: Path) -> None:
    """A folder that another command wrote, or that holds such folders (as out/ does), is refused."""
    used = [Path("out/demo"), Path("out/001")]  # of `make demo` and of a bare `fourm generate`
    for line in "\n".join(blocks(path, "sh")).splitlines():
        for out in [] if "--resume" in line else re.findall(r"(?<=--out )[^\s|]+", line.split(" #")[0]):
            taken = [one for one in used if one.is_relative_to(out) or Path(out).is_relative_to(one)]
            assert not taken, line
            used.append(Path(out))
