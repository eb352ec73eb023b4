"""Pictures that a user names: what is a path, what is found, how samples are called, what is passed over."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fourm.data.layout import Key
from fourm.data.pictures import Pictures, find_pictures, is_path, keys_below
from fourm.errors import UsageError
from fourm.files.opening import find_exif
from tests.folders import as_somebody


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, format="PNG")


def is_dataset(path: str, names: Sequence[str]) -> bool:
    return "run.json" in names


def found(*texts: str) -> Pictures:
    return find_pictures(texts, is_dataset)


def keys(pictures: Pictures) -> list[str]:
    return [key.text for key in pictures.keys]


@pytest.mark.parametrize("text", ["cat.jpg", "a cat.PNG", "photos/", "./cat", "a/b", "x.heic", "*.webp", "/"])
def test_a_pictures_ending_or_a_separator_makes_a_path(text: str) -> None:
    assert is_path(text)


@pytest.mark.parametrize("text", ["cat", "photos", "a cat", "prompts.txt", "depth.npy", "jpg", "a.b", ""])
def test_anything_else_is_words(text: str) -> None:
    assert not is_path(text)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    put(tmp_path, "photos/b.jpg", "photos/a.PNG", "photos/summer/sea/c.webp", "other/d.gif", "alone.jpg")
    return tmp_path


def test_a_key_is_the_path_below_the_common_root_without_its_ending(photos: Path) -> None:
    assert keys(found("photos")) == ["a", "b", "summer/sea/c"]
    assert keys(found("photos/")) == keys(found(str(photos / "photos"))) == keys(found("other/../photos"))
    assert keys(found("photos/b.jpg")) == ["b"]
    assert keys(found("photos/summer/sea/c.webp", "photos/b.jpg")) == ["summer/sea/c", "b"]
    assert keys(found("other/d.gif", "photos")) == ["other/d", "photos/a", "photos/b", "photos/summer/sea/c"]
    assert keys(found("alone.jpg", "other/d.gif")) == ["alone", "other/d"]


def test_a_pattern_is_below_the_folder_before_its_first_wildcard(photos: Path) -> None:
    assert keys(found("photos/*.jpg")) == ["b"]
    assert keys(found("photos/*/sea/*")) == ["summer/sea/c"]
    assert sorted(keys(found("photos/**"))) == ["a", "b", "summer/sea/c"]
    assert keys(found("photos/*")) == ["a", "b", "summer/sea/c"]  # also in folders that match
    assert keys(found("p[gh]otos/?.PNG")) == ["photos/a"]
    put(photos, "x[1].jpg", "x1.jpg")
    assert keys(found("x[1].jpg")) == ["x[1]"]  # a file of this name comes before the pattern


def test_what_is_passed_over_is_counted(photos: Path) -> None:
    put(photos, "photos/old/rgb/x.png", "photos/old/run.json", "photos/.git/x.png", "photos/.x.png")
    put(photos, "photos/x.heic", "photos/y.HEIC", "photos/notes.txt", "photos/README", "photos/z.tar")
    pictures = found("photos")
    assert keys(pictures) == ["a", "b", "summer/sea/c"]
    assert pictures.notes == (
        "passed over: 2 .heic, 1 .tar, 1 .txt, 1 without an ending, 2 hidden, 1 folder of a dataset; "
        "of .heic no format is read, convert such pictures to PNG",
    )
    put(photos, *(f"photos/x.{n}" for n in range(9)))
    assert "1 .5, 8 with other endings" in found("photos").notes[0]


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (["photo/b.jpg"], "photo/b.jpg: there is no such file or folder; did you mean 'photos'?"),
        (["photos/bb.jpg"], "did you mean 'b.jpg'"),
        (["a red/blue circle"], "no such file or folder.*; if these are words, `prompt` takes them as such"),
        (["s3://bucket/x.jpg"], "s3:// is not supported"),
        (["photos/a.heic"], "is a picture in a format that is not read; convert it to PNG"),
        (["./words.txt"], "is no picture, by its ending; `data=words.txt` reads prompts"),
        (["empty/"], "empty: holds no picture, and no folder named as a modality; passed over: 1 .txt"),
        (["photos/*.bmp"], "matches nothing"),
        (["*.txt"], "matches no picture; passed over: 1 .txt"),
        (["photos/a.PNG", "photos/a.jpg"], "both would be sample 'a'; give one, or rename one"),
        (["alone.jpg", "alone.jpg"], "alone.jpg: is given twice"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(photos: Path, texts: list[str], problem: str) -> None:
    put(photos, "empty/x.txt", "words.txt", "photos/a.heic")
    if len(texts) > 1 and texts[1] == "photos/a.jpg":
        put(photos, "photos/a.jpg")
    with pytest.raises(UsageError, match=problem):
        found(*texts)


def test_a_circle_of_links_ends_and_folders_that_cannot_be_read_are_told(photos: Path) -> None:
    os.symlink("..", photos / "photos/summer/up")
    assert keys(found("photos")) == ["a", "b", "summer/sea/c"]


def test_a_circle_of_links_below_a_pattern_ends(photos: Path) -> None:
    """With two links back, glob finds a picture in 2 ** 40 ways: a path may lead through forty links."""
    for name in ("up", "over"):
        os.symlink("..", photos / "photos/summer" / name)
    put(photos, "photos/summer/x[1]/e.png")
    assert keys(found("photos/**/*.[pw]*")) == ["summer/sea/c", "summer/x[1]/e"]


@pytest.mark.parametrize("text", ["shut/", "shut/a.jpg", "*"])
def test_what_lies_in_a_folder_without_permission_is_told(
    photos: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    put(photos, "shut/a.jpg")
    monkeypatch.chdir(photos)
    photos.chmod(0o755)
    Path("shut").chmod(0)
    with as_somebody(), pytest.raises(UsageError, match=r"^shut.*: cannot be read \(Permission denied\)$"):
        found(text)
    Path("shut").chmod(0o755)


NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@settings(max_examples=60)
@given(paths=st.lists(st.lists(NAMES.filter(lambda n: n not in (".", "..")), min_size=1, max_size=3)))
def test_keys_are_unique_or_refused(paths: list[list[str]]) -> None:
    files = [Path("/root", *parts[:-1], f"{parts[-1]}.jpg") for parts in paths]
    try:
        made = keys_below([Path("/root")], files) if files else ()
    except UsageError:
        assert len(set(files)) < len(files) or any(
            part == ".partial" for path in files for part in path.parts
        )
        return
    assert len(set(made)) == len(files)
    assert [Path("/root", key.path) for key in made] == [path.with_suffix("") for path in files]


def test_a_file_in_the_root_has_no_folder() -> None:
    assert keys_below([Path("/x")], [Path("/x/a.b.jpg")]) == (Key("", "a.b"),)


@given(
    data=st.binary(max_size=200),
    start=st.sampled_from((b"", b"\xff\xd8\xff\xe1", b"RIFF....WEBP", b"\x89PNG")),
)
def test_tags_are_sought_in_any_bytes(data: bytes, start: bytes) -> None:
    assert isinstance(find_exif(start + data), bytes)
