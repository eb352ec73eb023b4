"""Processes are killed at any moment of writing shards; --resume leaves the bytes of a run that was not."""

import json
import os
import random
import signal
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fourm.checks.verify import verify_folder
from fourm.data.shards import FORMATS, SHARDS, Format
from fourm.output.markers import find_done, marker_path, settings_digest
from tests.sharded_folder import make_folder, make_shard, shard_of

NUMBERS = range(4)  # of the shards of a run
NOT_FIXED = ("seconds", "sha256")  # of a marker
POINTS = (  # calls before and after which a process can die: of a member, a tar, a marker
    (tarfile.TarFile, "addfile"), (os, "fsync"), (os, "replace"), (Path, "mkdir"), (Path, "unlink"),
)  # fmt: skip


def made(out: Path) -> dict[str, object]:
    """All files by path; of a marker what does not depend on time."""
    found = dict[str, object]()
    for path in out.rglob("*"):
        if path.is_file():
            name, data = path.relative_to(out).as_posix(), path.read_bytes()
            facts = json.loads(data) if path.suffix == ".json" else None
            found[name] = (
                {k: v for k, v in facts.items() if k not in ("seconds", "sha256")} if facts else data
            )
    return found


def resume(out: Path, form: Format) -> list[int]:
    """Make what is not whole, as one process does; the numbers of the shards that were made."""
    record = make_folder(out, form, len(NUMBERS), [])
    done, _ = find_done(out, [shard_of(number) for number in NUMBERS], settings_digest(record))
    todo = [number for number in NUMBERS if number not in done]
    for number in todo:
        make_shard(out, record, number, [2] if number == 1 else [])
    make_folder(out, form, len(NUMBERS), [])  # leftovers go at the end
    return todo


def killed_at(point: int, work: Callable[[], object]) -> bool:
    """Do work in another process, which kills itself at its nth point; False if it ended before."""
    if (child := os.fork()) == 0:
        left = point

        def step() -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **settings: Any) -> Any:
                step()
                result = function(*args, **settings)
                step()
                return result

            return call

        try:
            for owner, name in POINTS:
                setattr(owner, name, wrapped(getattr(owner, name)))
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def check_kills(tmp_path: Path, kills: int, seed: int) -> None:
    chance, whole, count = random.Random(seed), dict[Format, dict[str, object]](), 0
    while count < kills:
        form: Format = chance.choice(FORMATS[1:])  # type: ignore[assignment]
        out = tmp_path / f"{count}"
        if form not in whole:
            resume(tmp_path / form, form)
            whole[form] = made(tmp_path / form)
        while killed_at(chance.randrange(60), lambda: resume(out, form)):  # noqa: B023 - is called at once
            count += 1
            assert all(found.kind == "missing" for found in verify_folder(out).findings)
        resume(out, form)
        assert made(out) == whole[form]
        assert verify_folder(out).ok


def test_after_five_kills_a_resumed_run_has_the_same_bytes(tmp_path: Path) -> None:
    check_kills(tmp_path, 5, seed=0)


@pytest.mark.more
def test_after_forty_kills_a_resumed_run_has_the_same_bytes(tmp_path: Path) -> None:
    check_kills(tmp_path, 40, seed=1)


def test_a_marker_or_a_tar_alone_and_a_cut_tar_are_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert resume(out, SHARDS) == [*NUMBERS]
    whole = made(out)
    (out / "rgb" / "00000.tar").unlink()
    marker_path(out, "00001").unlink()
    os.truncate(out / "rgb" / "00002.tar", 700)
    assert [found.file for found in verify_folder(out).findings] == [
        "rgb/00000.tar", "run.json", "rgb/00002.tar",
    ]  # fmt: skip
    record = make_folder(out, SHARDS, len(NUMBERS), [])
    shards = [shard_of(number) for number in NUMBERS]
    _, faults = find_done(out, shards, settings_digest(record))
    assert ["not there" in faults[0], "has 700 bytes" in faults[1], len(faults)] == [True, True, 2]
    assert resume(out, SHARDS) == [0, 1, 2]
    assert made(out) == whole


def test_processes_that_make_the_same_shards_at_once_leave_them_whole(tmp_path: Path) -> None:
    record, children = make_folder(tmp_path, SHARDS, len(NUMBERS), []), list[int]()
    for child in range(3):
        if (process := os.fork()) == 0:
            with suppress(BaseException):
                for number in random.Random(child).sample(NUMBERS, len(NUMBERS)) * 5:
                    make_shard(tmp_path, record, number)
                os._exit(0)
            os._exit(1)
        children.append(process)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert resume(tmp_path, SHARDS) == []
    assert verify_folder(tmp_path).ok
