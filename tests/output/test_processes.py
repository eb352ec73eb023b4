"""Lists of checksums: read back as they were written, by `sha256sum` too, whatever files are called."""

import shutil
import subprocess
from pathlib import Path

import pytest

from fourm.output.processes import (
    ANY_RUN,
    CHECKSUMS,
    Launch,
    Listed,
    Process,
    list_files,
    now,
    scan_checksums,
)

NAMES = ("a.npy", "b c/Zürich.png", "back\\slash", "\\n", "new\nline", "re\rturn", "# 5 bytes", "\udcff.npy")


def write_list(folder: Path, listed: dict[str, Listed]) -> Path:
    process = Process(folder, ANY_RUN, Launch(0, 1, now()))
    process.add_checksums(listed)
    return process.path(CHECKSUMS)


@pytest.fixture
def listed(tmp_path: Path) -> dict[str, Listed]:
    """Files with odd names, each of another size."""
    for size, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x" * size)
    return list_files(tmp_path, [tmp_path / name for name in NAMES])


def test_a_list_of_checksums_keeps_names_of_all_kinds(listed: dict[str, Listed], tmp_path: Path) -> None:
    assert [one.size for one in listed.values()] == list(range(len(NAMES)))
    assert scan_checksums(write_list(tmp_path, listed), has_ended=True) == (listed, [])
    without = {name: Listed(one.sha256) for name, one in listed.items()}
    assert scan_checksums(write_list(tmp_path, without), has_ended=True) == (without, [])


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum")
def test_sha256sum_reads_the_list(listed: dict[str, Listed], tmp_path: Path) -> None:
    path = write_list(tmp_path, listed)
    done = subprocess.run(["sha256sum", "--check", "--strict", str(path)], cwd=tmp_path, check=False,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"OK") == len(NAMES)


def test_damaged_lines_of_a_list_are_numbered_and_their_sizes_ignored(tmp_path: Path) -> None:
    one, other = (f"{letter * 64}  {letter}\n".encode() for letter in "ab")
    path, listed = tmp_path / "list", {"a": Listed("a" * 64), "b": Listed("b" * 64, 8)}
    path.write_bytes(b"# 7 bytes\nnonsense\n" + one + b"# 8 bytes\n" + other + one[:-1])
    assert scan_checksums(path) == (listed, [2])
    assert scan_checksums(path, has_ended=True) == (listed, [2, 6])
