"""The record of downloads: round trip, two writers, damage, and where it lies."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourm.errors import FourMError, UsageError
from fourm.hub.cache import (
    Commit,
    HubFile,
    find_pin,
    fourm_home,
    load_pins,
    pins_path,
    text_tokenizer_path,
    write_pin,
)

COMMIT, OTHER = "0123456789" * 4, "abcdef0123" * 4
SHA = "ab" * 32
PIN = Commit("a/b", COMMIT, (HubFile("config.json", 12, SHA), HubFile("deep/model.safetensors", 3, SHA)))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_nothing_is_pinned_where_nothing_was_downloaded(home: Path) -> None:
    assert load_pins() == {}
    assert find_pin("a/b") is None
    assert not home.exists()


def test_a_pin_that_was_written_is_read_back(home: Path) -> None:
    write_pin(PIN)
    write_pin(Commit("c/d", OTHER, (), "dataset"))
    assert find_pin("a/b") == PIN
    assert find_pin("c/d") == Commit("c/d", OTHER, (), "dataset")
    assert sorted(p.name for p in (home / "fourm").iterdir()) == ["pins.json", "pins.lock"]


def test_the_last_pin_of_a_repository_counts() -> None:
    write_pin(PIN)
    write_pin(Commit("a/b", OTHER, ()))
    assert load_pins() == {"a/b": Commit("a/b", OTHER, ())}


def test_our_files_are_below_the_hf_home_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from huggingface_hub.constants import HF_HOME; from fourm.hub.cache import fourm_home\n"
        "assert str(fourm_home()) == HF_HOME + '/fourm', (fourm_home(), HF_HOME)"
    )
    for name, value in (("HF_HOME", "~/x/$USER"), ("XDG_CACHE_HOME", "/tmp/cache"), ("HOME", "/tmp/home")):
        monkeypatch.delenv("HF_HOME", raising=False)
        monkeypatch.setenv(name, value)
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
    assert text_tokenizer_path().parent == fourm_home()


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "3", '"x"', "{}", '{"format": 1}', '{"format": 1, "pins": []}',
        '{"format": 1, "pins": {"a/b": 3}}', '{"format": 1, "pins": {"a/b": {"revision": "main"}}}',
        "[" * 100_000, "\x00",
        json.dumps({"format": 1, "pins": {"a/b": {"revision": "main", "repo_type": "model", "files": {}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "x", "files": {}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "../../x": {"size": 1, "sha256": SHA}}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "": {"size": 1, "sha256": SHA}}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "//x": {"size": 1, "sha256": SHA}}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "/x": {"size": 1, "sha256": SHA}}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "x": {"size": "1", "sha256": SHA}}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "x": {"size": -1, "sha256": SHA}}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "x": {"size": True, "sha256": SHA}}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "a/./x/..": {"size": 1, "sha256": SHA}}}}}),
        json.dumps({"format": 1, "pins": {"a/b": {"revision": COMMIT, "repo_type": "model", "files": {
            "x": {"size": 1, "sha256": 7}}}}}),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_sentence(text: str) -> None:
    pins_path().parent.mkdir(parents=True)
    pins_path().write_text(text)
    with pytest.raises(UsageError, match=r"pins\.json: is damaged .*`fourm download` writes it anew") as told:
        find_pin("a/b")
    assert "\n" not in str(told.value)
    with pytest.raises(UsageError, match="is damaged"):
        write_pin(PIN)
    assert pins_path().read_text() == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(cut=st.integers(0, 300), junk=st.binary(max_size=8))
def test_no_damage_is_a_crash(cut: int, junk: bytes) -> None:
    pins_path().unlink(missing_ok=True)
    write_pin(PIN)
    whole = pins_path().read_bytes()
    pins_path().write_bytes(whole[:cut] + junk + whole[cut + len(junk) :])
    with contextlib.suppress(UsageError):
        load_pins()


def test_a_record_of_a_later_version_is_left_alone() -> None:
    pins_path().parent.mkdir(parents=True)
    pins_path().write_text('{"format": 2, "pins": {}}')
    with pytest.raises(UsageError, match=r"another version of this program \(format 2\)"):
        write_pin(PIN)


def test_a_folder_that_cannot_be_written_is_a_sentence(home: Path) -> None:
    home.write_text("a file, not a folder")
    with pytest.raises(FourMError, match=r"pins\.lock: cannot be written"):
        write_pin(PIN)
    with pytest.raises(UsageError, match="cannot be read"):
        load_pins()


def test_many_writers_lose_nothing() -> None:
    code = (
        "import sys; from fourm.hub.cache import *\n"
        "for i in range(10): write_pin(Commit(f'{sys.argv[1]}/{i}', '0' * 40, ()))"
    )
    root = Path(__file__).resolve().parents[2]
    running = [subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=root) for n in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(load_pins()) == 40


def test_the_record_needs_neither_torch_nor_the_hub() -> None:
    code = (
        "import sys, fourm.hub.cache; sys.exit(any(m in sys.modules for m in ('torch', 'huggingface_hub')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0
    )


def test_a_pipe_in_the_place_of_the_lock_is_not_waited_for(home: Path) -> None:
    (home / "fourm").mkdir(parents=True)
    os.mkfifo(home / "fourm/pins.lock")
    with pytest.raises(FourMError, match=r"pins\.lock: cannot be written"):
        write_pin(PIN)
