"""Runs all GPU benchmarks, the most important first; the report lists those that did not fit in the time."""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu import STARTED
from benchmarks.gpu.driver import MINUTES, PARTS, Run, preload
from benchmarks.gpu.report import Report

_MARGIN = 5.0  # seconds reserved at the end


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to check that everything runs")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", default=",".join(PARTS), help="by default all: " + ", ".join(PARTS))
    args = parser.parse_args()
    chosen = [name.strip() for name in args.parts.split(",")]
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    title = "Quick run, tiny sizes" if args.quick else "Measured on a GPU"
    report = Report(args.out.resolve(), title, STARTED)
    report.write()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = Path(tempfile.mkdtemp(prefix="fourm-gpu-"))
    deadline = STARTED + 60 * args.minutes - _MARGIN
    run = Run(report, args.device, args.quick, work, args.minutes, deadline, PARTS)
    try:
        preload(PARTS)
        for name in chosen:
            run.part(name)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report.write()
    print(args.out / "gpu.md")


if __name__ == "__main__":
    main()
