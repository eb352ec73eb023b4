"""Where memory runs out, half as many samples are worked on together, with the same results."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fourm.checks.verify import verify_folder
from fourm.codecs.images import _SIZES, GridCodec
from fourm.data.layout import Key, Sample, samples_of_prompts
from fourm.errors import FourMError, SampleError
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.networks.memory import is_out_of_memory
from fourm.results.events import Event, Failed, Finished, Halved, Saved, Stepped
from fourm.results.portions import Portions
from fourm.runs.pipeline import run as run_request
from fourm.schedule.plan import parse_chain
from tests.emulated_gpu import Gpu, emulated

ROOT = Path(__file__).resolve().parents[2]
Command = Callable[..., tuple[int, str, str]]
CPU = torch.device("cpu")
ON_GPU = ("--device", "cuda")
NOTE = "note: memory ran out on cuda:0; from here on"
EIGHT = (
    "generate",
    "a red circle",
    "--num-variations",
    8,
    "--batch-size",
    8,
    "--steps",
    2,
    "--device",
    "cuda",
)
MB = 1 << 20


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with emulated(monkeypatch) as gpu:
        yield gpu


def tokens_of(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.glob("tok_*/**/*.npy"))}


def files(out: str) -> dict[str, bytes]:
    found = (p for p in sorted(Path(out).rglob("*")) if p.suffix in (".npy", ".png", ".txt"))
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in found}


def halved_to(out: str) -> object:
    (launch,) = Path(out, "processes").glob("*.json")
    return json.loads(launch.read_text())["halved_to"]


@pytest.mark.parametrize("most", [1, 2, 3, 5, 100])
def test_work_that_does_not_fit_is_done_in_halves_and_that_is_said_once(most: int) -> None:
    done, tried = list[int](), list[int]()

    def work(rows: Sequence[int]) -> Iterator[Event]:
        tried.append(len(rows))
        yield Saved(str(rows[0]), 0)
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        done.extend(rows)

    portions = Portions(12, CPU, "float32")
    events = list(portions.each(range(30), work))
    assert done == list(range(30))
    fits = {1: 1, 2: 1, 3: 3, 5: 3, 100: 12}[most]
    assert [e for e in events if isinstance(e, Halved)] == ([Halved(fits, "cpu")] if fits < 12 else [])
    assert portions.rows == fits
    assert len([size for size in tried if size > most]) == {12: 0, 3: 2, 1: 3}[fits]


def test_one_row_that_does_not_fit_is_one_sentence_and_other_errors_are_none() -> None:
    def work(rows: Sequence[int]) -> Iterator[Event]:
        yield from ()
        raise MemoryError

    with pytest.raises(
        FourMError, match="memory ran out on cpu, even for one sample alone; `dtype=bfloat16` or"
    ) as e:
        list(Portions(4, CPU, "float32").each(range(4), work))
    assert e.value.exit_code == 1
    with pytest.raises(FourMError, match="alone; a smaller model needs less"):
        list(Portions(1, CPU, "bfloat16").each(range(4), work))

    def defect(rows: Sequence[int]) -> Iterator[Event]:
        yield from ()
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        list(Portions(4, CPU, "float32").each(range(4), defect))


def test_messages_of_allocators_that_ran_out_of_memory_are_recognised() -> None:
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50)
    for error in (
        real.value,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ):
        assert is_out_of_memory(error), error
    for error in (
        RuntimeError("size mismatch"),
        OSError(28, "No space left on device"),
        ValueError("memory"),
    ):
        assert not is_out_of_memory(error), error


@pytest.mark.parametrize(
    "words",
    [
        ("--targets", "tok_rgb", "--schemes", "maskgit", "--cfg", 2),
        ("--targets", "tok_clip-det", "--no-decode"),
    ],
    ids=["pictures", "texts"],
)
def test_a_batch_that_a_gpu_has_no_room_for_is_halved(
    gpu: Gpu, run: Command, words: tuple[object, ...]
) -> None:
    assert run(*EIGHT, *words, "--quiet", "--out", "whole")[0] == 0
    gpu.most_bytes = round(gpu.largest * 0.6)
    code, out, err = run(*EIGHT, *words, "--out", "short")
    assert (code, out) == (0, "short\n")
    assert err.count(NOTE + " 4 samples are worked on together") == 1, err
    assert files("short").keys() == files("whole").keys()
    assert (halved_to("whole"), halved_to("short")) == (None, 4)
    assert run("verify", "short")[0] == 0


def demo_request(out: Path, **changes: Any) -> Request:
    model = find_model("demo")
    model = replace(model, tokenizers={**model.tokenizers, "rgb": model.tokenizers["rgb_divae"]})
    chain = parse_chain("--cond caption --targets tok_rgb --steps 2", model)
    request = Request(model, chain, (Sample(Key("a", "b"), "a red circle"),), out, detokenizer_steps=1)
    return replace(request, **changes)


def test_a_sample_that_does_not_fit_alone_ends_the_run_in_one_sentence(
    gpu: Gpu, run: Command, tmp_path: Path
) -> None:
    events = run_request(demo_request(tmp_path / "early", device="cuda", dtype="float32"))
    while not isinstance(next(events), Stepped):
        pass
    gpu.most_bytes = 1000
    with pytest.raises(FourMError, match="on cuda:0, even for one sample alone; `dtype=bfloat16` or a sm"):
        next(events)
    said = "fourm: memory ran out on cuda:0; --dtype bfloat16 or a smaller model needs less\n"
    words = ("generate", "a red circle", *ON_GPU, "--dtype", "float32", "-q")
    assert run(*words, "--out", "loading") == (1, "", said)


def test_values_that_do_not_fit_together_are_made_in_smaller_groups(gpu: Gpu, tmp_path: Path) -> None:
    """The tokens are there already; nothing of them is decoded again."""
    request = demo_request(tmp_path, num_variations=8, batch_size=8, device="cuda")
    found, room = list[list[Event]](), None
    for out in ("whole", "short"):
        events, gpu.most_bytes = list[Event](), None
        for event in run_request(replace(request, out=tmp_path / out)):
            events.append(event)
            if isinstance(event, Stepped) and event.step == 1:
                gpu.most_bytes, gpu.largest = room, 0
        room = round(0.6 * gpu.largest)
        found.append(events)
    (halved,) = [event for event in found[1] if isinstance(event, Halved)]
    assert halved.rows == 4
    for events in found:
        assert sum(isinstance(event, Stepped) for event in events) == 2
        assert sum(isinstance(event, Saved) for event in events) == 8
    assert tokens_of(tmp_path / "whole") == tokens_of(tmp_path / "short")


@pytest.mark.parametrize(
    ("outcomes", "failed"),
    [(["bad", "bad", "memory"], ["00000/000000"]), (["bad", "", "", "memory"], []), (["memory"], [])],
)
def test_memory_that_runs_out_after_some_of_a_group_are_done_makes_nothing_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcomes: list[str], failed: list[str]
) -> None:
    """outcomes: of the first calls that decode pictures: four together, then each alone."""
    decode, left = GridCodec.decode_stepwise, list(outcomes)

    def scripted(codec: GridCodec, *args: Any) -> Iterator[tuple[int, int]]:
        match left.pop(0) if left else "":
            case "bad":
                raise SampleError("bad tokens")
            case "memory":
                raise MemoryError
        return decode(codec, *args)

    monkeypatch.setattr(GridCodec, "decode_stepwise", scripted)
    monkeypatch.setitem(_SIZES, "cpu", (1, 2, 4))
    events = make_four(tmp_path / "out")
    keys = [f"00000/{number:06d}" for number in range(4)]
    assert [event.key for event in events if isinstance(event, Failed)] == failed
    assert [event.key for event in events if isinstance(event, Saved)] == keys[len(failed) :]
    assert isinstance(events[-1], Finished)
    assert (events[-1].saved, events[-1].failed) == (4 - len(failed), len(failed))
    assert verify_folder(tmp_path / "out").ok


def test_checksums_of_samples_are_noted_that_were_written_before_memory_ran_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pack, values = GridCodec.pack, list[Any]()

    def scripted(codec: GridCodec, value: Any, **rest: Any) -> bytes:
        values.append(value)
        if len(values) == 3:
            raise MemoryError
        return pack(codec, value, **rest)

    monkeypatch.setattr(GridCodec, "pack", scripted)
    monkeypatch.setitem(_SIZES, "cpu", (1, 2, 4))
    make_four(tmp_path / "out")
    verdict = verify_folder(tmp_path / "out")
    assert verdict.ok, verdict.findings


def make_four(out: Path) -> list[Event]:
    model = find_model("demo")
    chain = parse_chain("--targets tok_rgb --steps 2", model)
    samples = samples_of_prompts(["a red circle"] * 4)
    return list(run_request(Request(model, chain, samples, out, device="cpu", batch_size=4)))


def test_tokenizing_goes_on_with_fewer_crops_at_once(gpu: Gpu, run: Command, tmp_path: Path) -> None:
    folder = tmp_path / "data/rgb/a"
    folder.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(
        folder / "x.png"
    )
    words = ("tokenize", tmp_path / "data", "--modalities", "rgb", "--crops", 8, "--device", "cuda")
    assert run(*words, "--out", "whole", "--quiet")[0] == 0
    gpu.most_bytes = round(gpu.largest * 0.6)
    code, _, err = run(*words, "--out", "short")
    assert code == 0
    assert err.count(NOTE + " 4 samples are worked on together") == 1, err
    assert tokens_of(Path("short")) == tokens_of(Path("whole"))


LIMITED = """
import os, resource, sys
os.environ["MKL_CBWR"] = "AUTO,STRICT"
from pathlib import Path
from fourm.data.layout import Key, Sample
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.results.events import Halved, Loading
from fourm.runs.pipeline import run
from fourm.schedule.plan import parse_chain

out, room = Path(sys.argv[1]), int(sys.argv[2])
model = find_model("demo")
chain = parse_chain("--cond caption --targets tok_rgb --schemes maskgit --steps 1 --cfg 1", model)
sample = Sample(Key("a", "b"), "a red circle")
many = {"num_variations": 256, "batch_size": 256}
request = Request(model, chain, (sample,), out, device="cpu", decode=False, **many)
for event in run(request):
    if isinstance(event, Loading) and room:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
    if isinstance(event, Halved):
        print(event.rows)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limited as Linux does")
def test_a_real_limit_of_memory_changes_no_token(tmp_path: Path) -> None:
    said = [
        subprocess.run([sys.executable, "-c", LIMITED, tmp_path / name, str(room)],
                       cwd=ROOT, capture_output=True, text=True, check=False)
        for name, room in (("whole", 0), ("short", 150 * MB))
    ]  # fmt: skip
    assert [done.returncode for done in said] == [0, 0], said[1].stderr[-2000:]
    assert said[0].stdout == ""
    assert int(said[1].stdout) in (128, 64, 32, 16)
    assert tokens_of(tmp_path / "whole") == tokens_of(tmp_path / "short")
