"""Who may write into an output folder, what is compared on resume, and what --overwrite deletes."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fourm.data.dataset import Input
from fourm.data.layout import Place
from fourm.errors import FourMError, UsageError
from fourm.files.writing import remove_leftovers, write_text
from fourm.output import joining, processes
from fourm.output.joining import (
    NOT_COMPARED,
    Joining,
    check_output,
    open_shards,
    withdraw_output,
)
from fourm.output.processes import (
    ANY_RUN,
    FAILED,
    FAILURES,
    LAUNCH,
    PROCESSES,
    Failure,
    Launch,
    Process,
    close_output,
    is_closed,
    list_files,
    now,
    read_failures,
    read_launches,
    sha256_of_file,
    write_failures,
)
from fourm.output.record import RUN, SR_RUN, RunRecord
from fourm.output.samples import load_run
from fourm.schedule.best import Best
from fourm.schedule.features import Features
from tests.folders import snapshot

ROOT = Path(__file__).resolve().parents[2]
ALONE = Launch(rank=0, size=1, started=now())
STEP = {"index": 0, "target": "tok_rgb@64", "num_tokens": 64, "temperature": 1.0}
SETTINGS = RunRecord(
    schedule={"conditions": [], "steps": [STEP], "top_k": 0},
    model="demo",
    revision="1",
    files={"model.safetensors": "aa"},
    samples=2,
    num_variations=1,
    seed=0,
    dtype="float32",
    device_type="cpu",
    attention="sdpa",
    decode=True,
    detokenizer_steps=25,
    preview=0,
    places=(Place("caption", ".txt", shared=True), Place("tok_rgb@64", ".npy")),
    input=Input("texts", sha256="bb"),
)


def begin(
    out: Path, launch: Launch = ALONE, resume: bool = False, overwrite: bool = False, **changes: object
) -> Process:
    check_output(out, launch, resume, overwrite)
    return Joining(out, replace(SETTINGS, **changes), launch, resume, overwrite).enter()  # type: ignore[arg-type]


def ranks(out: Path) -> list[int]:
    """Of the processes that worked on the run in a folder."""
    return sorted(launch.rank for launch in read_launches(out, load_run(out).identity))


def fail(process: Process, key: str, reason: str = "bad", variation: int = 0, *files: str) -> None:
    process.add_failure(key, variation, reason, "base", [process.out / file for file in files])


def test_a_run_writes_its_record_and_reads_it_back(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    close_output(begin(out), replace(ALONE, finished=now(), saved=2))
    assert load_run(out).record == SETTINGS
    (launch,) = read_launches(out, load_run(out).identity)
    assert (launch.rank, launch.size, launch.saved, launch.started) == (0, 1, 2, ALONE.started)
    assert sorted(p.name for p in out.iterdir()) == [PROCESSES, RUN]


def test_a_share_is_covered_by_a_later_process_that_had_all_of_its_samples() -> None:
    earlier, later = "2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01+00:00"
    share = Launch(3, 4, earlier)
    covers = {
        (rank, size): is_closed([share, Launch(rank, size, later, finished=later)])
        for size in (1, 2, 3, 4)
        for rank in range(size)
    }
    assert {share for share, is_covered in covers.items() if is_covered} == {(0, 1), (1, 2), (3, 4)}
    assert not is_closed([share, Launch(3, 4, earlier, finished=later)])


def test_only_a_process_that_is_alone_takes_back_a_run_that_has_made_nothing(tmp_path: Path) -> None:
    """Another process of its job, which has not come yet, may count on the record."""
    first = begin(tmp_path / "job", replace(ALONE, size=2))
    assert not withdraw_output(first, RUN)
    assert ranks(tmp_path / "job") == [0]
    assert withdraw_output(begin(tmp_path / "alone"), RUN)
    assert not list((tmp_path / "alone").iterdir())


def test_an_existing_run_is_refused_without_resume_or_overwrite(tmp_path: Path) -> None:
    begin(tmp_path)
    with pytest.raises(UsageError, match="`resume=True` goes on"):
        check_output(tmp_path, ALONE, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="`resume=True` goes on"):
        Joining(tmp_path, SETTINGS, ALONE, resume=False, overwrite=False).enter()
    begin(tmp_path, resume=True, command=("fourm",), versions={"torch": "9"})


COMPARED: list[tuple[dict[str, Any], str]] = [
    ({"schedule": {**SETTINGS.schedule, "steps": [STEP | {"temperature": 2.0}]}}, r"temperature is 1\.0"),
    ({"schedule": {**SETTINGS.schedule, "steps": []}}, r"steps\[0\]\.target is .* absent here"),
    ({"schedule": {**SETTINGS.schedule, "top_k": 5}}, "schedule.top_k is 0 there and 5 here"),
    ({"model": "other"}, 'model is "demo" there and "other" here'),
    ({"revision": "2"}, 'revision is "1" there and "2" here'),
    ({"files": {"model.safetensors": "cc"}}, 'files.model.safetensors is "aa" there and "cc" here'),
    ({"samples": 3}, "samples is 2 there and 3 here"),
    ({"input": Input("texts", sha256="cc")}, 'input.sha256 is "bb" there and "cc" here'),
    ({"num_variations": 2}, "num_variations is 1 there and 2 here"),
    ({"seed": 7}, "seed is 0 there and 7 here"),
    ({"dtype": "bfloat16"}, 'dtype is "float32" there and "bfloat16" here'),
    ({"device_type": "cuda"}, 'device_type is "cpu" there and "cuda" here'),
    ({"attention": "xformers"}, 'attention is "sdpa" there and "xformers" here'),
    ({"compile": True}, "compile is false there and true here"),
    ({"weights": "int8"}, 'weights is "full" there and "int8" here'),
    ({"decode": False}, "decode is true there and false here"),
    ({"detokenizer_steps": 50}, "detokenizer_steps is 25 there and 50 here"),
    ({"detokenizer_solver": "unipc"}, 'detokenizer_solver is "ddim" there and "unipc" here'),
    ({"layout": "shards"}, 'layout is "files" there and "shards" here'),
    ({"shard_size": 10}, "shard_size is null there and 10 here"),
    ({"shards": 3}, "shards is null there and 3 here"),
    ({"blend": False}, "blend is true there and false here"),
    ({"preview": 3}, "preview is 0 there and 3 here"),
    ({"places": SETTINGS.places[:1]}, r"places\[1\]\.folder is \"tok_rgb@64\" there and absent here"),
    ({"stage": "sr"}, 'stage is "base" there and "sr" here'),
    ({"variation": 0}, "variation is null there and 0 here"),
    ({"origin": SETTINGS.as_origin()}, "origin.model is absent there"),
    ({"fit": "pad"}, 'fit is "crop" there and "pad" here'),
    ({"restore": True}, "restore is false there and true here"),
    ({"num_crops": 4}, "num_crops is 1 there and 4 here"),
    ({"min_scale": 0.5}, "min_scale is null there and 0.5 here"),
    ({"features": Features()}, "features.pool is absent there"),
    ({"best": Best(8, ("caption",))}, "best.of is absent there"),
    ({"best": Best(8, ("caption",)), "places": ()}, "settings: best.of is absent there"),  # the cause first
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
    assert compared == RunRecord.__dataclass_fields__.keys() - set(NOT_COMPARED)


def test_a_folder_that_no_run_wrote_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(UsageError, match=r"no run\.json"):
            begin(tmp_path, resume=resume, overwrite=overwrite)
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]


def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    process = begin(tmp_path)
    own = [tmp_path / "caption" / "00000" / "000000.txt", tmp_path / "tok_rgb@64" / "00000" / "000000.npy"]
    foreign = [tmp_path / "notes.md", tmp_path / "caption" / "00000" / "mine.md", tmp_path / "rgb" / "a.png"]
    for path in own + foreign:
        write_text(tmp_path, path, "x")
    fail(process, "00000/000001")
    close_output(process, ALONE)
    assert (tmp_path / FAILURES).exists()
    begin(tmp_path, overwrite=True, seed=3)
    assert not any(path.exists() for path in own)
    assert all(path.exists() for path in foreign)
    assert not (tmp_path / FAILURES).exists()
    assert not (tmp_path / "tok_rgb@64").exists()
    assert load_run(tmp_path).record.seed == 3
    assert len(list((tmp_path / PROCESSES).iterdir())) == 1  # the launch that overwrites


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
        "processes",
        "processes/a",
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
    remove_leftovers(out)
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"no run has results in|is a link"):
        begin(out, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 3}', '{"format": 3, "identity": 3}', '{"format": 99}', "[" * 100_000,
     '{"format": 3, "identity": "0123abcd"}', '{"format": 3, "identity": "0123abcd", "places": [{}]}',
     '{"format": 3, "identity": "0123abcd", "places": [{"folder": "a\\u0000b", "suffix": ""}]}',
     '{"format": 3, "identity": "../../..", "places": []}'],
)  # fmt: skip
def test_a_damaged_record_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / RUN).write_text(text)
    with pytest.raises(UsageError, match=r"run\.json"):
        begin(tmp_path, resume=True)


def test_partners_join_in_any_order_but_no_share_is_begun_twice(tmp_path: Path) -> None:
    partners = [Launch(rank, 3, now()) for rank in (2, 0, 1)]
    for partner in partners:
        begin(tmp_path, partner)
    assert ranks(tmp_path) == [
        0,
        1,
        2,
    ]
    for again in (partners[0], Launch(0, 4, now())):
        with pytest.raises(UsageError, match="`resume=True`"):
            begin(tmp_path, again)
        with pytest.raises(UsageError, match="`resume=True`"):
            Joining(tmp_path, SETTINGS, again, resume=False, overwrite=False).enter()
    assert len(list((tmp_path / PROCESSES).iterdir())) == 3
    begin(tmp_path, partners[0], resume=True)
    begin(tmp_path, ALONE, resume=True)


def test_a_partner_with_other_settings_is_refused(tmp_path: Path) -> None:
    begin(tmp_path, Launch(0, 2, now()))
    with pytest.raises(UsageError, match="seed is 0 there and 1 here"):
        begin(tmp_path, Launch(1, 2, now()), seed=1)


def in_process(code: str, *words: object) -> subprocess.Popen[str]:
    """Another process that runs some code with `out`, the first of the words; it prints and reads lines."""
    start = """
