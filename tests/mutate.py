"""Would the tests notice? Changes one place of the library at a time and runs the tests nearest to it.

    python -m tests.mutate out/mutations.jsonl --count 100 --seed 1   # goes on where it was stopped
    python -m tests.mutate out/mutations.jsonl --again                # survivors once more, with all tests
    python -m tests.mutate out/mutations.jsonl --report               # the share caught, and the survivors

Not part of `.ci/run`: a hundred mutations take about an hour of one core. They are made in a copy of the
repository, so the checkout is never changed. Of the nearest test files only those tests run that reach the
changed function (or start a process, where nothing is seen), the quickest first. A survivor is a missing
test, or a change that no caller can see; a person has to say which.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.mutations import Mutation, Source

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    "decoding/engine", "decoding/sampling", "schedule/chain", "networks/checkpoint", "runs/pipeline",
    "inputs/origins", "results/job", "results/saver", "output/joining", "output/processes", "output/record",
    "output/samples", "data/layout", "files/writing", "hub/files",
)  # fmt: skip
FILES = (*(f"fourm/{name}.py" for name in MODULES), "fourm_cli/*.py")
NEAREST = {  # test files beside the one that has the module's name; not those that take minutes
    "engine": "dense superres weighted_guidance pipeline",
    "sampling": "engine superres",
    "chain": "schedule plan dense_cli engine",
    "checkpoint": "loading tokenizers pipeline",
    "saver": "pipeline generate_cli sr_command verify",
    "joining": "pipeline resume generate_cli",
    "processes": "joining writing resume verify verify_command",
    "record": "joining verify",
    "samples": "verify album resume sr_command",
    "layout": "app pipeline prompts joining",
    "writing": "app pipeline joining",
    "files": "hub loading names models_command",
    "pipeline": "generate_cli sr_command state resume refusals",
    "origins": "replay superres sr_command precedence recorded_conditions recorded_dataset opening",
    "app": "app_streams app_repeated refusals models_command download_command",
    "__main__": "app torchrun",
    "console": "app",
    "progress": "app events",
    "options": "options_completion app settings precedence",
    "generate": "app precedence conditions_cli generate_cli platforms replay sr_command tokenize_command",
    "folders": "plot_command retrieval verify_command",
    "schedules": "schedule_command",
    "transfers": "download_command",
    "models": "names",
    "things": "boxes tables",
    "maps": "features tables",
    "texts": "tables",
    "measure": "features maps tables",
}
COPIED = ("fourm", "fourm_cli", "tests", "cfgs", "demo", "docs", "benchmarks", "pyproject.toml", "README.md",
          "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", ".ci")  # fmt: skip
MOST = 20  # seconds of tests for one mutation, the quickest first; all of them with --again
SECONDS = 30  # a mutation is caught when its tests take this much longer than three times what they should
MEMORY, FILE_SIZE = 16 << 30, 1 << 30  # bytes that a mutated program may take


def nearest_files(file: str, root: Path = ROOT) -> list[str]:
    """Test files of a module: that of its name, and those in `NEAREST`."""
    name = Path(file).stem
    names = (name, f"{name}_command", f"{name}_cli", *NEAREST.get(name, "").split())
    names += ("docs",) if file.startswith("fourm_cli/") else ()  # help texts are in docs/cli.md
    found = [path for one in dict.fromkeys(names) for path in root.glob(f"tests/**/test_{one}.py")]
    return [path.relative_to(root).as_posix() for path in found] or ["tests/cli/test_app.py"]


class Bench:
    """A copy of the repository in which tests run, each time in a new process that has torch already."""

    def __init__(self, copy: Path, notes: Path, *, thorough: bool) -> None:
        self.copy, self._notes, self._thorough = copy, notes, thorough
        for name in COPIED:
            source, target = ROOT / name, copy / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        self._stamp = time.time()

    def is_caught(self, mutation: Mutation) -> bool:
        """Whether a test fails, or does not end, with this mutation."""
        path, source = self.copy / mutation.file, Source(self.copy, mutation.file)
        tests = self._tests(mutation)
        path.write_bytes(source.changed(mutation))
        self._stamp += 1  # Python compiles a file anew only when its time in seconds or its size has changed
        os.utime(path, (self._stamp, self._stamp))
        try:
            return self._pytest(list(tests), sum(tests.values()), choose=True) != 0
        finally:
            path.write_bytes(source.data)

    def _tests(self, mutation: Mutation) -> dict[str, float]:
        """Names and seconds of the tests that reach a mutation; of quick files and tests the first."""
        known = {
            name: test
            for file in nearest_files(mutation.file, self.copy)
            for name, test in self._known(file).items()
        }
        passed = {name: test for name, test in known.items() if test["passed"]}
        place = f"{mutation.file} {mutation.function}"
        reached = {
            name: test for name, test in passed.items() if place in test["functions"] or test["starts"]
        }
        chosen = reached if mutation.function and reached else passed
        if not self._thorough:
            chosen = _quickest(chosen)
        whole: dict[str, float] = {}
        for test in chosen.values():
            whole[test["file"]] = whole.get(test["file"], 0.0) + test["seconds"]
        order = sorted(chosen.items(), key=lambda t: (whole[t[1]["file"]], t[1]["file"], t[1]["seconds"]))
        return {name: test["seconds"] for name, test in order}

    def _known(self, file: str) -> dict[str, dict[str, Any]]:
        """What the tests of a file do without a mutation; kept, as long as the file stays the same."""
        digest = hashlib.sha256((self.copy / file).read_bytes()).hexdigest()[:12]
        notes = self._notes / f"{Path(file).stem}-{digest}.json"
        if not notes.exists():
            self._notes.mkdir(parents=True, exist_ok=True)
            self._pytest([file], 1200, notes=notes)
        return json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}

    def _pytest(
        self, tests: list[str], seconds: float, *, choose: bool = False, notes: Path | None = None
    ) -> int:
        """Exit code of these tests; 1 where they do not end."""

        def work() -> int:
            import pytest

            from tests.touched import Chosen, Touched

            touched = Touched(self.copy)
            files = list(dict.fromkeys(name.split("::")[0] for name in tests))
            words = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", *(["-x"] if choose else []), *files]
            code = int(pytest.main(words, plugins=[Chosen(tests) if choose else touched]))
            if notes is not None:
                said = {name: asdict(test) for name, test in touched.tests.items()}
                notes.write_text(json.dumps(said), encoding="utf-8")
            return code

        return self._in_a_process(work, SECONDS + 3 * seconds)

    def _in_a_process(self, work: Callable[[], int], seconds: float) -> int:
        child = os.fork()
        if not child:
            os._exit(self._isolated(work))
        end, ended = time.monotonic() + seconds, (0, 1)
        try:
            while ended[0] == 0 and time.monotonic() < end:
                time.sleep(0.05)
                ended = os.waitpid(child, os.WNOHANG)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # also what a test left behind
        return os.waitstatus_to_exitcode(ended[1] if ended[0] else os.waitpid(child, 0)[1])

    def _isolated(self, work: Callable[[], int]) -> int:
        """In the new process: the copy alone can be imported, nothing is printed, nothing grows for ever."""
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        os.chdir(self.copy)
        said = os.open(self.copy / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.path[:] = [str(self.copy), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "fourm", "fourm_cli")]:
            del sys.modules[name]
        try:
            return work()
        except BaseException:
            return 1
        finally:
            sys.stdout.flush()


def _quickest(tests: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """So many tests as take `MOST` seconds."""
    spent, found = 0.0, {}
    for name, test in sorted(tests.items(), key=lambda item: item[1]["seconds"]):
        spent += test["seconds"]
        if spent < MOST:
            found[name] = test
    return found


def prepare() -> None:
    """What every process of tests needs, once: variables, and libraries that take seconds to import."""
    os.environ.update(OMP_NUM_THREADS="1", MKL_CBWR="AUTO,STRICT")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what runs is ended, too
    if (golden := ROOT.parent / "shared" / "golden").is_dir():
        os.environ.setdefault("FOURM_GOLDEN", str(golden))
    for name in "torch numpy PIL.Image pytest hypothesis yaml typer rich tokenizers".split():
        __import__(name)


def run(log: Path, mutations: list[Mutation], *, thorough: bool) -> None:
    """Try mutations and log each."""
    log.parent.mkdir(parents=True, exist_ok=True)
    prepare()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "fourm", log.parent / "tests", thorough=thorough)
        os.environ["PYTHONPATH"] = str(bench.copy)
        for mutation in mutations:
            started = time.perf_counter()
            caught = bench.is_caught(mutation)
            seconds = round(time.perf_counter() - started, 1)
            entry = {"name": mutation.name, "caught": caught, "seconds": seconds} | asdict(mutation)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            print("caught  " if caught else "SURVIVED", mutation, flush=True)


def drawn(count: int, seed: int, patterns: list[str]) -> list[Mutation]:
    """So many mutations, as many from each file, so that the short ones are not forgotten."""
    files = sorted({p.relative_to(ROOT).as_posix() for pattern in patterns for p in ROOT.glob(pattern)})
    every = {file: list(Source(ROOT, file).mutations()) for file in files}
    order = random.Random(seed)
    for mutations in every.values():
        order.shuffle(mutations)
    rounds = itertools.zip_longest(*every.values())
    return [mutation for one in rounds for mutation in one if mutation is not None][:count]


def report(log: Path) -> None:
    """The share that was caught, by file, and every survivor."""
    entries = list(read(log).values())
    for file in sorted({entry["file"] for entry in entries}):
        mine = [entry["caught"] for entry in entries if entry["file"] == file]
        print(f"{sum(mine):4} of {len(mine):3}  {file}")
    print(f"{sum(e['caught'] for e in entries):4} of {len(entries):3}  in all")
    for entry in entries:
        if not entry["caught"]:
            print(f"{entry['file']}:{entry['line']}: {entry['before']!r} -> {entry['after']!r}")


def read(log: Path) -> dict[str, dict[str, Any]]:
    """What was tried, the last time of each mutation."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return {entry["name"]: entry for entry in map(json.loads, lines)}


def survivors(log: Path) -> list[Mutation]:
    """Mutations that were not caught, where they stand now; those whose place has gone are left out."""
    left = [entry for entry in read(log).values() if not entry["caught"]]
    found = []
    for entry in left:
        every = Source(ROOT, entry["file"]).mutations()
        place = (entry["function"], entry["before"], entry["after"])
        same = [m for m in every if (m.function, m.before, m.after) == place]
        found += sorted(same, key=lambda m: abs(m.start - entry["start"]))[:1]
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("log", type=Path, help="one line of JSON for each mutation")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--files", nargs="*", default=list(FILES), help="patterns of the files to change")
    parser.add_argument("--again", action="store_true", help="try what survived once more, with all tests")
    parser.add_argument("--report", action="store_true", help="only say what the log holds")
    options = parser.parse_args()
    if not options.report:
        known = read(options.log)
        chosen = [m for m in drawn(options.count, options.seed, options.files) if m.name not in known]
        run(options.log, survivors(options.log) if options.again else chosen, thorough=options.again)
    report(options.log)


if __name__ == "__main__":
    main()
