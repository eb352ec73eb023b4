"""Names of samples and paths of their files, with names as hostile as a file system allows."""

import hashlib
import os
from pathlib import Path

import pytest

from fourm.data.layout import Key, number_keys, path_of, samples_of_prompts
from fourm.errors import UsageError
from fourm.files.writing import PARTIAL


def test_prompts_are_numbered_with_a_folder_for_each_thousand() -> None:
    keys = number_keys(2001)
    assert keys[0] == Key("00000", "000000")
    assert (keys[999].text, keys[1000].text, keys[2000].text) == (
        "00000/000999",
        "00001/001000",
        "00002/002000",
    )
    assert samples_of_prompts(["a", "a"])[1].caption == "a"


def test_the_number_of_a_variation_follows_the_name_in_a_path() -> None:
    key = Key("c/deep", "a.b")
    assert path_of(Path("out"), "rgb", key, ".png") == Path("out/rgb/c/deep/a.b.png")
    assert path_of(Path("out"), "rgb", key, ".png", 2) == Path("out/rgb/c/deep/a.b-v2.png")


@pytest.mark.parametrize("part", ["..", ".", "a/../..", "/etc", "a\0b", "a//b", PARTIAL])
def test_no_key_leads_out_of_the_folder(part: str) -> None:
    with pytest.raises(UsageError, match="file or folder name"):
        Key(part, "a")
    if "/" in part or part in ("..", "."):
        with pytest.raises(UsageError):
            Key("a", part)


def test_a_key_without_a_folder_is_a_file_in_the_folder_of_its_modality() -> None:
    key = Key("", "cat")
    assert (key.path, key.text) == ("cat", "cat")
    assert path_of(Path("out"), "rgb", key, ".png") == Path("out/rgb/cat.png")
    with pytest.raises(UsageError, match="file or folder name"):
        Key("", "")


def test_long_names_that_differ_only_at_the_end_stay_apart() -> None:
    keys = [Key("a", "x" * 250 + end) for end in "ab"]
    first, second = (path_of(Path("o"), "rgb", key, "-step000.json.gz", 9_999_999) for key in keys)
    assert first != second
    assert len(os.fsencode(first.name)) <= 255


def test_a_long_name_is_the_same_in_every_version() -> None:
    """`--resume` looks for the files of an older version by their names."""
    digest = hashlib.sha256(b"x" * 250).hexdigest()
    assert Key("a", "x" * 250).name == "x" * 203 + "~" + digest[:16]


@pytest.mark.parametrize("letter", ["x", "ü", "字", "\udcff"])
def test_a_name_is_cut_once_and_short_ones_are_left_alone(letter: str) -> None:
    for count in range(1, 256):
        if len(os.fsencode(letter * count)) <= 255:
            key = Key("a", letter * count)
            assert Key("a", key.name) == key
            assert (key.name == letter * count) is (len(os.fsencode(letter * count)) <= 220)