import sys, time
from pathlib import Path
from fourm.output.processes import *
from fourm.output.joining import *
from fourm.files.writing import write_text
from tests.output.test_joining import SETTINGS, fail
out, words = Path(sys.argv[1]), sys.argv[2:]
"""
    return subprocess.Popen(
        [sys.executable, "-c", start + code, *map(str, words)], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def age(path: Path, seconds: float) -> None:
    """Let a file have been written some time ago."""
    os.utime(path, (time.time() - seconds,) * 2)


OVERWRITE = """
process = Joining(out, SETTINGS, Launch(int(words[0]), 2, now()), False, True, since=float(words[1])).enter()
write_text(out, out / "caption" / "a" / f"new-{words[0]}.txt", "x")
close_output(process, Launch(int(words[0]), 2, now(), finished=now()))
"""


def test_no_process_joins_the_run_that_its_job_overwrites(tmp_path: Path) -> None:
    """Of the run that is there only process 0 had begun; process 1 of the next job could join it."""
    close_output(begin(tmp_path, Launch(0, 2, now())), Launch(0, 2, now()))
    age(tmp_path / RUN, 60)
    write_text(tmp_path, tmp_path / "caption" / "a" / "old.txt", "x")
    remove_leftovers(tmp_path)
    before, since = load_run(tmp_path).identity, time.time()
    second = in_process(OVERWRITE, tmp_path, 1, since)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(2)
    assert (tmp_path / "caption" / "a" / "old.txt").exists()
    first = in_process(OVERWRITE, tmp_path, 0, since)
    assert [first.wait(20), second.wait(20)] == [0, 0], (first.communicate(), second.communicate())
    assert sorted(p.name for p in (tmp_path / "caption" / "a").iterdir()) == ["new-0.txt", "new-1.txt"]
    assert ranks(tmp_path) == [
        0,
        1,
    ]
    assert load_run(tmp_path).identity != before


def test_a_process_that_its_launcher_started_again_keeps_what_its_job_has_made(tmp_path: Path) -> None:
    since = time.time() - 1
    for rank in (1, 0, 0):  # the first of them finds the folder empty; process 0 dies, and comes again
        process = in_process(OVERWRITE, tmp_path, rank, since)
        assert process.wait(20) == 0, process.communicate()
    assert sorted(p.name for p in (tmp_path / "caption" / "a").iterdir()) == ["new-0.txt", "new-1.txt"]
    assert ranks(tmp_path) == [
        0,
        0,
        1,
    ]


def test_a_process_whose_job_never_overwrites_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    close_output(begin(tmp_path, Launch(0, 2, now())), Launch(0, 2, now()))
    age(tmp_path / RUN, 60)
    monkeypatch.setattr(joining, "FIRST_WAIT", 0.3)
    with pytest.raises(UsageError, match="process 0 of 2, which alone overwrites a folder, has not done so"):
        Joining(tmp_path, SETTINGS, Launch(1, 2, now()), False, True, since=time.time()).enter()
    assert sorted(p.name for p in tmp_path.iterdir()) == [PROCESSES, RUN]


def test_a_folder_in_which_somebody_works_is_not_overwritten(tmp_path: Path) -> None:
    code = "Joining(out, SETTINGS, Launch(0, 1, now()), False, False).enter(); print(flush=True); input()"
    with in_process(code, tmp_path) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match="process 0 of 1 of a run writes there now"):
            begin(tmp_path, overwrite=True)
        assert len(list((tmp_path / PROCESSES).iterdir())) == 1
        other.kill()
    begin(tmp_path, overwrite=True)


def test_a_folder_in_which_shards_are_made_is_not_overwritten(tmp_path: Path) -> None:
    sharded = replace(SETTINGS, layout="shards")
    open_shards(tmp_path, sharded, 1, resume=False, overwrite=False)
    code = "from fourm.files.writing import new_unfinished; new_unfinished(out); print(flush=True); input()"
    with in_process(code, tmp_path) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UsageError, match="another process writes there now"):
            open_shards(tmp_path, sharded, 1, resume=False, overwrite=True)
        other.kill()
    open_shards(tmp_path, sharded, 1, resume=False, overwrite=True)
    (tmp_path / "caption").write_text("mine")
    with pytest.raises(UsageError, match="caption: is a file or a link out of"):
        open_shards(tmp_path, sharded, 1, resume=True, overwrite=False)


def test_many_processes_write_one_record_and_whole_failure_lines(tmp_path: Path) -> None:
    code = """
