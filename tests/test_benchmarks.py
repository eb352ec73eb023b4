"""The measurement of a GPU in one command: it runs on a CPU too, and what fails or does not fit is a line."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import detokenize, executors, scale
from benchmarks.gpu import compare
from benchmarks.gpu.bench import Bench, Cases, count_operations
from benchmarks.gpu.commands import busy_share, count_results
from benchmarks.gpu.driver import PARTS, Run
from benchmarks.gpu.report import Report
from benchmarks.released import Stage
from fourm.networks.linears import packed_layer

ROOT = Path(__file__).resolve().parent.parent


def measure(out: Path, *options: str) -> dict[str, Any]:
    """What gpu.json holds after a run."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), str(out), "--quick", *options]
    subprocess.run(command, cwd=out.parent, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.more
def test_every_part_runs_on_a_cpu_and_stands_in_both_files(tmp_path: Path) -> None:
    data = measure(tmp_path / "out", "--device", "cpu", "--minutes", "60")
    assert [part["part"] for part in data["parts"]] == list(PARTS)
    assert {row["part"] for row in data["rows"]} == set(PARTS)
    assert [row for row in data["rows"] if row["status"] != "ok"] == []
    same = [row["values"] for row in data["rows"] if row["part"] == "tokens"]
    assert len(same) > 5
    assert all(values["differing tokens"] == 0 < values["tokens"] for values in same)
    (tests,) = (row["values"] for row in data["rows"] if row["part"] == "tests")
    assert (tests["failed"], tests["errors"], tests["skipped"] > 20) == (0, 0, True)
    text = (tmp_path / "out/gpu.md").read_text(encoding="utf-8")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) > len(PARTS)
    for lines in tables:
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("|- :")
    assert all(row["name"] in text for row in data["rows"])
    assert len(list((tmp_path / "out").iterdir())) <= 8


@pytest.mark.more
def test_starts_and_files_of_runs_in_shards_are_measured(tmp_path: Path) -> None:
    words = [
        "--prompts",
        "100,200",
        "--shards",
        "50",
        "--verify",
        "1,2",
        "--done",
        "2",
        "--work",
        str(tmp_path),
        "--json",
        str(tmp_path / "x.json"),
    ]
    subprocess.run([sys.executable, "-m", "benchmarks.scale", *words], cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["rows"]
    assert [row["samples"] for row in rows] == [100, 200, 50, 3, 3, 1000, 2000, *scale.COMPUTED]
    assert all(row["CPU, s"] > 0 < row["peak, MB"] for row in rows)
    assert rows[7]["files"] <= 700
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


@pytest.mark.more
def test_engines_that_hand_out_shards_are_compared_with_plain_processes(tmp_path: Path) -> None:
    words = ["--rounds", "1", "--shards", "2,4", "--json", str(tmp_path / "x.json")]
    subprocess.run([sys.executable, "-m", "benchmarks.executors", *words], cwd=ROOT, check=True)
    rows = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))["rows"]
    assert [row["engine"] for row in rows] == list(executors.ENGINES)
    assert all(value > 0 for row in rows for value in (*row["cpu, 2 shards"], *row["seconds, 4 shards"]))
    assert (rows[0]["CPU of the start - plain, s"], rows[0]["CPU of a shard / plain"]) == (0, 1)


def test_processor_time_of_the_children_of_a_process_counts() -> None:
    busy = f"{sys.executable} -c 'import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(60)'"
    process = subprocess.Popen(["sh", "-c", f"{busy} & wait"])
    tree, end = executors.Tree({process.pid: 0.0}), time.monotonic() + 30
    while sum(tree.used.values()) < 0.4:  # the kernel counts in ticks of 10 ms
        assert tree.look()
        assert time.monotonic() < end
    process.kill()
    process.wait()
    (child,) = tree.used.keys() - {process.pid}
    assert tree.look()  # a child whose parent has ended
    os.kill(child, signal.SIGKILL)


def test_bytes_of_the_members_of_a_tar_are_those_before_its_end(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name, size in (("a", 1), ("b", 512), ("c", 20_000)):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(bytes(size)))
        end = tar.offset
    assert scale.members_size(tmp_path / "x.tar") == end


def test_a_part_that_fails_is_a_line_and_the_others_go_on(tmp_path: Path) -> None:
    data = measure(tmp_path / "out", "--device", "nowhere", "--parts", "facts,encode,load")
    assert [part["part"] for part in data["parts"]] == ["facts", "encode", "load"]
    failed = [row for row in data["rows"] if row["status"] == "failed"]
    assert {row["part"] for row in failed} == {"facts", "encode", "load"}
    assert all("nowhere" in row["note"] for row in failed)
    assert "nowhere" in (tmp_path / "out/gpu.md").read_text(encoding="utf-8")


def test_what_does_not_fit_into_the_time_is_a_line(tmp_path: Path) -> None:
    data = measure(tmp_path / "out", "--device", "cpu", "--minutes", "0.01")
    assert {row["part"]: (row["status"], row["note"]) for row in data["rows"]} == dict.fromkeys(
        PARTS, ("left out", "no time left")
    )


def troubled(bench: Bench) -> Cases:
    """Cases of which one kills its process and one does not end."""
    return {
        "good": lambda: {"s": 1.0},
        "deadly": lambda: os.kill(os.getpid(), signal.SIGKILL) or {},
        "wrong": lambda: {"s": 1 / 0},
        "endless": lambda: time.sleep(1000) or {},
        "late": lambda: {"s": 2.0},
    }


