"""docs/api.md is made from docstrings, and its examples run; the notebook runs.

UPDATE_DOCS=1 writes docs/api.md anew.
"""

import inspect
import os
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

import fourm
from fourm.api import making, reading, results
from fourm.codecs import taking
from fourm.evaluation.results import Evaluation, Number
from fourm.results.events import Event

ROOT = Path(__file__).resolve().parents[2]
PAGE, NOTEBOOK = ROOT / "docs" / "api.md", ROOT / "docs" / "notebook.ipynb"
HEAD = """# From Python

Made from docstrings. [notebook.ipynb](notebook.ipynb) shows everything with pictures, [recipes.md](recipes.md) has whole programs.

```python
import fourm

model = fourm.load("demo")  # a short name, a Hub id, a folder or a file; loaded once
result = model("a small red circle above a blue square")  # words mean caption; targets: the usual ones
result.rgb  # a PIL picture, shown inline in a notebook

seen = model(rgb=result.rgb, targets="caption depth normal semseg")
seen.caption  # str
seen.depth  # numpy (H, W) float32
seen.tokens["tok_depth"]  # numpy (L,) int64
seen.save("out/cat")  # the same files that `fourm generate` writes, run.json included

model.embed(rgb=result.rgb, caption="a circle")  # features of the encoder: numpy (layers, width)

for event in model.stream("a large green triangle", steps=4):
    picture = event.preview("rgb")  # as it is after this step

for out, steps in (("out/many", 4), ("out/fine", 8)):
    request = model.request("a large green triangle", out=out, variations=2, steps=steps)
    for event in fourm.run(request, model):  # a run that writes a folder, for many samples
        pass
fourm.read("out/many")[1].rgb

found = fourm.evaluate("out/many", "out/fine", measures="psnr,token_share")  # a table
found.value("psnr")  # dB, the mean over samples and variations
found.rows["00000/000000", 1]["rgb/psnr"]  # that of one
```

A result is that of the command line, byte by byte, for the same model, schedule, seed, key and variation. `import fourm` imports no torch; `fourm.load` does.
Errors are `fourm.FourMError`, one sentence each. Modalities are named as in [modalities.md](modalities.md), settings of schedules as in [schedules.md](schedules.md).
"""  # noqa: E501
FILES = """A path, as text or `Path`, is read as the command line reads it; text of a sequence (captions, boxes) is read
as such, and its file only as a `Path`. Tokens are a list or an array (L,), also of the shape of their grid."""  # noqa: E501
MEMBERS = {
    fourm.Model: (
        "generate", "stream", "tokenize", "decode", "embed", "request", "close", "name", "device", "dtype",
        "reads", "writes",
    ),
    making.StreamEvent: ("preview",),
    fourm.Result: ("picture", "sheet", "save", "names", "scores"),
    Evaluation: ("value", "to_json", "to_csv"), Number: (),
    results.Tokens: (), reading.Results: (), fourm.Schedule: (), fourm.FourMError: (),
}  # fmt: skip


def signature_of(name: str, function: Any) -> str:
    """The signature as one reads it, without the rooms that names come from, in lines of 110 characters."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(function)))
    text = re.sub(r"\b(?:fourm|pathlib|collections|os|typing|numpy|PIL|np)\.(?:[a-z_]+\.)*", "", text)
    text = text.replace("(self, ", "(").replace("(self)", "()")
    text = text.replace(str(Event).replace("fourm.results.events.", ""), "Event")
    text = re.sub(r"ndarray\[tuple\[Any, \.\.\.\], dtype\[\w+\]\]", "ndarray", text)
    return textwrap.fill(name + text, 110, subsequent_indent="    ", break_on_hyphens=False)


def reference() -> str:
    """The page."""
    table = (inspect.getdoc(taking) or "").partition("\n\n")[2]
    parts = [HEAD.strip(), "## Values that conditions take", table, FILES]
    for name in ("load", "run", "read", "evaluate"):
        function = getattr(fourm, name)
        parts += [
            f"## fourm.{name}",
            f"```text\n{signature_of(name, function)}\n```",
            inspect.getdoc(function) or "",
        ]
    for kind, members in MEMBERS.items():
        title = f"fourm.{kind.__name__}" if kind.__name__ in fourm.__all__ else kind.__name__
        parts += [f"## {title}", inspect.getdoc(kind) or ""]
        for name in members:
            member = inspect.getattr_static(kind, name)
            if isinstance(member, property):
                parts.append(f"`{name}`: {inspect.getdoc(member)}")
            else:
                parts += [f"### {kind.__name__}.{name}", f"```text\n{signature_of(name, member)}\n```",
                          inspect.getdoc(member) or ""]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def test_the_reference_of_python_is_current() -> None:
    if os.environ.get("UPDATE_DOCS"):
        PAGE.write_text(reference(), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == reference(), "UPDATE_DOCS=1 pytest tests/api writes it anew"


def test_everything_public_is_in_the_reference() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in fourm.__all__ if f"fourm.{name}" not in page and not name.startswith("__")] == [
        "Request"
    ]
    assert len(fourm.__all__) < 12


def test_the_examples_of_the_reference_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = dict[str, Any]()
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(code, names)
    assert names["seen"].depth.shape == (64, 64)
    assert len([*tmp_path.rglob("out/many/rgb/00000/*.png")]) == 2


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells run in a kernel of their own; what they show are pictures and texts."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(tmp_path)}}
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    shown = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        for kind in output.get("data", {})
    ]
    assert shown.count("image/png") >= 10


def test_the_notebook_is_kept_with_its_pictures_and_names_what_there_is() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    headings = re.findall(r"^## (\d)\.", "\n".join(cell.source for cell in notebook.cells), re.MULTILINE)
    assert headings == [str(number) for number in range(1, 10)]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert [one for one in outputs if one.output_type == "error" or one.get("name") == "stderr"] == []
    assert sum("image/png" in one.get("data", {}) for one in outputs) >= 10
    assert NOTEBOOK.stat().st_size < 700_000
    for cell in notebook.cells:
        if cell.cell_type == "code":
            compile(cell.source, "cell", "exec")
