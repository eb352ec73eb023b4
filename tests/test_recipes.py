"""docs/recipes.md: every block of commands is run as it stands, one after the other, in one folder."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "recipes.md"


def recipes() -> list[tuple[str, str]]:
    """Title and commands of each recipe."""
    found, title = list[tuple[str, str]](), ""
    for match in re.finditer(
        r"^## ([^\n]+)$|^```sh\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL
    ):
        if match[1]:
            title = match[1]
        else:
            found.append((title, match[2]))
    return found


def test_every_recipe_works_as_written(tmp_path: Path) -> None:
    for tool in ("bash", "jq", "sha256sum"):
        if shutil.which(tool) is None and not os.environ.get("FOURM_NEEDS_TOOLS"):
            pytest.skip(f"the recipes need {tool}, which is not installed")
    commands = recipes()
    assert len(commands) > 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for title, text in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text], cwd=tmp_path, capture_output=True, text=True,
            check=False, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, f"{title}:\n{done.stdout}\n{done.stderr}"
