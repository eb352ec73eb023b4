"""The command line: every mistake gets one sentence and the right exit code, before torch is imported."""

import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from safetensors.torch import load_file, save_file

from fourm import __version__
from fourm.inputs.request import Request
from fourm.output.processes import read_launches
from fourm.output.samples import load_run
from fourm_cli.making import resume_advice

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


def fresh(*words: object, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fourm_cli", *map(str, words)], cwd=ROOT, text=True, check=False,
        capture_output=True, **settings,  # type: ignore[call-overload]
    )  # fmt: skip


SCHEDULES = {
    "an unknown modality": (
        "--targets tok_rbg",
        "--targets: unknown modality 'tok_rbg'; did you mean 'tok_rgb",
    ),
    "a wrong count": ("--temps 1-2-3", "--temps: 3 values for 2 targets"),
    "no number": ("--temps warm", "--temps: 'warm' is not a number"),
    "more steps than tokens": ("--steps 999", "--steps"),
    "a scheme that does not fit": ("--schemes autoregressive", "--schemes"),
    "an unknown scheme": ("--schemes maskgitt", "did you mean 'maskgit'"),
    "a target that the model lacks": ("--targets tok_normal", "cannot produce 'tok_normal"),
    "a condition that the model lacks": ("--cond det", "cannot read 'det'"),
    "a negative temperature": ("--temps=-1", "temperature -1; give 0 or more"),
    "top_p out of range": ("--top-p 1.5", "--top-p"),
    "a bad whole target": ("--target tok_rgb:speed=3", "unknown key 'speed'"),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("command", ["generate", "schedule validate"])
def test_a_wrong_schedule_is_refused_with_its_option(run: Run, tiny: Path, command: str, name: str) -> None:
    options, sentence = SCHEDULES[name]
    code, out, err = run(*command.split(), "--model", tiny, *options.split())
    assert (code, out) == (2, "")
    assert sentence in err
    assert all(line.startswith("fourm: ") for line in err.splitlines())


def test_all_mistakes_of_a_schedule_are_told_together(run: Run, tiny: Path) -> None:
    code, _, err = run(
        "generate", "--model", tiny, "--temps", "1-2-3", "--steps", "x", "--targets", "tok_rgb-foo"
    )
    assert code == 2
    assert len(err.splitlines()) >= 3


OPTIONS = {
    "prompts twice": ("a --data p.txt", "prompts are given both"),
    "a missing file": ("--data nothing.txt", "nothing.txt: there is no such file"),
    "an empty file": ("--data empty.txt", "empty.txt: holds no prompt"),
    "a binary file": ("--data binary.txt", "binary.txt: is a binary file"),
    "a picture": ("--data picture.png --cond caption", "picture.png: pictures are given, but no condition"),
    "a path": ("./picture.pgn", "picture.pgn: there is no such file or folder; did you mean 'picture.png'"),
    "not UTF-8": ("--data latin.txt", "latin.txt: line 2 is not UTF-8"),
    "no such column": ("--data t.csv --column nam", "no column 'nam' among name; did you mean 'name'"),
    "an empty folder": ("--data folder", "folder: holds no picture, and no folder named as a modality"),
    "a long prompt": ("--data long.txt", "but the model reads at most 16"),
    "an end mark": ("--data eos.txt", "[EOS] is reserved"),
    "a prompt of blanks": ("''", "prompt 1 of 1 is empty"),
    "bytes": ("a\udcff", "prompt 1 of 1 is not UTF-8"),
    "an empty prompt among others": ("a ''", "prompt 2 of 2 is empty"),
    "a stream as a prompt": ("-", "--data - reads standard input"),
    "an empty device": ("a --device ''", "--device: '' is not one of"),
    "an empty dtype": ("a --dtype ''", "--dtype: '' is not one of"),
    "a device in other digits": ("a --device cuda:\u0663", "--device: 'cuda:\u0663' is not one of"),
    "an empty output folder": ("a --out ''", "the name of a file or folder is empty"),
    "an empty log": ("a --log-json ''", "the name of a file or folder is empty"),
    "a share just above 1": ("a --top-p 1.0000001", "a share from 0 to 1, not 1.0000001"),
    "prompts without caption": ("a --cond rgb", "prompts give texts only"),
    "no condition, no count": ("--cond none", "--num-samples must say how many"),
    "empty, but a condition": ("--cond caption --data empty --num-samples 2", "use --cond none"),
    "a picture as folder": (
        "a --out o/cat.png",
        "--out o/cat.png: ends like a picture, but is the folder of all results; --out o/cat puts",
    ),
    "a word for what stays": ("a --keep rgb:left", "--keep: 'left' says nothing that stays; give"),
    "a weight before a file": ("a --cond rgb:2=picture.png", "as in rgb=cat.jpg; --weight rgb:2 weighs it"),
    "a target that is given": (
        "a --targets caption",
        "--targets: 'caption' is both a condition and a target; [S_1] in the text marks",
    ),
    "a file as folder": ("a --out p.txt", "p.txt: is a file, not a folder"),
    "a folder in a file": ("a --out p.txt/out", "p.txt is a file, not a folder"),
    "a folder of somebody": ("a --out folder", "is not empty and holds no run.json"),
    "resume nothing": ("a --resume", "--out is missing"),
    "overwrite and resume": ("a --out o --overwrite --resume", "exclude each other"),
    "a shard": ("a --shard 4/4", "--shard: 4/4 is out of range"),
    "shards without a folder": ("a --shard 0/4", "--out is missing"),
    "a batch size": ("a --batch-size 0", "--batch-size: '0'"),
    "a device": ("a --device gpu", "--device: 'gpu'"),
    "a dtype": ("a --dtype float23", "did you mean 'float32'"),
    "a log in the output folder": ("a --out o --log-json o/l", "--log-json o/l: lies in the output folder"),
    "an empty name of data": ("--data ''", "--data: is empty"),
    "a column of nothing": ("a --column text", "--column text: only .tsv, .csv and .jsonl files"),
    "a seed for no subset": ("a --subset-seed 3", "--num-samples must say how many"),
    "a name too long": (f"--data {'x' * 300}", "cannot be read (File name too long)"),
    "an output name too long": (f"a --out {'x' * 300}", "(File name too long)"),
    "a batch size of many digits": (f"a --batch-size {'9' * 5000}", "is neither auto nor a whole number"),
    "more detokenizer steps than a picture could say": (
        "a --detokenizer-steps 10000001", "--detokenizer-steps 10000001: must lie in 1..10,000,000"
    ),
    "a shard of many digits": (f"a --shard 0/{'9' * 5000}", "is not i/n"),
    "too many samples": ("--data empty --num-samples 99999999999 --out o", "at most 10,000,000"),
    "too many of both": (
        "--data empty --num-samples 10000000 --num-variations 2 --out o", "at most 10,000,000"
    ),
    "too many variations": ("a --num-variations 99999999999 --out o", "at most 10,000,000"),
    "a terminal's control characters": ("a --targets \x1b[31m", "unknown modality '\\x1b[31m'"),
    "a log": ("a --quiet --log-json folder", "--log-json folder: cannot be written"),
    "a YAML key": ("a -gc bad.yaml", "bad.yaml, line 2: unknown key 'tempz'; did you mean 'temps'"),
    "no YAML": ("a -c none.yaml", "none.yaml: no such file"),
}  # fmt: skip


def test_a_name_that_no_file_can_have_is_wrong_usage(run: Run) -> None:
    code, out, err = run("schedule", "show", "--plot", "x" * 300 + ".png")
    assert (code, out) == (2, "")
    assert "(File name too long)" in err


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_option_or_input_is_refused_in_one_sentence(
    run: Run, tiny: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "p.txt").write_text("a red circle\n")
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "binary.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "latin.txt").write_bytes("a\nß\n".encode("latin-1"))
    (tmp_path / "t.csv").write_text("name\na\n")
    (tmp_path / "long.txt").write_text("a red " * 8 + "\n")
    (tmp_path / "eos.txt").write_text("a red [EOS] circle\n")
    (tmp_path / "folder" / "stuff").mkdir(parents=True)
    (tmp_path / "bad.yaml").write_text("cond_domains: caption\ntempz: 3.0\n")
    options, sentence = OPTIONS[name]
    code, out, err = run("generate", "--model", tiny, *(w.strip("'") for w in options.split()))
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert err.startswith("fourm: ")


def test_a_refused_run_leaves_no_folder(run: Run, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m/tokenizers/rgb/model.safetensors").write_bytes(b"nothing")
    assert run("generate", "a", "--model", "m", "--out", "new/out")[0] == 2  # found when torch is there
    assert run("generate", "a", "--model", tiny, "--out", "new/out", "--log-json", "m")[0] == 2
    assert not (tmp_path / "new").exists()


def test_an_empty_name_is_not_the_default_model(run: Run) -> None:
    assert run("generate", "a", "--model", "")[0] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_log_on_a_full_disk_is_a_sentence(run: Run, tiny: Path) -> None:
    code, _, err = run("generate", "a", "--model", tiny, "--out", "o", "--log-json", "/dev/full", "--quiet")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "--log-json /dev/full" in err
    assert "No space left" in err


def test_missing_models_name_the_command_that_fetches_them(run: Run) -> None:
    for words in (["generate", "a", "--model", "EPFL-VILAB/4M-7_B_CC12M"],
                  ["schedule", "show", "--model", "some/thing"]):  # fmt: skip
        code, out, err = run(*words)
        assert (code, out) == (4, "")
        assert "fourm download" in err


def test_missing_prompt_sets_name_the_command_that_fetches_them(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    code, _, err = run("generate", "--model", tiny, "--data", "parti_prompts")
    assert code == 4
    assert "`fourm download parti-prompts`" in err


def _truncate(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))


def _drop(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["decoder_norm.weight"]
    save_file(state, folder / "model.safetensors")


def _rename(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["decoder_nrom.weight"] = state.pop("decoder_norm.weight")
    save_file(state, folder / "model.safetensors")


def _damage_tokenizer(folder: Path) -> None:
    _truncate(folder / "tokenizers" / "rgb")


def _damage_text_tokenizer(folder: Path) -> None:
    (folder / "text_tokenizer.json").write_text("{}")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (_truncate, "model.safetensors"),
        (_pickle, "model.safetensors"),
        (_drop, "'decoder_norm.weight' is missing"),
        (_rename, "'decoder_norm.weight' is missing; did you mean 'decoder_nrom.weight'"),
        (_damage_tokenizer, "tokenizers/rgb/model.safetensors"),
        (_damage_text_tokenizer, "text_tokenizer.json: not a text tokenizer"),
    ],
)
def test_a_damaged_model_is_refused_in_one_sentence(
    run: Run, tiny: Path, tmp_path: Path, damage: Callable[[Path], None], sentence: str
) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    damage(tmp_path / "model")
    code, out, err = run("generate", "a red circle", "--model", "model", "--out", "out", "--quiet")
    assert (code, out) == (2, "")
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_wrong_input_never_imports_torch(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("tempz: 1\n")
    code = f"""
import sys
import fourm_cli.app, fourm_cli.generate, fourm_cli.schedules, fourm_cli.options, fourm_cli.console
model = ["--model", {str(tiny)!r}]
for words in (
    ["--help"], ["--version"], ["generate", "--help"],
    ["schedule", "show", *model], ["schedule", "validate", *model],
    ["generate", *model, "--temps", "x"], ["generate", *model, "a [EOS]"], ["generate", *model, "a " * 99],
    ["generate", *model, "-gc", {str(tmp_path / "bad.yaml")!r}],
    ["generate", *model, "a", "--out", "/proc/x"], ["generate", "--nonsense"],
):
    sys.argv = ["fourm", *words]
    try:
        fourm_cli.app.main()
    except SystemExit:
        pass
assert "torch" not in sys.modules, "torch was imported"
assert "numpy" not in sys.modules, "numpy was imported"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


COMMANDS = [
    "",
    "convert",
    "convert sam-instances",
    "download",
    "embed",
    "env",
    "generate",
    "models",
    "models show",
    "plot",
]
COMMANDS += ["retrieve", "schedule", "schedule show", "schedule validate", "sr", "tokenize", "verify"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_100_lines_of_100_columns_and_goes_to_stdout(
    run: Run, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run(*command.split(), "--help")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 100
    assert "Usage: fourm" in out
    assert re.findall(r" <[\w\[\]]+> ", out) == []  # types of Python
    assert ("Examples" in out) == bool(command)
    if "--help-all" in out:
        code, whole, err = run(*command.split(), "--help-all")
        assert (code, err) == (0, "")
        assert len(whole.splitlines()) > len(lines)
        assert " --sr-OPTION  " not in whole


def test_options_that_are_rare_or_of_super_resolution_are_told_by_help_all(run: Run) -> None:
    short, whole = (run("generate", flag)[1] for flag in ("--help", "--help-all"))
    assert "--sr-OPTION" in short
    for flag in ("--sr-temps", "--schemes", "--log-json", "--no-decode"):
        assert flag in whole
        assert flag not in short


MISTAKES = {
    "generate --tepms 3": "generate: there is no option --tepms; did you mean '--temps'?",
    "generate --batchsize 3": "generate: there is no option --batchsize; did you mean '--batch-size'?",
    "generate a -n 4": "generate: there is no option -n; did you mean '--num-variations'?",
    "generate a --num-images 4": "generate: there is no option --num-images; did you mean '--num-variations'",
    "generate a --mask m.png": "generate: there is no option --mask; did you mean '--keep'?",
    "generate a --jobs 2": "generate: there is no option --jobs; did you mean '--shard'?",
    "generate a --depth d.npy": "generate: there is no option --depth; --cond depth=FILE gives it, --targets",
    "upscale out": "there is no command 'upscale'; did you mean 'sr'?",
    "depth a.png": "there is no command 'depth'; `fourm generate` makes pictures, depth, captions ...; `fou",
    "--nothing": "there is no option --nothing; `fourm --help` shows what there is",
    "genrate": "there is no command 'genrate'; did you mean 'generate'?",
    "schedule shwo": "schedule: there is no command 'shwo'; did you mean 'show'?",
    "sr": "sr: DIR is missing; `fourm sr --help` shows what there is",
    "convert sam-instances x": "convert sam-instances: --out is missing",
    "sr a b": "sr: got unexpected extra argument",
    "generate a --seed": "'--seed' requires an argument",
    "generate a --resume=3": "'--resume' does not take a value",
    "generate a --seed x": "--seed: ",
    "generate a --num-samples 0": "--num-samples: ",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes_that_typer_finds_are_told_in_the_same_style(run: Run, words: str) -> None:
    code, out, err = run(*words.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"fourm: {MISTAKES[words]}")


@pytest.mark.parametrize("words", ["", "schedule", "convert"])
def test_a_group_without_a_command_shows_its_help_as_wrong_usage(run: Run, words: str) -> None:
    code, out, _ = run(*words.split())
    assert (code, "Usage: fourm" in out) == (2, True)


def test_help_imports_nothing_that_takes_long() -> None:
    """How long it takes is for a benchmark to say; a machine may have other work."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "fourm_cli", "--help"],
        cwd=ROOT, text=True, check=True, capture_output=True,
    )  # fmt: skip
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    imported = {name.partition(".")[0] for name in modules}
    assert "typer" in imported
    assert not modules & {"fourm.files.writing", "fourm.hub.files", "fourm.runs", "fourm_cli.progress"}
    assert not imported & {"torch", "numpy", "matplotlib", "huggingface_hub", "httpx", "safetensors"}


def test_version_is_one_line_on_stdout(run: Run) -> None:
    assert run("--version") == (0, f"fourm {__version__}\n", "")


def test_debug_shows_the_traceback(tiny: Path) -> None:
    done = fresh("--debug", "generate", "--model", tiny, "--temps", "x")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [("<&- >&- 2>&-", 0, ""), ("<&-", 0, ""), (">&-", 0, ""), ("2>&-", 0, ""),
     ("> /dev/full", 1, "standard output")],
)  # fmt: skip
def test_closed_streams_are_no_mistake_and_a_full_one_is_exit_code_1(
    tiny: Path, streams: str, code: int, said: str
) -> None:
    if "/dev/full" in streams and not Path("/dev/full").exists():
        pytest.skip("needs a device that is always full")
    command = f"exec {sys.executable} -m fourm_cli schedule validate --model {tiny} --json {streams}"
    done = subprocess.run(command, shell=True, cwd=ROOT, text=True, capture_output=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (code, code)
    assert said in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8:strict", "latin-1"])
def test_help_and_paths_are_printed_in_every_encoding(tiny: Path, tmp_path: Path, encoding: str) -> None:
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "fourm_cli", "generate"]
    assert subprocess.run([*words, "--help"], env=env, capture_output=True, check=False).returncode == 0
    if encoding.startswith("utf-8"):
        words += ["a red circle", "--model", str(tiny), "--quiet", "--no-decode", "--out", b"o\xff"]
        done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (0, b"o\xff\n"), done.stderr


def test_a_defect_is_a_line_that_says_how_to_see_more(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text("import fourm_cli.app as a\na.app.command()(lambda: 1 / 0)\na.main()\n")
    done = subprocess.run([sys.executable, script, "<lambda>"], text=True, capture_output=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("fourm: ZeroDivisionError: division by zero (a defect of fourm; --debug")
    assert "Traceback" not in done.stderr


def test_what_the_system_refuses_is_not_taken_for_standard_output(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import errno, fourm_cli.app as a\n"
        "def fail(): raise OSError(errno.EMFILE, 'Too many open files')\n"
        "a.app.command()(fail)\na.main()\n"
    )
    done = subprocess.run([sys.executable, script, "fail"], text=True, capture_output=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "Too many open files" in done.stderr
    assert "standard output" not in done.stderr


def test_a_reader_that_goes_away_is_no_mistake(tiny: Path) -> None:
    command = f"{sys.executable} -m fourm_cli schedule show --model {tiny} --json | head -c 1"
    done = subprocess.run(command, shell=True, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.stdout == "{"
    assert done.stderr == ""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_a_command_that_does_not_end(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time, fourm_cli.app as a\n"
        "def stuck():\n"
        "    said = iter(['working', 'ending'])\n"
        "    while True:\n"
        "        try:\n"
        "            print(next(said, 'still there'), flush=True)\n"
        "            time.sleep(60)\n"
        "        except BaseException: pass\n"
        "a.app.command()(stuck)\na.main()\n"
    )
    command = [sys.executable, str(script), "stuck"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "ending\n"
        process.send_signal(number)
        try:
            out, err = process.communicate(timeout=20)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (code, "", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_so_and_can_be_resumed(
    tiny: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = [
        "generate",
        "--model",
        str(tiny),
        "--data",
        "empty",
        "--cond",
        "none",
        "--num-samples",
        "400",
        "--batch-size",
        "1",
        "--out",
        str(tmp_path / "my out"),
        "--log-json",
        str(tmp_path / "log"),
    ]
    command = [sys.executable, "-m", "fourm_cli", *words, "--overwrite"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "log").exists() or "saved" not in (tmp_path / "log").read_text():
            time.sleep(0.05)
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    said, _, advice = err.splitlines()[-1].partition("; to go on: ")
    (launch,) = read_launches(tmp_path / "my out", load_run(tmp_path / "my out").identity)
    assert launch.finished
    assert 0 < launch.saved < 400
    assert said == f"fourm: interrupted; {launch.saved} of 400 samples are saved"
    assert shlex.split(advice) == ["fourm", "generate", "--resume", *words[1:]]
    assert not (tmp_path / "my out" / ".partial").exists()


def test_what_is_about_to_be_made_is_said_before_torch_is_imported(tiny: Path, tmp_path: Path) -> None:
    words = [
        "generate",
        "a red circle",
        "a blue square",
        "--model",
        tiny,
        "--no-decode",
        "--out",
        tmp_path / "o",
    ]
    command = [sys.executable, "-X", "importtime", "-m", "fourm_cli", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    lines = done.stderr.splitlines()
    (said,) = (number for number, line in enumerate(lines) if line.startswith("fourm: "))
    assert lines[said] == f"fourm: {tiny}, 2 prompts -> tok_clip@64, tok_rgb@64"
    imported = [line.rpartition("|")[2].strip() for line in lines]
    assert said < next(number for number, name in enumerate(imported) if name.partition(".")[0] == "torch")


@pytest.mark.parametrize(
    ("command", "beside", "advice"),
    [
        ("generate a --overwrite", False, "fourm generate --resume --out out/001 a"),
        ("generate a --out=x", False, "fourm generate --resume a --out=x"),
        ("--debug sr - --seed 1", True, "fourm --debug sr --resume out/001 --seed 1"),
        ("generate --data - --out x", False, "fourm generate --resume --data - --out x"),
    ],
)
def test_the_command_that_goes_on_names_its_folder(command: str, beside: bool, advice: str) -> None:
    words, world = ("fourm", *command.split()), SimpleNamespace(group_size=1)
    request = SimpleNamespace(command=words, is_beside=beside, out=Path("out/001"), world=world)
    told = resume_advice(cast(Request, request))
    assert told.partition(": ")[2] == advice
    assert ("standard input" in told) == ("--data -" in command)
