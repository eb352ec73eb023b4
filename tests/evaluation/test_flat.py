"""Many samples need hardly more memory than few."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.folders import noise

ROOT = Path(__file__).resolve().parents[2]
SIDE, SHARD = 64, 200
# PSNR, SSIM, and FID with features of two layers in the place of Inception's; prints the peak of memory.
CODE = """
import json, resource, sys, time
import numpy as np, torch
import fourm
from fourm.measures import learned
from fourm.measures.tables import MEASURES, MeasureRow

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 8, 8), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 8))

@torch.inference_mode()
def features(found):
    batch = torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255
    return net(batch).flatten(1).double().numpy()

learned.small = lambda settings: learned.Frechet(features, 32)
MEASURES["small"] = MeasureRow("small", ["picture"], {"fid": "lower"}, "learned:small", "", "")
start = time.monotonic()
found = fourm.evaluate(sys.argv[1], sys.argv[2], measures="psnr ssim small")
seconds = time.monotonic() - start
numbers = {one.name: [one.value, one.samples] for one in found.numbers}
print(json.dumps([resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, numbers, seconds]))
"""


def make_tars(root: Path, count: int, seed: int) -> Path:
    """A dataset of pictures in tars; fifty of them, again and again."""
    streams = [io.BytesIO() for _ in range(50)]
    for at, stream in enumerate(streams):
        Image.fromarray(noise(seed + at, SIDE, SIDE, 3)).save(stream, "PNG")
    (root / "rgb").mkdir(parents=True)
    for shard in range(count // SHARD):
        with tarfile.open(root / "rgb" / f"{shard:05d}.tar", "w") as tar:
            for at in range(SHARD):
                data = streams[at % len(streams)].getvalue()
                member = tarfile.TarInfo(f"{at:06d}.png")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return root


# Names and a few numbers of each sample stay: 64 kB are there for what the interpreter takes as it likes.
@pytest.mark.parametrize(
    ("few", "many", "most"),
    [(200, 1_000, 24_000), pytest.param(2_000, 20_000, 64_000, marks=pytest.mark.more)],
)
def test_memory_does_not_grow_with_samples(tmp_path: Path, few: int, many: int, most: int) -> None:
    """The pictures of 800 samples more have 20 MB; those of 18,000 have 440 MB."""
    peaks = list[int]()
    for count in (few, many):
        folders = [make_tars(tmp_path / f"{count}-{seed}", count, seed) for seed in (0, 100)]
        words = [sys.executable, "-c", CODE, *map(str, folders)]
        done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peak, numbers, seconds = json.loads(done.stdout)
        print(f"{count:,} samples: {peak:,} kB, {count / seconds:.0f} samples/s")  # shown by pytest -s
        peaks.append(peak)
        assert {samples for _, samples in numbers.values()} == {count}
    assert peaks[1] - peaks[0] < most  # kB
