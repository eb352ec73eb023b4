"""The command line is killed while it makes shards; --resume leaves the bytes of a run that was not."""

import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from fourm.checks.verify import verify_folder
from fourm.data.shards import PARQUET, SHARDS, WEBDATASET
from fourm.output.markers import read_markers
from tests.executors import write_pictures

PROMPTS = ["a small red circle", "a blue square", "a green triangle", "two red squares", "a circle"]
COMMANDS = {
    "generate": ["generate", "--data", "p.txt", "--targets", "tok_clip-tok_rgb", "--steps", "1-1",
                 "--no-decode"],
    "tokenize": ["tokenize", "data", "--crops", "2"],
}  # fmt: skip
WORDS = ["--device", "cpu", "--shard-size", "2", "--out", "out", "--resume", "--quiet"]
# Files, which a kill follows: of results, a tar that grows and that is in place, markers, the record.
TRIGGERS = (".partial/*.spool", ".partial/*.{ending}", "*/0000{n}.{ending}", "0000{n}.{ending}",
            ".partial/*.json", "done/0000{n}.json", "run.json")  # fmt: skip
LATEST = 3  # milliseconds between the appearance and the kill
server = get_context("forkserver")
server.set_forkserver_preload(["fourm.batch.local", "fourm_cli.app"])


def typed(words: list[str], folder: Path) -> None:
    """What a process does: `fourm` with these words."""
    from fourm_cli.app import main

    os.chdir(folder)
    with (folder / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.argv = ["fourm", *words]
    main()


def start(command: str, form: str, folder: Path) -> ForkServerProcess:
    process = server.Process(target=typed, args=([*COMMANDS[command], *WORDS, "--format", form], folder))
    process.start()
    return process


def new(folder: Path) -> Path:
    folder.mkdir()
    (folder / "p.txt").write_text("\n".join(PROMPTS))
    write_pictures(folder / "data")
    return folder


def finish(command: str, form: str, folder: Path) -> dict[str, object]:
    """Make what is not whole; what is there then."""
    process = start(command, form, folder)
    process.join()
    assert process.exitcode == 0, (folder / "log").read_text()
    assert verify_folder(folder / "out").ok
    return made(folder / "out")


def made(out: Path) -> dict[str, object]:
    """All files by path; of a marker and a record what does not depend on time."""
    found = dict[str, object]()
    for path in out.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            facts = json.loads(data) if path.suffix == ".json" else None
            varies = ("seconds", "sha256", "identity", "created")
            found[path.relative_to(out).as_posix()] = (
                {name: fact for name, fact in facts.items() if name not in varies} if facts else data
            )
    return found


def at_a_time(chance: random.Random, seconds: float) -> Callable[[], bool]:
    """A moment of a run that takes so long."""
    end = time.monotonic() + chance.uniform(0, seconds)
    return lambda: time.monotonic() > end


def there(out: Path, pattern: str) -> set[Path]:
    with suppress(FileNotFoundError):  # a folder was deleted just now
        return set(out.glob(pattern))
    return set()


def at_a_name(chance: random.Random, ending: str, out: Path) -> Callable[[], bool]:
    """The moment at which a file appears, or a little later."""
    pattern = chance.choice(TRIGGERS).format(n=chance.randrange(3), ending=ending)
    later, before = chance.uniform(0, LATEST / 1000), there(out, pattern)

    def is_there() -> bool:
        if there(out, pattern) <= before:
            return False
        time.sleep(later)
        return True

    return is_there


def left_by(out: Path) -> str:
    """In which state of a shard the process was killed."""
    if not (out / "run.json").exists():
        return "before the record"
    whole = {name for marker in read_markers(out) for name in marker.files}
    files = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - whole
    endings = {Path(name).suffix for name in files if name.startswith(".partial/")}
    if ".json" in endings:
        return "in a marker"
    if any(not name.startswith((".partial/", "done/", "run.json")) for name in files):
        return "between a file and its marker"
    if endings & {".tar", ".parquet"}:
        return "in a tar or table"
    return "in the results of a shard" if ".spool" in endings else "between shards"


def check_kills(command: str, form: str, kills: int, tmp_path: Path, seed: int = 1) -> Counter[str]:
    """Kill so many processes, several in a folder one after the other, each of which goes on."""
    chance, states, ending = random.Random(seed), Counter[str](), "parquet" if form == PARQUET else "tar"
    whole = finish(command, form, new(tmp_path / "whole"))
    began = time.monotonic()
    assert finish(command, form, new(tmp_path / "again")) == whole
    seconds = time.monotonic() - began
    for number in range(10 * kills):
        folder = new(tmp_path / str(number))
        for _ in range(chance.randrange(1, 5)):
            process = start(command, form, folder)
            is_now = (
                at_a_name(chance, ending, folder / "out")
                if chance.random() < 0.7
                else at_a_time(chance, seconds)
            )
            while process.is_alive() and not is_now():
                pass
            process.kill()
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -9
            states[left_by(folder / "out")] += 1
            if (folder / "out" / "run.json").exists():
                assert all(found.kind == "missing" for found in verify_folder(folder / "out").findings)
        assert finish(command, form, folder) == whole
        if states.total() >= kills:
            break
    return states


def test_after_three_kills_a_resumed_command_leaves_the_same_bytes(tmp_path: Path) -> None:
    assert check_kills("generate", SHARDS, 3, tmp_path, seed=0).total() >= 3


@pytest.mark.more
@pytest.mark.parametrize(
    ("command", "form", "kills"),
    [
        ("generate", SHARDS, 40),
        ("generate", WEBDATASET, 15),
        ("generate", PARQUET, 15),
        ("tokenize", SHARDS, 20),
    ],
)
def test_after_many_kills_a_resumed_command_leaves_the_same_bytes(
    command: str, form: str, kills: int, tmp_path: Path
) -> None:
    states = check_kills(command, form, kills, tmp_path)
    print(form, states.total(), "kills:", dict(states))
    assert states.total() >= kills
    assert len(states) >= 3
