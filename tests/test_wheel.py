"""The wheel, built and used without the repository: what it holds, what it says of itself, and pictures."""

import json
import os
import subprocess
import sys
import sysconfig
from email import message_from_string
from email.message import Message
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fourm import __version__
from fourm.schedule.configs import list_configs

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(os.name == "nt", reason="an environment has other folders there")


def run(*words: str | Path, cwd: Path) -> str:
    """What a program prints; it knows nothing of this checkout, nor of models in the Hub's cache."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"HF_HOME": str(cwd / "cache"), "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone; the packages that it needs are those of this environment."""
    if find_spec("hatchling") is None and not os.environ.get("FOURM_NEEDS_TOOLS"):
        pytest.skip("no hatchling, which builds the wheel (pip install hatchling)")
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("fourm-*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-compile", wheel, cwd=folder)
    (packages,) = folder.glob("venv/lib/python*/site-packages")
    # Python searches the folder that this file names, but follows no such file in it: not the link of an
    # editable installation.
    (packages / "needed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def metadata(installed: Path) -> Message:
    (path,) = installed.glob("venv/lib/python*/site-packages/fourm-*.dist-info/METADATA")
    return message_from_string(path.read_text(encoding="utf-8"))


def test_a_wheel_is_all_that_a_picture_takes(installed: Path, tmp_path: Path) -> None:
    fourm = installed / "venv" / "bin" / "fourm"
    assert run(fourm, "--version", cwd=tmp_path) == f"fourm {__version__}\n"
    rows = json.loads(run(fourm, "models", "--configs", "--json", cwd=tmp_path))
    assert [row["name"] for row in rows] == list(list_configs())
    assert all(Path(row["path"]).is_relative_to(installed) for row in rows)
    words = ("schedule", "show", "-c", "4m-xl_mod7+sr_4m-l_mod7", "-gc", "T2CR_roar49-25_cfg3_t6-0.5")
    assert len(json.loads(run(fourm, *words, "--json", cwd=tmp_path))["steps"]) == 74
    caption = "a small red circle above a blue square"
    words = ("generate", caption, "-gc", "caption_to_picture", "--out", "out")
    assert run(fourm, *words, cwd=tmp_path) == "out\n"
    with Image.open(tmp_path / "out" / "rgb" / "00000" / "000000.png") as picture:
        red, _, blue = np.asarray(picture.convert("RGB"), dtype=int).transpose(2, 0, 1)
    assert (red - blue)[:32].max() > 100  # the circle
    assert (blue - red)[32:].max() > 100  # the square
    run(fourm, "verify", "out", cwd=tmp_path)


LINES = """
import fourm
from PIL import Image

model = fourm.load("demo")
result = model("a small red circle above a blue square")
assert isinstance(result.rgb, Image.Image) and result.rgb.size == (64, 64)
result.rgb.save("cat.png")

seen = model(rgb=Image.open("cat.png"), targets="caption depth normal semseg")
assert "red circle" in seen.caption
assert (seen.depth.shape, str(seen.depth.dtype)) == ((64, 64), "float32")
assert (seen.normal.shape, str(seen.normal.dtype)) == ((64, 64, 3), "uint8")
assert (seen.semseg.shape, str(seen.semseg.dtype)) == ((64, 64), "uint8")
assert (seen.tokens["tok_depth"].shape, str(seen.tokens["tok_depth"].dtype)) == ((64,), "int64")
assert seen._repr_png_().startswith(b"\\x89PNG")
print(seen.save("out/cat"))
"""


def test_the_lines_of_python_run_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    saved = run(installed / "venv" / "bin" / "python", "-c", LINES, cwd=tmp_path).strip()
    assert (tmp_path / saved).samefile(tmp_path / "out" / "cat")
    assert {path.name for path in (tmp_path / saved).iterdir()} >= {
        "run.json", "samples", "rgb", "caption", "depth", "normal", "semseg", "tok_depth@64"
    }  # fmt: skip
    run(installed / "venv" / "bin" / "fourm", "verify", saved, cwd=tmp_path)


def test_the_wheel_says_what_it_is(installed: Path) -> None:
    found = metadata(installed)
    assert found["Description-Content-Type"] == "text/markdown"
    assert found.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert {url.split(", ")[-1] for url in found.get_all("Project-URL", [])} >= {
        "https://arxiv.org/abs/2312.06647", "https://huggingface.co/EPFL-VILAB"
    }  # fmt: skip
    classifiers = found.get_all("Classifier", [])
    assert [name.rpartition(" ")[2] for name in classifiers if "Python :: 3." in name] == [
        "3.11", "3.12", "3.13", "3.14"
    ]  # fmt: skip
