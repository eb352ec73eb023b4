"""Opening files for reading: what is no regular file, or is too large, is refused at once, wherever it is."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import pytest

from fourm.errors import UsageError
from fourm.files.opening import Ready, open_file, open_own, parse_json_lines, read_bytes, real
from fourm_cli.progress import open_log
from tests.test_structure import ROOT

Run = Callable[..., tuple[int, str, str]]
SPECIAL = "not a file, but a pipe, a device or a socket"


class StuckError(BaseException):
    """A call that waits; none of the handlers of errors catches this."""


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    """Ends a test that waits for a pipe."""

    def stop(*_: object) -> None:
        raise StuckError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("read", [open_file, lambda path: read_bytes(path, 1 << 20)])
def test_only_regular_files_are_opened(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, target in {"zero": "/dev/zero", "to pipe": "pipe", "folder": "/"}.items():
        (tmp_path / name).symlink_to(target)
    for name in ("pipe", "to pipe", "zero"):
        with pytest.raises(OSError, match=SPECIAL):
            read(tmp_path / name)
    with pytest.raises(IsADirectoryError, match="not a file, but a folder"):
        read(tmp_path / "folder")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


def test_a_refused_file_is_not_left_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/dev/fd"))
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="not a file"):
            open_file(path)
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_of_the_limit_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0" * 2048)
    assert read_bytes(path, 2048) == b"0" * 2048
    with pytest.raises(OSError, match="more than 1 KiB"):
        read_bytes(path, 2047)
    os.truncate(path, 1 << 40)  # has no bytes on the disk
    with pytest.raises(OSError, match="more than 3 MiB"):
        read_bytes(path, 3 << 20)


def test_files_without_a_size_are_read() -> None:
    assert read_bytes(Path("/proc/self/status"), 1 << 20).startswith(b"Name:")
    with pytest.raises(OSError, match="more than 0 KiB"):
        read_bytes(Path("/proc/self/status"), 10)


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_a_stream_that_the_process_was_started_with_is_read_to_its_end_or_limit(name: str) -> None:
    ours, others = os.pipe()
    with os.fdopen(ours), os.fdopen(others, "wb") as writer:
        writer.write(b"a cat")
        writer.close()
        assert read_bytes(Path(name.format(ours)), 10) == b"a cat"
    endless = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    assert endless.stdout is not None
    with endless, endless.stdout, pytest.raises(OSError, match="more than 64 KiB"):
        read_bytes(Path(name.format(endless.stdout.fileno())), 1 << 16)


@contextmanager
def started(command: str) -> Iterator[str]:
    """What a shell puts in the place of `<(command)`."""
    with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield f"/dev/fd/{process.stdout.fileno()}"


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model."""
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def as_pipe(path: Path) -> None:
    """Put a pipe that nobody writes to in the place of a file."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "modalities.yaml", "text_tokenizer.json", "prompts.txt"]
)
def test_a_pipe_among_the_files_of_a_model_is_named(run: Run, model: Path, name: str) -> None:
    as_pipe(model / name)
    code, out, err = run("generate", "--model", model, "--cond", "caption", "--out", "o")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert f"{model / name}: cannot be read ({SPECIAL})" in err
    assert not Path("o").exists()


def test_a_pipe_as_a_tokenizer_is_named(run: Run, model: Path) -> None:
    path = next((model / "tokenizers").glob("rgb*"))
    path = path / "model.safetensors" if path.is_dir() else path
    as_pipe(path)
    code, _, err = run("generate", "red", "--model", model, "--out", "o")
    assert code == 2
    assert f"{path}: cannot be read ({SPECIAL})" in err


@pytest.mark.parametrize("option", ["-c", "-dc", "-gc", "-src", "--data"])
def test_a_pipe_or_a_device_given_as_a_file_is_named(run: Run, tiny: Path, option: str) -> None:
    as_pipe(Path("pipe.yaml"))
    Path("zero.yaml").symlink_to("/dev/zero")
    for name in ("pipe.yaml", "zero.yaml"):
        code, _, err = run("generate", "--model", tiny, option, name)
        assert (code, err) == (2, f"fourm: {name}: cannot be read ({SPECIAL})\n")


def test_a_file_that_is_far_too_large_is_named(run: Run, model: Path) -> None:
    for name, limit in (
        ("config.json", "16 MiB"),
        ("modalities.yaml", "128 KiB"),
        ("text_tokenizer.json", "64 MiB"),
    ):
        before = (model / name).read_bytes() if (model / name).exists() else b"[]"
        (model / name).touch()
        os.truncate(model / name, 1 << 40)
        code, _, err = run("generate", "red", "--model", model)
        assert (code, err) == (2, f"fourm: {model / name}: cannot be read (more than {limit})\n")
        (model / name).write_bytes(before)


def test_pipes_among_the_records_of_a_run_are_not_waited_for(run: Run, tiny: Path) -> None:
    words = ("generate", "--model", tiny, "red", "--targets", "tok_clip", "--no-decode", "--out", "o")
    assert run(*words)[0] == 0
    (sums,) = Path("o/processes").glob("*.sha256")
    for name in ("failures.jsonl", str(sums.relative_to("o")), "run.json"):
        shutil.copytree("o", "before", dirs_exist_ok=True)
        as_pipe(Path("o", name))
        for command in (("plot", "o"), ("verify", "o"), (*words, "--resume")):
            code, out, err = run(*command)
            assert code == 0 or name in out + err
            assert "defect" not in err
        shutil.rmtree("o")
        Path("before").rename("o")


def test_a_pipe_is_no_picture_to_repeat(run: Run) -> None:
    as_pipe(Path("a.png"))
    Path("b.png").write_bytes(b"no picture")
    code, _, err = run("generate", "--replay", "a.png")
    assert (code, err) == (2, f"fourm: --replay a.png: is not a PNG that can be read ({SPECIAL})\n")
    code, _, err = run("generate", "--replay", "b.png")
    assert (code, err) == (2, "fourm: --replay b.png: is not a PNG that can be read\n")


@pytest.mark.parametrize("name", ["pipe", "pipe.safetensors"])
def test_a_pipe_is_no_model_and_no_tokenizer(run: Run, name: str) -> None:
    as_pipe(Path(name))
    for words in (("--model", name), ("--tokenizer", f"rgb={name}")):
        code, _, err = run("generate", "red", *words, "--out", "o")
        assert code == 2
        assert f"{name}: cannot be read (" in err
        assert "a pipe, a device or a socket" in err


def test_prompts_and_settings_come_from_what_a_shell_makes_of_a_command(run: Run, tiny: Path) -> None:
    with started("printf 'red\\nblue\\n'") as prompts, started("echo 'temps: 2.0'") as settings:
        words = ("generate", "--model", tiny, "--data", prompts, "-gc", settings, "--targets", "tok_clip")
        assert run(*words, "--no-decode", "--out", "o")[0] == 0
    assert sorted(path.stem for path in Path("o").glob("tok_clip*/00000/*")) == ["000000", "000001"]
    assert '"temperature": 2.0' in Path("o/run.json").read_text()


def test_the_path_of_standard_input_is_standard_input(tmp_path: Path) -> None:
    code = "import pathlib, fourm.data.prompts as p; print(p.read_file(pathlib.Path('/dev/stdin')))"
    (tmp_path / "p.txt").write_text("red\nblue\n")
    python = f'{sys.executable} -c "{code}"'
    for line in (f"cat {tmp_path}/p.txt | {python}", f"{python} < {tmp_path}/p.txt"):
        done = subprocess.run(["bash", "-c", line], cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.stdout == "b'red\\nblue\\n'\n", done.stderr


def test_a_file_that_has_nothing_to_read_yet_is_not_waited_for() -> None:
    """As some files below /proc, whose bytes are still to come, though they are no pipes."""
    for read in (lambda file: file.read(), lambda file: file.read(10), next):
        end, start = os.pipe()
        os.set_blocking(end, False)
        with BufferedReader(Ready(end)) as file, pytest.raises(OSError, match="something that has to be"):
            read(file)
        os.close(start)


def test_own_files_larger_than_the_limit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "own"
    path.write_bytes(bytes(1025))
    with open_own(path, "r", 1025) as file:
        assert len(file.read()) == 1025
    with pytest.raises(OSError, match="more than 1 KiB"):
        open_own(path, "r", 1024)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"a": 1, "a": 2}', "'a' .*twice"),
        ('{"a": ', "Expecting"),
        ("[" * 100_000, "recursion"),
        ("9" * 5000, "digits"),
    ],
)
def test_json_lines_are_numbered_and_damaged_ones_named_or_left_out(line: str, why: str) -> None:
    text = f'{{"a": 1}}\n\n{line}\n"b"\n'
    assert list(parse_json_lines(text, "x", skip_damaged=True)) == [(1, {"a": 1}), (4, "b")]
    with pytest.raises(UsageError, match=f"x: line 3 is not JSON .*{why}"):
        list(parse_json_lines(text, "x"))


def test_a_circle_of_links_has_an_end(run: Run, tiny: Path) -> None:
    Path("circle").symlink_to("circle")
    assert real(Path("circle")).name == "circle"
    options = ("red", "--model", tiny, "--targets", "tok_rgb", "--steps", 1, "--out", "o")
    code, _, err = run("generate", *options, "--log-json", "circle")
    assert (code, Path("o").exists()) == (2, False)
    assert "circle: cannot be written (Too many levels of symbolic links)" in err


def test_a_chart_replaces_no_pipe(run: Run, tiny: Path) -> None:
    as_pipe(Path("pipe.png"))
    code, out, err = run("schedule", "show", "--model", tiny, "--plot", "pipe.png")
    assert (code, out, err) == (2, "", "fourm: --plot pipe.png: something that is no file is there\n")
    assert Path("pipe.png").is_fifo()


def test_a_log_does_not_wait_for_a_reader_of_its_pipe(run: Run, tiny: Path) -> None:
    as_pipe(Path("log"))
    code, _, err = run("generate", "red", "--model", tiny, "--out", "o", "--log-json", "log", "--quiet")
    assert (code, err) == (2, "fourm: --log-json log: cannot be written (No such device or address)\n")
    assert not Path("o").exists()


def test_a_log_overwrites_only_an_older_log(run: Run, tiny: Path) -> None:
    Path("prompts.txt").write_text("red\n")
    options = ("generate", "--data", "prompts.txt", "--model", tiny, "--targets", "tok_rgb", "--steps", 1)
    code, _, err = run(*options, "--out", "o", "--log-json", "prompts.txt")
    assert code == 2
    assert "--log-json prompts.txt: holds something else than a log" in err
    assert (Path("prompts.txt").read_text(), Path("o").exists()) == ("red\n", False)
    other = '{"event": "red"}\n'  # of another program, or a column of prompts
    Path("events.jsonl").write_text(other)
    code, _, err = run(*options, "--out", "o", "--log-json", "events.jsonl")
    assert (code, Path("events.jsonl").read_text()) == (2, other)
    assert "--log-json events.jsonl: holds something else than a log" in err
    for out in ("o", "again"):
        assert run(*options, "--out", out, "--log-json", "log")[0] == 0
    assert Path("log").read_text().count('"started"') == 1


def test_every_event_begins_a_line_of_a_log(tmp_path: Path) -> None:
    schema = json.loads((ROOT / "docs" / "events.schema.json").read_text())
    names = re.findall(r'"const": "(\w+)"', json.dumps(schema))
    assert len(names) == 11
    for name in names:
        (tmp_path / "log").write_text(f'{{"event": "{name}", "x": 1}}\n')
        with open_log(tmp_path / "log"):
            assert (tmp_path / "log").read_text() == ""


def test_a_folder_from_a_pipe_may_have_any_name(tiny: Path, tmp_path: Path) -> None:
    name = b"\xff" if sys.platform == "linux" else b"x"
    command = [sys.executable, "-m", "fourm_cli", "verify", "-"]
    said = subprocess.run(
        command,
        input=name + b"\n",
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (said.returncode, said.stdout) == (2, b"")
    assert b"no such folder" in said.stderr
