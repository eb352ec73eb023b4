"""`fourm verify`: what it prints, its exit codes, and that torch stays away."""

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fourm import output
from fourm.data.dataset import Input
from fourm.data.layout import Key, Place, Sample
from fourm.output.joining import Joining
from fourm.output.processes import Launch, Listed, close_output, list_files, now
from fourm.output.record import RUN, SR_RUN, RunRecord
from fourm.output.samples import SampleWriter
from fourm_cli import console, folders

Run = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def made(run: Run, tiny: Path, tmp_path: Path) -> Path:
    assert run("generate", "a red circle", "a blue square", "--model", tiny, "--out", "out")[0] == 0
    return tmp_path / "out"


def test_verify_of_an_untouched_folder_ends_with_0(run: Run, made: Path) -> None:
    assert run("verify", "out") == (0, "ok: 10 files of 2 samples checked\n", "")


def test_verify_prints_its_findings_as_a_table_and_then_the_verdict(run: Run, made: Path) -> None:
    (made / "rgb/00000/000000.png").unlink()
    (made / "caption/00000/000001.txt").write_text("other")
    (made / "note\n").write_text("")
    code, out, err = run("verify", "out")
    assert (code, err) == (5, "")
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert [line[:2] for line in lines[:-1]] == [
        ["what", "file"],
        ["foreign", "note\\n"],
        ["missing", "rgb/00000/000000.png"],
        ["altered", "caption/00000/000001.txt"],
    ]
    last = "not ok: 9 files of 2 samples checked: 1 foreign, 1 missing, 1 altered"
    assert out.splitlines()[-1] == last


def test_json_has_all_findings_and_the_table_the_first_twenty(run: Run, made: Path) -> None:
    for number in range(50):
        (made / f"rgb/00000/x{number:02d}.png").write_bytes(b"")
    code, out, _ = run("verify", "out")
    assert code == 5
    assert len(out.splitlines()) == 1 + folders.SHOWN + 2
    assert "... and 30 more\n" in out
    code, out, err = run("verify", "out", "--json")
    assert (code, err) == (5, "")
    said = json.loads(out)
    assert set(said) == {"out", "ok", "samples", "failed", "files", "findings", "notes"}
    assert (said["out"], said["ok"], said["samples"], said["files"]) == ("out", False, 2, 10)
    assert {(f["kind"], f["detail"]) for f in said["findings"]} == {
        ("foreign", "belongs to no sample of a run")
    }
    assert len({f["file"] for f in said["findings"]}) == 50


def test_the_folder_may_come_from_the_command_before_a_pipe(
    run: Run, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"out\n")))
    assert run("verify", "-")[:2] == (0, "ok: 10 files of 2 samples checked\n")


def test_a_failed_sample_is_said_and_no_mistake(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "data/rgb/a").mkdir(parents=True)
    (tmp_path / "data/rgb/a/x.png").write_bytes(b"no picture")
    source = ("--data", "data", "--cond", "rgb", "--targets", "caption")
    assert run("generate", "--model", tiny, *source, "--out", "out")[0] == 3
    said = "ok: 0 files of 0 samples checked, 1 result failed (see failures.jsonl)\n"
    assert run("verify", "out") == (0, said, "")


def test_wrong_folders_are_wrong_usage(run: Run, tmp_path: Path) -> None:
    code, out, err = run("verify", "gone")
    assert (code, out, "gone: no such folder" in err) == (2, "", True)
    (tmp_path / "other").mkdir()
    code, out, err = run("verify", "other")
    assert (code, out) == (2, "")
    assert err.startswith("fourm: other: holds no run.json")


def test_a_damaged_record_is_found_not_fatal(run: Run, made: Path) -> None:
    (made / RUN).write_text('{"format": 3, "identity": [')
    code, out, err = run("verify", "out")
    assert (code, err) == (5, "")
    assert out.splitlines()[1].startswith("altered  run.json  is not a record of this program")


