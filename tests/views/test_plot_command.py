"""`fourm plot` from the outside: streams, exit codes, and that nothing but plots is written."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.folders import CAPTION, FIRST, RGB, SECOND, noise, put, snapshot, write_record

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "out"
    write_record(root, [CAPTION, RGB])
    for number, key in enumerate((FIRST, SECOND)):
        put(root, CAPTION, key, "a red circle")
        put(root, RGB, key, noise(number, 64, 64, 3))
    return root


def test_stdout_is_the_folder_and_stderr_says_what_was_done(run: Run, folder: Path) -> None:
    before = snapshot(folder)
    assert run("plot", "out") == (0, "out\n", "2 samples drawn in out/plots\n")
    assert sorted(path.name for path in (folder / "plots").iterdir()) == [
        "000000.png",
        "000001.png",
        "contact.png",
    ]
    assert snapshot(folder) == before
    assert run("plot", "out", "--quiet") == (0, "out\n", "")


def test_a_chain_of_pipes_ends_in_plots(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"out\n")))
    code, out, _ = run("plot", "-", "--no-contact", "--count", "1")
    assert (code, out) == (0, "out\n")
    assert [path.name for path in (folder / "plots").iterdir()] == ["000000.png"]


def test_json_names_folder_plots_and_each_problem(run: Run, folder: Path) -> None:
    (folder / "rgb/00000/000001.png").write_bytes(b"")
    code, out, err = run("plot", "out", "--json")
    assert code == 3
    assert json.loads(out) == {
        "out": "out",
        "plots": "out/plots",
        "page": None,
        "samples": 2,
        "problems": [{"key": "00000/000001", "problem": "rgb/00000/000001.png: is empty"}],
    }
    assert err.startswith("00000/000001: rgb/00000/000001.png: is empty\n")


def test_samples_that_cannot_be_shown_are_told_and_the_others_are_drawn(run: Run, folder: Path) -> None:
    (folder / "rgb/00000/000000.png").unlink()
    code, out, err = run("plot", "out")
    assert (code, out) == (3, "out\n")
    assert "00000/000000: rgb/00000/000000.png: missing" in err
    assert (folder / "plots" / "000001.png").is_file()


def test_characters_that_no_font_has_are_told(run: Run, folder: Path) -> None:
    put(folder, CAPTION, FIRST, "a \U00012000 circle")  # cuneiform: none of the fonts that are tried has it
    code, _, err = run("plot", "out")
    assert code == 0
    assert "no font on this machine has" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("plot", "nowhere"), "nowhere: no such folder"),
        (("plot", "empty"), "empty: holds no run.json"),
        (("plot", "out", "--count", "0"), "--count"),
        (
            ("plot", "out", "--show", "rgbb"),
            "--show: 'rgbb' is not among",
        ),
        (("plot", "out", "--show", "rgb", "--no-contact"), "--show"),
        (("plot", "out", "--format", "pfd"), "did you mean 'pdf'?"),
        (("plot", "out", "--size", "0"), "--size"),
        (("plot", "out", "--model", "nosuchmodel"), "nosuchmodel"),
        (("plot",), "DIR is missing"),
    ],
)
def test_wrong_options_and_folders_are_one_sentence_and_leave_no_plots(
    run: Run, folder: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    code, out, err = run(*words)
    assert code in (2, 4)
    assert out == ""
    assert said in err
    assert not (folder / "plots").exists()


def test_failures_that_cannot_be_read_are_refused(run: Run, folder: Path) -> None:
    (folder / "failures.jsonl").symlink_to("nowhere")
    code, out, err = run("plot", "out")
    assert (code, out) == (2, "")
    assert "failures.jsonl: cannot be read" in err
    assert not (folder / "plots").exists()


def test_a_folder_with_the_name_of_a_contact_sheet_stays(run: Run, folder: Path) -> None:
    (folder / "plots" / "contact-05.png").mkdir(parents=True)
    (folder / "plots" / "contact-06.png").touch()
    assert run("plot", "out")[0] == 0
    assert sorted(path.name for path in (folder / "plots").glob("contact*")) == [
        "contact-05.png",
        "contact.png",
    ]
    (folder / "plots" / "contact.png").unlink()
    (folder / "plots" / "contact.png").mkdir()
    assert run("plot", "out")[0] == 1
    assert not (folder / "plots" / ".partial").exists()


def test_a_record_that_is_no_record_is_refused(run: Run, folder: Path) -> None:
    (folder / "run.json").write_text("{}")
    code, out, err = run("plot", "out")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["nowhere", "no run"])
def test_mistakes_are_told_before_torch_is_imported(tmp_path: Path, name: str) -> None:
    (tmp_path / "no run").mkdir()
    code = (
        f"import sys; sys.argv = ['fourm', 'plot', {str(tmp_path / name)!r}]\n"
        "from fourm_cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 2\n"
        "sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_an_empty_run_is_no_mistake(run: Run, tmp_path: Path) -> None:
    write_record(tmp_path / "none", [RGB])
    assert run("plot", "none") == (0, "none\n", "0 samples drawn in none/plots\n")


def test_sheets_as_pdf_stand_beside_those_as_png(run: Run, folder: Path) -> None:
    assert run("plot", "out", "--format", "pdf", "--size", "7", "--show", "rgb,caption", "-q")[0] == 0
    assert run("plot", "out", "-q")[0] == 0
    names = {path.name for path in (folder / "plots").iterdir()}
    assert names == {f"{stem}.{end}" for stem in ("000000", "000001", "contact") for end in ("png", "pdf")}
