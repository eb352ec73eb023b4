"""Who may write into an output folder, what is compared on resume, and what --overwrite deletes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fourm.errors import UsageError
from fourm.layout import Place, samples_of_prompts, write_text
from fourm.record import (
    FREE,
    add_failure,
    check_output,
    close_output,
    digest_of_samples,
    open_output,
    read_record,
    sha256_of,
)
from fourm.runfile import FAILURES, RUN, Launch, RunRecord
from tests.folders import snapshot

ALONE = Launch(rank=0, size=1, started="t")
STEP = {"index": 0, "target": "tok_rgb@64", "num_tokens": 64, "temperature": 1.0}
SETTINGS = RunRecord(
    schedule={"conditions": [], "steps": [STEP], "top_k": 0},
    model="demo",
    revision="1",
    files={"model.safetensors": "aa"},
    samples=2,
    samples_sha256="bb",
    num_variations=1,
    seed=0,
    dtype="float32",
    device_type="cpu",
    attention="sdpa",
    decode=True,
    detokenizer_steps=25,
    preview=0,
    places=(Place("caption", ".txt", shared=True), Place("tok_rgb@64", ".npy")),
)


def begin(
    out: Path, launch: Launch = ALONE, resume: bool = False, overwrite: bool = False, **changes: object
) -> int:
    check_output(out, launch, resume, overwrite)
    return open_output(out, replace(SETTINGS, **changes), launch, resume, overwrite)  # type: ignore[arg-type]


def test_a_run_writes_its_record_and_reads_it_back(tmp_path: Path) -> None:
    number = begin(tmp_path / "new" / "out")
    close_output(tmp_path / "new" / "out", number, replace(ALONE, finished="u", saved=2), set())
    assert read_record(tmp_path / "new" / "out") == SETTINGS
    record = json.loads((tmp_path / "new" / "out" / RUN).read_text())
    assert record["launches"] == [
        {
            "rank": 0,
            "size": 1,
            "started": "t",
            "finished": "u",
            "saved": 2,
            "skipped": 0,
            "failed": 0,
            "seconds": 0.0,
        }
    ]
    assert [p.name for p in (tmp_path / "new" / "out").iterdir()] == [RUN]


def test_an_existing_run_is_refused_without_resume_or_overwrite(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(UsageError, match="--resume goes on"):
        check_output(tmp_path, ALONE, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="--resume goes on"):
        open_output(tmp_path, SETTINGS, ALONE, resume=False, overwrite=False)
    begin(tmp_path, resume=True, command=("fourm",), versions={"torch": "9"})


COMPARED: list[tuple[dict[str, Any], str]] = [
    ({"schedule": {**SETTINGS.schedule, "steps": [STEP | {"temperature": 2.0}]}}, r"temperature is 1\.0"),
    ({"schedule": {**SETTINGS.schedule, "steps": []}}, r"steps\[0\]\.target is .* absent here"),
    ({"schedule": {**SETTINGS.schedule, "top_k": 5}}, "schedule.top_k is 0 there and 5 here"),
    ({"model": "other"}, 'model is "demo" there and "other" here'),
    ({"revision": "2"}, 'revision is "1" there and "2" here'),
    ({"files": {"model.safetensors": "cc"}}, 'files.model.safetensors is "aa" there and "cc" here'),
    ({"samples": 3}, "samples is 2 there and 3 here"),
    ({"samples_sha256": "cc"}, 'samples_sha256 is "bb" there and "cc" here'),
    ({"num_variations": 2}, "num_variations is 1 there and 2 here"),
    ({"seed": 7}, "seed is 0 there and 7 here"),
    ({"dtype": "bfloat16"}, 'dtype is "float32" there and "bfloat16" here'),
    ({"device_type": "cuda"}, 'device_type is "cpu" there and "cuda" here'),
    ({"attention": "xformers"}, 'attention is "sdpa" there and "xformers" here'),
    ({"decode": False}, "decode is true there and false here"),
    ({"detokenizer_steps": 50}, "detokenizer_steps is 25 there and 50 here"),
    ({"preview": 3}, "preview is 0 there and 3 here"),
    ({"places": SETTINGS.places[:1]}, r"places\[1\]\.folder is \"tok_rgb@64\" there and absent here"),
    ({"stage": "sr"}, 'stage is "base" there and "sr" here'),
    ({"variation": 0}, "variation is null there and 0 here"),
    ({"origin": SETTINGS.as_origin()}, "origin.model is absent there"),
]


@pytest.mark.parametrize(("changes", "sentence"), COMPARED)
def test_resuming_with_other_settings_says_what_differs(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    begin(tmp_path)
    with pytest.raises(UsageError, match=sentence):
        begin(tmp_path, resume=True, **changes)


def test_every_field_that_is_not_free_is_compared_on_resume() -> None:
    compared = {name for changes, _ in COMPARED for name in changes}
    assert compared == RunRecord.__dataclass_fields__.keys() - set(FREE)


def test_a_folder_that_no_run_wrote_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(UsageError, match=r"no run\.json"):
            begin(tmp_path, resume=resume, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    begin(tmp_path)
    own = [tmp_path / "caption" / "00000" / "000000.txt", tmp_path / "tok_rgb@64" / "00000" / "000000.npy"]
    foreign = [tmp_path / "notes.md", tmp_path / "caption" / "00000" / "mine.md", tmp_path / "rgb" / "a.png"]
    for path in own + foreign:
        write_text(tmp_path, path, "x")
    add_failure(tmp_path, "00000/000001", 0, "bad")
    begin(tmp_path, overwrite=True, seed=3)
    assert not any(path.exists() for path in own)
    assert all(path.exists() for path in foreign)
    assert not (tmp_path / FAILURES).exists()
    assert not (tmp_path / "tok_rgb@64").exists()
    assert read_record(tmp_path).seed == 3


@pytest.mark.parametrize(
    "folder",
    [
        "..",
        "../other",
        "/etc",
        ".",
        "",
        "link",
        "link/a",
        "rgb/../..",
        "rgb/..",
        "rgb//a",
        "plots",
        ".partial",
        "run.json",
        "run.sr.json",
        "checksums.sha256",
        ".lock",
        "failures.jsonl",
        "plots/a",
    ],
)
def test_overwrite_never_follows_a_record_out_of_the_folder(tmp_path: Path, folder: str) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    begin(out)
    other.mkdir()
    (other / "a.npy").write_text("x")
    (out / "link").symlink_to(other)
    record = json.loads((out / RUN).read_text())
    record["places"] += [{**record["places"][0], "folder": folder, "suffix": ".npy"}]
    (out / RUN).write_text(json.dumps(record))
    write_text(out, out / "caption" / "a.txt", "x")
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"no run has results in|is a link"):
        begin(out, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 1}', '{"format": 1, "launches": [3]}', '{"format": 99}', "[" * 100_000,
     '{"format": 1, "launches": []}', '{"format": 1, "launches": [], "places": [{}]}',
     '{"format": 1, "launches": [], "places": [{"folder": "a\\u0000b", "suffix": ""}]}'],
)  # fmt: skip
def test_a_damaged_record_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN).write_text(text)
    with pytest.raises(UsageError, match=r"run\.json"):
        begin(tmp_path, resume=True)


def test_partners_join_in_any_order_but_no_share_is_begun_twice(tmp_path: Path) -> None:
    partners = [Launch(rank, 3, "t") for rank in (2, 0, 1)]
    assert [begin(tmp_path, partner) for partner in partners] == [0, 1, 2]
    with pytest.raises(UsageError, match="--resume"):
        begin(tmp_path, partners[0])
    with pytest.raises(UsageError, match="--resume"):
        begin(tmp_path, Launch(0, 4, "t"))
    begin(tmp_path, partners[0], resume=True)
    begin(tmp_path, ALONE, resume=True)


def test_a_partner_with_other_settings_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, Launch(0, 2, "t"))
    with pytest.raises(UsageError, match="seed is 0 there and 1 here"):
        begin(tmp_path, Launch(1, 2, "t"), seed=1)


def test_only_the_first_of_several_processes_overwrites(tmp_path: Path) -> None:
    begin(tmp_path, Launch(0, 2, "t"))
    begin(tmp_path, Launch(1, 2, "t"))
    write_text(tmp_path, tmp_path / "caption" / "a" / "old.txt", "x")
    begin(tmp_path, Launch(1, 2, "u"), overwrite=True, seed=5)
    write_text(tmp_path, tmp_path / "caption" / "a" / "new.txt", "x")
    begin(tmp_path, Launch(0, 2, "u"), overwrite=True, seed=5)
    assert [p.name for p in (tmp_path / "caption" / "a").iterdir()] == ["new.txt"]


def test_many_processes_write_one_record_and_whole_failure_lines(tmp_path: Path) -> None:
    code = """
