"""Batches are saved in another thread while the next one is decoded: the same files, events and errors."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fourm.checks.verify import verify_folder
from fourm.codecs.images import _SIZES, GridCodec
from fourm.data.layout import samples_of_prompts
from fourm.errors import FourMError, SampleError
from fourm.hub.files import find_model
from fourm.inputs.request import Request, TokenizeRequest
from fourm.networks.graphs import Graphs
from fourm.networks.model import FourM
from fourm.results import background
from fourm.results.events import Event, Failed, Finished, Halved, Saved, Stepped
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import collect, run
from fourm.runs.tokenizing import tokenize_dataset
from fourm.schedule.plan import parse_chain
from fourm.sources.raw import find_raw_folders, list_raw_samples
from tests.emulated_gpu import emulated
from tests.folders import snapshot

PROMPTS = ("a red circle", "a blue square", "the green triangle", "a small cat", "two dogs", "a tree")
KEYS = [f"00000/{number:06d}" for number in range(6)]
SECONDS = 60  # until a thread that waits in vain is given up


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are saved beside others on a CPU, too."""
    monkeypatch.setattr(background, "BESIDE", {"cuda", "cpu"})


def request(tiny: Path, out: Path, **changes: object) -> Request:
    model = find_model(tiny)
    chain = parse_chain("--targets tok_depth-tok_rgb --steps 2", model)
    basis = Request(model, chain, samples_of_prompts(PROMPTS), out, device="cpu", batch_size=2)
    return replace(basis, **changes)


def contents(out: Path) -> dict[str, bytes]:
    """All files with their bytes; of the records of processes, the lists of checksums alone."""
    found = {
        name: data for name, data in snapshot(out).items() if not name.startswith(("processes/", "run."))
    }
    lists = sorted((out / "processes").glob("*.sha256"))
    return found | {f"list {number}": path.read_bytes() for number, path in enumerate(lists)}


def told(events: list[Event]) -> list[tuple[str, str]]:
    """What became of each sample, in the order in which it was told."""
    return [(type(one).__name__, one.key) for one in events if isinstance(one, Saved | Failed)]


