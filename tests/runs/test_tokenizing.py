"""Pictures and maps become token files: as recorded, one crop for all, whole files, one failure at a time."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from fourm.codecs.files import pack_png, read_crops, read_size, write_array
from fourm.codecs.images import GridCodec
from fourm.codecs.maps import FORMS, cut
from fourm.data.dataset import TOKENIZER
from fourm.data.layout import centre_crop
from fourm.errors import FourMError, UsageError
from fourm.hub.files import ModelFiles, find_model
from fourm.inputs.request import TokenizeRequest
from fourm.modalities.registry import RELEASED, Kind, Modality
from fourm.networks.tokenizers.config import VQConfig, read_config
from fourm.networks.tokenizers.vq import VQTokenizer
from fourm.results.events import Event, Failed, Finished, Saved, Started
from fourm.runs.tokenizing import tokenize_dataset
from fourm.sources.raw import find_raw_folders, list_raw_samples

Array = NDArray[Any]
ROW = Modality("tok_rgb@48", Kind.GRID, 9, 64, (3, 3), 16, 48, codec="tok_rgb", tokenizer="rgb", folder="rgb")
RECORDED = "pretokenize/dataset/train"


def request(
    root: Path, model: ModelFiles, *names: str, out: Path | None = None, **changes: Any
) -> TokenizeRequest:
    out = out or root
    folders = find_raw_folders(root, model, names or None)
    rows = tuple(folders)
    made = TokenizeRequest(model, rows, list_raw_samples(root, out, folders).samples, out, device="cpu")
    return replace(made, **changes)


def failures(events: list[Event]) -> dict[str, str]:
    return {event.key: event.reason for event in events if isinstance(event, Failed)}


def counts(events: list[Event]) -> tuple[int, int, int]:
    assert isinstance(events[-1], Finished)
    return events[-1].saved, events[-1].skipped, events[-1].failed


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def recorded_model(vq: Path) -> ModelFiles:
    config = {"domains_in": [ROW.name], "domains_out": [ROW.name]}
    registry = RELEASED.extended([ROW])
    return ModelFiles("recorded", "", vq, config, registry, tokenizers={"rgb": vq / "vit_cosine"})


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three samples of different sizes, RGB and depth, for the tiny model."""
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(64, 64), (70, 90), (200, 65)]):
        for folder in ("rgb", "depth"):
            (tmp_path / "data" / folder / "f").mkdir(parents=True, exist_ok=True)
        name = f"f/s{number}.png"
        colours = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        picture = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "data/rgb" / name)
        levels = rng.integers(0, 65536, (height, width), dtype=np.uint16)
        Image.fromarray(levels).save(tmp_path / "data/depth" / name)
    return tmp_path / "data"


def test_recorded_pictures_become_the_recorded_tokens(
    vq: Path, recorded_model: ModelFiles, tmp_path: Path
) -> None:
    root = vq / RECORDED
    events = list(tokenize_dataset(request(root, recorded_model, "rgb", out=tmp_path / "out")))
    assert counts(events) == (2, 0, 0)
    for name in ("a/img_000", "b/img_001"):
        made = np.load(tmp_path / f"out/tok_rgb@48/{name}.npy")
        expected = np.load(root / f"rgb_fixture/{name}.npy")
        assert made.dtype == expected.dtype
        assert np.array_equal(made, expected)
        crops = np.load(tmp_path / f"out/crop_settings/{name}.npy")
        assert np.array_equal(crops, np.load(root / f"crop_settings/{name}.npy"))


