"""Checksums of large files are remembered, and a file that changed is read again."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from fourm.hub import digests

DATA = b"weights" * 1000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(digests, "LARGE", 1000)
    monkeypatch.setattr(digests, "_SETTLED", 0.05)
    return tmp_path / "home/fourm/digests"


def digest(path: Path) -> str:
    """As a process that has not seen the file yet."""
    digests.sha256_of.cache_clear()
    return digests.sha256_of(path)


def test_a_large_file_is_read_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(DATA)
    time.sleep(0.1)
    wanted = hashlib.sha256(DATA).hexdigest()
    assert digest(file) == wanted
    assert [one.read_text() for one in home.iterdir()] == [wanted]
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("was read again"))
    assert digest(file) == wanted


def test_a_changed_file_of_the_same_size_and_time_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(DATA)
    time.sleep(0.1)
    first, times = digest(file), file.stat()
    file.write_bytes(DATA[::-1])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert digest(file) == hashlib.sha256(DATA[::-1]).hexdigest() != first


def test_what_was_just_written_small_or_damaged_is_not_trusted(home: Path, tmp_path: Path) -> None:
    file, small = tmp_path / "model.safetensors", tmp_path / "small"
    file.write_bytes(DATA)
    small.write_bytes(b"0" * 999)
    assert digest(file) == hashlib.sha256(DATA).hexdigest()
    assert digest(small)
    assert not home.exists()
    time.sleep(0.1)
    digest(file)
    (kept,) = home.iterdir()
    for damage in ("", "zz" * 32, "ab" * 31, "ab" * 40):
        kept.write_text(damage)
        assert digest(file) == hashlib.sha256(DATA).hexdigest()


def test_a_home_that_cannot_be_written_is_no_matter(home: Path, tmp_path: Path) -> None:
    home.parent.parent.mkdir(parents=True)
    home.parent.write_text("a file")
    file = tmp_path / "model.safetensors"
    file.write_bytes(DATA)
    time.sleep(0.1)
    assert digest(file) == hashlib.sha256(DATA).hexdigest()
