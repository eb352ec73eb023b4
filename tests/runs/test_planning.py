"""`generate --dry-run`: what is announced is made; a disk without room is refused before a start."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from fourm.runs import planning
from fourm.runs.planning import BLOCK
from tests.pictures import save

Run = Callable[..., tuple[int, str, str]]
WORDS = ("generate", "a red circle", "a blue square", "--num-variations", "2")


def count_files(root: Path) -> Counter[str]:
    names = (path.relative_to(root).parts for path in root.rglob("*") if path.is_file())
    return Counter("/".join(parts[:-2]) or parts[0] for parts in names if len(parts) > 2)


@pytest.mark.parametrize("more", [(), ("--preview", "3"), ("--no-decode",), ("--targets", "caption-depth")])
def test_what_is_announced_is_what_is_made(run: Run, tiny: Path, tmp_path: Path, more: Sequence[str]) -> None:
    more = ("--cond", "none", "--num-samples", "2", *more) if "caption-depth" in more else more
    words = WORDS[:1] + WORDS[3:] if "none" in more else WORDS
    command = (*words, "--model", tiny, *more, "--out", "out", "-q")
    code, text, _ = run(*command, "--dry-run", "--json")
    plan = json.loads(text)
    assert (code, list(tmp_path.glob("out"))) == (0, [])
    assert (plan["samples"], plan["variations"], plan["to_make"], plan["complete"]) == (2, 2, 4, 0)
    assert run(*command)[0] == 0
    announced = {name: folder["files"] for name, folder in plan["folders"].items() if "," not in name}
    assert count_files(tmp_path / "out") == announced
    sizes = sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in (tmp_path / "out").rglob("*.*"))
    assert sizes / 3 < plan["bytes_estimate"] < 3 * sizes
    code, text, _ = run(*command, "--resume", "--dry-run", "--json")
    assert (code, json.loads(text)["to_make"], json.loads(text)["complete"]) == (0, 0, 4)
    code, _, err = run(*command, "--dry-run")
    assert (code, "is not empty" in err) == (2, True)


def test_kept_parts_frames_and_records_are_announced_also_of_the_rest_of_a_run(
    run: Run, tmp_path: Path
) -> None:
    """A dry run of a few samples, and of the others with --resume: all files, super-resolution included."""
    (tmp_path / "data").mkdir()
    for name in ("x", "y", "z"):
        save(tmp_path / f"data/{name}.png", height=80, width=100)
    words = ("generate", "data/", "--prompt", "a red circle", "--keep", "rgb:0.5", "--targets", "rgb")
    words = (*words, "--steps", "1", "--num-variations", "2", "--fit", "pad", "--out", "out", "-q")
    words = (*words, "--sr-targets", "rgb", "--sr-steps", "1", "--sr-keep", "rgb:box:0,0,0.5,1")
    before = 0
    for more in (("--only", "x"), ("--resume",)):
        code, text, _ = run(*words, *more, "--dry-run", "--json")
        assert code == 0
        plan = json.loads(text)
        assert run(*words, *more)[0] == 0
        after = sum(path.is_file() for path in (tmp_path / "out").rglob("*"))
        assert plan["files"] + plan["sr"]["files"] == after - before
        before = after


def test_the_table_says_what_the_data_say(run: Run, tmp_path: Path) -> None:
    code, text, _ = run(*WORDS, "--dry-run", "--sr-targets", "tok_rgb", "-q")
    assert code == 0
    rows = {line[:18].strip(): line[18:].strip() for line in text.splitlines() if line.strip()}
    assert rows["results to make"] == "4 (0 of 4 are complete)"
    assert rows["on disk"].startswith("about ")
    assert "an estimate" in rows["on disk"]
    assert "super-resolution" in text
    assert list(tmp_path.iterdir()) == []


class Usage(NamedTuple):
    free: int


def test_a_disk_that_cannot_hold_the_results_is_refused(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: Usage(10_000))
    for more in ((), ("--dry-run",)):
        code, out, err = run(*WORDS, "--model", tiny, "--out", "out", "-q", *more)
        assert (code, out) == (2, "")
        assert "--out out: 4 results need 0.0737 MB at least, but only 0.01 MB are free" in err
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: Usage(10**6))
    assert run(*WORDS, "--model", tiny, "--out", "out", "-q")[0] == 0
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda path: Usage(0))
    assert run(*WORDS, "--model", tiny, "--out", "out", "-q", "--resume")[0] == 0  # all is there


def test_free_bytes_are_those_of_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert planning.free_bytes(tmp_path / "not" / "there") > 0


def test_restored_maps_have_the_size_of_their_picture(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "large.jpg", height=500, width=1000)
    words = ("generate", "large.jpg", "--targets", "depth", "--dry-run", "--json", "-q")
    sizes = [json.loads(run(*words, *more)[1])["folders"]["depth"] for more in ((), ("--restore",))]
    assert [one["files"] for one in sizes] == [1, 1]
    assert sizes[0]["bytes_estimate"] < 64 * 64 * 4 + 2 * BLOCK
    assert 500 * 1000 * 4 < sizes[1]["bytes_estimate"] < 500 * 1000 * 4 + 2 * BLOCK


def test_the_time_grows_with_the_results_and_is_nothing_when_all_are_made(run: Run, tiny: Path) -> None:
    more = ("--model", tiny, "--targets", "tok_rgb-caption", "--cond", "none", "--out", "out", "-q")
    more += ("--batch-size", "4")

    def seconds(count: int, *words: str) -> float:
        words = ("generate", "--num-samples", str(count), *words)
        code, text, _ = run(*words, *more, "--dry-run", "--json")
        assert code == 0
        return json.loads(text)["seconds_estimate"]

    assert seconds(400) > 5 * seconds(4) > 0
    assert run("generate", "--num-samples", "2", *more)[0] == 0
    assert seconds(2, "--resume") == 0


def test_the_time_of_each_part_is_counted(run: Run, tmp_path: Path) -> None:
    save(tmp_path / "one.png", height=64, width=64)
    words = ("generate", "one.png", "--tokenizer", "rgb=rgb_divae", "--targets", "tok_rgb", "--dry-run")
    few, many = (
        json.loads(run(*words, "--detokenizer-steps", steps, "--json", "-q")[1])["seconds_estimate"]
        for steps in ("1", "1000")
    )
    assert many > 3 * few > 0
    code, text, _ = run(*WORDS, "--dry-run", "--sr-targets", "tok_rgb", "-q")
    assert (code, text.count(" on this machine as it is now")) == (0, 2)