def test_a_run_that_was_killed_verifies_after_it_was_resumed(run: Run, tiny: Path, tmp_path: Path) -> None:
    """SIGKILL, as soon as the first sample is saved."""
    prompts = [f"a {colour} circle" for colour in ("red", "green", "blue") for _ in range(20)]
    (tmp_path / "prompts").write_text("\n".join(prompts))
    words = ("--model", str(tiny), "--data", str(tmp_path / "prompts"), "--batch-size", "1", "--preview", "2")
    out, log = tmp_path / "killed", tmp_path / "log"
    start = (sys.executable, "-m", "fourm_cli", "generate", *words, "--out", str(out), "--log-json", str(log))
    with subprocess.Popen(start, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not log.exists() or '"saved"' not in log.read_text():
            assert process.poll() is None
            time.sleep(0.005)
        process.kill()
    code, said, _ = run("verify", "killed", "--json")
    verdict = json.loads(said)
    assert code == 5
    assert [(f["kind"], f["file"]) for f in verdict["findings"]] == [("missing", RUN)]
    assert "of 60 results were not made" in verdict["findings"][0]["detail"]
    assert {note["kind"] for note in verdict["notes"]} <= {"unfinished", "unlisted"}
    assert run("generate", *words, "--out", "killed", "--resume", "--quiet")[0] == 0
    code, said, _ = run("verify", "killed", "--json")
    verdict = json.loads(said)
    assert (code, verdict["findings"], verdict["notes"], verdict["samples"]) == (0, [], [], 60)


def test_malformed_texts_belong_to_a_run(run: Run, tmp_path: Path) -> None:
    """At a high temperature the embedded model writes boxes that are none."""
    options = ("--target", "det:temp=30", "--top-p", "0", "--num-variations", "2")
    assert run("generate", "a red circle", "a blue square", *options, "--out", "out")[0] == 0
    kept = sorted((tmp_path / "out/malformed/det").rglob("*.json"))
    assert kept
    assert run("verify", "out")[0] == 0
    content = kept[0].read_text()
    kept[0].write_text(content[:-5])
    code, said, _ = run("verify", "out", "--json")
    (found,) = json.loads(said)["findings"]
    assert (code, found["kind"]) == (5, "truncated")
    assert found["file"] == kept[0].relative_to(tmp_path / "out").as_posix()


def test_torch_is_never_imported(run: Run, made: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fourm.checks.verify import verify_folder;"
        f"assert verify_folder(Path({str(made)!r})).ok;"
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_slow_check_says_how_far_it_is(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "PLAIN_LINE_SECONDS", 0.0)
    _, out, err = run("verify", "out")
    assert out.startswith("ok")
    assert err.splitlines() == [f"{done} of 10 files" for done in range(10)]


def test_ten_thousand_samples_are_checked(run: Run, tmp_path: Path) -> None:
    """Empty texts: only what every file costs by itself."""
    out, number = tmp_path / "out", 10_000
    places = (Place("a", ".txt", modality="a"), Place("b", ".txt", modality="b"))
    record = RunRecord(
        schedule={"conditions": [], "steps": []},
        model="m", revision="", files={}, samples=number, num_variations=1,
        seed=0, dtype="float32", device_type="cpu", attention="sdpa", decode=True, detokenizer_steps=1,
        preview=0, places=places, input=Input("none"),
    )  # fmt: skip
    launch = Launch(0, 1, now(), finished=now())
    process = Joining(out, record, launch, resume=False, overwrite=False).enter()
    names = [f"{i // 1000:05d}/{i:06d}.txt" for i in range(number)]
    for folder in ("a", "b"):
        for i in range(0, number, 1000):
            (out / folder / f"{i // 1000:05d}").mkdir(parents=True)
        for name in names:
            (out / folder / name).touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    process.add_checksums({f"{folder}/{n}": Listed(empty, 0) for folder in ("a", "b") for n in names})
    samples = [Sample(Key(*name.removesuffix(".txt").split("/"))) for name in names]
    writer = SampleWriter(output.Run(out, RUN, record), samples, fit="")
    recorded = [path for sample in samples if (path := writer.record(sample.key))]
    assert len(recorded) == 10
    process.add_checksums(list_files(out, recorded))
    close_output(process, launch)
    assert run("verify", "out")[:2] == (0, "ok: 20,000 files of 10,000 samples checked\n")
    (out / "b/00009/009999.txt").write_text("x")
    (out / "a/00007/007007.txt").unlink()
    code, said, _ = run("verify", "out")
    assert code == 5
    assert said.splitlines()[-1].endswith(": 1 missing, 1 altered")
    assert not (out / SR_RUN).exists()
