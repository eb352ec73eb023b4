"""README, quick start, recipes, measuring: every block is typed as it stands, in order, in a new folder."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forked import run_block, typed_fourm

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "docs/recipes.md",
    "docs/evaluate.md",
    pytest.param("docs/quickstart.md", marks=pytest.mark.more),
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with typed_fourm(tmp_path_factory.mktemp("typed")) as path:
        yield path


def blocks(page: str) -> list[tuple[str, str]]:
    """Title and commands of each block; those that need the repository or weights are no `sh` blocks."""
    found, title = list[tuple[str, str]](), ""
    pattern = r"^## ([^\n]+)$|^```(sh|python)\n(.*?)^```$"
    for match in re.finditer(pattern, (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL):
        title = match[1] or title
        if match[2]:
            found.append((title, match[3] if match[2] == "sh" else f"python - <<'END'\n{match[3]}END\n"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_works_as_written(page: str, path: str, tmp_path: Path) -> None:
    for tool in ("bash", "jq", "sha256sum"):
        if shutil.which(tool) is None and not os.environ.get("FOURM_NEEDS_TOOLS"):
            pytest.skip(f"the pages need {tool}, which is not installed")
    commands = blocks(page)
    assert commands
    for title, text in commands:
        done = run_block(text, tmp_path, path)
        assert done.returncode == 0, f"{page}, {title}:\n{text}\n{done.stdout}\n{done.stderr}"
