"""Which folders of a dataset become tokens of what, and their samples: found before anything is loaded."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from fourm.codecs.files import pack_png, write_array
from fourm.data.layout import CROP_SETTINGS, PICTURES, VALID_PIXELS, Key
from fourm.errors import CheckpointError, MissingError, UsageError
from fourm.hub.files import ModelFiles, find_model
from fourm.inputs.request import MAX_CROPS, TokenizeRequest
from fourm.sources.raw import find_raw_folders, list_raw_samples, missing_tokenizers, value_folders


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes folders with a picture each; returns the dataset's folder."""

    def made(*folders: str) -> Path:
        for folder in folders:
            path = tmp_path / "data" / folder / "f"
            path.mkdir(parents=True)
            (path / "x.png").write_bytes(pack_png(np.zeros((4, 4, 3), np.uint8)))
        return tmp_path / "data"

    return made


def found(root: Path, model: ModelFiles, *names: str) -> dict[str, str]:
    return {row.name: folder for row, folder in find_raw_folders(root, model, names or None).items()}


def test_every_folder_with_a_tokenizer_is_found(make: Callable[..., Path], tiny: Path) -> None:
    root, model = make("rgb", "depth", "caption", "holiday", "tok_clip@64"), find_model(tiny)
    assert found(root, model) == {"tok_rgb@64": "rgb", "tok_depth@64": "depth"}
    for name in ("rgb", "tok_rgb", "tok_rgb@64"):
        assert found(root, model, name) == {"tok_rgb@64": "rgb"}
    assert found(root, model, "depth", "rgb") == {"tok_depth@64": "depth", "tok_rgb@64": "rgb"}


def test_large_pictures_serve_every_size_and_those_of_one_size_their_own(make: Callable[..., Path]) -> None:
    root = make("rgb", "semseg_coco")
    model = find_model("demo")
    fine = replace(model.registry.get("tok_rgb@64"), name="tok_rgb@128", folder="rgb@128")
    config = {**model.config, "domains_in": [*model.reads, "tok_rgb@128"]}
    both = replace(model, registry=model.registry.extended([fine]), config=config)
    assert found(root, both, "rgb") == {"tok_rgb@64": "rgb", "tok_rgb@128": "rgb"}
    assert found(root, both, "tok_rgb@128") == {"tok_rgb@128": "rgb"}
    assert found(root, both, "semseg") == {"tok_semseg@64": "semseg_coco"}
    (root / "rgb@128").mkdir()
    assert found(root, both, "rgb") == {"tok_rgb@64": "rgb", "tok_rgb@128": "rgb@128"}


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["dept"], r"'dept' is nothing that model '.*' has a tokenizer for; did you mean 'depth'"),
        (["caption"], r"'caption' is nothing .*; it has rgb, clip, depth"),
        (["clip"], r"no folder clip for tok_clip@64; there is caption, depth, rgb"),
        ([""], "'' is nothing"),
    ],
)
def test_a_modality_without_folder_or_tokenizer_is_refused(
    make: Callable[..., Path], tiny: Path, names: list[str], problem: str
) -> None:
    root = make("rgb", "depth", "caption")
    with pytest.raises(UsageError, match=problem):
        find_raw_folders(root, find_model(tiny), names)