class Gate:
    """Lets the saving thread make no value before it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened, self.passed, decode = threading.Event(), list[str](), GridCodec.decode_stepwise

        def waiting(codec: GridCodec, *args: Any) -> Iterator[tuple[int, int]]:
            self.passed.append(threading.current_thread().name.partition("_")[0])
            if self.passed[-1] == "saving":
                assert self.opened.wait(SECONDS)
            return decode(codec, *args)

        monkeypatch.setattr(GridCodec, "decode_stepwise", waiting)


def follow(request: Request, events: list[Event], after: Callable[[Event], None]) -> None:
    """Run a request; its events go to a list, and then to `after`."""
    for event in run(request):
        events.append(event)
        after(event)


def begins(event: Event, batch: int) -> bool:
    """True for the first step of a batch of two."""
    return isinstance(event, Stepped) and (event.keys[0], event.step) == (KEYS[2 * batch], 0)


def is_idle() -> bool:
    return not any(thread.name.startswith(("saving", "files")) for thread in threading.enumerate())


@pytest.mark.parametrize("preview", [0, 1])
def test_files_and_their_lists_are_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preview: int
) -> None:
    made, orders = list[dict[str, bytes]](), list[list[tuple[str, str]]]()
    for devices in ({"cuda"}, {"cpu"}):
        monkeypatch.setattr(background, "BESIDE", devices)
        out = tmp_path / "-".join(devices)
        events = list(run(request(tiny, out, preview=preview)))
        orders.append(told(events))
        made.append(contents(out))
    if preview:  # pictures of a batch are listed when they are drawn, those of another when they are saved
        for files in made:
            files["list 0"] = b"\n".join(sorted(files["list 0"].splitlines()))
    assert made[0] == made[1]
    assert orders == [[("Saved", key) for key in KEYS]] * 2


def test_a_gpu_decodes_the_next_batch_meanwhile(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with emulated(monkeypatch):
        gate, order = Gate(monkeypatch), list[tuple[str, str]]()
        for event in run(request(tiny, tmp_path / "out", device="cuda")):
            if isinstance(event, Stepped):
                order += [("Stepped", event.keys[0])]
                if (event.keys[0], event.step) == (KEYS[2], 3):  # the last step of the second batch
                    gate.opened.set()
            elif isinstance(event, Saved):
                order += [("Saved", event.key)]
    assert set(gate.passed) == {"saving"}
    assert [key for kind, key in order if kind == "Saved"] == KEYS
    assert order.index(("Saved", KEYS[0])) > order.index(("Stepped", KEYS[2])) + 3
    assert verify_folder(tmp_path / "out").ok
    assert is_idle()


def test_a_cpu_saves_a_batch_before_it_decodes_the_next_one(tiny: Path, tmp_path: Path) -> None:
    events = [one for one in run(request(tiny, tmp_path / "out")) if isinstance(one, Stepped | Saved)]
    kinds = [type(one).__name__ for one in events]
    assert kinds == (["Stepped"] * 4 + ["Saved"] * 2) * 3


@pytest.mark.usefixtures("beside")
def test_results_in_memory_are_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, made = LoadedModel(find_model(tiny), torch.device("cpu"), "float32"), []
    for devices in ({"cpu"}, {"cuda"}):
        monkeypatch.setattr(background, "BESIDE", devices)
        collector, events = collect(request(tiny, Path()), loaded)
        assert told([*events]) == [("Saved", key) for key in KEYS]
        made.append(collector.made)
    assert [*made[0]] == [*made[1]]
    for result, one in made[0].items():
        assert all(np.array_equal(one.values[name], made[1][result].values[name]) for name in one.values)
        assert all(np.array_equal(one.tokens[name], made[1][result].tokens[name]) for name in one.tokens)


@pytest.mark.parametrize("devices", [{"cpu"}, {"cuda"}])
def test_a_sample_that_cannot_be_written_fails_alone_and_in_its_place(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: set[str]
) -> None:
    monkeypatch.setattr(background, "BESIDE", devices)
    monkeypatch.setitem(_SIZES, "cpu", (1, 2, 4))  # three are written at once
    pack, number = GridCodec.pack, devices == {"cpu"}

    def scripted(codec: GridCodec, value: Any, text: Any = None) -> bytes:
        if text and text["sample"] == KEYS[1]:
            raise SampleError("too dark")
        time.sleep(0.05 * (text["sample"] in KEYS[::3]))  # the first of each batch is the last one done
        return pack(codec, value, text)

    monkeypatch.setattr(GridCodec, "pack", scripted)
    events = list(run(request(tiny, tmp_path / f"{number}", batch_size=3)))
    assert told(events) == [("Failed" if key == KEYS[1] else "Saved", key) for key in KEYS]
    assert isinstance(events[-1], Finished)
    assert (events[-1].saved, events[-1].failed) == (5, 1)
    assert KEYS[1] in (tmp_path / f"{number}/failures.jsonl").read_text()
    listed = next((tmp_path / f"{number}/processes").glob("*.sha256")).read_text()
    places = [listed.index(f"  rgb/{key}.png") for key in KEYS if key != KEYS[1]]
    assert places == sorted(places)


@pytest.mark.usefixtures("beside")
def test_a_file_that_cannot_be_written_ends_the_run_and_what_was_made_before_stays(
    tiny: Path, tmp_path: Path
) -> None:
    out, events = tmp_path / "out", list[Event]()

    def forbid(event: Event) -> None:
        if begins(event, 1):
            (out / f"rgb/{KEYS[3]}.png").mkdir(parents=True)

    with pytest.raises(FourMError, match="cannot write"):
        follow(request(tiny, out), events, forbid)
    assert [key for _, key in told(events)] == KEYS[:3]
    assert is_idle()
    (out / f"rgb/{KEYS[3]}.png").rmdir()
    assert [key for _, key in told([*run(request(tiny, out, resume=True))])] == KEYS[3:]
    assert verify_folder(out).ok


@pytest.mark.usefixtures("beside")
def test_an_error_of_decoding_does_not_lose_what_is_being_saved(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, events = Gate(monkeypatch), list[Event]()

    def broken(network: FourM, *args: Any, **rest: Any) -> Any:
        gate.opened.set()
        raise ValueError("shapes do not fit")

    def spoil(event: Event) -> None:
        if begins(event, 1):
            monkeypatch.setattr(FourM, "decode", broken)

    with pytest.raises(ValueError, match="shapes"):
        follow(request(tiny, tmp_path / "out"), events, spoil)
    assert [key for _, key in told(events)] == KEYS[:2]
    assert is_idle()


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("stop", [GeneratorExit, KeyboardInterrupt])
def test_a_run_that_is_stopped_while_it_saves_leaves_nothing_half_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    list(run(request(tiny, whole)))
    gate = Gate(monkeypatch)
    events: Any = run(request(tiny, out))
    for event in events:
        if begins(event, 1):
            break
    threading.Timer(0.2, gate.opened.set).start()
    with pytest.raises(stop):
        events.throw(stop)
    assert is_idle()
    assert not (out / ".partial").exists()
    assert {found.kind for found in verify_folder(out).findings} == {"missing"}
    assert isinstance([*run(request(tiny, out, resume=True))][-1], Finished)
    made, expected = contents(out), contents(whole)
    assert {k: v for k, v in made.items() if "list" not in k} == {
        k: v for k, v in expected.items() if "list" not in k
    }
    assert verify_folder(out).ok


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process is a fork")
@pytest.mark.usefixtures("beside")
def test_a_run_that_is_killed_at_any_moment_can_be_resumed(tiny: Path, tmp_path: Path) -> None:
    out, whole, chance = tmp_path / "out", tmp_path / "whole", random.Random(0)
    began = time.monotonic()
    list(run(request(tiny, whole, preview=1)))
    seconds, kills = time.monotonic() - began, 0
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            list(run(request(tiny, out, preview=1, resume=out.exists())))
            os._exit(0)
        time.sleep(chance.uniform(0.2, 0.9) * seconds)
        os.kill(pid, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0
    assert kills
    list(run(request(tiny, out, preview=1, resume=True)))
    made, expected = contents(out), contents(whole)
    assert {k: v for k, v in made.items() if "list" not in k} == {
        k: v for k, v in expected.items() if "list" not in k
    }
    assert verify_folder(out).ok


@pytest.mark.usefixtures("beside")
def test_memory_that_runs_out_while_a_batch_is_saved_makes_the_run_save_it_alone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, names = GridCodec.decode_stepwise, list[str]()

    def scripted(codec: GridCodec, *args: Any) -> Iterator[tuple[int, int]]:
        names.append(threading.current_thread().name.partition("_")[0])
        if names[-1] == "saving":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(codec, *args)

    monkeypatch.setattr(GridCodec, "decode_stepwise", scripted)
    events = list(run(request(tiny, tmp_path / "out")))
    assert told(events) == [("Saved", key) for key in KEYS]
    assert not any(isinstance(event, Halved) for event in events)
    assert names.count("saving") == 1
    assert verify_folder(tmp_path / "out").ok


@pytest.mark.usefixtures("beside")
def test_memory_that_runs_out_while_both_are_busy_is_left_to_one_of_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, events, decode = Gate(monkeypatch), list[Event](), FourM.decode

    def scripted(*args: Any, **rest: Any) -> Any:
        if not gate.opened.is_set():
            gate.opened.set()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(*args, **rest)

    def fill_memory(event: Event) -> None:
        if begins(event, 1):
            monkeypatch.setattr(FourM, "decode", scripted)

    follow(request(tiny, tmp_path / "out"), events, fill_memory)
    assert told(events) == [("Saved", key) for key in KEYS]
    assert not any(isinstance(event, Halved) for event in events)
    assert [e.keys[0] for e in events if isinstance(e, Stepped) and e.step == 0] == [
        KEYS[0], KEYS[2], KEYS[2], KEYS[4]
    ]  # fmt: skip
    assert gate.passed[-1] == "MainThread"
    assert verify_folder(tmp_path / "out").ok


def test_graphs_serve_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay reads inputs and leaves results in memory that the next one of any thread overwrites."""
    before, wrong = sys.getswitchinterval(), list[int]()
    with emulated(monkeypatch) as gpu:
        graphs = Graphs()

        def work(first: int) -> None:
            with gpu:
                for number in range(first, first + 150):
                    x = torch.full((2,), number, device="cuda")
                    (made,) = graphs.run("key", lambda x: [x + 1], x)
                    if made.tolist() != [number + 1] * 2:
                        wrong.append(number)

        threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(3)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(before)
    assert wrong == []


