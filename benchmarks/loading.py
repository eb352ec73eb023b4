"""How fast and how lean weights are loaded, against a plain read and conversion of the same file.

    python -m benchmarks.loading [--model 4m-7-l] [--dtype bfloat16] [--work FOLDER] [--json FILE]

Random weights at the released size are written first (float32). Loading and copying run in processes of their
own, each after the file was read once, so that both come from memory; peaks are those of the process over
what it had when torch and fourm were imported, as multiples of the weights that are kept.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bundle import write_model
from benchmarks.tables import Table, add_json
from fourm.hub.catalogue import CATALOGUE

LOAD = """
import sys, time, torch
from pathlib import Path
from fourm.networks.checkpoint import load_model
from fourm.hub.files import find_model
from fourm.networks.model import FourM, FourMConfig
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
files = find_model(sys.argv[1])
with torch.device("meta"):
    FourM(FourMConfig.from_dict(files.config, files.registry))  # loads parts of torch
before, started = peak(), time.perf_counter()
model = load_model(files, dtype=getattr(torch, sys.argv[2]))
seconds = time.perf_counter() - started
kept = sum(t.numel() * t.element_size() for t in {id(t): t for t in model.state_dict().values()}.values())
print(seconds, kept, (peak() - before) / kept)
"""
COPY = """
import sys, time, torch
from pathlib import Path
path, dtype, buffer = Path(sys.argv[1]), getattr(torch, sys.argv[2]), bytearray(32 << 20)
started = time.perf_counter()
with path.open("rb", buffering=0) as file:
    kept = []
    while count := file.readinto(buffer):
        kept.append(torch.frombuffer(buffer, dtype=torch.float32, count=count // 4).to(dtype, copy=True))
print(time.perf_counter() - started)
"""
COLUMNS = {"dtype": "", "file, GB": ".2f", "kept, GB": ".2f", "load, s": ".2f", "read and convert, s": ".2f",
           "ratio": ".2f", "peak / kept": ".3f"}  # fmt: skip


def run(code: str, *words: str) -> list[float]:
    """The numbers that a program prints."""
    done = subprocess.run([sys.executable, "-c", code, *words], check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="4m-7-l")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--work", type=Path, default=None)
    add_json(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        folder = Path(work, "model")
        write_model(folder, CATALOGUE[args.model].config)
        size = (folder / "model.safetensors").stat().st_size
        table = Table(COLUMNS, args.json)
        for dtype in dict.fromkeys((args.dtype, "float32")):
            (copy,) = min(run(COPY, str(folder / "model.safetensors"), dtype) for _ in range(3))
            load, kept, peak = min(run(LOAD, str(folder), dtype) for _ in range(3))
            table.add(dtype, size / 1e9, kept / 1e9, load, copy, load / copy, peak)


if __name__ == "__main__":
    main()
