"""What a listing passes over is said; names of other systems are matched; prompts that look forgotten."""

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fourm.data.dataset import Listing, list_dataset, list_folder, match_spellings
from fourm.data.layout import PICTURES, Key
from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.sources.raw import find_raw_folders, list_raw_samples
from fourm.sources.reading import read_samples
from fourm.sources.source import Source

Run = Callable[..., tuple[int, str, str]]
COMPOSED, APART = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".txt", ".json"):
            path.write_text("a red circle")
        else:
            Image.new("RGB", (8, 8)).save(path, format="PNG")


def test_files_with_other_extensions_are_counted_by_kind(tmp_path: Path) -> None:
    others = [f"rgb/a/{n}{end}" for n, end in enumerate((".heic", ".HEIC", ".avif", ".exr", ".svg", "", "."))]
    put(tmp_path, "rgb/a/x.png", "rgb/a/.hidden", *others)
    (note,) = list_dataset(tmp_path, {"rgb": "rgb"}).notes
    kinds = ".avif, .exr, .heic, .svg, none"
    assert note == f"{tmp_path}/rgb: 7 files have extensions that are not read: {kinds}"
    put(tmp_path, *(f"rgb/a/many.{n}" for n in range(9)))
    assert "16 files" in (note := list_dataset(tmp_path, {"rgb": "rgb"}).notes[0])
    assert note.endswith(": .0, .1, .2, .3, .4, .5 and 8 more")


@pytest.mark.parametrize("end", [".jfif", ".jpe", ".jp2", ".j2k", ".JPEG2000", ".pnm", ".apng"])
def test_less_usual_names_of_formats_that_are_read_are_samples(end: str, tmp_path: Path) -> None:
    put(tmp_path, f"rgb/a/x{end}")
    dataset = list_dataset(tmp_path, {"rgb": "rgb"})
    assert ([one.key for one in dataset.samples], dataset.notes) == ([Key("a", "x")], ())


def test_files_directly_in_a_modalitys_folder_are_samples_too(tmp_path: Path) -> None:
    put(tmp_path, "rgb/a/x.png", "rgb/x.png", "rgb/z.png", "rgb/tokenizer.json")
    keys = [Key("", "x"), Key("", "z"), Key("a", "x")]
    dataset = list_dataset(tmp_path, {"rgb": "rgb"})
    raw = list_raw_samples(tmp_path, tmp_path, find_raw_folders(tmp_path, find_model("demo"), None))
    for one in (dataset, raw):
        assert ([sample.key for sample in one.samples], one.notes) == (keys, ())


def test_a_folder_of_pictures_that_is_no_dataset_is_told_what_one_looks_like(tmp_path: Path) -> None:
    put(tmp_path, "cat.JPG")
    where = rf"pictures that lie in it belong in {tmp_path}/rgb/cat\.JPG"
    for folder in ("rgb", "caption"):
        with pytest.raises(UsageError, match=where):
            list_dataset(tmp_path, {folder: folder})
    with pytest.raises(UsageError, match=where):
        find_raw_folders(tmp_path, find_model("demo"), None)


@pytest.mark.parametrize(("first", "second"), [(COMPOSED, APART), (APART, COMPOSED)])
def test_names_that_differ_in_unicode_normal_form_are_one_sample(
    first: str, second: str, tmp_path: Path
) -> None:
    put(tmp_path, f"rgb/{first}/{first}.png", f"caption/{second}/{second}.txt")
    dataset = list_dataset(tmp_path, {"rgb": "rgb", "caption": "caption"})
    assert dataset.incomplete == ()
    (sample,) = dataset.samples
    assert sample.key == Key(COMPOSED, COMPOSED)
    assert {path.read_bytes() for path in sample.files.values()} == {
        (tmp_path / f"rgb/{first}/{first}.png").read_bytes(), b"a red circle"
    }  # fmt: skip
    put(tmp_path, f"depth/{second}/{second}.png")
    raw = list_raw_samples(tmp_path, tmp_path, find_raw_folders(tmp_path, find_model("demo"), None)).samples
    assert [sorted(one.files) for one in raw] == [[PICTURES, "tok_depth@64", "tok_rgb@64"]]


