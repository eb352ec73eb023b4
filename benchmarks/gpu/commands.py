"""Benchmarks of loading files and of whole `fourm generate` commands; runs the tests marked `gpu`."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from shutil import which

import torch

from benchmarks.bundle import write_pictures_bundle
from benchmarks.generate import synchronise
from benchmarks.gpu.bench import Bench, Cases, Values
from benchmarks.gpu.tokens import PROMPTS
from benchmarks.gpu.worker import ROOT
from benchmarks.released import Stage, follow, merged
from fourm.hub.files import find_model
from fourm.hub.header import TokenizerPart
from fourm.networks.checkpoint import load_model, load_tokenizer

_NO_WORK = ("start Python and torch", "load weights", "end")
_SAMPLES = (
    "nvidia-smi",
    "--query-gpu=timestamp,utilization.gpu",
    "--format=csv,noheader,nounits",
    "-lms",
    "100",
)
_RESULT = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b", re.MULTILINE)


def marked(bench: Bench) -> Cases:
    """The tests that need a GPU; they are skipped without one."""
    return {"pytest -m gpu": partial(_run_tests, bench)}


def _run_tests(bench: Bench) -> Values:
    files = [p for p in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in p.read_text("utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rfE", "--tb=short", "--color=no"]
    command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    command += [str(path.relative_to(ROOT)) for path in files]
    log, note = bench.out / "pytest.log", ""
    environment = {"OMP_NUM_THREADS": "4", **os.environ}  # the tests need little of the CPU
    with log.open("w", encoding="utf-8") as output:
        try:
            subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                timeout=max(1.0, bench.left - 3),
                check=False,
            )
        except subprocess.TimeoutExpired:
            note = "stopped, time was up; "
    return count_results(log.read_text("utf-8", "replace"), note)


def count_results(text: str, note: str = "") -> Values:
    """Counts of results in a verbose log of pytest, and what failed; without results, its last line."""
    found = _RESULT.findall(text)
    counts = {word.lower(): sum(one == word for _, one in found) for word in ("PASSED", "FAILED", "SKIPPED")}
    bad = [name.partition("::")[2] for name, word in found if word in ("FAILED", "ERROR")]
    broken = re.findall(r"^ERROR (tests/\S+\.py)(?: -|$)", text, re.MULTILINE)
    if not found:
        note += (text.strip().splitlines() or ["no output"])[-1]
    return {**counts, "errors": len(broken) + sum(word == "ERROR" for _, word in found),
            "names": note + ", ".join([*dict.fromkeys(broken), *bad])}  # fmt: skip


def bundle(bench: Bench) -> Path:
    """A folder with 4M-7 B and its RGB and CLIP tokenizers in float32, as released; written once."""
    folder = bench.work / "4m-7-b"
    if not (folder / ".written").exists():
        write_pictures_bundle(folder, bench.quick, bench.device)
        (folder / ".written").touch()
    return folder


def load(bench: Bench) -> Cases:
    """Loading networks to the device from files in the page cache."""
    return {
        "write 4m-7-b, tok-rgb, tok-clip": partial(_write, bench),
        "4m-7-b, float32 file as bfloat16": partial(_load, bench, torch.bfloat16),
        "4m-7-b, float32 file as float32": partial(_load, bench, torch.float32),
        "tok-rgb decoder as bfloat16": partial(_load_decoder, bench),
    }


def _write(bench: Bench) -> Values:
    started = time.perf_counter()
    size = sum(p.stat().st_size for p in bundle(bench).rglob("*.safetensors"))
    return {"GB": size / 1e9, "s": time.perf_counter() - started}


def _load(bench: Bench, dtype: torch.dtype) -> Values:
    files, seconds = find_model(bundle(bench)), list[float]()
    for _ in range(3):
        started = time.perf_counter()
        load_model(files, bench.device, dtype)
        synchronise(bench.device)
        seconds.append(time.perf_counter() - started)
    size = files.weights.stat().st_size
    return {"GB": size / 1e9, "s": min(seconds), "GB/s": size / min(seconds) / 1e9, "first, s": seconds[0]}


def _load_decoder(bench: Bench) -> Values:
    path = find_model(bundle(bench)).tokenizers["rgb"]
    started = time.perf_counter()
    load_tokenizer(path, bench.device, torch.bfloat16, TokenizerPart.DECODER)
    synchronise(bench.device)
    seconds = time.perf_counter() - started
    return {"GB": (path / "model.safetensors").stat().st_size / 1e9, "s": seconds}


def generate_demo(bench: Bench) -> Cases:
    """The command with the embedded model."""
    options = ["--dtype", "float32", *(["--steps", "4-2"] if bench.quick else [])]
    count = 2 if bench.quick else 256
    return {f"demo, {count} prompts": partial(_generate, bench, "demo", count, options)}


def generate_base(bench: Bench) -> Cases:
    """The command with 4M-B and random weights, for CLIP features and RGB pictures."""
    options = ["--dtype", "bfloat16"]
    if bench.quick:
        options += ["--steps", "2-2", "--detokenizer-steps", "2"]
    return {
        f"4m-7-b bfloat16, {count} prompts": partial(_generate, bench, "4m-7-b", count, options)
        for count in ((2,) if bench.quick else (1, 16, 256))  # the last one has several batches
    }


def _generate(bench: Bench, model: str, count: int, options: list[str]) -> Values:
    name = f"{model}-{count}"
    prompts, log = bench.work / f"{name}.txt", bench.work / f"{name}.jsonl"
    prompts.write_text("".join(f"{PROMPTS[i % len(PROMPTS)]}\n" for i in range(count)), "utf-8")
    folder = bundle(bench) if model != "demo" else "demo"
    command = [sys.executable, "-m", "fourm_cli", "generate", "--data", str(prompts), "--model", str(folder)]
    command += ["--targets", "tok_clip-tok_rgb", "--device", bench.device, "--log-json", str(log), *options]
    command += ["--out", str(bench.work / f"{name}-out")]
    with (bench.work / f"{name}.out").open("w+", encoding="utf-8") as output:
        began, samples = time.time(), bench.work / f"{name}.busy"
        try:
            with _sampled(bench, samples):
                stages = follow(command, log, output)
        except SystemExit as error:
            output.seek(0)
            said = (output.read().strip().splitlines() or [""])[-1]
            raise RuntimeError(f"exit code {error.code}: {said}") from None
    busy = busy_share(samples.read_text("utf-8"), began, stages) if samples.exists() else None
    return {**_summary({stage.name: stage for stage in merged(stages)}, count), "device busy": busy}


@contextmanager
def _sampled(bench: Bench, path: Path) -> Iterator[None]:
    """Samples of how busy the first GPU is go to a file; none where nvidia-smi is missing."""
    if not (bench.on_gpu and which(_SAMPLES[0])):
        yield
        return
    with path.open("w", encoding="utf-8") as file, subprocess.Popen(_SAMPLES, stdout=file) as process:
        try:
            yield
        finally:
            process.terminate()


def busy_share(text: str, began: float, stages: Sequence[Stage]) -> float | None:
    """The share of time with a kernel on the device while a command worked, without start, loading and end.

    text: samples of nvidia-smi, a time and a percentage each. began: when the first stage did, in seconds.
    """
    working, found = list[tuple[float, float]](), list[float]()
    for stage in stages:
        working += [] if stage.name in _NO_WORK else [(began, began + stage.seconds)]
        began += stage.seconds
    for line in text.splitlines():
        moment, _, percent = line.partition(", ")
        if percent.strip().isdigit():
            at = datetime.strptime(moment, "%Y/%m/%d %H:%M:%S.%f").timestamp()
            found += [float(percent) / 100] if any(first <= at < last for first, last in working) else []
    return sum(found) / len(found) if found else None


def _summary(stages: dict[str, Stage], count: int) -> Values:
    """Seconds of each stage of a command, and pictures per second without start and loading."""
    seconds = {name: stage.seconds for name, stage in stages.items()}
    total = sum(seconds.values())
    start = seconds.pop("start Python and torch", 0.0)
    loading, saving = seconds.pop("load weights", 0.0), seconds.pop("write", 0.0)
    values, end = seconds.pop("turn tokens into values", 0.0), seconds.pop("end", 0.0)
    working = total - start - loading - end
    return {
        "pictures": count, "s": total, "start, s": start, "load, s": loading,
        "decode, s": sum(seconds.values()),
        "values, s": values, "save, s": saving, "end, s": end, "pictures/s": count / working,
        "saving of it": saving / working,
    }  # fmt: skip