def test_a_dataset_without_anything_to_do_says_what_would_be_read(
    make: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    model = find_model(tiny)
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        find_raw_folders(tmp_path / "nowhere", model, None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file: is a file, not a folder"):
        find_raw_folders(tmp_path / "file", model, None)
    root = make("train/rgb", "val/rgb")
    with pytest.raises(UsageError, match=r"data: no folder that a tokenizer .* reads .*data/train has some"):
        find_raw_folders(root, model, None)
    assert found(root / "train", model) == {"tok_rgb@64": "rgb"}
    (root / "val/depth").mkdir()
    with pytest.raises(UsageError, match="no file in depth; files lie in FOLDER/ANY/NAME"):
        list_raw_samples(root / "val", root, find_raw_folders(root / "val", model, ["depth"]))


def test_tokenizers_that_are_missing_or_do_not_fit_are_told(
    make: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    root, model = make("rgb", "depth"), find_model(tiny)
    without = replace(model, tokenizers={k: p for k, p in model.tokenizers.items() if k != "depth"})
    assert found(root, without) == {"tok_rgb@64": "rgb"}
    (note,) = missing_tokenizers(value_folders(root, without), without)
    assert note.startswith("depth is left out: its tokenizer is not here; ")
    with pytest.raises(MissingError, match="tok_depth@64: its tokenizer 'depth' is not here"):
        find_raw_folders(root, without, ["depth"])
    with pytest.raises(UsageError, match=r"nothing to do; .* is left out"):
        find_raw_folders(root, replace(model, tokenizers={}), None)
    swapped = replace(model, tokenizers={**model.tokenizers, "rgb": model.tokenizers["depth"]})
    with pytest.raises(CheckpointError, match="64 tokens, but its tokenizer has only 32 codes"):
        find_raw_folders(root, swapped, None)
    save_file({"quantize._codebook.embed": np.zeros((64, 8), np.float32)}, tmp_path / "codes.safetensors")
    decoder = replace(model, tokenizers={**model.tokenizers, "rgb": tmp_path / "codes.safetensors"})
    with pytest.raises(UsageError, match="has no encoder"):
        find_raw_folders(root, decoder, ["rgb"])


def test_samples_are_matched_by_name_and_none_needs_every_modality(
    make: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    root, model = make("rgb", "depth", "mask_valid"), find_model(tiny)
    for name in ("rgb/f/y.png", "depth/g/z.png", "rgb/f/.hidden.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(pack_png(np.zeros((4, 4, 3), np.uint8)))
    (root / "crop_settings/f").mkdir(parents=True)
    write_array(np.zeros((1, 5), np.int64), root / "crop_settings/f/x.npy")
    folders = find_raw_folders(root, model, ["rgb", "depth"])
    samples = {one.key: one for one in list_raw_samples(root, tmp_path / "out", folders).samples}
    assert list(samples) == [Key("f", "x"), Key("f", "y"), Key("g", "z")]
    x, y, z = samples.values()
    assert set(x.files) == {"tok_rgb@64", "tok_depth@64", PICTURES, VALID_PIXELS, CROP_SETTINGS}
    assert (x.files[PICTURES], x.files[VALID_PIXELS]) == (root / "rgb/f/x.png", root / "mask_valid/f/x.png")
    assert x.files[CROP_SETTINGS] == root / "crop_settings/f/x.npy"
    assert (set(y.files), set(z.files)) == ({"tok_rgb@64", PICTURES}, {"tok_depth@64"})
    (only,) = list_raw_samples(root, tmp_path / "out", find_raw_folders(root, model, ["depth"])).samples[:1]
    assert only.files[PICTURES] == root / "rgb/f/x.png"  # crops are parts of it, also of depth alone
    (tmp_path / "out/crop_settings/f").mkdir(parents=True)
    write_array(np.zeros((1, 5), np.int64), tmp_path / "out/crop_settings/f/x.npy")
    own = list_raw_samples(root, tmp_path / "out", folders).samples[0].files[CROP_SETTINGS]
    assert own == tmp_path / "out/crop_settings/f/x.npy"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_crops": 0}, "`crops=0`: a sample has 1 to"),
        ({"num_crops": MAX_CROPS + 1}, "`crops=10001`"),
        ({"min_scale": 0.0}, "`min_scale=0`: a share"),
        ({"min_scale": 1.5}, "`min_scale=1.5`"),
        ({"min_scale": float("nan")}, "`min_scale=nan`"),
        ({"attention": "sdp"}, "did you mean 'sdpa'"),
    ],
)
def test_settings_of_tokenize_out_of_range_are_refused(
    tiny: Path, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        replace(TokenizeRequest(find_model(tiny), (), (), Path("out")), **changes)


@pytest.mark.parametrize("folder", ["depth", "rgb"])
def test_tokens_go_into_no_folder_that_is_read_also_beside(
    make: Callable[..., Path], tiny: Path, folder: str
) -> None:
    root, model = make("depth", "rgb"), find_model(tiny)
    samples = list_raw_samples(root, root, find_raw_folders(root, model, ["depth"])).samples
    with pytest.raises(UsageError, match=f"lies in {root / folder}, which this command reads"):
        TokenizeRequest(model, (), samples, root / folder / "new")
    assert TokenizeRequest(model, (), samples, root).out == root


def test_a_released_model_is_known_by_its_modalities_though_its_weights_are_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Path]
) -> None:
    from tests.hubcache import put_folder

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    files = find_model("4m-21-b", needs_weights=False)
    assert "tok_imagebind_global" in files.reads
    assert files.registry.get("tok_imagebind_global").grid == (4, 4)
    assert not files.tokenizers
    folder = tmp_path / "semseg"
    folder.mkdir()
    save_file(
        {"quantize._codebook.embed": np.zeros((4096, 32), np.float32), "encoder.pos_emb": np.zeros(1)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"codebook_size": 4096}))
    put_folder(tmp_path / "home/hub", "EPFL-VILAB/4M_tokenizers_semseg_4k_224-448", folder)
    root = make("semseg", "rgb")
    assert found(root, find_model("4m-7-b", needs_weights=False)) == {"tok_semseg@224": "semseg"}
    model = find_model("4m-7-b", needs_weights=False)
    (note,) = missing_tokenizers(value_folders(root, model), model)
    assert "`fourm download tok-rgb` fetches it" in note
    with pytest.raises(UsageError, match="did you mean '4m-21-b'"):
        find_model("4m-22-b", needs_weights=False)
    with pytest.raises(UsageError):
        find_model("tok-rgb", needs_weights=False)


def test_pictures_and_crops_that_cannot_be_told_are_problems_of_their_samples(
    make: Callable[..., Path], tiny: Path, tmp_path: Path
) -> None:
    root, model = make("depth", "rgb", "crop_settings"), find_model(tiny)
    (root / "crop_settings/f/x.npz").write_bytes(b"0")
    folders = find_raw_folders(root, model, ["depth"])
    assert "two files for one sample" in list_raw_samples(root, tmp_path / "out", folders).samples[0].problem
    (tmp_path / "out/crop_settings/f").mkdir(parents=True)
    write_array(np.zeros((1, 5), np.int64), tmp_path / "out/crop_settings/f/x.npy")
    assert (
        not list_raw_samples(root, tmp_path / "out", folders).samples[0].problem
    )  # the tokens' own crops are clear
    (root / "rgb/f/x.jpg").write_bytes(b"0")
    assert "rgb/f/x.jpg and x." in list_raw_samples(root, tmp_path / "out", folders).samples[0].problem