rank = int(words[0])
process = Joining(out, SETTINGS, Launch(rank, 6, now()), False, False).enter()
for i in range(20):
    fail(process, f"a/{rank}-{i}", "x" * 5000, 0, f"caption/a/{rank}-{i}.txt")
write_text(out, out / f"caption/a/{rank}-0.txt", "made after all")
close_output(process, Launch(rank, 6, process.launch.started, finished=now(), failed=20))
"""
    out = tmp_path / "out"
    running = [in_process(code, out, rank) for rank in range(6)]
    assert [process.wait() for process in running] == [0] * 6, [p.communicate() for p in running]
    launches = read_launches(out, load_run(out).identity)
    assert sorted(launch.rank for launch in launches) == list(range(6))
    assert all(launch.finished for launch in launches)
    failures = [json.loads(line)["key"] for line in (out / FAILURES).read_text().splitlines()]
    assert sorted(failures) == sorted(f"a/{rank}-{i}" for rank in range(6) for i in range(1, 20))
    assert sorted(p.name for p in out.iterdir()) == ["caption", FAILURES, PROCESSES, RUN]


def test_failures_of_samples_that_any_later_process_made_are_forgotten(tmp_path: Path) -> None:
    process = begin(tmp_path, Launch(0, 2, now()))
    fail(process, "a/1", "first", 0, "caption/a/1.txt")
    with process.path(FAILED).open("a") as file:
        file.write('[]\n{}\n{"key": "a/2", "var\n')
    fail(process, "a/1", "second", 0, "caption/a/1.txt")
    fail(process, "a/2", "third", 1, "caption/a/2.txt")
    with process.path(FAILED).open("a") as file:
        file.write('{"key": "a/3", "variation": 0, "rea')  # killed while it wrote
    close_output(process, ALONE)
    lines = [json.loads(line) for line in (tmp_path / FAILURES).read_text().splitlines()]
    assert [line["reason"] for line in lines] == ["second", "third"]
    for name, left in (("2", ["a/1"]), ("1", [])):
        other = begin(tmp_path, Launch(1, 2, now()), resume=True)
        write_text(tmp_path, tmp_path / f"caption/a/{name}.txt", "made")
        assert [failure.key for failure in read_failures(tmp_path)] == left
        close_output(other, ALONE)
        assert (tmp_path / FAILURES).exists() == bool(left)


def test_a_list_of_failures_that_says_the_same_is_not_written_again(tmp_path: Path) -> None:
    process = begin(tmp_path, Launch(0, 2, now()))
    fail(process, "a/1", "first", 0, "caption/a/1.txt")
    close_output(process, ALONE)
    before = (tmp_path / FAILURES).stat()
    close_output(begin(tmp_path, Launch(1, 2, now())), ALONE)
    after = (tmp_path / FAILURES).stat()  # not all of it: reading alone may move the time of access
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_the_lists_of_failures_are_read_once_unless_another_process_ends_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, other = (begin(tmp_path, Launch(rank, 2, now())) for rank in (0, 1))
    fail(process, "a/1", "first", 0, "caption/a/1.txt")
    read, counts, written = processes.noted_failures, list[int](), processes.write_text

    def count(out: Path) -> list[Failure]:
        counts.append(1)
        return read(out)

    def write(root: Path, path: Path, text: str) -> None:
        written(root, path, text)
        if path.name == FAILURES and len(counts) == 2:
            fail(other, "a/2", "second", 0, "caption/a/2.txt")

    monkeypatch.setattr(processes, "noted_failures", count)
    close_output(process, ALONE)
    assert len(counts) == 1
    monkeypatch.setattr(processes, "write_text", write)
    fail(process, "a/3", "third", 0, "caption/a/3.txt")
    write_failures(tmp_path)
    assert len(counts) == 3
    lines = (tmp_path / FAILURES).read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["first", "second", "third"]


def test_a_file_that_is_there_but_wrong_is_no_sign_of_success(tmp_path: Path) -> None:
    process = begin(tmp_path)
    path = tmp_path / "caption" / "a.txt"
    write_text(tmp_path, path, "cut off")
    process.add_failure("x/a", 0, "bad", "base", [path])
    assert [failure.key for failure in read_failures(tmp_path)] == ["x/a"]
    age(path, -1)
    assert read_failures(tmp_path) == []


def test_an_output_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        check_output(tmp_path / "file", ALONE, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="file is a file, not a folder"):
        check_output(tmp_path / "file" / "out", ALONE, resume=False, overwrite=False)
    with pytest.raises(UsageError, match="cannot be written"):
        begin(Path("/proc/fourm/out"))


def test_folders_that_were_made_for_a_name_that_is_refused_go_again(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be written \(File name too long"):
        check_output(tmp_path / "new" / "folder" / ("x" * 300), ALONE, resume=False, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_appears_at_the_moment_of_a_look_is_not_taken_for_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process begins while this one joins."""
    looks = {name: getattr(os, name) for name in ("stat", "lstat")}

    def look(name: str, path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return looks[name](path, *args, **kwargs)
        finally:
            if str(path) == str(tmp_path / PROCESSES):
                with suppress(FileExistsError):
                    os.mkdir(path)

    with monkeypatch.context() as patch:
        for name in looks:
            patch.setattr(os, name, partial(look, name))
        process = begin(tmp_path)
    assert process.path(LAUNCH).is_file()


@pytest.mark.parametrize("seconds", ["1" + "0" * 400, "-1" + "0" * 400, "1e999", "NaN"])
def test_a_launch_whose_seconds_are_no_number_is_a_sentence(tmp_path: Path, seconds: str) -> None:
    path = begin(tmp_path).path(LAUNCH)
    path.write_text(path.read_text().replace('"seconds": 0.0', f'"seconds": {seconds}'))
    with pytest.raises(UsageError, match=r"is not a record of this program \(launch.seconds is"):
        read_launches(tmp_path, load_run(tmp_path).identity)


def test_a_read_only_folder_is_a_sentence() -> None:
    """Root may write wherever modes forbid it, but not into /sys."""
    with pytest.raises(UsageError, match="cannot be written"):
        begin(Path("/sys/kernel/fourm-out"))


def test_a_run_killed_before_its_record_leaves_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    (tmp_path / PROCESSES).mkdir()
    old = Process(tmp_path, "89abcdef", ALONE)
    old.begin()  # somebody has deleted the record of its run
    close_output(begin(tmp_path), ALONE)
    assert sorted(p.name for p in tmp_path.iterdir()) == [PROCESSES, RUN]
    assert not old.path(LAUNCH).exists()


def test_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    assert sha256_of_file(tmp_path / "f").startswith("e3b0c44298fc1c14")


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


@pytest.mark.parametrize("name", [RUN, "run.sr.json", FAILURES, PROCESSES, ".partial"])
@pytest.mark.parametrize("target", ["file", "folder", "nothing"])
def test_nothing_is_written_through_a_link_in_the_place_of_a_file_of_ours(
    tmp_path: Path, name: str, target: str
) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    close_output(begin(out), ALONE)
    if target == "file":
        victim.write_text("mine")
    elif target == "folder":
        victim.mkdir()
        (victim / "mine").write_text("mine")
    if (out / name).is_dir():
        (out / name).rename(tmp_path / "moved")
    (out / name).unlink(missing_ok=True)
    (out / name).symlink_to(victim)
    before = snapshot(tmp_path)
    for resume, overwrite in ((True, False), (False, True), (False, False)):
        for act in (check_output, lambda *words: Joining(words[0], SETTINGS, *words[1:]).enter()):
            with pytest.raises(UsageError, match="move it away"):
                act(out, ALONE, resume, overwrite)
    assert snapshot(tmp_path) == before
    assert os.path.lexists(victim) == (target != "nothing")


def test_a_process_writes_nothing_into_another_folder_of_the_same_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begin(out)
    out.rename(tmp_path / "renamed")
    for is_made_again in (False, True):
        if is_made_again:
            out.mkdir()
        for act in (process.check, lambda: process.add_checksums({}), lambda: fail(process, "a/b")):
            with pytest.raises(FourMError, match="was deleted or renamed while this process wrote into it"):
                act()
        with pytest.raises(FourMError, match="was deleted or renamed"):
            close_output(process, ALONE)
    assert list(out.iterdir()) == []
    close_output(begin(tmp_path / "renamed", resume=True), ALONE)


@pytest.mark.parametrize(
    ("names", "free"),
    [
        (["001"], "002"), (["001", "002"], "003"), (["cats"], "cats-2"), (["cats", "cats-2"], "cats-3"),
        (["run9"], "run10"), (["a b"], "a b-2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_run", [True, False])
def test_the_refusal_of_a_folder_names_one_that_is_free(
    names: list[str], free: str, has_run: bool, tmp_path: Path
) -> None:
    for name in names:
        if has_run:
            begin(tmp_path / name)
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "x").touch()
    with pytest.raises(UsageError) as caught:
        check_output(tmp_path / names[0], ALONE, resume=False, overwrite=False)
    assert str(caught.value).endswith(f", `out={tmp_path}/{free}` is free")


def test_a_process_of_no_run_writes_nothing_through_a_link_either(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / PROCESSES).symlink_to(elsewhere)
    with pytest.raises(FourMError, match="is a link out of"):
        fail(Process(out, ANY_RUN, ALONE), "a/b")
    assert list(elsewhere.iterdir()) == []


def test_failures_of_an_overwritten_run_beside_another_are_forgotten(tmp_path: Path) -> None:
    close_output(begin(tmp_path), ALONE)
    sr_run = replace(SETTINGS, stage="sr", places=(Place("rgb@128", ".png"),))
    process = Joining(tmp_path, sr_run, ALONE, record=SR_RUN).enter()
    process.add_failure("a/b", 0, "broken", "sr", [tmp_path / "rgb@128/a/b.png"])
    close_output(process, ALONE)
    assert (tmp_path / FAILURES).exists()
    other = replace(sr_run, places=(Place("depth@128", ".npy"),))
    close_output(Joining(tmp_path, other, ALONE, overwrite=True, record=SR_RUN).enter(), ALONE)
    assert not (tmp_path / FAILURES).exists()


def test_a_file_where_a_folder_is_due_is_refused_before_anything_is_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    close_output(begin(out), ALONE)
    (tmp_path / "elsewhere").mkdir()
    folder = out / SETTINGS.places[0].folder
    for make in (Path.touch, os.mkfifo, lambda path: path.symlink_to(tmp_path / "elsewhere")):
        make(folder)
        before = snapshot(tmp_path)
        for resume, overwrite in ((True, False), (False, True)):
            with pytest.raises(UsageError, match="not a folder; move it away"):
                Joining(out, SETTINGS, ALONE, resume, overwrite).check()
        assert snapshot(tmp_path) == before
        folder.unlink()


def test_a_run_that_is_overwritten_before_it_has_begun_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody sees yet that it lives; its results would be among those of the other run."""
    real = Process.begin

    def late(process: Process) -> Process:
        monkeypatch.setattr(Process, "begin", real)
        begin(tmp_path, overwrite=True, seed=5)
        return process.begin()

    monkeypatch.setattr(Process, "begin", late)
    with pytest.raises(UsageError, match="is not empty"):
        begin(tmp_path)
    assert load_run(tmp_path).record.seed == 5
    assert len(list((tmp_path / PROCESSES).iterdir())) == 1


def test_a_run_that_cannot_begin_leaves_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that is full after the record."""

    def full(process: Process) -> None:
        (process.out / PROCESSES).mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Process, "begin", full)
    with pytest.raises(UsageError, match="No space left"):
        begin(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("is_killed", [False, True])
def test_overwrite_leaves_files_in_the_folders_of_a_run_that_it_did_not_write(
    tmp_path: Path, is_killed: bool
) -> None:
    """Of a run whose process was killed nobody can tell them apart."""
    process = begin(tmp_path)
    own, mine = (tmp_path / "tok_rgb@64" / "00000" / f"{name}.npy" for name in ("000000", "mine"))
    for path in (own, mine):
        write_text(tmp_path, path, "x")
    process.add_checksums(list_files(tmp_path, [own]))
    if not is_killed:
        close_output(process, replace(ALONE, finished=now()))
    remove_leftovers(tmp_path)
    begin(tmp_path, overwrite=True, seed=3)
    assert not own.exists()
    assert mine.exists() is not is_killed