def test_a_gpu_tokenizes_a_batch_while_the_next_one_is_read(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, told_of, made = tmp_path / "data/rgb/a", [], []
    pictures.mkdir(parents=True)
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    (pictures / "3.png").write_bytes(b"no picture")
    read, seen, tokenize = GridCodec.read, list[str](), GridCodec.tokenize

    def reading(codec: GridCodec, path: Path, *rest: Any) -> Any:
        seen.append(path.stem)
        return read(codec, path, *rest)

    def waiting(codec: GridCodec, prepared: Any) -> Any:
        end = time.monotonic() + SECONDS
        while device == "cuda" and "2" not in seen and time.monotonic() < end:
            time.sleep(0.01)
        assert device == "cpu" or "2" in seen
        return tokenize(codec, prepared)

    monkeypatch.setattr(GridCodec, "read", reading)
    monkeypatch.setattr(GridCodec, "tokenize", waiting)
    model = find_model(tiny)
    folders = find_raw_folders(tmp_path / "data", model, ["rgb"])
    for device in ("cuda", "cpu"):
        samples = list_raw_samples(tmp_path / "data", tmp_path / device, folders).samples
        wanted = TokenizeRequest(
            model, tuple(folders), samples, tmp_path / device, device=device, dtype="float32", batch_size=2
        )
        with emulated(monkeypatch) if device == "cuda" else nullcontext():
            told_of.append(told([*tokenize_dataset(wanted)]))
        files = snapshot(tmp_path / device)
        made.append({name: data for name, data in files.items() if name.endswith(".npy")})
    assert told_of[0] == told_of[1]
    assert [kind for kind, _ in told_of[0]] == ["Saved", "Saved", "Saved", "Failed", "Saved"]
    assert made[0] == made[1]
    assert len(made[0]) == 2 * 4  # crops and tokens