def test_one_spelling_throughout_is_kept_and_two_in_one_folder_are_two_samples(tmp_path: Path) -> None:
    put(tmp_path, f"rgb/a/{APART}.png", f"caption/a/{APART}.txt")
    assert [s.key.name for s in list_dataset(tmp_path, {"rgb": "rgb", "caption": "caption"}).samples] == [
        APART
    ]
    put(tmp_path, f"rgb/a/{COMPOSED}.png")
    both = list_folder(tmp_path, "rgb")
    match_spellings([both, list_folder(tmp_path, "caption"), Listing()])
    assert sorted(key.name for key in both.files) == sorted((APART, COMPOSED))


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b"])
@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_a_file_without_a_caption_fails_its_sample(
    text: str, suffix: str, run: Run, tiny: Path, tmp_path: Path
) -> None:
    put(tmp_path / "data", "caption/a/good.txt")
    written = text if suffix == ".txt" else f'[{{"caption": {ascii(text)!s}}}]'.replace("'", '"')
    (tmp_path / "data" / "caption" / "a" / f"empty{suffix}").write_text(written)
    words = ("generate", "--model", tiny, "--data", "data", "--targets", "tok_clip", "--no-decode")
    code, _, err = run(*words, "--out", "out", "--device", "cpu")
    assert code == 3, err
    assert f"failed: a/empty: data/caption/a/empty{suffix}: holds no word, so it is no caption" in err
    assert "1 sample generated, 1 failed" in err


def test_data_that_is_not_there_is_told_whatever_the_condition(tmp_path: Path) -> None:
    put(tmp_path, "data/rgb/a/x.png")
    for condition in ("rgb@64", "caption"):
        source = Source(data=str(tmp_path / "date"))
        with pytest.raises(UsageError, match=r"date: there is no such file or folder; did you mean 'data'"):
            read_samples(source, [condition], find_model("demo"), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["x.jfif", "x.JPE", "x.jp2"])
def test_a_picture_of_any_read_format_is_a_picture_to_data_too(name: str, tmp_path: Path) -> None:
    put(tmp_path, name)
    model, source = find_model("demo"), Source(data=str(tmp_path / name))
    (sample,) = read_samples(source, ["rgb@64"], model, None).samples  # type: ignore[arg-type]
    assert (sample.key, sample.files) == (Key("", "x"), {"rgb@64": tmp_path / name})
    with pytest.raises(
        UsageError, match=r"pictures are given, but no condition reads them; `cond=rgb` would"
    ):
        read_samples(source, ["caption"], model, None)  # type: ignore[arg-type]
    os.rename(tmp_path / name, tmp_path / "x.heic")
    with pytest.raises(UsageError, match=r"x\.heic: is a picture in a format that is not read"):
        read_samples(Source(data=str(tmp_path / "x.heic")), [], model, None)  # type: ignore[arg-type]
    put(tmp_path, "folder.png/rgb/a/x.png")
    found = read_samples(Source(data=str(tmp_path / "folder.png")), ["rgb@64"], model, None)  # type: ignore[arg-type]
    assert [one.key.text for one in found.samples] == ["a/x"]


@pytest.mark.parametrize(
    ("prompts", "notes"),
    [
        (
            ("a", "small", "red"),
            ('3 prompts of one word each; quotation marks make them one: "a small red"',),
        ),
        (("red",), ()),
        (("red", "a circle"), ()),
    ],
)
def test_prompts_of_one_word_each_get_a_note(prompts: tuple[str, ...], notes: tuple[str, ...]) -> None:
    found = read_samples(Source(prompts), ["caption"], find_model("demo"), None)  # type: ignore[arg-type]
    assert (len(found.samples), found.notes) == (len(prompts), notes)


def test_a_prompt_without_anything_to_read_is_refused() -> None:
    with pytest.raises(UsageError, match="holds no word that a model could read"):
        read_samples(Source(("red", "\u200b")), ["caption"], find_model("demo"), None)  # type: ignore[arg-type]


def test_a_folder_of_one_modality_is_told_where_its_dataset_is(tmp_path: Path) -> None:
    (tmp_path / "data" / "caption" / "x").mkdir(parents=True)
    (tmp_path / "data" / "caption" / "x" / ".y.txt").write_text("a red circle")
    with pytest.raises(UsageError, match=rf"no folder 'caption'; there is x; give {tmp_path}/data$"):
        list_dataset(tmp_path / "data" / "caption", {"caption": "caption"})
    with pytest.raises(UsageError, match="names that begin with a dot are passed over"):
        list_dataset(tmp_path / "data", {"caption": "caption"})
