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
    list_dataset,
    number_keys,
    outputs_of,
    path_of,
    remove_leftovers,
    samples_of_prompts,
    take,
    write_atomic,
    write_text,
)

HOSTILE = [
    "a\nb",
    "Zürich ☃",
    "a..",
    "-v0",
    "a b",
    "$(x)",
    "a.b.c",
    "%2e%2e",
    "x" * 251,
    "ä" * 125 + "x",
    "\x1b[31m",
]


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def test_prompts_are_numbered_with_a_folder_for_each_thousand() -> None:
    keys = number_keys(2001)
    assert keys[0] == Key("00000", "000000")
    assert (keys[999].text, keys[1000].text, keys[2000].text) == (
        "00000/000999",
        "00001/001000",
        "00002/002000",
    )
    assert samples_of_prompts(["a", "a"])[1].caption == "a"


def test_a_subset_is_the_first_ones_or_a_seeded_choice_and_keeps_the_names() -> None:
    samples = samples_of_prompts([str(i) for i in range(50)])
    assert take(samples, 3, None) == samples[:3]
    chosen = take(samples, 5, 7)
    assert chosen == take(samples, 5, 7)
    assert chosen != samples[:5]
    assert chosen == sorted(chosen, key=lambda sample: sample.key)
    assert take(samples, 99, None) == samples


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


def test_hostile_names_are_kept_listed_and_written_without_collision(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    make(data, *(f"rgb/{name[:60]}/{name}.png" for name in HOSTILE))
    dataset = list_dataset(data, {"rgb": "rgb"})
    assert sorted(s.key.name for s in dataset.samples) == sorted(HOSTILE)
    written = []
    for sample in dataset.samples:
        for variation in (0, 10):
            for path in outputs_of(out, sample.key, [Place("tok_rgb@64", ".npy")], variation):
                write_text(out, path, sample.key.text)
                written.append(path)
    assert len({os.path.realpath(p) for p in written}) == 2 * len(HOSTILE)
    assert all(p.is_file() and p.resolve().is_relative_to(out.resolve()) for p in written)


def test_long_names_that_differ_only_at_the_end_stay_apart() -> None:
    first, second = (path_of(Path("o"), "rgb", Key("a", "x" * 250 + end), ".json.gz", 0) for end in "ab")
    assert first != second
    assert len(os.fsencode(first.name)) <= 255


def test_names_that_are_not_utf8_are_printable_and_readable(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "rgb" / "a")
    os.makedirs(folder)
    with open(folder + b"/\xff\xfe.png", "wb"):
        pass
    (sample,) = list_dataset(tmp_path, {"rgb": "rgb"}).samples
    assert sample.key.text.encode() == b"a/\\xff\\xfe"
    assert sample.files["rgb"].is_file()


def test_samples_are_matched_by_name_and_a_missing_partner_is_reported(tmp_path: Path) -> None:
    make(tmp_path, "rgb/x/1.png", "rgb/x/10.png", "rgb/x/2.JPG", "caption/x/1.txt", "caption/x/2.json.gz")
    make(tmp_path, "rgb/x/.hidden.png", "rgb/top.png", "rgb/x/notes.md")
    dataset = list_dataset(tmp_path, {"rgb@64": "rgb", "caption": "caption"})
    assert [s.key.text for s in dataset.samples] == ["x/1", "x/2"]
    assert dataset.samples[1].files["rgb@64"].name == "2.JPG"
    assert dataset.incomplete == ("x/10 has no file in caption",)


def test_a_folder_of_the_recorded_dataset_is_listed(golden: Path) -> None:
    dataset = list_dataset(golden / "data" / "mini_dataset", {"caption": "caption", "det": "det"})
    assert [s.key.text for s in dataset.samples] == ["x/s1", "x/s2"]
    assert dataset.incomplete == ()


def test_hidden_folders_of_other_programs_are_left_out(tmp_path: Path) -> None:
    for name in ("f/a.png", "f/.ipynb_checkpoints/a.png", ".thumbnails/b.png", ".partial/c.png"):
        (tmp_path / "rgb" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "rgb" / name).touch()
    assert [s.key for s in list_dataset(tmp_path, {"rgb": "rgb"}).samples] == [Key("f", "a")]


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    make(tmp_path, "rgb/x/1.png", "rgb/x/1.jpg")
    with pytest.raises(UsageError, match=r"1\.jpg and 1\.png"):
        list_dataset(tmp_path, {"rgb": "rgb"})


def test_a_missing_folder_names_those_that_are_there(tmp_path: Path) -> None:
    make(tmp_path, "rgb/x/1.png")
    with pytest.raises(UsageError, match=r"no folder 'caption'; there is rgb"):
        list_dataset(tmp_path, {"caption": "caption"})
    (tmp_path / "caption").mkdir()
    with pytest.raises(UsageError, match="no sample"):
        list_dataset(tmp_path, {"rgb": "rgb", "caption": "caption"})


def test_a_circle_of_links_ends(tmp_path: Path) -> None:
    make(tmp_path, "rgb/x/1.png")
    (tmp_path / "rgb" / "x" / "again").symlink_to(tmp_path / "rgb" / "x")
    assert [s.key.text for s in list_dataset(tmp_path, {"rgb": "rgb"}).samples] == ["x/1"]


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
