"""What `--resume` takes for finished: files that are as they were written, and nothing else."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fourm.checks.verify import verify_folder
from fourm.data.layout import Key, Place, Sample, samples_of_prompts
from fourm.hub.files import find_model
from fourm.inputs.conditions import Work
from fourm.inputs.request import Request
from fourm.inputs.world import World
from fourm.output import processes
from fourm.output.processes import CHECKSUMS, list_files, of_kind
from fourm.results.events import Saved, Started
from fourm.results.job import READ_BYTES, Job
from fourm.runs.pipeline import run
from fourm.schedule.chain import TargetSpec, make_chain
from tests.folders import snapshot

PROMPTS = ("a red circle", "a blue square", "the green triangle")
RGB = TargetSpec("tok_rgb@64", 64, "roar", 2)
KINDS = ("caption/00000/000001.txt", "tok_rgb@64/00000/000001-v1.npy", "rgb/00000/000001-v1.png")


def request(tiny: Path, out: Path, **changes: object) -> Request:
    basis = Request(
        find_model(tiny), make_chain([RGB], ["caption"]), samples_of_prompts(PROMPTS), out, device="cpu",
        num_variations=2,
    )  # fmt: skip
    return replace(basis, **changes)


def results(out: Path) -> dict[str, bytes]:
    """Every file but those that tell of processes."""
    return {name: data for name, data in snapshot(out).items() if not name.startswith(("processes/", "run."))}


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resume") / "out"
    list(run(request(tiny, out)))
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def exchange(path: Path) -> None:
    """With the same file of another sample: for tokens it has as many bytes."""
    shutil.copy(path.with_name(path.name.replace("000001", "000002")), path)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parents[2] / "elsewhere")
    (path.parents[2] / "elsewhere").write_text("precious")


def link_to_same(path: Path) -> None:
    """What another program has moved away is nothing of this folder any more."""
    path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(path.parents[2] / "elsewhere")


def lead_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("file", KINDS)
@pytest.mark.parametrize("damage", [empty, cut, exchange, zero, link, link_to_same, lead_nowhere, os.unlink])
def test_a_file_that_is_not_as_it_was_written_is_made_again(
    tiny: Path, made: Path, out: Path, file: str, damage: Callable[[Path], None]
) -> None:
    damage(out / file)
    events = list(run(request(tiny, out, resume=True)))
    again = [event.variation for event in events if isinstance(event, Saved)]
    assert again == ([0, 1] if "caption" in file else [1])
    if damage in (link, link_to_same):
        assert damage is link_to_same or (out / "elsewhere").read_text() == "precious"
        (out / "elsewhere").unlink()
    assert results(out) == results(made)
    assert not (out / file).is_symlink()
    assert verify_folder(out).ok


@pytest.mark.parametrize(
    ("file", "damage"),
    [(file, damage) for file in KINDS[1:] for damage in (empty, cut, zero, link, lead_nowhere)]
    + [(KINDS[0], empty), (KINDS[0], lead_nowhere)],  # any other text is a text
)
def test_a_file_without_a_checksum_is_judged_by_its_format(
    tiny: Path, made: Path, out: Path, file: str, damage: Callable[[Path], None]
) -> None:
    for listed in of_kind(out, CHECKSUMS):
        listed.path.unlink()
    damage(out / file)
    list(run(request(tiny, out, resume=True)))
    (out / "elsewhere").unlink(missing_ok=True)
    assert results(out) == results(made)


def tokens(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, change(np.load(path)))


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: ids[:, :-1],
        lambda ids: np.concatenate([ids, ids], axis=1),
        lambda ids: np.concatenate([ids, ids]),  # as two crops: conditions are read from the first
        lambda ids: ids[0],
        lambda ids: ids.reshape(8, 8),
        lambda ids: ids.astype(np.int64),
        lambda ids: ids.astype(np.float32),
        lambda ids: ids - 1 - ids.max(),
        lambda ids: ids.astype(">i2"),
    ],
)
def test_tokens_without_a_checksum_are_those_of_their_modality(
    tiny: Path, made: Path, out: Path, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    for listed in of_kind(out, CHECKSUMS):
        listed.path.unlink()
    tokens(out / KINDS[1], change)
    assert ("altered", KINDS[1]) in {(found.kind, found.file) for found in verify_folder(out).findings}
    events = list(run(request(tiny, out, resume=True)))
    assert [event.variation for event in events if isinstance(event, Saved)] == [1]
    assert results(out) == results(made)


def test_tokens_without_a_checksum_are_within_the_vocabulary(tiny: Path, made: Path, out: Path) -> None:
    for listed in of_kind(out, CHECKSUMS):
        listed.path.unlink()
    tokens(out / KINDS[1], lambda ids: ids * 0 + np.int16(32000))
    events = list(run(request(tiny, out, resume=True)))
    assert [event.variation for event in events if isinstance(event, Saved)] == [1]
    assert results(out) == results(made)


def test_a_file_is_compared_with_its_checksum_in_the_working_folder_too(
    tiny: Path, made: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(out)
    exchange(out / KINDS[-1])
    events = list(run(request(tiny, Path(), resume=True)))
    assert [event.variation for event in events if isinstance(event, Saved)] == [1]
    assert results(out) == results(made)
    assert verify_folder(out).ok


def test_a_process_knows_the_checksums_of_processes_that_had_other_shares(
    tiny: Path, made: Path, out: Path
) -> None:
    """One process, then two with shares of their own, which resume again after a file was exchanged."""
    shares = [request(tiny, out, resume=True, world=World(rank, 2)) for rank in range(2)]
    lost = [out / KINDS[-1].replace("000001", name) for name in ("000000", "000001", "000002")]
    for path in lost[::2]:
        path.unlink()
    for _ in range(2):
        for share in shares:
            list(run(share))
        exchange(lost[1])
    for share in shares:
        list(run(share))
    assert results(out) == results(made)
    assert verify_folder(out).ok


def test_a_finished_run_is_left_as_it_is(tiny: Path, made: Path, out: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if "processes" not in path.parts}
    (started,) = [e for e in run(request(tiny, out, resume=True)) if isinstance(e, Started)]
    assert (started.total, started.skipped) == (6, 6)
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_no_file_of_a_result_is_read_again(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, digest = list[str](), processes.sha256_of_file

    def watched(path: Path) -> str:
        read.append(path.relative_to(tmp_path).as_posix())
        return digest(path)

    monkeypatch.setattr(processes, "sha256_of_file", watched)
    list(run(request(tiny, tmp_path)))
    assert read == ["samples/00000.jsonl"]  # once for each thousand samples
    monkeypatch.undo()
    verdict = verify_folder(tmp_path)
    assert verdict.ok, verdict.findings


def test_of_a_large_file_only_the_size_is_compared(tiny: Path, tmp_path: Path) -> None:
    """`fourm verify` reads all of it."""
    for size, is_taken in ((READ_BYTES, False), (READ_BYTES + 1, True)):
        place, work = Place("rgb", ".png"), Work(Sample(Key("sizes", str(size))), 0)
        job = Job(request(tiny, tmp_path), [place], torch.device("cpu"), "float32", 1)
        path = job.path(place, work)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        listed = list_files(tmp_path, [path])
        assert job.is_complete(place, work, listed)
        path.write_bytes(bytes(size - 1) + b"x")
        assert job.is_complete(place, work, listed) is is_taken
        path.write_bytes(bytes(size + 1))
        assert not job.is_complete(place, work, listed)
