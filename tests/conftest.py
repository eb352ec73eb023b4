"""Fixtures shared by the tests: where the recorded truth lies, and how its files are read."""

import lzma
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# The same arithmetic for every batch shape, as the command line sets it before torch is imported.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


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
