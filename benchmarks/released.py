"""Time and memory by stage of one picture at the real sizes of 4M-21 B and its tokenizers.

    python -m benchmarks.released [--bundle FOLDER] [--model 4m-21-b] [--dtype float32] [--json FILE]
                                  [-- OPTION ...]

Writes a bundle of random weights (see `benchmarks.bundle`) unless the folder holds one, then types
`fourm generate "a lake house" --targets tok_clip-tok_rgb` and follows its events and its memory. Everything
behind `--` goes to that command, for example `--detokenizer-steps 25`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.bundle import write_bundle
from benchmarks.tables import Table, add_json

POLL = 0.02  # seconds between looks at the process
TARGETS = "tok_clip-tok_rgb"


@dataclass(slots=True)
class Stage:
    """What goes on between two kinds of events."""

    name: str
    seconds: float = 0.0
    peak: int = 0  # bytes of resident memory


def stage_after(event: dict[str, object]) -> str:
    """What a run does once it has reported this event."""
    match event["event"]:
        case "loading":
            return "load weights"
        case "step" if event["done"] == event["total"]:
            return "turn tokens into values" if event["step"] == int(str(event["steps"])) - 1 else "next"
        case "step":
            return f"decode {event['target']}"
        case "detokenized" if event["done"] != event["total"]:
            return "turn tokens into values"
        case "finished":
            return "end"
    return "write"


def resident(pid: int) -> int:
    """Bytes of a process that are in memory; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except (OSError, IndexError):
        return 0


def follow(command: list[str], log: Path, output: IO[str] | None = None) -> list[Stage]:
    """Run a command to its end; its stages, as the events in its log tell them.

    What it prints goes to `output`, by default to the terminal.
    """
    stages, is_decoding, read = [Stage("start Python and torch")], False, 0
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=output, stderr=output) as process:
        while process.poll() is None:
            now = time.perf_counter()
            stages[-1].seconds += now - began
            stages[-1].peak, began = max(stages[-1].peak, resident(process.pid)), now
            lines = log.read_text().splitlines() if log.exists() else []
            for line in lines[read:]:
                event = json.loads(line)
                name = stage_after(event)
                if event["event"] == "step":
                    is_decoding = name != "turn tokens into values"
                elif is_decoding and event["event"] != "finished":
                    continue  # on a GPU: of the batch before, which is saved meanwhile
                if name == "next":
                    name = "decode the next target"
                if event["event"] != "started" and name != stages[-1].name:
                    stages.append(Stage(name))
            read = len(lines)
            time.sleep(POLL)
        if process.returncode:
            raise SystemExit(process.returncode)
    return stages


def merged(stages: list[Stage]) -> list[Stage]:
    """Stages with the same name as one; the first step of a target belongs to it."""
    found = dict[str, Stage]()
    for stage, after in zip(stages, [*stages[1:], None], strict=True):
        name = stage.name
        if name == "decode the next target" and after is not None:
            name = after.name
        kept = found.setdefault(name, Stage(name))
        kept.seconds, kept.peak = kept.seconds + stage.seconds, max(kept.peak, stage.peak)
    return list(found.values())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=None)
    parser.add_argument("--model", default="4m-21-b")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=None)
    add_json(parser)
    parser.add_argument("options", nargs="*")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bundle = args.bundle or Path(work, "bundle")
        if not (bundle / "config.json").exists():
            write_bundle(bundle, args.model)
        log = Path(work, "events.jsonl")
        command = [sys.executable, "-m", "fourm_cli", "generate", "a lake house", "--targets", TARGETS]
        command += ["--model", str(bundle), "--dtype", args.dtype, "--log-json", str(log)]
        command += ["--out", str(args.out or Path(work, "out")), *args.options]
        stages = merged(follow(command, log))
    total, peak = sum(s.seconds for s in stages), max(s.peak for s in stages)
    table = Table({"stage": "", "seconds": ".1f", "share": ".0%", "peak memory, GB": ".2f"}, args.json)
    for stage in [*stages, Stage("all", total, peak)]:
        table.add(stage.name, stage.seconds, stage.seconds / total, stage.peak / 1e9)


if __name__ == "__main__":
    main()
