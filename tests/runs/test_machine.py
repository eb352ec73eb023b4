"""`fourm env`: what a report of a bug needs, and nothing that is secret."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fourm import __version__

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


def test_versions_devices_memory_caches_and_variables_are_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none" / "hub"))
    code, out, err = run("env", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert facts["versions"]["fourm"].startswith(__version__)
    assert facts["versions"]["torch"] == torch.__version__
    assert "not installed" not in facts["versions"]["safetensors"]
    assert f"{torch.get_num_threads()} threads" in facts["devices"]["cpu"]
    assert 0 < facts["memory"]["available"] <= facts["memory"]["total"]
    assert facts["caches"]["here"] == str(tmp_path)
    assert facts["caches"]["models, free"] > 0
    assert facts["environment"]["HF_HUB_CACHE"] == str(tmp_path / "none" / "hub")
    code, out, _ = run("env")
    assert code == 0
    assert re.search(rf"^versions +torch +{re.escape(torch.__version__)} *$", out, re.MULTILINE)


def test_no_secret_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2")
    monkeypatch.setenv("https_proxy", "http://me:hunter2@proxy:3128")
    monkeypatch.setenv("http_proxy", "me:hunter2@proxy:3128")
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    for words in (["env"], ["env", "--json"]):
        assert "hunter2" not in run(*words)[1]
    said = json.loads(run("env", "--json")[1])["environment"]
    assert said["HF_TOKEN"] == "set"
    assert said["HUGGING_FACE_HUB_TOKEN"] == "not set"
    assert said["https_proxy"] == "http://proxy:3128"
    assert said["http_proxy"] == "proxy:3128"


def test_a_torch_that_cannot_be_imported_is_told_in_its_row(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libcudart.so: no such file')\n")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "fourm_cli", "env", "--json"]
    done = subprocess.run(command, env=env, cwd=tmp_path, text=True, capture_output=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["versions"]["torch"] == "cannot be used (OSError: libcudart.so: no such file)"
    assert facts["devices"] == {}
    assert facts["memory"]["total"] > 0
