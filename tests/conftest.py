"""Fixtures shared by the tests: where the recorded truth lies, and how its files are read."""

import json
import lzma
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.fetching import Watch
    from tests.hub_server import Hub

ROOT = Path(__file__).resolve().parent.parent
# The same arithmetic for every batch shape, as the command line sets it before torch is imported.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that need a GPU are skipped without one."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")


# Tests of properties that don't say how many examples they want.
# The same examples in every run, so that a change is judged by what it does; `make test-more` tries others.
settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("more", max_examples=300, deadline=None)
settings.load_profile("more" if os.environ.get("FOURM_MORE") else "quick")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of recorded reference results; tests that need it skip where the checkout has none beside it."""
    path = Path(os.environ.get("FOURM_GOLDEN", ROOT.parent / "shared" / "golden"))
    if not path.is_dir():
        pytest.skip("no recorded reference results beside this checkout (set FOURM_GOLDEN to their folder)")
    return path


@pytest.fixture(scope="session")
def unpacked(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The transformer fixtures of `golden/fm` with `model.safetensors` unpacked, as folders by name."""
    root = tmp_path_factory.mktemp("fm")
    for folder in sorted(p for p in (golden / "fm").iterdir() if (p / "cases.json").exists()):
        target = root / folder.name
        target.mkdir()
        packed, plain = folder / "model.safetensors.xz", folder / "model.safetensors"
        (target / "model.safetensors").write_bytes(
            lzma.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
        )
        if (folder / "config.json").exists():
            (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    return root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder; see `tests/tiny.py`."""
    from tests.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def store() -> Iterator[Any]:
    """An object store in memory, empty again afterwards."""
    import fsspec

    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def vq(golden: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of recorded tokenizers, with their small networks in the preset table."""
    from fourm.networks.tokenizers.vq import VIT_PRESETS, ViTPreset

    for name, row in json.loads((golden / "vq" / "vit_presets.json").read_text()).items():
        preset = ViTPreset(row["dim_tokens"], row["depth"], row["num_heads"], row["mlp_ratio"])
        monkeypatch.setitem(VIT_PRESETS, name, preset)
    return golden / "vq"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:
    """A Hub on loopback with one model, taken for the real one by this process; see `tests/fetching.py`."""
    from tests.fetching import hub_here

    with hub_here(tmp_path / "home", monkeypatch) as hub:
        yield hub


@pytest.fixture
def watch() -> "Watch":
    """A client of downloads that does not wait, and what it reported."""
    from tests.fetching import Watch

    return Watch()


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process, in an empty folder: exit code, stdout, stderr."""
    from fourm_cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)

    def run_main(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fourm", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return int(end.value.code or 0), out, err

    return run_main
