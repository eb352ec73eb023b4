"""The networks of measures against those of other libraries, strict loading, where weights are looked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fourm.errors import CheckpointError, MissingError
from fourm.hub.cache import converted_path, fetched_paths, find_measure
from fourm.hub.catalogue import CATALOGUE
from fourm.measures.networks.clip import TextReader, load_clip, prepare
from fourm.measures.networks.inception import Inception, load_inception, resize
from fourm.measures.networks.lpips import LPIPS, load_lpips
from tests.hubcache import put
from tests.measures.seeded import CLIP_TEXTS, SEEDS, SHOWN, picture, write_clip, write_inception, write_lpips

# Of other libraries; `record.py` made it.
RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())


def test_inception_is_that_of_torch_fidelity(tmp_path: Path) -> None:
    network = load_inception(write_inception(tmp_path))
    for size, recorded in zip(SHOWN, RECORDED["inception"], strict=True):
        with torch.inference_mode():
            both = network(torch.from_numpy(picture(*size).transpose(2, 0, 1).copy())[None])
        features, logits = (one.flatten().double() for one in both)
        assert features[::128].tolist() == pytest.approx(recorded["features"], rel=1e-5, abs=1e-5)
        assert logits[::64].tolist() == pytest.approx(recorded["logits"], rel=1e-5, abs=1e-5)
        assert float(features.sum()) == pytest.approx(recorded["features_sum"], rel=1e-6)
        assert float(logits.abs().sum()) == pytest.approx(recorded["logits_sum"], rel=1e-6)


def test_clip_is_that_of_transformers(tmp_path: Path) -> None:
    network = load_clip(write_clip(tmp_path / "clip") / "model.safetensors")
    pixels = torch.stack([prepare(picture(seed), network.sizes.side) for seed in SEEDS])
    with torch.inference_mode():
        texts = torch.cat([network.embed_texts(torch.tensor([ids])) for ids in CLIP_TEXTS])
        cosines = network.embed_pictures(pixels) @ texts.T
    assert cosines.numpy() == pytest.approx(np.array(RECORDED["clip"]), rel=1e-5, abs=1e-5)


def test_pictures_are_resized_by_the_corners_of_pixels() -> None:
    row = torch.tensor([[[[0.0, 10.0, 30.0]]]])
    assert resize(row, 6)[0, 0, 0].tolist() == [0, 5, 10, 20, 30, 30]  # the last one has no right neighbour
    assert resize(row, 3)[0, 0, 0].tolist() == [0, 10, 30]


@pytest.mark.parametrize(
    ("write", "load"), [(write_inception, load_inception), (write_lpips, load_lpips), (write_clip, load_clip)]
)
def test_loading_is_strict(
    write: Callable[[Path], Path], load: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "clip" if write is write_clip else tmp_path)
    path = path / "model.safetensors" if path.is_dir() else path
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith("weight") and "classifier" not in name)
    for changed, message in (
        ({key: one for key, one in tensors.items() if key != name}, rf"'{name}' is missing"),
        ({**tensors, "more": torch.ones(1)}, "'more' has no place in the network"),
        (
            {**tensors, name: torch.ones(3, 5, 7)},
            r"'.*' is \(.*\), but the network asks for|not those of CLIP",
        ),
        ({**tensors, name: tensors[name] * float("nan")}, "not all numbers are finite"),
    ):
        save_file(changed, path)
        with pytest.raises(CheckpointError, match=message):
            load(path)


def test_the_networks_have_as_many_numbers_as_the_catalogue_says() -> None:
    used = {"inception-fid": Inception, "lpips-alex": LPIPS}
    with torch.device("meta"):
        counts = {
            name: sum(one.numel() for one in build().state_dict().values()) for name, build in used.items()
        }
    # The file of AlexNet has the layers of its classifier, too.
    counts["lpips-alex"] += 256 * 36 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 1000 + 1000
    assert counts == {name: CATALOGUE[name].num_params for name in used}


def test_what_is_no_tokenizer_of_clip_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip") / "tokenizer.json"
    assert TextReader(path).read("red", 60) == [54, 53, 55]
    path.write_text(path.read_text().replace("<|startoftext|>", "<start>"))
    with pytest.raises(CheckpointError, match="is not that of CLIP"):
        TextReader(path)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="not a readable tokenizer"):
        TextReader(path)


def test_weights_are_found_in_the_cache_or_their_commands_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    download, convert = "`fourm download lpips-alex` fetches them", "`fourm convert weights lpips-alex`"
    with pytest.raises(MissingError, match=rf"'lpips-alex' are not on this machine; {download}, {convert}"):
        find_measure("lpips-alex")
    entry = CATALOGUE["lpips-alex"]
    converted_path(entry).parent.mkdir(parents=True)
    for path in fetched_paths(entry):
        path.touch()
    with pytest.raises(MissingError, match=rf"machine; {convert} makes them safetensors"):
        find_measure("lpips-alex")
    converted_path(entry).touch()
    assert find_measure("lpips-alex") == converted_path(entry)
    with pytest.raises(MissingError, match=r"machine; `fourm download clip-vit-large-patch14` fetches them$"):
        find_measure("clip-vit-large-patch14")
    folder = write_clip(tmp_path / "clip")
    names = ("model.safetensors", "tokenizer.json")
    hub_id = CATALOGUE["clip-vit-large-patch14"].hub_id
    put(tmp_path / "home" / "hub", hub_id, {name: folder / name for name in names})
    found = find_measure("clip-vit-large-patch14")
    assert load_clip(found).sizes.side == 16
    assert found.with_name("tokenizer.json").is_file()