@pytest.mark.parametrize(
    ("task", "folder", "form", "channels"),
    [("rgb", "rgb", "tok_rgb", 3), ("normal", "normal", "tok_normal", 3), ("depth", "depth", "tok_depth", 1),
     ("normal_masked", "normal", "tok_normal", 4), ("semseg_coco", "semseg_coco", "tok_semseg", 64)],
)  # fmt: skip
def test_encoder_inputs_of_every_crop_are_as_recorded(
    vq: Path, task: str, folder: str, form: str, channels: int
) -> None:
    root, expected = vq / RECORDED, load_file(vq / "pretokenize" / "expected.safetensors")
    config = VQConfig(
        image_size=(48, 48), enc_type="vit_demo_enc", dec_type="vit_demo_dec", patch_size=(16, 16),
        codebook_size=20, latent_dim=6, n_channels=channels, n_labels=134 if form == "tok_semseg" else None,
    )  # fmt: skip
    codec = GridCodec(replace(ROW, codec=form), FORMS[form], VQTokenizer(config))
    for index, name in enumerate(("a/img_000", "b/img_001")):
        path, mask = root / folder / f"{name}.png", root / "mask_valid" / f"{name}.png"
        crops = read_crops(root / "crop_settings" / f"{name}.npy", read_size(path))
        prepared = torch.stack(
            [codec.prepare(codec.read(path, crop), codec.read_mask(mask, crop)) for crop in crops]
        )
        wanted = expected[f"{task}.{index}"]
        assert prepared.dtype == wanted.dtype
        torch.testing.assert_close(prepared, wanted, rtol=1e-5, atol=1e-5 if "depth" in task else 0)


def test_recorded_bilinear_crops_are_met_by_naming_the_filter(vq: Path) -> None:
    root, expected = vq / RECORDED, load_file(vq / "pretokenize" / "expected.safetensors")
    form = FORMS["tok_rgb"]
    for index, name in enumerate(("a/img_000", "b/img_001")):
        path = root / "rgb" / f"{name}.png"
        crops = read_crops(root / "crop_settings" / f"{name}.npy", read_size(path))
        value = form.read(path)
        made = [form.prepare(cut(value, crop, 48, Image.Resampling.BILINEAR)) for crop in crops]
        torch.testing.assert_close(torch.stack(made), expected[f"rgb_bilinear.{index}"], rtol=0, atol=0)


def test_what_was_generated_becomes_the_same_tokens_again(tmp_path: Path) -> None:
    """Of the embedded model every token is exactly one patch, so decoding and encoding is a closed circle."""
    from fourm.data.layout import samples_of_prompts
    from fourm.inputs.request import Request
    from fourm.runs.pipeline import run as generate
    from fourm.schedule.plan import parse_chain

    model = find_model("demo")
    names = ("tok_rgb", "tok_depth", "tok_normal", "tok_semseg", "tok_canny_edge", "tok_clip")
    chain = parse_chain(f"--targets {'-'.join(names)} --temps 0.5", model)
    samples = samples_of_prompts(["a small red circle above a blue square", "a large green triangle"])
    list(generate(Request(model, chain, samples, tmp_path / "made", device="cpu")))
    events = list(tokenize_dataset(request(tmp_path / "made", model, out=tmp_path / "again")))
    assert counts(events) == (2, 0, 0)
    for name in names:
        for path in sorted((tmp_path / "made" / f"{name}@64").rglob("*.npy")):
            again = tmp_path / "again" / path.relative_to(tmp_path / "made")
            assert np.array_equal(np.load(path), np.load(again)), path


def test_every_modality_of_a_sample_shows_the_same_crops(tiny: Path, dataset: Path) -> None:
    model = find_model(tiny)
    assert counts(list(tokenize_dataset(request(dataset, model, "rgb", num_crops=4, seed=3)))) == (3, 0, 0)
    before = tree(dataset / "crop_settings")
    # Another seed, and no number: the crops are there already.
    assert counts(list(tokenize_dataset(request(dataset, model, "depth", seed=9)))) == (3, 0, 0)
    assert tree(dataset / "crop_settings") == before
    for number in range(3):
        rows = np.load(dataset / f"crop_settings/f/s{number}.npy")
        size = read_size(dataset / f"rgb/f/s{number}.png")
        centre = centre_crop(*size)
        assert rows[0].tolist() == [centre.top, centre.left, centre.height, centre.width, 0]
        for name, vocab in (("tok_rgb@64", 64), ("tok_depth@64", 32)):
            ids = np.load(dataset / name / f"f/s{number}.npy")
            assert (ids.shape, ids.dtype) == ((4, 64), np.int16)
            assert 0 <= ids.min() <= ids.max() < vocab


