"""`fourm download` from the outside: streams, exit codes, bars, interruption, and a model that then runs."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from rich.console import Console

from fourm.hub import download as download_module
from fourm.hub.cache import cache_folder, pins_path
from fourm.hub.catalogue import CATALOGUE
from fourm.hub.download import fetch
from fourm.hub.remote import Advanced, Client, Waiting
from fourm_cli import transfers as command_module
from fourm_cli.transfers import Transfers, headline
from tests.fetching import FETCHED, FILE, FILES, ID, NAME, WEIGHTS, Watch, partial, whole_files
from tests.hub_server import HEAD_OF_MAIN, Hub, environment, files_of, running

ROOT = Path(__file__).resolve().parents[2]
TEXT = "text_tokenizer_4m_wordpiece_30k.json"
SIZE = sum(len(FILES[name]) for name in FETCHED)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of 100 columns, and no waiting."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(command_module, "CLIENT", Client(sleep=lambda seconds: None))


def fourm(hub: Hub, home: Path, *words: object, **more: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    env = {**environment(hub, home, **more), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fourm_cli", *map(str, words)]
    return subprocess.run(command, env=env, cwd=home.parent, text=True, capture_output=True, check=False)


def test_stdout_has_the_path_and_stderr_the_rest(hub: Hub, run: Run) -> None:
    code, out, err = run("download", NAME)
    assert code == 0
    (path,) = out.splitlines()
    assert {p.name for p in Path(path).iterdir()} == FETCHED
    lines = err.splitlines()
    assert lines[0] == "terms of 4m-7-b: non-commercial licence (see LICENSE_WEIGHTS of the repository)"
    assert lines[1] == "4m-7-b at 0123456: 4 files, 1.5 MB to fetch"
    assert lines[-1] == "model.safetensors: 1.5 MB, checksum right"
    code, again, err = run("download", NAME)
    assert (code, again) == (0, out)
    (line,) = err.splitlines()
    assert all(fact in line for fact in ("4m-7-b", "0123456", "4 files", "1.5 MB", "here"))


def test_quiet_says_nothing_but_the_path(hub: Hub, run: Run) -> None:
    hub.fail(FILE, "500")
    code, out, err = run("download", NAME, "--quiet")
    assert (code, err) == (0, "")
    assert Path(out.strip()).is_dir()


def test_a_dry_run_prints_files_and_sizes_and_fetches_nothing(hub: Hub, run: Run) -> None:
    code, out, err = run("download", NAME, "--dry-run")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["name", "file", "size", "to", "fetch", "revision"]
    assert rows[-1] == ["4m-7-b", FILE, "1.5", "MB", "1.5", "MB", "0123456"]
    assert err.splitlines()[-1] == "1.5 MB of 1.5 MB to fetch; nothing was fetched"
    assert not cache_folder().exists()
    assert not hub.sent
    run("download", NAME, "--quiet")
    (job,) = json.loads(run("download", NAME, "--dry-run", "--json")[1])
    assert (job["bytes"], job["to_fetch"], job["revision"]) == (SIZE, 0, HEAD_OF_MAIN)


AWAY = [("127.0.0.1:9", "no connection"), ("HF_HUB_OFFLINE", "HF_HUB_OFFLINE forbids"),
        ("503", "answers 503"), ("page", "a web page")]  # fmt: skip


@pytest.mark.parametrize(("kind", "said"), AWAY)
def test_a_dry_run_without_the_hub_says_at_once_what_the_catalogue_knows(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    waits: list[float] = []
    hub.put("EPFL-VILAB/4M-21_B", FILES)
    monkeypatch.setattr(command_module, "CLIENT", Client(sleep=waits.append))
    if kind == "127.0.0.1:9":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif kind == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.fail("api", kind, times=99)
    code, out, err = run("download", "4m-21-b", "tok-rgb", "parti-prompts", "text-tokenizer", "--dry-run")
    assert code == 0
    rows = [line.split() for line in out.splitlines()[1:]]
    assert [row[:4] for row in rows] == [
        ["4m-21-b", FILE, "3.37", "GB"], ["tok-rgb", FILE, "1.15", "GB"],
        ["parti-prompts", "PartiPrompts.tsv", "123", "kB"], ["text-tokenizer", TEXT, "1.45", "MB"],
    ]  # fmt: skip
    assert said in err
    assert "sizes are those on record here, or of the catalogue" in err
    assert err.splitlines()[-1] == "4.52 GB of 4.52 GB to fetch; nothing was fetched"
    assert "what has arrived" not in err
    assert not waits
    if kind != "page":
        assert len([path for _, path in hub.asked if "/api/" in path]) <= 1
    (row, *_) = json.loads(run("download", "4m-21-b", "--dry-run", "--json")[1])
    assert (row["bytes"], row["to_fetch"], row["revision"], row["is_estimate"]) == (
        CATALOGUE["4m-21-b"].num_bytes, CATALOGUE["4m-21-b"].num_bytes, "", True,
    )  # fmt: skip
    code, out, err = run("download", "some/thing", "--dry-run")
    assert (code, out) == (4, "")
    assert "what has arrived" not in err
    assert run("download", "4m-21-b")[0] == 4


def test_a_dry_run_without_the_hub_knows_what_is_here(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(run("download", NAME, "--quiet")[1].strip())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (folder / "config.json").unlink()
    (folder / FILE).unlink()
    (job,) = json.loads(run("download", NAME, "--dry-run", "--json")[1])
    assert (job["bytes"], job["revision"], job["is_estimate"]) == (SIZE, HEAD_OF_MAIN, True)
    assert job["to_fetch"] == len(FILES["config.json"]) + len(WEIGHTS)
    pins_path().unlink()
    (folder / FILE).write_bytes(WEIGHTS)
    (job,) = json.loads(run("download", NAME, "--dry-run", "--json")[1])
    assert (job["to_fetch"], job["path"], job["revision"]) == (0, str(folder), HEAD_OF_MAIN)
    (job,) = json.loads(run("download", f"{NAME}@v9", "--dry-run", "--json")[1])
    assert job["to_fetch"] == CATALOGUE[NAME].num_bytes


def test_json_has_a_record_for_each_name(hub: Hub, run: Run) -> None:
    hub.put("some/thing", {FILE: b"x"})
    code, out, err = run("download", NAME, "some/thing", "--json")
    assert "2 downloads, 1.5 MB to fetch" in err.splitlines()
    first, second = json.loads(out)
    assert code == 0
    assert (first["name"], first["hub_id"], first["fetched"]) == (NAME, ID, SIZE)
    assert (second["name"], second["files"]) == ("some/thing", [{"name": FILE, "bytes": 1, "to_fetch": 1}])
    assert Path(first["path"], FILE).read_bytes() == WEIGHTS


def test_all_names_are_listed(run: Run) -> None:
    code, out, err = run("download", "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(CATALOGUE)
    assert re.findall(r"(models|tokenizers) .*?(\d+)", err) == [("models", "13"), ("tokenizers", "12")]
    data = json.loads(run("download", "--list", "--json")[1])
    assert [row["name"] for row in data["names"]] == list(CATALOGUE)
    assert set(data["groups"]) == {"models", "tokenizers"}


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ((), 2, "name what to fetch"),
        (("4m-7-bb",), 2, "did you mean '4m-7-b'?"),
        (("no/such",), 4, "there is no model 'no/such'"),
        ((NAME, "--revision", "mian"), 4, "did you mean 'main'?"),
        (("tokenizers", "--revision", "x"), 2, "--revision is for one repository"),
        (("--verify", NAME), 4, "not on record"),
        (("--verify", "--dry-run"), 2, "--verify compares what is here"),
        (("-c", "nowhere.yaml"), 2, "nowhere.yaml: no such file"),
    ],
)
def test_a_mistake_is_one_sentence(
    hub: Hub, run: Run, words: tuple[str, ...], code: int, sentence: str
) -> None:
    got, out, err = run("download", *words)
    assert (got, out) == (code, "")
    (line,) = err.splitlines()
    assert sentence in line
    assert not cache_folder().exists()


def test_a_file_that_does_not_fit_its_checksum_is_exit_code_5(hub: Hub, run: Run) -> None:
    hub.fail(FILE, "corrupt")
    code, out, err = run("download", NAME)
    assert (code, out) == (5, "")
    assert err.splitlines()[-1].startswith(f"fourm: {ID}/{FILE}: what arrived does not have the checksum")
    assert FILE not in whole_files()
    assert run("download", NAME)[0] == 0


def test_verify_says_which_files_are_wrong(hub: Hub, run: Run) -> None:
    assert run("download", "--verify") == (
        0, "", "nothing is on record; `fourm download` fetches, checks and records\n",
    )  # fmt: skip
    folder = Path(run("download", NAME, "--quiet")[1].strip())
    code, out, err = run("download", "--verify")
    assert (code, err) == (0, "")
    assert {line.split()[-1] for line in out.splitlines()[1:]} == {"right"}
    (folder / FILE).resolve().write_bytes(WEIGHTS[::-1])
    code, out, err = run("download", NAME, "--verify", "--json")
    assert code == 5
    assert [row["file"] for row in json.loads(out) if row["problem"] == "damaged"] == [FILE]
    (line,) = err.splitlines()
    assert f"{folder / FILE} is damaged" in line
    assert "`fourm download 4m-7-b`" in line
    assert run("download", NAME, "--quiet")[0] == 0
    assert run("download", NAME, "--verify")[0] == 0


def test_what_is_tried_again_is_said(hub: Hub, run: Run) -> None:
    hub.fail("api", "503")
    hub.fail(FILE, "429", retry_after="9")
    err = run("download", NAME)[2]
    assert f"{ID}: the server answers 503; next try in 1.0 s" in err
    assert f"{FILE}: the server answers 429; next try in 9.0 s" in err


def test_the_licence_is_shown_before_the_first_download_only(hub: Hub, run: Run) -> None:
    hub.put("EPFL-VILAB/4M_tokenizers_rgb_16k_224-448", {FILE: b"x"})
    hub.put("some/thing", {FILE: b"y"})
    assert run("download", NAME, "tok-rgb", "some/thing")[2].startswith(
        "terms of 4m-7-b, tok-rgb: non-commercial"
    )
    assert "terms" not in run("download", NAME, "tok-rgb")[2]
    assert "terms" not in run("download", NAME, "--revision", "main")[2]


def test_help_fits_and_torch_stays_out(hub: Hub, tmp_path: Path) -> None:
    done = fourm(hub, tmp_path / "home", "download", "--help", TERM="dumb")
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "fourm download 4m-21-xl tokenizers text-tokenizer" in done.stdout
    code = (
        "import sys; from fourm_cli.app import app\n"
        f"app(['download', {NAME!r}], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {**environment(hub, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True)


def test_an_interrupted_download_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.bytes_per_second = 500_000
    env = {**environment(hub, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "fourm_cli", "download", NAME]
    running = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 30
    while not (partial().exists() and partial().stat().st_size > 300_000) and time.monotonic() < until:
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "fourm: interrupted; what was finished is kept; the same command goes on"
    assert FILE not in whole_files()
    hub.bytes_per_second, kept = 0.0, partial().stat().st_size
    done = fourm(hub, tmp_path / "home", "download", NAME)
    assert done.returncode == 0, done.stderr
    assert f"bytes={kept}-" in hub.ranges
    assert whole_files() == FETCHED


def test_an_interrupted_dry_run_has_kept_nothing(hub: Hub, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        hub.url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        env = {**environment(hub, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "fourm_cli", "download", NAME, "--dry-run"]
        asking = subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        silent.accept()
        asking.send_signal(signal.SIGINT)
        out, err = asking.communicate(timeout=20)
    assert (asking.returncode, out, err) == (130, "", "fourm: interrupted\n")


def test_no_network_and_offline_are_exit_code_4(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = fourm(hub, home, "download", NAME, HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (4, "")
    assert len(done.stderr.splitlines()) == 1
    assert "HF_HUB_OFFLINE forbids" in done.stderr
    assert fourm(hub, home, "download", NAME, "-q").returncode == 0
    assert fourm(hub, home, "download", NAME, "-q", HF_HUB_OFFLINE="1").returncode == 0
    hub.url = "http://127.0.0.1:9"
    assert fourm(hub, home, "download", NAME, "-q").returncode == 0


@pytest.fixture
def tiny_hub(tiny: Path) -> Iterator[Hub]:
    """The tiny model as the repository of 4m-7-b, with a pickle beside it."""
    hub = Hub()
    hub.put(ID, {**files_of(tiny), "pytorch_model.bin": b"\x80\x04K\x01.", "README.md": b"about"})
    with running(hub):
        yield hub


def test_a_downloaded_model_runs_offline_by_its_name(tiny_hub: Hub, tiny: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    tiny_hub.fail(FILE, "drop", after=10_000)
    done = fourm(tiny_hub, home, "download", NAME)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert set(files_of(folder)) == {*files_of(tiny), "README.md"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    asked = len(tiny_hub.asked)
    code = (
        "from fourm.hub.files import find_model; m = find_model('4m-7-b')\n"
        f"assert m.revision == {HEAD_OF_MAIN!r}, m\n"
        "assert set(m.tokenizers) == {'rgb', 'clip', 'depth'}, m\n"
    )
    env = {**environment(tiny_hub, home, **offline), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    words = ("generate", "a red circle", "--targets", "tok_clip-tok_rgb", "--out", tmp_path / "out")
    made = fourm(tiny_hub, home, *words, "--model", NAME, **offline)
    assert made.returncode == 0, made.stderr
    assert list((tmp_path / "out").rglob("rgb/00000/*.png"))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["model"], record["revision"]) == (ID, HEAD_OF_MAIN)
    assert len(tiny_hub.asked) == asked


def drawn(state: Transfers, width: int = 100) -> list[str]:
    """The live display as lines."""
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(state.bars.get_renderable())
    return capture.get().splitlines()


def test_the_bars_show_bytes_speed_and_time_left(
    hub: Hub, watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    (job,) = watch.plan(NAME)
    state = Transfers(clock=lambda: now[0], left_later=job.to_fetch + 900_000)
    state.begin(job)
    for second in range(4):
        now[0] = float(second)
        state.take(Advanced(FILE, second * 100_000, len(WEIGHTS)))
    lines = drawn(state)
    assert all(len(line) <= 100 for line in lines)
    (line,) = [line for line in lines if line.startswith(FILE)]
    assert "300 kB / 1.5 MB" in line
    assert "100 kB/s" in line
    assert "21.0 s left" in line
    state.take(Waiting(FILE, 4.0, "the server answers 503"))
    assert "model.safetensors: the server answers 503; next try in 4.0 s" in capsys.readouterr().err
    state.take(Advanced(FILE, 1000, len(WEIGHTS), "checking"))
    assert "checking" in next(line for line in drawn(state) if line.startswith(FILE))
    state.take(Advanced(FILE, len(WEIGHTS), len(WEIGHTS), "fetched"))
    assert all(len(line) <= 60 for line in drawn(state, width=60))


def test_bars_without_a_job_show_the_file_that_is_checked() -> None:
    state = Transfers()
    state.take(Advanced("a.safetensors", 5, 10, "checking"))
    state.take(Advanced("b.safetensors", 5, 10, "checking"))
    (line,) = [line for line in drawn(state) if line.strip()]
    assert line.startswith("b.safetensors")
    assert "checking" in line


def test_plain_lines_of_progress_come_every_ten_seconds(
    hub: Hub, watch: Watch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    state = Transfers(clock=lambda: now[0])
    with state.bars:
        for second in range(100):
            now[0] = second / 2
            state.take(Advanced(FILE, second * 10_000, 1_000_000))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0] == "model.safetensors: 200 kB of 1 MB, 20 kB/s, 40.0 s left"


def test_the_first_line_says_how_much_is_left_to_fetch(hub: Hub, watch: Watch) -> None:
    partial().parent.mkdir(parents=True)
    partial().write_bytes(WEIGHTS[:1_000_000])
    (job,) = watch.plan(NAME)
    assert headline(job) == "4m-7-b at 0123456: 4 files, 500 kB of 1.5 MB to fetch"
    fetch(job, watch.client)
    assert headline(watch.plan(NAME)[0]).endswith("here already")


def test_a_disk_that_is_full_ends_before_anything_is_fetched(
    hub: Hub, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10

    monkeypatch.setattr(download_module.shutil, "disk_usage", lambda path: Usage)
    code, out, err = run("download", NAME)
    assert (code, out) == (1, "")
    assert "but only 10 are free on the disk of" in err
    assert not hub.sent
