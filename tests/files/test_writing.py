"""Files that appear complete or not at all, beside processes that are killed and folders that vanish."""

import inspect
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from fourm.errors import FourMError, UsageError
from fourm.files import writing
from fourm.files.opening import open_own
from fourm.files.writing import (
    ABANDONED,
    PARTIAL,
    check_partial,
    check_writable,
    create_text,
    is_alive,
    make_all,
    make_below,
    process_name,
    remove_leftovers,
    write_alone,
    write_atomic,
    write_data,
    write_text,
)


def test_a_link_in_the_output_folder_cannot_lead_out(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    elsewhere.mkdir()
    (out / "rgb").symlink_to(elsewhere)
    for path in (out / "rgb" / "a" / "b.txt", out / ".." / "b.txt", tmp_path / "b.txt"):
        for write in (write_text, create_text):
            with pytest.raises(FourMError, match="out of"):
                write(out, path, "x")
    assert list(elsewhere.iterdir()) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write(file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FourMError, match=r"cannot write .*No space left"):
        write_atomic(tmp_path, tmp_path / "rgb" / "a.png", write)
    assert not (tmp_path / "rgb" / "a.png").exists()
    assert [p.suffix for p in (tmp_path / PARTIAL).iterdir()] == [".lock"]
    remove_leftovers(tmp_path)
    assert not (tmp_path / PARTIAL).exists()


HALF = """
import os, sys
from pathlib import Path
from fourm.files.writing import write_atomic
def write(file):
    file.write_bytes(b"half"); print(flush=True)
    if sys.argv[2] == "die": os.kill(os.getpid(), 9)
    sys.stdin.read()
write_atomic(Path(sys.argv[1]), Path(sys.argv[1], "a.npy"), write)
"""
NO_LOCKS = """
import errno, fcntl
def flock(*args): raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""
OTHER_MACHINE = """
from fourm.files import writing
writing._machine = lambda: "0" * 8
"""


def leave_half(root: Path, *before: str) -> None:
    """What a process leaves that is killed while it writes a file."""
    code = "".join(before) + HALF
    subprocess.run([sys.executable, "-c", code, str(root), "die"], stdout=subprocess.DEVNULL, check=False)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / PARTIAL).iterdir())


def make_old(root: Path) -> None:
    for path in (root / PARTIAL).iterdir():
        os.utime(path, (time.time() - ABANDONED - 60,) * 2, follow_symlinks=False)


def test_a_signal_in_the_moment_in_which_a_file_was_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the signal raises comes before anybody has the name of the file."""

    def interrupted(path: Path, mode: str, *limit: int) -> Any:
        opened = open_own(path, mode, *limit)
        if mode == "x":
            opened.close()
            raise KeyboardInterrupt
        return opened

    with monkeypatch.context() as patch:
        patch.setattr("fourm.files.writing.open_own", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomic(tmp_path, tmp_path / "a" / "b.npy", lambda path: None)
    assert len(list((tmp_path / PARTIAL).iterdir())) == 2  # and a lock
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    """A living one keeps its files however old they are, whatever its process id and host name."""
    leave_half(tmp_path)
    dead = names(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HALF, str(tmp_path), "live"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as living:
        assert living.stdout is not None
        living.stdout.readline()
        alive = set(names(tmp_path)) - set(dead)
        assert len(dead) == len(alive) == 2
        make_old(tmp_path)
        remove_leftovers(tmp_path)
        assert set(names(tmp_path)) == alive
        living.communicate(b"")
    assert (tmp_path / "a.npy").read_bytes() == b"half"
    remove_leftovers(tmp_path)
    assert not (tmp_path / PARTIAL).exists()


@pytest.mark.parametrize("before", [NO_LOCKS, OTHER_MACHINE])
def test_leftovers_of_which_nobody_can_tell_stay_for_a_day(tmp_path: Path, before: str) -> None:
    """Without locks, and of other machines, whose locks some file systems do not show."""
    leave_half(tmp_path, before)
    tidy = (NO_LOCKS if before == NO_LOCKS else "") + "\n".join(
        ["import sys", "from pathlib import Path", "from fourm.files.writing import remove_leftovers",
         "remove_leftovers(Path(sys.argv[1]))"]
    )  # fmt: skip
    there = names(tmp_path)
    subprocess.run([sys.executable, "-c", tidy, str(tmp_path)], check=True)
    assert names(tmp_path) == there
    make_old(tmp_path)
    subprocess.run([sys.executable, "-c", tidy, str(tmp_path)], check=True)
    assert not (tmp_path / PARTIAL).exists()


def test_only_files_with_names_of_this_program_are_deleted(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("x")
    leave_half(tmp_path)
    partial, one = tmp_path / PARTIAL, "0a1b2c3d-0a1b2c3d4e5f"
    foreign = ["notes.txt", "0a1b2c3d-12-0.npy", f"{one}.txt", f"{one}-x.npy", f"x{one}-0.npy", "old.lock"]
    for name in foreign:
        (partial / name).write_text("mine")
    (partial / f"{one}-1.npy").mkdir()
    (partial / f"{one}-2.npy").symlink_to(victim)
    (partial / f"{one}-3.npy").write_text("a leftover")
    make_old(tmp_path)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*foreign, f"{one}-1.npy", f"{one}-2.npy"])
    write_text(tmp_path, tmp_path / "caption.txt", "what lies there is nobody's hindrance")


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_a_link_or_file_in_the_place_of_unfinished_files_is_refused(tmp_path: Path, kind: str) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    out.mkdir()
    victim.mkdir()
    (victim / "0a1b2c3d-0a1b2c3d4e5f-3.npy").write_text("x")
    os.utime(victim / "0a1b2c3d-0a1b2c3d4e5f-3.npy", (0, 0))
    if kind == "file":
        (out / PARTIAL).write_text("x")
    else:
        (out / PARTIAL).symlink_to(victim if kind == "link" else tmp_path / "gone")
    remove_leftovers(out)
    for act in (check_writable, lambda root: write_text(root, root / "a.txt", "x")):
        with pytest.raises(UsageError, match=r"\.partial: is a link or a file .*move it away"):
            act(out)
    assert [path.name for path in victim.iterdir()] == ["0a1b2c3d-0a1b2c3d4e5f-3.npy"]
    assert not (tmp_path / "gone").exists()


def remove_after_each_look(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process removes an empty folder whenever this one has looked what it is."""
    looks = {name: getattr(os, name) for name in ("stat", "lstat")}

    def look(name: str, path: Any, *args: Any, **kwargs: Any) -> Any:
        found = looks[name](path, *args, **kwargs)
        if str(path) == str(folder):
            with suppress(OSError):
                folder.rmdir()
        return found

    for name in looks:
        monkeypatch.setattr(os, name, partial(look, name))


@pytest.mark.parametrize("act", [check_partial, remove_leftovers])
def test_a_folder_that_another_process_removes_at_the_same_moment_is_no_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Any
) -> None:
    (tmp_path / PARTIAL).mkdir()
    remove_after_each_look(tmp_path / PARTIAL, monkeypatch)
    act(tmp_path)
    assert not (tmp_path / PARTIAL).exists()


def test_a_folder_is_made_again_that_another_process_removes_at_the_same_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mkdir` found it, and then it was gone."""
    make, calls = os.mkdir, list[str]()

    def mkdir(path: Any, *args: Any) -> None:
        calls.append(str(path))
        if len(calls) < 3:
            raise FileExistsError(17, "File exists", str(path))
        make(path, *args)

    monkeypatch.setattr(os, "mkdir", mkdir)
    check_writable(tmp_path)
    calls.clear()
    make_below(tmp_path, tmp_path / "processes")
    assert calls == [str(tmp_path / "processes")]


def test_a_folder_is_made_once_and_again_if_it_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = list[Path](), writing.make_below
    monkeypatch.setattr(writing, "make_below", lambda root, folder: (made.append(folder), make(root, folder)))
    folder = tmp_path / "rgb" / "00000"
    for name in ("a", "b"):
        write_data(tmp_path, folder / name, b"x")
    assert made == [folder]
    shutil.rmtree(folder)
    write_data(tmp_path, folder / "c", b"y")
    assert (folder / "c").read_bytes() == b"y"
    remove_leftovers(tmp_path)  # the end of a run
    write_data(tmp_path, folder / "d", b"z")
    assert made == [folder] * 3


def test_a_folder_that_was_deleted_is_not_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_text(out, out / "rgb" / "a" / "1.txt", "x")
    out.rename(tmp_path / "renamed")
    for path in (out / "rgb" / "a" / "2.txt", out / "3.txt"):
        with pytest.raises(FourMError, match="was deleted or renamed while this process wrote into it"):
            write_text(out, path, "x")
    assert not out.exists()


def test_of_many_processes_one_creates_a_file(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from fourm.files.writing import create_text
root = Path(sys.argv[1])
print(sum(create_text(root, root / "a" / f"{i}.txt", sys.argv[2]) for i in range(200)))
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], stdout=subprocess.PIPE)
        for n in range(3)
    ]
    assert sum(int(process.communicate()[0]) for process in running) == 200
    assert all(path.read_text() in "012" for path in (tmp_path / "a").iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forked_processes_have_names_and_locks_of_their_own(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from fourm.files.writing import is_alive, process_name, write_text
root = Path(sys.argv[1])
write_text(root, root / "first.txt", "x")
parent, (read, write) = process_name(), os.pipe()
if child := os.fork():
    os.close(write)
    name = os.read(read, 100).decode()
    print(name != parent, is_alive(root, name), os.waitpid(child, 0)[1], is_alive(root, name), flush=True)
else:
    for number in range(20):
        write_text(root, root / f"{number}.txt", "x")
    os.write(write, process_name().encode())
    __import__("time").sleep(1)
    os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True", "0", "False"], done.stderr


def test_a_file_is_created_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert create_text(tmp_path, tmp_path / "a.txt", "first")
    assert not create_text(tmp_path, tmp_path / "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "first"


def test_a_file_that_cannot_take_its_place_leaves_nothing_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def replace(source: object, target: Any) -> None:
        assert target.read_bytes() == b""
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "taken.txt").symlink_to("nowhere")
    assert not create_text(tmp_path, tmp_path / "taken.txt", "x")
    with pytest.raises(FourMError, match=r"cannot write .*No space left"):
        create_text(tmp_path, tmp_path / "a.txt", "whole")
    assert not (tmp_path / "a.txt").exists()


def test_a_lone_file_that_cannot_be_written_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    for name in ("taken.png", "x" * 300 + ".png"):
        with pytest.raises(FourMError, match="cannot write"):
            write_alone(tmp_path / name, lambda path: path.touch())
        assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_folders_are_made_without_a_recursion(tmp_path: Path) -> None:
    limit = sys.getrecursionlimit()
    deep, beyond = tmp_path.joinpath(*["x"] * 200), tmp_path / "new" / ".." / "other"
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        make_all(deep)
    finally:
        sys.setrecursionlimit(limit)
    make_all(deep)
    make_all(beyond)
    assert deep.is_dir()
    assert beyond.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_all(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        make_all(tmp_path / "file/below")


def test_threads_that_write_for_the_first_time_take_one_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken twice, the lock of the process would make one thread wait for the other one for ever."""
    lock, taken = writing.lock_file, list[str]()

    def slow(file: Any, wait: bool = False) -> bool | None:
        taken.append(threading.current_thread().name)
        time.sleep(0.1)
        return lock(file)

    monkeypatch.setattr(writing, "lock_file", slow)
    work = [partial(write_text, tmp_path, tmp_path / f"{number}.txt", "x") for number in range(4)]
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert len(list(tmp_path.glob("*.txt"))) == 4
    remove_leftovers(tmp_path)


def test_files_that_another_thread_is_making_are_no_leftovers(tmp_path: Path) -> None:
    made, goes_on = Event(), Event()

    def write(file: Path) -> None:
        made.set()
        assert goes_on.wait(60)
        file.write_text("whole")

    thread = Thread(target=write_atomic, args=(tmp_path, tmp_path / "a.txt", write))
    thread.start()
    assert made.wait(60)
    write_text(tmp_path, tmp_path / "b.txt", "whole")
    remove_leftovers(tmp_path)
    assert is_alive(tmp_path, process_name())
    goes_on.set()
    thread.join()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "b.txt"]