def test_a_sample_depends_on_itself_and_the_seed_alone(tiny: Path, dataset: Path, tmp_path: Path) -> None:
    model = find_model(tiny)
    whole = request(dataset, model, num_crops=3, out=tmp_path / "whole")
    list(tokenize_dataset(whole))
    for changes in ({"batch_size": 1}, {"batch_size": 7}, {"samples": whole.samples[::-1]}):
        other = replace(whole, out=tmp_path / "other", **changes)
        list(tokenize_dataset(other))
        assert tree(other.out) == tree(whole.out)
        shutil.rmtree(other.out)
    for rank in range(2):
        list(
            tokenize_dataset(
                replace(whole, out=tmp_path / "other", world=replace(whole.world, rank=rank, size=2))
            )
        )
    assert tree(tmp_path / "other") == tree(whole.out)
    list(tokenize_dataset(replace(whole, out=tmp_path / "seed", seed=1)))
    assert tree(tmp_path / "seed/crop_settings") != tree(whole.out / "crop_settings")


def test_an_interrupted_run_goes_on_and_ends_the_same(tiny: Path, dataset: Path, tmp_path: Path) -> None:
    model = find_model(tiny)
    whole = request(dataset, model, num_crops=2, out=tmp_path / "whole")
    list(tokenize_dataset(whole))
    events: Iterator[Event] = tokenize_dataset(replace(whole, out=tmp_path / "part"))
    for event in events:
        if isinstance(event, Saved):
            break
    del events
    part = request(dataset, model, out=tmp_path / "part")
    (tmp_path / "part/tok_depth@64/f/s0.npy").unlink()  # half of a sample
    again = list(tokenize_dataset(part))
    assert counts(again) == (3, 0, 0)
    assert counts(list(tokenize_dataset(part))) == (0, 3, 0)
    assert tree(tmp_path / "part") == tree(whole.out)


