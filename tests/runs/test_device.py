"""Devices, dtypes and batch sizes that are chosen, and those that are refused."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import fourm
from fourm.data.layout import Key, Sample
from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.inputs.world import World
from fourm.networks.memory import free_memory, total_memory
from fourm.runs.device import advise_dtype, checked_batch_size, choose_device, fit_batch_size
from fourm.schedule.cost import estimate
from fourm.schedule.plan import parse_chain
from tests.emulated_gpu import emulated


def test_devices_that_are_not_available_are_refused() -> None:
    with pytest.raises(UsageError, match="not a device"):
        choose_device("gpu7!", World())
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="'cuda' is not available"):
            choose_device("cuda", World())
    assert choose_device("cpu", World()).type == "cpu"


@pytest.mark.parametrize("name", ["cuda:1", "cuda:7", "cpu:1"])
def test_a_device_with_a_number_that_none_has_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with emulated(monkeypatch):
        assert choose_device("cuda:0", World()) == torch.device("cuda:0")
        with pytest.raises(UsageError, match=f"'{name}' is not available on this machine; there is only one"):
            choose_device(name, World())
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
        assert choose_device("cuda:3", World()) == torch.device("cuda:3")
        with pytest.raises(UsageError, match="the last one is cuda:3"):
            choose_device("cuda:4", World())


@pytest.mark.gpu
def test_processes_of_a_machine_take_turns_on_its_gpus() -> None:
    count = torch.cuda.device_count()
    found = [choose_device("cuda", World(local_rank=rank)).index for rank in range(2 * count)]
    assert found == [*range(count)] * 2


def test_batches_hold_fewer_samples_when_samples_are_longer(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fourm.runs.device.total_memory", lambda _: math.inf)
    model = find_model(tiny)
    one, three = (
        Request(model, parse_chain(f"--cond none --targets {targets}", model), (), tmp_path)
        for targets in ("tok_rgb", "tok_rgb-tok_clip-tok_depth")
    )
    cpu = torch.device("cpu")
    assert (fit_batch_size(one, cpu), fit_batch_size(three, cpu)) == (
        1024 // 64,
        4,
    )  # a power of two, up to 1024 // 192
    assert fit_batch_size(one, torch.device("cuda")) == 64


def linux(root: Path, available: int, groups: dict[str, tuple[str, int, int]], own: str = "/") -> Path:
    """The files in which Linux says what is free: MemAvailable, and limit, use and cache of each group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(f"0::{own}\n")
    for group, (limit, current, cache) in groups.items():
        folder = root / "sys/fs/cgroup" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{current}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "own", "free"),
    [
        ({}, "/", 1 << 30),
        ({"": ("max", 100, 0)}, "/", 1 << 30),
        ({"": (str(1 << 20), 1000, 600)}, "/", (1 << 20) - 400),
        ({"": ("4000", 1000, 0), "a": ("max", 0, 0), "a/b": ("9000", 0, 0)}, "/a/b", 3000),
        ({"": ("10", 1000, 0)}, "/", 0),
        ({"": ("nonsense", 1000, 0)}, "/", 1 << 30),
    ],
)
def test_free_memory_is_what_the_tightest_limit_leaves(
    tmp_path: Path, groups: dict[str, tuple[str, int, int]], own: str, free: int
) -> None:
    assert free_memory(torch.device("cpu"), linux(tmp_path, 1 << 30, groups, own)) == free


@pytest.mark.parametrize(
    ("limit", "own", "free"),
    [(5000, "/docker/x", 3400), ((1 << 63) - 4096, "/docker/x", 1 << 30), (5000, "/not/mounted", 1 << 30)],
)
def test_limits_of_cgroups_version_1_are_read(tmp_path: Path, limit: int, own: str, free: int) -> None:
    """cgroup v1: another folder, other names, and a huge number for none."""
    linux(tmp_path, 1 << 30, {})
    entries = f"12:pids:{own}\n4:cpu,cpuacct:{own}\n3:cpuset,memory:{own}\n0::/\n"
    (tmp_path / "proc/self/cgroup").write_text(entries)
    group = tmp_path / "sys/fs/cgroup/memory/docker/x"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (group / "memory.usage_in_bytes").write_text("2000\n")
    (group / "memory.stat").write_text("cache 900\ninactive_file 1\ntotal_inactive_file 400\n")
    assert free_memory(torch.device("cpu"), tmp_path) == free


