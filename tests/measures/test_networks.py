"""The networks of measures: Inception against recorded numbers, strict loading, where weights are looked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourm.errors import CheckpointError, MissingError
from fourm.hub.cache import converted_path, fetched_paths, find_measure
from fourm.hub.catalogue import CATALOGUE
from fourm.measures.measure import Pair, Settings
from fourm.measures.networks.clip import TextReader, load_clip
from fourm.measures.networks.inception import Inception, load_inception, resize
from fourm.measures.networks.lpips import LPIPS, load_lpips
from fourm.measures.tables import MEASURES, build_measure
from tests.hubcache import put
from tests.measures.seeded import RGB, picture, write_clip, write_inception, write_lpips

# Of torch-fidelity's network and torchmetrics' FID; see the file.
RECORDED = json.loads(Path(__file__).with_name("inception.json").read_text())


def test_inception_is_that_of_torch_fidelity(tmp_path: Path) -> None:
    network = load_inception(write_inception(tmp_path))
    shown = [picture(1), picture(2, 100, 331), picture(3, 299, 299)]
    for values, recorded in zip(shown, RECORDED["pictures"], strict=True):
        with torch.inference_mode():
            both = network(torch.from_numpy(values.transpose(2, 0, 1).copy())[None])
        features, logits = (one.flatten().double() for one in both)
        assert features[::128].tolist() == pytest.approx(recorded["features"], rel=1e-4, abs=1e-5)
        assert logits[::64].tolist() == pytest.approx(recorded["logits"], rel=1e-4, abs=1e-4)
        assert float(features.sum()) == pytest.approx(recorded["features_sum"], rel=1e-5)
        assert float(logits.abs().sum()) == pytest.approx(recorded["logits_sum"], rel=1e-5)


def test_fid_with_that_network_is_that_of_torchmetrics(tmp_path: Path) -> None:
    measure = build_measure(MEASURES["fid"], Settings(RGB, weights=write_inception(tmp_path)))
    measure.update([Pair(f"0/{seed}", None, picture(seed), picture(100 + seed)) for seed in range(8)])
    # Theirs has the roots of rounding errors in it, of the 2041 eigenvalues that are 0.
    assert measure.result()["fid"].value == pytest.approx(RECORDED["fid"], rel=1e-4)


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
    with pytest.raises(MissingError, match="machine; `fourm download clip-vit-large-patch14` fetches them$"):
        find_measure("clip-vit-large-patch14")
    folder = write_clip(tmp_path / "clip")
    names = ("model.safetensors", "tokenizer.json")
    hub_id = CATALOGUE["clip-vit-large-patch14"].hub_id
    put(tmp_path / "home" / "hub", hub_id, {name: folder / name for name in names})
    found = find_measure("clip-vit-large-patch14")
    assert load_clip(found).sizes.side == 16
    assert found.with_name("tokenizer.json").is_file()
