"""What the catalogue derives of released weights is what their recorded manifests and headers say."""

import json
from pathlib import Path

import pytest

from fourm.hub.catalogue import CATALOGUE, TOKENIZERS, Entry
from fourm.hub.files import find_model
from fourm.hub.header import TensorInfo
from fourm.hub.sizes import TokenizerSizes, released_tensors
from fourm.modalities.registry import RELEASED
from fourm.schedule.cost import estimate
from fourm.schedule.plan import build_chain
from fourm.schedule.settings import read_settings
from tests.hub.test_catalogue import MODELS, manifest_of


@pytest.mark.parametrize("entry", MODELS, ids=lambda e: e.name)
def test_the_tensors_of_a_model_are_as_recorded(entry: Entry, golden: Path) -> None:
    recorded = json.loads((golden / "fm" / "manifests" / f"{manifest_of(entry)}.json").read_text())
    tensors = released_tensors(entry.config, RELEASED)
    assert {name: list(info.shape) for name, info in tensors.items()} == {
        name: info["shape"] for name, info in recorded["keys"].items()
    }
    assert max(info.data_offsets[1] for info in tensors.values()) == entry.num_bytes


@pytest.mark.parametrize("entry", TOKENIZERS.values(), ids=lambda e: e.name)
def test_the_sizes_of_a_tokenizer_are_as_recorded(entry: Entry, golden: Path) -> None:
    name = entry.hub_id.removeprefix("EPFL-VILAB/4M_tokenizers_")
    whole = golden / "divae" / "manifests" / f"4M_tokenizers_{name}.json"
    recorded = json.loads(
        (whole if whole.exists() else golden / "vq" / "manifests" / f"{name}.json").read_text()
    )
    tensors = recorded.get("tensors") or recorded["state_dict"]
    assert TokenizerSizes.of(
        {name: TensorInfo("F32", tuple(info["shape"]), (0, 0)) for name, info in tensors.items()}
    ) == entry.sizes  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_costs_the_same_before_and_after_it_was_fetched(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    entry = CATALOGUE["4m-7-b"]
    tensors = released_tensors(entry.config, RELEASED)
    raw = json.dumps({name: {"dtype": one.dtype, "shape": one.shape, "data_offsets": one.data_offsets}
                      for name, one in tensors.items()}).encode()  # fmt: skip
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + entry.num_bytes)  # a hole: no byte of it is ever read
    (tmp_path / "config.json").write_text(json.dumps(dict(entry.config)))
    here, planned = find_model(tmp_path), find_model("4m-7-b", needs_weights=False)
    costs = [
        estimate(build_chain(read_settings([], {}).base, files), files, dtype) for files in (here, planned)
    ]
    assert costs[0].memory == costs[1].memory
    assert [part.name for part in costs[0].missing] == ["tok-clip", "tok-rgb", "text-tokenizer"]
    assert costs[1].missing == (entry, *costs[0].missing)