def test_a_sample_that_cannot_be_read_fails_alone_and_is_tried_again(tiny: Path, dataset: Path) -> None:
    model = find_model(tiny)
    good = (dataset / "depth/f/s1.png").read_bytes()
    (dataset / "depth/f/s1.png").write_bytes(good[:200])
    events = list(tokenize_dataset(request(dataset, model)))
    assert counts(events) == (2, 0, 1)
    assert "s1.png: not a picture that can be read" in failures(events)["f/s1"]
    assert (dataset / "tok_rgb@64/f/s1.npy").is_file()  # what could be made is made
    assert not (dataset / "tok_depth@64/f/s1.npy").exists()
    (line,) = (dataset / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "f/s1"
    (dataset / "depth/f/s1.png").write_bytes(good)
    assert counts(list(tokenize_dataset(request(dataset, model)))) == (1, 2, 0)
    assert not (dataset / "failures.jsonl").exists()


@pytest.mark.parametrize(
    "ids",
    [np.zeros((1, 63), np.int16), np.zeros((2, 64), np.int16), np.zeros((1, 64), np.float32),
     np.full((1, 64), 64, np.int16), np.full((1, 64), -1, np.int16), np.zeros(64, np.int16)],
)  # fmt: skip
def test_token_files_that_are_not_whole_are_left_alone_unless_told(
    tiny: Path, dataset: Path, ids: Array
) -> None:
    model = find_model(tiny)
    strange = dataset / "tok_rgb@64/f/s0.npy"
    strange.parent.mkdir(parents=True)
    write_array(ids, strange)
    before = strange.read_bytes()
    events = list(tokenize_dataset(request(dataset, model, "rgb")))
    assert counts(events) == (2, 0, 1)
    assert "is not 1 crops of 64 tokens in 0..63; `overwrite=True`" in failures(events)["f/s0"]
    assert strange.read_bytes() == before
    assert counts(list(tokenize_dataset(request(dataset, model, "rgb", overwrite=True)))) == (3, 0, 0)
    assert np.load(strange).shape == (1, 64)


def test_an_empty_token_file_is_made_anew(tiny: Path, dataset: Path) -> None:
    model = find_model(tiny)
    list(tokenize_dataset(request(dataset, model, "rgb")))
    path = dataset / "tok_rgb@64/f/s0.npy"
    before = path.read_bytes()
    path.write_bytes(b"")
    assert counts(list(tokenize_dataset(request(dataset, model, "rgb")))) == (1, 2, 0)
    assert path.read_bytes() == before


def test_another_number_of_crops_than_there_are_is_refused(tiny: Path, dataset: Path) -> None:
    model = find_model(tiny)
    list(tokenize_dataset(request(dataset, model, "rgb", num_crops=2)))
    with pytest.raises(UsageError, match=r"`crops=3`: .*crop_settings/f/s0\.npy has 2"):
        list(tokenize_dataset(request(dataset, model, "depth", num_crops=3)))
    settings = dataset / "crop_settings/f/s1.npy"
    write_array(np.load(settings)[:1], settings)
    events = list(tokenize_dataset(request(dataset, model, "depth")))
    assert counts(events) == (2, 0, 1)
    assert "has 1 crops, where there are 2" in failures(events)["f/s1"]


def test_random_crops_are_not_drawn_beside_tokens_of_unknown_ones(tiny: Path, dataset: Path) -> None:
    model = find_model(tiny)
    list(tokenize_dataset(request(dataset, model, "rgb", num_crops=2)))
    shutil.rmtree(dataset / "crop_settings")
    events = list(tokenize_dataset(request(dataset, model, num_crops=2)))
    assert counts(events) == (0, 0, 3)
    assert "shows crops of which there is no file in crop_settings" in failures(events)["f/s0"]


def test_a_folder_of_tokens_belongs_to_one_tokenizer(tiny: Path, dataset: Path) -> None:
    model = find_model(tiny)
    list(tokenize_dataset(request(dataset, model)))
    other = replace(model, tokenizers={**model.tokenizers, "rgb": dataset.parent / "other"})
    shutil.copytree(model.tokenizers["rgb"], dataset.parent / "other")
    weights = dataset.parent / "other" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(UsageError, match="tok_rgb@64: was begun with other settings: tokenizer is"):
        list(tokenize_dataset(request(dataset, other)))
    with pytest.raises(UsageError, match="dtype is float32 there and bfloat16 here"):
        list(tokenize_dataset(request(dataset, model, dtype="bfloat16")))
    assert counts(list(tokenize_dataset(request(dataset, other, overwrite=True)))) == (3, 0, 0)
    (dataset / "tok_rgb@64" / TOKENIZER).write_text("[]")
    with pytest.raises(UsageError, match="is not a record"):
        list(tokenize_dataset(request(dataset, other)))


def test_maps_of_another_size_than_the_picture_are_refused(tiny: Path, dataset: Path) -> None:
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(dataset / "depth/f/s2.png")
    events = list(tokenize_dataset(request(dataset, find_model(tiny), "depth")))
    assert counts(events) == (2, 0, 1)
    assert "s2.png: 32 x 32 pixels, but the picture of this sample has 65 x 200" in failures(events)["f/s2"]


def test_features_are_tokens_of_one_crop_only(tiny: Path, tmp_path: Path) -> None:
    model = find_model(tiny)
    (tmp_path / "clip/f").mkdir(parents=True)
    write_array(
        np.random.default_rng(0).normal(size=(14, 8, 8)).astype(np.float32), tmp_path / "clip/f/x.npy"
    )
    write_array(np.zeros((14, 4, 16), np.float32), tmp_path / "clip/f/wrong.npy")
    events = list(tokenize_dataset(request(tmp_path, model)))
    assert counts(events) == (1, 0, 1)
    assert "features of 4 x 16 places, not 8 x 8" in failures(events)["f/wrong"]
    assert np.load(tmp_path / "tok_clip@64/f/x.npy").shape == (1, 64)
    assert not (tmp_path / "crop_settings").exists()
    with pytest.raises(UsageError, match="features of a picture cannot be cropped"):
        list(tokenize_dataset(request(tmp_path, model, num_crops=2)))


def test_names_are_cut_at_the_last_dot_and_an_extension_is_known_in_any_case(
    tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "rgb/f").mkdir(parents=True)
    for name in ("a.b.png", "a.c.PNG", "ü ö.png", "v1.2.3.png"):
        (tmp_path / "rgb/f" / name).write_bytes(pack_png(np.zeros((9, 9, 3), np.uint8)))
    list(tokenize_dataset(request(tmp_path, find_model(tiny))))
    made = {path.name for path in (tmp_path / "tok_rgb@64/f").iterdir()}
    assert made == {"a.b.npy", "a.c.npy", "ü ö.npy", "v1.2.3.npy"}


def test_a_mask_reaches_only_a_tokenizer_that_takes_one(tiny: Path, dataset: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = find_model(tiny)
    config = read_config(
        {"image_size": 64, "patch_size": 8, "enc_type": "vit_demo_enc", "dec_type": "vit_demo_dec",
         "latent_dim": 8, "n_channels": 4, "codebook_size": 64}
    )  # fmt: skip
    torch.manual_seed(0)
    masked = tmp_path / "masked"
    masked.mkdir()
    save_file(
        {
            k: torch.randn_like(t) * 0.3 if "pos_emb" not in k else t
            for k, t in VQTokenizer(config).state_dict().items()
        },
        masked / "model.safetensors",
    )
    (masked / "config.json").write_text(json.dumps(
        {"image_size": 64, "patch_size": 8, "enc_type": "vit_demo_enc", "dec_type": "vit_demo_dec",
         "latent_dim": 8, "n_channels": 4, "codebook_size": 64}
    ))  # fmt: skip
    other = replace(model, tokenizers={**model.tokenizers, "rgb": masked})
    (dataset / "mask_valid/f").mkdir(parents=True)
    for number in range(3):
        height, width = read_size(dataset / f"rgb/f/s{number}.png")
        mask = np.full((height, width), 255, np.uint8)
        mask[:, : width // 2] = 254  # not valid: only 255 is
        (dataset / f"mask_valid/f/s{number}.png").write_bytes(pack_png(mask))
    made = dict[str, dict[str, bytes]]()
    for name, files in (("plain", model), ("masked", other)):
        for with_mask in (True, False):
            if not with_mask:
                (dataset / "mask_valid").rename(tmp_path / "away")
            out = tmp_path / f"{name}{with_mask}"
            assert counts(list(tokenize_dataset(request(dataset, files, "rgb", out=out)))) == (3, 0, 0)
            made[f"{name}{with_mask}"] = tree(out / "tok_rgb@64/f")
            if not with_mask:
                (tmp_path / "away").rename(dataset / "mask_valid")
    assert made["plainTrue"] == made["plainFalse"]
    assert made["maskedTrue"] != made["maskedFalse"]


def test_an_output_folder_that_cannot_be_written_is_one_sentence(tiny: Path, dataset: Path) -> None:
    (dataset.parent / "file").write_text("")
    with pytest.raises(FourMError, match="is a file, not a folder"):
        list(tokenize_dataset(request(dataset, find_model(tiny), out=dataset.parent / "file")))


def test_tokenize_reports_its_counts_before_and_each_sample_after(tiny: Path, dataset: Path) -> None:
    events = list(tokenize_dataset(request(dataset, find_model(tiny))))
    started = next(event for event in events if isinstance(event, Started))
    assert (started.total, started.skipped, started.steps, started.batch_size) == (3, 0, 0, 1)
    saved = [event for event in events if isinstance(event, Saved)]
    assert [event.key for event in saved] == ["f/s0", "f/s1", "f/s2"]
    assert all(path.is_file() for event in saved for path in event.files)