def test_memory_that_nobody_tells_of_is_not_checked(tmp_path: Path) -> None:
    assert (
        free_memory(torch.device("cpu"), tmp_path) == total_memory(torch.device("cpu"), tmp_path) == math.inf
    )


@pytest.mark.parametrize(("limit", "total"), [("max", 99 << 10), ("5000", 5000)])
def test_all_memory_is_what_the_machine_or_a_limit_has(tmp_path: Path, limit: str, total: int) -> None:
    linux(tmp_path, 1 << 10, {"": (limit, 4000, 0)})
    assert total_memory(torch.device("cpu"), tmp_path) == total


def test_only_one_sample_must_fit_in_what_others_leave_of_a_gpu(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that nobody asked for is the same, and is halved when memory runs out."""
    model = find_model(tiny)
    chain = parse_chain("--cond none --targets tok_rgb", model)
    samples = tuple(Sample(Key("s", str(number))) for number in range(64))
    request = Request(model, chain, samples, tmp_path, dtype="float32")
    with emulated(monkeypatch):
        gpu = torch.device("cuda:0")
        few = round(estimate(chain, model).memory * 0.851)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (few, 80 << 30))
        assert checked_batch_size(request, gpu) == 64
        with pytest.raises(UsageError, match="`batch_size=32` needs less"):
            checked_batch_size(replace(request, batch_size=64), gpu)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (1 << 20, 80 << 30))
        with pytest.raises(UsageError, match="are free on cuda:0"):
            checked_batch_size(request, gpu)


def test_a_run_goes_on_in_the_batches_that_it_was_begun_with(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    words = ("generate", "a red circle", "--targets", "tok_rgb", "--steps", 1, "--no-decode",
             "--num-variations", 4, "--device", "cpu")  # fmt: skip
    said = (*words, "--out", "o")

    def sizes(out: str) -> tuple[object, list[object]]:
        launches = sorted((tmp_path / out / "processes").glob("*.json"), key=lambda path: path.name)
        used = [json.loads(path.read_text())["batch_size"] for path in launches]
        return json.loads((tmp_path / out / "run.json").read_text())["batch_size"], used

    assert run(*said, "--batch-size", 2, "-q")[0] == 0
    made = {path.name: path.read_bytes() for path in (tmp_path / "o/tok_rgb@64").rglob("*.npy")}
    for path in (tmp_path / "o/tok_rgb@64").rglob("*-v[13].npy"):
        path.unlink()
    code, _, err = run(*said, "--resume")
    assert (code, "batches of 2" in err) == (0, True), err
    assert {path.name: path.read_bytes() for path in (tmp_path / "o/tok_rgb@64").rglob("*.npy")} == made
    assert run(*said, "--resume", "--batch-size", 3, "-q")[0] == 0  # not refused
    assert sizes("o") == (2, [2, 2, 3])
    assert run("generate", "--replay", "o/run.json", "--out", "again", "-q")[0] == 0
    assert run("generate", "--replay", "o/run.json", "--out", "other", "--batch-size", 1, "-q")[0] == 0
    assert (sizes("again"), sizes("other")) == ((2, [2]), (1, [1]))
    assert run(*words, "--out", "auto", "-q")[0] == 0
    assert sizes("auto") == (8, [8])


def test_a_run_that_does_not_fit_is_refused_with_what_would_help(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cpu = find_model(tiny), torch.device("cpu")
    chain = parse_chain("--cond none --targets tok_rgb", model)
    samples = tuple(Sample(Key("s", str(number))) for number in range(9))
    monkeypatch.setattr("fourm.runs.device.free_memory", lambda _: 10 << 20)
    full, half, alone = (
        Request(model, chain, samples, tmp_path, batch_size=size, dtype=dtype)
        for size, dtype in ((6, "auto"), (4, "bfloat16"), (1, "bfloat16"))
    )
    for request, said in (
        (full, r"needs about .* GB .* but only 0\.0105 GB .* on cpu; `dtype=bfloat16` or `batch_size=3`"),
        (half, "; `batch_size=2` needs less"),
        (alone, "; a smaller model needs less"),
    ):
        with pytest.raises(UsageError, match=said):
            checked_batch_size(request, cpu)
    for free in (1 << 40, math.inf):
        monkeypatch.setattr("fourm.runs.device.free_memory", lambda _, free=free: free)
        checked_batch_size(full, cpu)


def test_a_batch_that_nobody_asked_for_fits_in_the_memory_of_the_device_whoever_uses_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cpu = find_model(tiny), torch.device("cpu")
    chain = parse_chain("--cond none --targets tok_rgb", model)
    request = Request(model, chain, (Sample(Key("s", "0")),), tmp_path)
    assert fit_batch_size(request, cpu) == 16
    enough = estimate(chain, model, batch_size=4).memory
    monkeypatch.setattr("fourm.runs.device.total_memory", lambda _: round(enough * 0.851))  # 15 % are doubt
    assert fit_batch_size(request, cpu) == 4
    monkeypatch.setattr("fourm.runs.device.free_memory", lambda _: 1 << 20)
    assert fit_batch_size(request, cpu) == 4
    assert fit_batch_size(replace(request, batch_size=7), cpu) == 7


def test_commands_refuse_what_does_not_fit_before_anything_is_loaded_or_written(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    (tmp_path / "data/rgb/a").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "data/rgb/a/x.png")
    quick = ("--steps", 1, "--quiet")
    assert run("generate", "a red circle", "--targets", "tok_clip-tok_rgb", *quick, "--out", "made")[0] == 0
    with emulated(monkeypatch):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (1 << 20, 80 << 30))
        for words in (
            ("generate", "a red circle", *quick),
            ("sr", "made", *quick),
            ("tokenize", "data", "--quiet"),
        ):
            code, out, err = run(*words, "--device", "cuda", "--dtype", "float32", "--out", "new")
            assert (code, out) == (2, ""), err
            assert "but only 0.00105 GB are free on cuda:0; --dtype bfloat16" in err
            assert not Path("new").exists()


def test_a_folder_of_another_dtype_goes_on_in_it_from_python_too(tiny: Path, tmp_path: Path) -> None:
    model = find_model(tiny)
    chain = parse_chain("--cond none --targets tok_rgb --steps 1", model)
    request = Request(model, chain, (Sample(Key("s", "0")),), tmp_path / "o", device="cpu", decode=False)
    for _ in fourm.run(replace(request, dtype="bfloat16")):
        pass
    (path,) = (tmp_path / "o/tok_rgb@64").rglob("*.npy")
    made = path.read_bytes()
    path.unlink()
    for _ in fourm.run(replace(request, resume=True), str(tiny)):
        pass
    assert path.read_bytes() == made


def test_a_faster_dtype_is_advised_where_the_run_may_still_have_it(
    monkeypatch: pytest.MonkeyPatch, tiny: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr("fourm.runs.device.advise_bfloat16", lambda model, _: model.name)
    model = find_model(tiny)
    chain = parse_chain("--cond none --targets tok_rgb --steps 1", model)
    request = Request(model, chain, (Sample(Key("s", "0")),), tmp_path / "o", decode=False)
    assert advise_dtype(request) == advise_dtype(replace(request, device="cpu")) == model.name
    assert advise_dtype(replace(request, dtype="float32")) == ""
    with emulated(monkeypatch):
        assert advise_dtype(replace(request, device="cuda")) == ""
    for _ in fourm.run(request):
        pass
    assert advise_dtype(replace(request, resume=True)) == ""


def test_commands_say_where_bfloat16_would_be_faster(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., tuple[int, str, str]], tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text("flags : fpu avx512_bf16\n")
    monkeypatch.setattr("fourm.schedule.cost.CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("fourm.schedule.cost._FASTER_FROM", 1)
    chain = ("--cond", "none", "--targets", "tok_rgb", "--steps", 1, "--model", tiny)
    many = (*chain, "--num-samples", 1, "--device", "cpu", "--no-decode")
    for words in (
        ("schedule", "validate", *chain),
        ("generate", *many, "--dry-run"),
        ("generate", *many),
    ):
        code, _, err = run(*words)
        assert (code, err.count(f"--dtype bfloat16 makes {tiny} faster on this CPU")) == (0, 1), err
        assert "bfloat16" not in run(*words, "--dtype", "float32")[2]
    assert "bfloat16" not in run("generate", *many, "--quiet")[2]
