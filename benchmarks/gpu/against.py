"""Measures a revision and the working tree on the same GPU, one after the other, and compares them.

    bash benchmarks/gpu.sh --compare REVISION OUTDIR [--quick] [--minutes 8] [--device cpu] [--parts ...]

Each tree runs its own `benchmarks.gpu`. Its result is in OUTDIR/old and OUTDIR/new, the comparison (by shares
of the peak that each measured) in OUTDIR/compare.json. On a machine without Git, REVISION is a folder.
"""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.compare import read, show
from benchmarks.gpu.driver import MINUTES, PARTS
from benchmarks.revisions import ROOT, checked_out, environment_of

CHOSEN = ("facts", "tokens", "4m-b", "4m-xl", "detokenize")
_START = 10.0  # seconds of each tree that no part counts


def measure(tree: Path, out: Path, options: list[str]) -> None:
    """Run the benchmark of a tree."""
    command = [sys.executable, "-m", "benchmarks.gpu", str(out), *options]
    with subprocess.Popen(command, cwd=tree, env=environment_of(tree)) as process:
        try:
            code = process.wait()
        except BaseException:
            process.terminate()  # it ends the processes of its parts
            raise
    if code:
        raise SystemExit(f"the benchmark of {tree} ended with exit code {code}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.sh --compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("revision", help="a commit, branch or tag, or a folder with its files")
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to check that everything runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="for both")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--parts", default=",".join(CHOSEN))
    args = parser.parse_args()
    chosen = [name.strip() for name in args.parts.split(",")]
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Limits of parts are meant for MINUTES; here those of the chosen ones share half of the time.
    minutes = MINUTES * (30 * args.minutes - _START) / sum(PARTS[name][1] for name in chosen)
    options = ["--device", args.device, "--parts", args.parts, "--minutes", f"{minutes:.2f}"]
    options += ["--quick"] if args.quick else []
    out = args.out.resolve()
    with checked_out(args.revision) as old:
        for name, tree in {"old": old, "new": ROOT}.items():
            print(f"== {name}: {tree}", flush=True)
            measure(tree, out / name, options)
    sys.exit(not show(read(out / "new"), read(out / "old"), out / "compare.json"))


if __name__ == "__main__":
    main()
