"""Keys, paths and atomic files, with names as hostile as a file system allows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fourm.errors import FourMError, UsageError
from fourm.layout import (
    PARTIAL,
    Key,
    Place,
    is_done,
    number_keys,
    outputs_of,
    path_of,
    remove_leftovers,
    samples_of_prompts,
    write_atomic,
    write_text,
)


def test_prompts_are_numbered_with_a_folder_for_each_thousand() -> None:
    keys = number_keys(2001)
    assert keys[0] == Key("00000", "000000")
    assert (keys[999].text, keys[1000].text, keys[2000].text) == (
        "00000/000999",
        "00001/001000",
        "00002/002000",
    )
    assert samples_of_prompts(["a", "a"])[1].caption == "a"


def test_variations_follow_the_name() -> None:
    key = Key("c/deep", "a.b")
    assert path_of(Path("out"), "rgb", key, ".png") == Path("out/rgb/c/deep/a.b.png")
    assert path_of(Path("out"), "rgb", key, ".png", 2) == Path("out/rgb/c/deep/a.b-v2.png")


@pytest.mark.parametrize("part", ["..", ".", "", "a/../..", "/etc", "a\0b", "a//b", PARTIAL])
def test_no_key_leads_out_of_the_folder(part: str) -> None:
    with pytest.raises(UsageError, match="file or folder name"):
        Key(part, "a")
    if "/" in part or part in ("..", ".", ""):
        with pytest.raises(UsageError):
            Key("a", part)


def test_long_names_that_differ_only_at_the_end_stay_apart() -> None:
    keys = [Key("a", "x" * 250 + end) for end in "ab"]
    first, second = (path_of(Path("o"), "rgb", key, "-step000.json.gz", 9_999_999) for key in keys)
    assert first != second
    assert len(os.fsencode(first.name)) <= 255


@pytest.mark.parametrize("letter", ["x", "ü", "字", "\udcff"])
def test_a_name_is_cut_once_and_short_ones_are_left_alone(letter: str) -> None:
    for count in range(1, 256):
        if len(os.fsencode(letter * count)) <= 255:
            key = Key("a", letter * count)
            assert Key("a", key.name) == key
            assert (key.name == letter * count) is (len(os.fsencode(letter * count)) <= 220)


def test_a_link_in_the_output_folder_cannot_lead_out(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "rgb").symlink_to(elsewhere)
    for path in (out / "rgb" / "a" / "b.txt", out / ".." / "b.txt", tmp_path / "b.txt"):
        with pytest.raises(FourMError, match="out of"):
            write_text(out, path, "x")
    assert list(elsewhere.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write(file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FourMError, match=r"cannot write .*No space left"):
        write_atomic(tmp_path, tmp_path / "rgb" / "a.png", write)
    assert not (tmp_path / "rgb" / "a.png").exists()
    assert not any((tmp_path / PARTIAL).iterdir())
    remove_leftovers(tmp_path)
    assert not (tmp_path / PARTIAL).exists()


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from fourm.layout import write_atomic
def write(file):
    file.write_bytes(b"half"); print(flush=True)
    if sys.argv[2] == "die": os.kill(os.getpid(), 9)
    sys.stdin.read()
write_atomic(Path(sys.argv[1]), Path(sys.argv[1], "a.npy"), write)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "die"], stdout=subprocess.DEVNULL, check=False)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as living:
        assert living.stdout is not None
        living.stdout.readline()
        assert len(list((tmp_path / PARTIAL).iterdir())) == 2
        remove_leftovers(tmp_path)
        (kept,) = (tmp_path / PARTIAL).iterdir()
        assert f"-{living.pid}-" in kept.name
        living.communicate(b"")
    assert (tmp_path / "a.npy").read_bytes() == b"half"


def test_a_sample_is_done_when_all_its_files_are_there(tmp_path: Path) -> None:
    key, places = (
        Key("a", "b"),
        [Place("caption", ".txt", shared=True), Place("tok_rgb", ".npy"), Place("rgb", ".png")],
    )
    paths = outputs_of(tmp_path, key, places, 1)
    assert [p.name for p in paths] == ["b.txt", "b-v1.npy", "b-v1.png"]
    for path in paths:
        assert not is_done(tmp_path, key, places, 1)
        write_text(tmp_path, path, "x")
    assert is_done(tmp_path, key, places, 1)
    assert not is_done(tmp_path, key, places, 0)
