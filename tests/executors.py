"""What tests of executors share: runs in shards, workers that die or hang, and a program `sbatch`."""

import io
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from fourm.batch.batches import Batch, plan
from fourm.batch.local import run_share
from fourm.codecs.files import pack_png
from fourm.data.dataset import Dataset
from fourm.data.shards import Shard
from fourm.files.opening import read_bytes
from fourm.hub.files import find_model, find_sr
from fourm.inputs.request import Request, TokenizeRequest
from fourm.output.samples import load_run
from fourm.results.events import Event
from fourm.schedule.plan import parse_chain
from fourm.sources.raw import find_raw
from fourm.sources.results import shards_of_run
from fourm.sources.shards import Reader, list_shards
from fourm.sources.source import Source

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = "--cond caption --targets tok_clip --steps 2"
SR_OPTIONS = "--cond tok_clip-tok_rgb --targets tok_rgb@128 --steps 2"
PROMPTS = ["a small red circle", "a blue square", "a green triangle", "two red squares", "a circle", "a cube"]


@dataclass(frozen=True)
class Deadly:
    """Sends its process a signal while it makes a shard, in so many of the tries."""

    reader: Reader
    out: Path
    number: int
    times: int
    kind: signal.Signals = signal.SIGKILL

    def read(self, shard: Shard) -> Dataset:
        if shard.number == self.number:
            for time_ in range(self.times):
                try:
                    (self.out.parent / f"died{time_}").open("x").write(str(os.getpid()))
                except FileExistsError:
                    continue
                threading.Thread(target=self.send, daemon=True).start()
                break
        return self.reader.read(shard)

    def send(self) -> None:
        while not any(path.is_file() for path in (self.out / ".partial").rglob("*.spool")):
            time.sleep(0.001)
        os.kill(os.getpid(), self.kind)


def generation(folder: Path, out: Path, options: str = OPTIONS, prompts: Sequence[str] = PROMPTS) -> Batch:
    """A run over prompts, two in each shard."""
    (folder / "p.txt").write_text("\n".join(prompts))
    model = find_model("demo")
    chain = parse_chain(options, model)
    asked = Source(data=str(folder / "p.txt")), chain.conditions, model, io.BytesIO()
    return plan([Request(model, chain, (), out, device="cpu")], list_shards(*asked, size=2), "shards", 2)


def super_resolution(base: Path, out: Path) -> Batch:
    """Super-resolution of a folder of shards."""
    origin, fine = load_run(base), find_sr(find_model("demo"), None)
    chain = parse_chain(SR_OPTIONS, fine)
    shards = shards_of_run(origin, chain, fine, io.BytesIO())
    request = Request(
        fine, chain, shards.samples(shards.shards[0]).samples[:1], out, stage="sr", origin=origin.record,
        device="cpu", input=shards.input,
    )  # fmt: skip
    return plan([request], shards, "shards", 2)


def write_pictures(folder: Path) -> Path:
    """Eight pictures with depth in four folders, which are four shards."""
    rng = np.random.default_rng(0)
    for number in range(8):
        name, size = f"{number // 2:05d}/{number:06d}.png", (64 + number, 80)
        for modality in ("rgb", "depth"):
            (folder / modality / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "rgb" / name).write_bytes(pack_png(rng.integers(0, 256, (*size, 3), np.uint8)))
        Image.fromarray(rng.integers(0, 65536, size, np.uint16)).save(folder / "depth" / name)
    return folder


def tokenization(data: Path, out: Path) -> Batch:
    """Tokens of a folder of pictures with depth, two crops of each."""
    model = find_model("demo")
    raw = find_raw(str(data), {}, model, None)
    request = TokenizeRequest(model, tuple(raw.places), (), out, num_crops=2, device="cpu")
    return plan([request], raw.shards(2), "shards", 2)


def elsewhere(batch: Batch, out: Path, number: int = -1, times: int = 0, kind: int = signal.SIGKILL) -> Batch:
    """The same batch in another folder, with a worker that dies."""
    reader = Deadly(batch.shards.reader, out, number, times, signal.Signals(kind))
    requests = tuple(replace(one, out=out) for one in batch.requests)
    return replace(batch, requests=requests, shards=replace(batch.shards, reader=reader))


def run_local(batch: Batch, workers: int = 1) -> list[Event]:
    batch.open_folder()
    return list(run_share(batch, batch.share(), workers))


def tars(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): read_bytes(path, 1 << 24) for path in out.rglob("*.tar")}


SBATCH = """#!/bin/sh -e
for file in "$@"; do :; done  # the last argument is a script, or an option where that is the input
[ -f "$file" ] && cat "$file" > submitted.sh || cat > submitted.sh
last=$(sed -n 's/^#SBATCH.* *--array=0-\\([0-9]*\\).*/\\1/p' submitted.sh)
export SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_MAX=$last
export SLURM_ARRAY_TASK_STEP=1 SLURM_ARRAY_TASK_COUNT=$((last + 1))
for SLURM_ARRAY_TASK_ID in $(seq $last -1 0); do
  export SLURM_ARRAY_TASK_ID
  if [ $SLURM_ARRAY_TASK_ID = KILLED ]; then  # as by a node that fails; --requeue starts it again
    marker=two/done/0000$SLURM_ARRAY_TASK_ID.json tries=0
    while :; do  # until it is killed in the middle of its shard
      sh submitted.sh >> tasks.log 2>&1 & task=$! spool=
      until [ -e "$spool" ] || [ -e $marker ]; do for spool in two/.partial/*.spool; do :; done; done
      kill -KILL $task || :
      wait $task || status=$?
      [ -e $marker ] || break
      tries=$((tries + 1)); [ $tries -lt 50 ]
      rm -r two; : > tasks.log  # it is the first task, so nothing else is there
    done
    echo "task $SLURM_ARRAY_TASK_ID ended with $status" >> tasks.log
  fi
  sh submitted.sh >> tasks.log 2>&1
done
echo '4711;cluster'
"""
SRUN = """#!/bin/sh -e
count=${1#--ntasks=}
shift
for task in $(seq 0 $((count - 1))); do
  SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=$count "$@"
done
"""


def write_sbatch(folder: Path, killed: int = -1) -> None:
    """A program that runs the tasks of an array at once, the last first; of one the first try is killed."""
    _write(folder / "sbatch", SBATCH.replace("KILLED", str(killed)))


def write_srun(folder: Path) -> None:
    """A program that runs the tasks of a step, one after the other."""
    _write(folder / "srun", SRUN)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
