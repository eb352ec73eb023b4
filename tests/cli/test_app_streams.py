"""Paths are printed as the bytes that they are; neither a full disk nor a reader that left ends a run."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourm_cli import app
from fourm_cli.console import print_path
from fourm_cli.options import parse_folder

ROOT = Path(__file__).resolve().parents[2]
FOURM = f"{sys.executable} -m fourm_cli"
NAMES = ["out 🔴", "café", os.fsdecode(b"not utf-8 \xff")]


def shell(command: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env={**os.environ, **variables}, capture_output=True, check=False
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8", "utf-16"])
def test_a_path_is_printed_and_read_in_no_encoding(
    name: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
    print_path(folder)
    sys.stdout.flush()
    assert printed.getvalue() == os.fsencode(folder) + b"\n"
    assert parse_folder("-", io.BytesIO(printed.getvalue())) == folder


@pytest.mark.parametrize(
    "variables",
    [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_commands_chain_in_every_locale(variables: dict[str, str], tmp_path: Path) -> None:
    data = tmp_path / "data" / "sam_instance" / "a"
    data.mkdir(parents=True)
    (data / "x.npy").write_bytes(b"none")
    out = tmp_path / "out 🔴"
    out.mkdir()
    done = shell(
        f"{FOURM} convert sam-instances '{tmp_path}/data' --out '{out}' | {FOURM} verify -", **variables
    )
    assert b"is no output folder" in done.stderr or b"run.json" in done.stderr, done.stderr
    assert b"no such folder" not in done.stderr


def test_a_log_on_a_full_disk_ends_no_run(tiny: Path, tmp_path: Path) -> None:
    made = shell(
        f"{FOURM} generate red --model {tiny} --no-decode --device cpu --out {tmp_path}/o 2>/dev/full"
    )
    assert (made.returncode, made.stdout) == (0, f"{tmp_path}/o\n".encode())
    refused = shell(f"{FOURM} generate red --shard 9/2 2>/dev/full")
    assert refused.returncode == 2


@pytest.mark.parametrize("command", ["models", "models --json", "schedule show", "--help", "--version"])
def test_a_reader_that_left_is_no_mistake(command: str) -> None:
    done = shell(f"{FOURM} {command} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode == 0
    assert b"rror" not in done.stderr


def test_a_result_that_cannot_be_written_is_told() -> None:
    done = shell(f"{FOURM} schedule show > /dev/full")
    assert (done.returncode, b"cannot be written" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        ImportError("libx.so: cannot allocate memory in static TLS block"),
    ],
)
def test_libraries_that_memory_has_no_room_for_are_no_defect(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    app._explain_defect(type(error), error, None)  # type: ignore[arg-type]
    assert capsys.readouterr().err.startswith("fourm: memory has no room for the libraries")
    app._explain_defect(ImportError, ImportError("no module"), None)  # type: ignore[arg-type]
    assert "(a defect of fourm" in capsys.readouterr().err


@pytest.mark.parametrize("columns", ["999999999", "00000000080"])
def test_absurd_widths_of_a_terminal_are_ignored(columns: str) -> None:
    """Rich would fill every line of help with blanks up to that width."""
    done = shell(f"{FOURM} schedule show --help", COLUMNS=columns)
    assert done.returncode == 0
    assert b"--targets" in done.stdout
    assert len(done.stdout) < 100_000


def test_names_that_an_encoding_lacks_are_escaped_in_tables(tmp_path: Path) -> None:
    run = f"{FOURM} generate red --targets tok_clip --steps 1 --no-decode -q --out {tmp_path}/o"
    done = shell(f"{run} > /dev/null && touch {tmp_path}/o/caption/é && {FOURM} verify {tmp_path}/o",
                 PYTHONIOENCODING="ascii")  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert rb"caption/\xe9" in done.stdout
