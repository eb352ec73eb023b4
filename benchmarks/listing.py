"""How fast a dataset is listed and matched: folders of files, and tar shards.

    python -m benchmarks.listing [--samples 100000] [--work FOLDER] [--json FILE]

Two modalities, a folder or shard for each thousand samples, files of a few bytes. Every listing runs in a
process of its own, after the folders were read once; the peak is that of the process over what it had when
fourm was imported. A plain walk asks the system, and tarfile, for the same names and keeps none.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.tables import Table, add_json

COLUMNS = {"dataset": "", "samples": ",d", "seconds": ".2f", "samples/s": ",.0f", "times a plain walk": ".1f",
           "peak, MiB": ".0f"}  # fmt: skip
PER_FOLDER = 1000
ENDS = {"rgb": ".png", "caption": ".txt"}
LIST = """
import os, resource, sys, tarfile, time
from pathlib import Path
from fourm.data.dataset import list_dataset
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = peak(), time.perf_counter()
dataset = list_dataset(Path(sys.argv[1]), {"rgb": "rgb", "caption": "caption"})
print(len(dataset.samples), time.perf_counter() - started, peak() - before)
started = time.perf_counter()
for folder, _, names in os.walk(sys.argv[1]):
    for name in names:
        if name.endswith(".tar"):
            tarfile.open(os.path.join(folder, name)).getnames()
print(time.perf_counter() - started)
"""


def write_folders(root: Path, samples: int) -> None:
    """`root/rgb/00000/000000.png` and so on."""
    for modality, end in ENDS.items():
        for i in range(samples):
            path = root / modality / f"{i // PER_FOLDER:05d}" / f"{i:06d}{end}"
            if i % PER_FOLDER == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(b"x")


def write_shards(root: Path, samples: int) -> None:
    """`root/rgb/00000.tar` and so on."""
    for modality, end in ENDS.items():
        (root / modality).mkdir(parents=True)
        for first in range(0, samples, PER_FOLDER):
            with tarfile.open(root / modality / f"{first // PER_FOLDER:05d}.tar", "w") as tar:
                for i in range(first, min(first + PER_FOLDER, samples)):
                    member = tarfile.TarInfo(f"{i:06d}{end}")
                    member.size = 1
                    tar.addfile(member, io.BytesIO(b"x"))


def main() -> None:
    """Write both, list both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--work", type=Path, help="folder for the datasets; by default a temporary one")
    add_json(parser)
    given = parser.parse_args()
    table = Table(COLUMNS, given.json)
    with tempfile.TemporaryDirectory(dir=given.work) as work:
        for name, write in {"folders": write_folders, "tar shards": write_shards}.items():
            root = Path(work, name)
            write(root, given.samples)
            runs = []
            for _ in range(4):  # the first one fills the page cache
                done = subprocess.run(
                    [sys.executable, "-c", LIST, str(root)], check=True, capture_output=True, text=True
                )
                runs.append([float(word) for word in done.stdout.split()])
            count, seconds, peak, plain = min(runs[1:], key=lambda run: run[1])
            table.add(name, int(count), seconds, count / seconds, seconds / plain, peak)


if __name__ == "__main__":
    main()