import sys
from dataclasses import replace
from pathlib import Path
from fourm.record import add_failure, close_output, open_output
from fourm.runfile import Launch
from tests.test_record import SETTINGS
out, rank = Path(sys.argv[1]), int(sys.argv[2])
number = open_output(out, SETTINGS, Launch(rank, 6, "t"), False, False)
for i in range(20):
    add_failure(out, f"a/{rank}-{i}", 0, "x" * 5000)
close_output(out, number, Launch(rank, 6, "t", finished="u", failed=20), {(f"a/{rank}-0", 0)})
"""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    processes = [subprocess.Popen([*command, str(rank)], cwd=root) for rank in range(6)]
    assert [process.wait() for process in processes] == [0] * 6
    record = json.loads((tmp_path / "out" / RUN).read_text())
    assert sorted(launch["rank"] for launch in record["launches"]) == list(range(6))
    assert {launch["finished"] for launch in record["launches"]} == {"u"}
    failures = [json.loads(line)["key"] for line in (tmp_path / "out" / FAILURES).read_text().splitlines()]
    assert sorted(failures) == sorted(f"a/{rank}-{i}" for rank in range(6) for i in range(1, 20))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [FAILURES, RUN]


def test_failures_of_samples_that_were_saved_later_are_forgotten(tmp_path: Path) -> None:
    number = begin(tmp_path)
    add_failure(tmp_path, "a/1", 0, "first")
    with (tmp_path / FAILURES).open("a") as file:
        file.write('[]\n{}\n{"key": "a/2", "var')  # killed while it wrote
    add_failure(tmp_path, "a/1", 0, "second")
    add_failure(tmp_path, "a/2", 1, "third")
    close_output(tmp_path, number, ALONE, {("a/2", 1)})
    (line,) = (tmp_path / FAILURES).read_text().splitlines()
    assert json.loads(line)["reason"] == "second"
    close_output(tmp_path, number, ALONE, {("a/1", 0)})
    assert not (tmp_path / FAILURES).exists()


def test_an_output_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        check_output(tmp_path / "file", ALONE, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="cannot be written"):
        check_output(tmp_path / "file" / "out", ALONE, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="cannot be written"):
        begin(Path("/proc/fourm/out"))


def test_a_read_only_folder_is_a_sentence() -> None:
    """Root may write wherever modes forbid it, but not into /sys."""
    with pytest.raises(UsageError, match="cannot be written"):
        begin(Path("/sys/kernel/fourm-out"))


def test_a_run_killed_before_its_record_leaves_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".lock").touch()
    close_output(tmp_path, begin(tmp_path), ALONE, set())
    assert [p.name for p in tmp_path.iterdir()] == [RUN]


def test_digests_tell_samples_and_files_apart(tmp_path: Path) -> None:
    digests = {digest_of_samples(samples_of_prompts(p)) for p in (["a"], ["b"], ["a", "b"], ["b", "a"])}
    assert len(digests) == 4
    (tmp_path / "f").write_bytes(b"")
    assert sha256_of(tmp_path / "f").startswith("e3b0c44298fc1c14")


def test_overwriting_deletes_nothing_when_one_of_the_folders_leads_out(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    begin(out)
    mine = out / "caption" / "00000" / "000000.txt"
    write_text(out, mine, "x")
    elsewhere.mkdir()
    (out / "tok_rgb@64").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        begin(out, overwrite=True)
    assert mine.exists()
