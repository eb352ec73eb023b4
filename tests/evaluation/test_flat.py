"""Many samples need hardly more memory than few."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.folders import noise

ROOT = Path(__file__).resolve().parents[2]
SIDE, SHARD = 64, 200
# PSNR, SSIM, and FID with features of two layers in place of those of Inception, of few samples and then of
# many; prints the peaks of memory.
CODE = """
import resource, sys
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
for count, *folders in zip(*[iter(sys.argv[1:])] * 3):
    found = fourm.evaluate(*folders, measures="psnr ssim small")
    assert {one.samples for one in found.numbers} == {int(count)}
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
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


# Names and a few numbers of each sample stay; the interpreter takes some megabytes more.
@pytest.mark.parametrize(
    ("few", "many", "most"),
    [(200, 1_000, 16_000), pytest.param(2_000, 20_000, 64_000, marks=pytest.mark.more)],
)
def test_memory_does_not_grow_with_samples(tmp_path: Path, few: int, many: int, most: int) -> None:
    """The pictures of 800 samples more have 20 MB; those of 18,000 have 440 MB."""
    words = [sys.executable, "-c", CODE]
    for count in (few, many):
        folders = [make_tars(tmp_path / f"{count}-{seed}", count, seed) for seed in (0, 100)]
        words += map(str, (count, *folders))
    done = subprocess.run(words, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = [*map(int, done.stdout.split())]
    assert peaks[1] - peaks[0] < most  # kB
