"""Who may write into an output folder, what is compared on resume, and what --overwrite deletes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fourm.errors import UsageError
from fourm.layout import Place, samples_of_prompts, write_text
from fourm.record import (
    FAILURES,
    RUN,
    Launch,
    RunRecord,
    add_failure,
    check_output,
    close_output,
    digest_of_samples,
    open_output,
    read_record,
    sha256_of,
)

ALONE = Launch(rank=0, size=1, started="t")
SETTINGS = RunRecord(
    schedule={"conditions": [], "steps": [{"target": "tok_rgb@64", "temperature": 1.0}], "top_k": 0},
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


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"seed": 7}, "seed is 0 there and 7 here"),
        ({"files": {"model.safetensors": "cc"}}, 'files.model.safetensors is "aa" there and "cc" here'),
        (
            {
                "schedule": {
                    "conditions": [],
                    "steps": [{"target": "tok_rgb@64", "temperature": 2.0}],
                    "top_k": 0,
                }
            },
            r"temperature is 1\.0",
        ),
        ({"schedule": {"conditions": [], "steps": [], "top_k": 0}}, r"steps\[0\]\.target is .* absent here"),
        ({"samples": 3, "samples_sha256": "cc"}, "samples is 2 there and 3 here; samples_sha256"),
        ({"decode": False}, "decode is true there and false here"),
    ],
)
def test_resuming_with_other_settings_says_what_differs(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    begin(tmp_path)
    with pytest.raises(UsageError, match=sentence):
        begin(tmp_path, resume=True, **changes)


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


@pytest.mark.parametrize("folder", ["..", "../other", "/etc", ".", "link"])
def test_overwrite_never_follows_a_record_out_of_the_folder(tmp_path: Path, folder: str) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    begin(out)
    other.mkdir()
    (other / "a.npy").write_text("x")
    (out / "link").symlink_to(other)
    record = json.loads((out / RUN).read_text())
    record["places"] = [{"folder": folder, "suffix": ".npy", "shared": False}]
    (out / RUN).write_text(json.dumps(record))
    with pytest.raises(UsageError, match="not inside"):
        begin(out, overwrite=True)
    assert (other / "a.npy").exists()


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", 5), ("options", 7), ("num_variations", "2"), ("seed", None), ("schedule", None),
        ("schedule", []), ("schedule", {}), ("schedule", {"conditions": [1], "steps": []}),
        ("schedule", {"conditions": [], "steps": 5}),
    ],
)  # fmt: skip
def test_a_record_with_values_of_another_kind_is_a_sentence(tmp_path: Path, name: str, value: object) -> None:
    record = {"format": 2, **SETTINGS.to_json(), "launches": [], name: value}
    (tmp_path / "run.json").write_text(json.dumps(record, default=list))
    with pytest.raises(UsageError, match=r"run\.json: is not a record of this program"):
        read_record(tmp_path)


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
from fourm.record import Launch, add_failure, close_output, open_output
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
    with pytest.raises(UsageError, match="not inside"):
        begin(out, overwrite=True)
    assert mine.exists()
