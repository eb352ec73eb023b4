"""The files of another revision, and the environment in which a process uses them."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def checked_out(revision: str, root: Path = ROOT) -> Iterator[Path]:
    """A temporary folder with the files of a revision; a folder of that name is taken as it is."""
    if Path(revision).is_dir():
        yield Path(revision).resolve()
        return
    with tempfile.TemporaryDirectory(prefix="fourm-revision-") as folder:
        tree, packed = Path(folder, "tree"), Path(folder, "tree.tar")
        command = ["git", "-C", str(root), "archive", f"--output={packed}", revision]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[0]
            raise SystemExit(
                f"{revision}: no folder, and no revision either ({said}); give a folder with its files"
            ) from None
        with tarfile.open(packed) as tar:
            tar.extractall(tree, filter="data")
        yield tree


def environment_of(tree: Path) -> dict[str, str]:
    """Python imports `fourm`, `fourm_cli` and `benchmarks` of this tree, whatever is installed.

    Variables that torch reads are as the tree's own commands set them.
    """
    others = os.environ.get("PYTHONPATH")
    paths = [str(tree), *([others] if others else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
    code = (
        "import json, os, fourm as f; getattr(f, 'set_variables', dict)(); print(json.dumps({**os.environ}))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(said.stdout)
