"""The examples of the documents run as they stand, on the embedded model."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forked import run_block, typed_fourm
from tests.test_docs import blocks, reference

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "docs" / "examples" / "README.md"
SCHEDULE = ("--cond", "--targets", "--target", "--temps", "--top-p", "--cfg", "--sam-passes")
PAGES = sorted(path for path in INDEX.parent.glob("*.md") if path != INDEX)
SLOW = ("retrieval", "picture-to-everything")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PATH on which `fourm` is this checkout's."""
    with typed_fourm(tmp_path_factory.mktemp("bin")) as path:
        yield path


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.more] if page.stem in SLOW else []) for page in PAGES],
    ids=lambda page: page.stem,
)
def test_an_example_runs_as_it_stands(page: Path, shim: str, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "sh"))
    done = run_block(code, tmp_path, shim)
    assert done.returncode == 0, done.stderr
    made = re.findall(r"--(?:out|sheet) (\S+)", code)
    assert made
    for name in made:
        assert (tmp_path / name).exists()
    for path in tmp_path.rglob("*.png"):
        assert len(np.unique(np.asarray(Image.open(path).convert("RGB")))) > 1, path  # something to see


@pytest.mark.parametrize(
    "page", [ROOT / "docs" / "examples" / "README.md", *PAGES], ids=lambda page: page.stem
)
def test_what_examples_name_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    known = set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", reference()))
    for line in "\n".join([*blocks(page, "sh"), *blocks(page, "console")]).splitlines():
        if line.startswith("fourm "):
            assert set(re.findall(r"(?<=\s)--[a-z][a-z-]*", line)) <= known, line


def test_every_use_of_the_notebooks_has_a_page() -> None:
    index = INDEX.read_text(encoding="utf-8")
    assert all(f"({page.name}" in index for page in PAGES)
    assert len(re.findall(r"^\| (?:4M|retrieval)", index, re.MULTILINE)) == 9


def test_schedules_for_the_released_models_are_right(shim: str, tmp_path: Path) -> None:
    """Without their weights: what is asked of 4M-7 and 4M-21 fits their modalities."""
    from fourm.hub.files import find_model
    from fourm.schedule.plan import parse_chain

    for page in PAGES:
        code = "\n".join(blocks(page, "console")).replace("\\\n", " ")
        for line in code.splitlines():
            if not line.startswith("fourm generate"):
                continue
            words, schedule, model = shlex.split(line)[2:], list[str](), ""
            while words:
                word = words.pop(0)
                if word == "--model":
                    model = words.pop(0)
                elif word in SCHEDULE:
                    schedule += [word, words.pop(0)]
            assert parse_chain(" ".join(schedule), find_model(model, needs_weights=False)).steps
