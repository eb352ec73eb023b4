"""An `--overwrite` that is killed at any moment: `--resume` leaves the folder of an uninterrupted one."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fourm.checks.verify import verify_folder
from fourm.data.layout import Place
from fourm.errors import UsageError
from fourm.files.writing import PARTIAL, remove_leftovers, write_text
from fourm.output import joining
from fourm.output.joining import Joining, check_output
from fourm.output.processes import PROCESSES, Launch, Process, close_output, list_files, now, read_checksums
from fourm.output.record import NEXT, RUN, SR_RUN, RunRecord
from fourm.output.samples import load_run
from tests.folders import snapshot
from tests.output.test_joining import ALONE, SETTINGS

FINER = replace(SETTINGS, stage="sr", places=(Place("rgb@128", ".png"), Place("preview/tok_rgb@128", ".png")))


class Killed(BaseException):
    """What a process does after it, it does not do."""


@contextmanager
def killed_at(patch: pytest.MonkeyPatch, count: int) -> Iterator[None]:
    """From the count-th time on that a name is deleted or given, nothing of that kind happens any more."""
    done = 0

    def dying(act: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done >= count:
                raise Killed
            return act(*args, **kwargs)

        return step

    with patch.context() as inner:
        for name in ("unlink", "rmdir", "replace"):
            inner.setattr(os, name, dying(getattr(os, name)))
        yield


def join(out: Path, settings: RunRecord, file: str = RUN, launch: Launch = ALONE, **how: bool) -> Process:
    check_output(out, launch, how.get("resume", False), how.get("overwrite", False), file)
    joining = Joining(out, settings, launch, record=file, **how)
    joining.check()
    return joining.enter()


def write(process: Process, *names: str) -> None:
    for name in names:
        write_text(process.out, process.out / name, "x")
    process.add_checksums(list_files(process.out, [process.out / name for name in names]))
    close_output(process, replace(ALONE, finished=now()))


def fill(out: Path) -> None:
    """A run, and super-resolution beside it."""
    write(join(out, SETTINGS), "caption/a/0.txt", "tok_rgb@64/a/0.npy", "tok_rgb@64/a/1.npy")
    write(join(out, FINER, SR_RUN), "rgb@128/a/0.png", "preview/tok_rgb@128/a/0-step001.png")


def state(out: Path) -> dict[str, Any]:
    """All names in a folder but those of processes and unfinished files, its records, what its lists say."""
    paths = [path.relative_to(out) for path in out.rglob("*")]
    names = sorted(map(str, (path for path in paths if path.parts[0] not in (PROCESSES, PARTIAL))))
    records = {file: load_run(out, file).record for file in (RUN, SR_RUN) if (out / file).exists()}
    return {"names": names, **records, "listed": read_checksums(out)}


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("file", [RUN, SR_RUN])
def test_killed_while_it_deletes_resume_goes_on_with_it(
    file: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the settings are those of the run before or others; other runs' files are not touched."""
    settings = replace(SETTINGS if file == RUN else FINER, seed=seed)
    fill(tmp_path / "before")
    before = state(tmp_path / "before")
    copy = partial(shutil.copytree, tmp_path / "before")
    process = join(copy(tmp_path / "whole"), settings, file, overwrite=True)
    remove_leftovers(process.out)
    expected, begun = state(process.out), 0
    for count in range(1, 100):
        out = copy(tmp_path / str(count))
        try:
            with killed_at(monkeypatch, count):
                join(out, settings, file, overwrite=True)
        except Killed:
            remove_leftovers(out)
        else:
            break
        if not (out / NEXT[file]).exists() and state(out) == before:
            continue  # it had not begun
        begun += (out / NEXT[file]).exists()
        join(out, settings, file, resume=True)
        remove_leftovers(out)
        assert state(out) == expected, count
    assert begun > 6


@pytest.fixture
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that was to be overwritten with another seed, and whose process was killed."""
    out = tmp_path / "out"
    fill(out)
    with pytest.raises(Killed), killed_at(monkeypatch, 8):
        join(out, replace(SETTINGS, seed=3), overwrite=True)
    remove_leftovers(out)
    assert (out / NEXT[RUN]).exists()
    return out


def test_an_interrupted_overwrite_is_resumed_with_its_own_settings_only(half: Path) -> None:
    before = snapshot(half)
    with pytest.raises(UsageError, match="seed is 3 there and 0 here"):
        join(half, SETTINGS, resume=True)
    with pytest.raises(UsageError, match="is not empty; `resume=True` goes on with its run"):
        join(half, SETTINGS, launch=Launch(1, 2, now()))
    assert snapshot(half) == before
    found = [finding for finding in verify_folder(half).findings if finding.file == NEXT[RUN]]
    assert [finding.detail for finding in found] == [
        "`overwrite=True` was interrupted while it deleted files; `resume=True` continues it"
    ]
    join(half, replace(SETTINGS, seed=4), overwrite=True)
    assert load_run(half).record.seed == 4
    assert not (half / NEXT[RUN]).exists()


def test_of_several_processes_the_first_goes_on_with_it(half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "FIRST_WAIT", 0.2)
    settings = replace(SETTINGS, seed=3)
    with pytest.raises(UsageError, match="process 0 of 2, which alone overwrites a folder, has not done so"):
        join(half, settings, launch=Launch(1, 2, now()), resume=True)
    for rank in (0, 1):
        join(half, settings, launch=Launch(rank, 2, now()), resume=True)
    assert load_run(half).record.seed == 3
    assert not (half / SR_RUN).exists()


@pytest.mark.parametrize("file", [RUN, SR_RUN])
def test_what_was_measured_goes_with_the_run(file: str, tmp_path: Path) -> None:
    fill(out := tmp_path / "out")
    measured = {"eval.json", "eval.csv", "eval/00001-of-00002.npz", "eval/histograms.png"}
    for name in {*measured, "eval/worst-rgb-psnr.png", "eval/notes.txt"}:
        write_text(out, out / name, "x")
    join(out, SETTINGS if file == RUN else FINER, file, overwrite=True)
    left = {
        path.relative_to(out).as_posix()
        for path in out.rglob("*")
        if "eval" in path.relative_to(out).as_posix()
    }
    assert left == {"eval", "eval/notes.txt"}  # a file of somebody else


def test_a_link_in_the_place_of_measures_is_not_followed(tmp_path: Path) -> None:
    fill(out := tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "histograms.png").write_text("x")
    (out / "eval").symlink_to(tmp_path / "other")
    join(out, SETTINGS, overwrite=True)
    assert (tmp_path / "other" / "histograms.png").exists()