def test_a_case_may_kill_its_process_or_never_end(tmp_path: Path) -> None:
    parts = dict.fromkeys(("one", "other"), ("tests.test_benchmarks:troubled", 10.0))
    report = Report(tmp_path, "trouble")
    run = Run(report, "cpu", True, tmp_path, 6.0, time.monotonic() + 20, parts)
    for name in parts:
        run.part(name)
    for name in parts:
        found = {row.name: (row.status, row.note) for row in report.rows if row.part == name}
        assert found == {
            "good": ("ok", ""),
            "deadly": ("failed", "its process ended with -9"),
            "wrong": ("failed", "ZeroDivisionError: division by zero"),
            "endless": ("left out", "stopped: its time was up"),
            "late": ("left out", "stopped: its time was up"),
        }
    assert time.monotonic() < run.deadline + 1


def test_results_of_tests_are_read_from_a_log_that_breaks_off() -> None:
    log = """tests/test_a.py::test_one[1-x] PASSED                [ 20%]
tests/test_a.py::test_two SKIPPED (no CUDA device)   [ 40%]
tests/test_b.py::test_three FAILED                   [ 60%]
tests/test_b.py::test_four """
    assert count_results(log, "stopped; ") == {
        "passed": 1, "failed": 1, "skipped": 1, "errors": 0, "names": "stopped; test_three",
    }  # fmt: skip
    assert count_results("ERROR tests/test_c.py - ModuleNotFoundError: x\n1 error")["errors"] == 1


def test_operations_of_packed_layers_are_counted() -> None:
    layer, x = nn.Linear(768, 16).requires_grad_(False), torch.rand(8, 768)
    for one in (layer, packed_layer(layer)):
        assert count_operations(lambda one=one: one(x)) == 2 * 8 * 768 * 16


def result(folder: Path, card: str, shares: dict[str, float], wrong: int) -> Path:
    rows = [{"part": "facts", "name": "machine", "status": "ok", "values": {"card": card}}]
    rows += [
        {"part": "4m-b", "name": name, "status": "ok", "values": {"of peak": share}}
        for name, share in shares.items()
    ]
    rows.append({"part": "4m-b", "name": "late", "status": "left out", "values": {}})
    rows.append({"part": "tokens", "name": "f", "status": "ok", "values": {"differing tokens": wrong}})
    folder.mkdir(parents=True)
    (folder / "gpu.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    return folder


def test_a_result_is_compared_with_the_newest_of_its_card(tmp_path: Path) -> None:
    result(tmp_path / "results/2026-01-01-b", "B", {"one": 0.9}, 0)
    result(tmp_path / "results/2026-01-01-a", "A", {"one": 0.1}, 0)
    latest = result(tmp_path / "results/2026-01-02-a", "A", {"one": 0.2, "two": 0.1, "old": 0.5}, 0)
    new = compare.read(result(tmp_path / "new", "A", {"one": 0.19, "two": 0.05, "new": 0.5}, 2))
    assert compare.newest(compare.card_of(new), tmp_path / "results") == latest
    assert [(one, one.is_well) for one in compare.compared(new, compare.read(latest))] == [
        (compare.Change("4m-b one", "of peak", 0.2, 0.19), True),
        (compare.Change("4m-b two", "of peak", 0.1, 0.05), False),
        (compare.Change("tokens f", "differing tokens", 0, 2), False),
    ]
    with pytest.raises(SystemExit, match="no committed result of the card 'C'"):
        compare.newest("C", tmp_path / "results")
    assert not compare.show({}, new)  # nothing to compare is not well


def test_solvers_are_compared_for_any_tokenizer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(detokenize, "BEST", 5)
    Image.new("RGB", (80, 64), (200, 30, 30)).save(tmp_path / "red.png")
    file = tmp_path / "rows.json"
    runs = ["detokenize", "--error", "--solvers", "ddim,unipc", "--spacings", "lu,trailing", f"--json={file}"]
    for more, columns in (("--samples=1",), 5), (("--pictures", str(tmp_path), "--encoder", "rgb"), 6):
        monkeypatch.setattr(sys, "argv", [*runs, *more])
        detokenize.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in lines} == {columns + 1}
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
        wanted = [("ddim", "trailing", str(steps)) for steps in detokenize.FEWER]
        wanted += [("unipc", spacing, str(n)) for spacing in ("lu", "trailing") for n in detokenize.FEW]
        assert [tuple(row[:3]) for row in rows] == wanted
        assert float(rows[0][3]) > 120  # of the run that all are compared with
        assert all(20 < float(row[3]) < 120 for row in rows[1:])
        kept = json.loads(file.read_text(encoding="utf-8"))["rows"]
        assert [f"{row[f'to DDIM {detokenize.BEST}']:.2f}" for row in kept] == [row[3] for row in rows]


def test_a_device_is_busy_while_a_command_works() -> None:
    """Samples before, while loading and at the end do not count, nor do lines of another kind."""
    began = datetime(2026, 11, 28, 8, 0).timestamp()
    stages = [
        Stage("start Python and torch", 2.0),
        Stage("load weights", 1.0),
        Stage("decode tok_rgb@64", 2.0),
    ]
    stages += [Stage("write", 1.0), Stage("end", 1.0)]
    lines = [
        f"2026/11/28 08:00:0{second}.500, {percent}"
        for second, percent in enumerate((0, 0, 99, 80, 100, 60, 0))
    ]
    assert busy_share("\n".join([*lines, "2026/11/28 08:00:04.900, [N/A]"]), began, stages) == pytest.approx(
        0.8
    )
    assert busy_share("", began, stages) is None
