"""Pictures and maps to tokens and back, as recorded, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from fourm.codecs.colours import NUM_COCO_LABELS, label_colours, paint_features, turbo
from fourm.codecs.files import (
    pack_png,
    read_picture,
    write_array,
)
from fourm.codecs.images import GridCodec
from fourm.codecs.maps import FORMS, fit_square, standardise_depth
from fourm.codecs.table import build_codec
from fourm.errors import MissingError, SampleError, UsageError
from fourm.modalities.registry import RELEASED, Kind, Modality
from fourm.networks.state import full_grid
from fourm.networks.tokenizers.config import VQConfig
from fourm.networks.tokenizers.vq import VQTokenizer

Array = NDArray[Any]
SMALL = VQConfig(
    image_size=(32, 32), enc_type="vit_demo_enc", dec_type="vit_demo_dec", patch_size=(8, 8),
    codebook_size=20, latent_dim=6,
)  # fmt: skip
FEW = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def grid_row(codec: str) -> Modality:
    return Modality("tok_x@32", Kind.GRID, 16, 20, (4, 4), 8, 32, codec=codec, tokenizer="x", title="X")


def grid_codec(codec: str, **config: Any) -> GridCodec:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(replace(SMALL, **config)).requires_grad_(False)
    return build_codec(grid_row(codec), tokenizer)


@pytest.fixture
def recorded(golden: Path) -> dict[str, Array]:
    return {
        f"{name}/{key}": array
        for name in ("pictures", "image_preprocess")
        for key, array in np.load(golden / "data" / f"{name}.npz").items()
    }


def test_unknown_codecs_and_unfit_tokenizers_are_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'tok_depth'"):
        build_codec(grid_row("tok_dept"))
    with pytest.raises(UsageError, match="only 10 codes"):
        grid_codec("tok_rgb", codebook_size=10)
    with pytest.raises(MissingError, match="tokenizer 'x'"):
        build_codec(grid_row("tok_rgb")).decode(full_grid(torch.zeros(1, 16, dtype=torch.int64)))


@pytest.mark.parametrize("name", ["img_landscape", "img_portrait", "img_gray", "img_rgba"])
def test_recorded_pictures_are_cropped_and_resized_as_recorded(golden: Path, name: str) -> None:
    data = golden / "data"
    codec = build_codec(RELEASED.get("rgb@224"))
    expected = data / f"{name}_loader224.png"  # where the two rules for odd differences disagree
    expected = expected if expected.exists() else data / f"{name}_notebook224.png"
    value = fit_square(codec.read(data / f"{name}.png"), 224, Image.Resampling.BICUBIC)
    difference = value.astype(int) - np.asarray(Image.open(expected).convert("RGB")).astype(int)
    assert np.abs(difference).max() <= 1


def test_pixels_are_normalised_as_recorded(golden: Path, recorded: dict[str, Array]) -> None:
    codec = build_codec(RELEASED.get("rgb@224"))
    slot = codec.encode([codec.read(golden / "data" / "img_landscape.png")])
    expected = torch.from_numpy(recorded["image_preprocess/img_landscape/notebook_normalised"])
    assert (slot.values[0] - expected).abs().max() < 1.5 / 255 / 0.224  # one grey level
    assert slot.known.shape == (1, 196)
    assert slot.known.all()


def test_recorded_pixels_and_their_statistics_are_those_of_the_codec(golden: Path) -> None:
    """Not of the grey picture: its recorded centre is that of notebooks, a pixel beside ours."""
    codec = build_codec(RELEASED.get("rgb@224"))
    cases = json.loads((golden / "data" / "image_preprocess.json").read_text())["cases"]
    cases = [case for case in cases if case["folder_loader"]["same_pixels_as_notebook"]]
    assert len(cases) == 3
    for case in cases:
        pixels = codec.encode([codec.read(golden / "data" / case["source"])]).values[0]
        recorded, level = case["notebook"], 1.5 / 255 / 0.224
        for point in recorded["normalised_at"]:
            assert pixels[:, point["row"], point["col"]].tolist() == pytest.approx(point["value"], abs=level)
        flat = pixels.double().flatten(1)
        for found, key in ((flat.mean(1), "mean"), (flat.std(1), "std")):
            assert found.tolist() == pytest.approx(recorded[f"normalised_{key}_per_channel"], abs=1e-3)


def test_pixels_decode_to_what_the_model_was_shown() -> None:
    codec = build_codec(RELEASED.get("rgb@224"))
    value = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    assert np.array_equal(codec.decode(codec.encode([value]))[0], value)


def test_sixteen_bit_pictures_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    value = build_codec(RELEASED.get("rgb@224")).read(tmp_path / "x.png")
    assert value[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("name", "form"),
    [("depth/png16", "tok_depth"), ("normal/png", "tok_normal"), ("semseg/png", "tok_semseg"),
     ("canny/png", "tok_canny_edge"), ("rgb_tokenizer/png", "tok_rgb")],
)  # fmt: skip
def test_tokenizer_inputs_are_prepared_as_recorded(
    tmp_path: Path, recorded: dict[str, Array], name: str, form: str
) -> None:
    stem = f"image_preprocess/{name.split('/')[0]}"
    Image.fromarray(recorded[f"image_preprocess/{name}"]).save(tmp_path / "x.png")
    prepared = FORMS[form].prepare(FORMS[form].read(tmp_path / "x.png"))
    expected = recorded.get(f"{stem}/tensor", recorded.get(f"{stem}/standardised"))
    assert expected is not None
    torch.testing.assert_close(
        prepared.expand(expected.shape), torch.from_numpy(expected), rtol=1e-5, atol=1e-5
    )


def test_constant_depth_is_standardised_to_zero() -> None:
    assert not standardise_depth(np.full((8, 8), 0.4, dtype=np.float32)).any()


@pytest.mark.parametrize(
    ("name", "form"),
    [("rgb", "tok_rgb"), ("rgb_batch2", "tok_rgb"), ("normal", "tok_normal"),
     ("canny_edge", "tok_canny_edge"), ("sam_edge", "tok_sam_edge")],
)  # fmt: skip
def test_decoder_outputs_become_the_recorded_pictures(
    recorded: dict[str, Array], name: str, form: str
) -> None:
    output, picture = recorded[f"pictures/{name}/decoder_output"], recorded[f"pictures/{name}/picture"]
    for row, expected in zip(
        torch.from_numpy(output), picture if len(output) > 1 else [picture], strict=True
    ):
        value = FORMS[form].finish(row)
        assert np.abs(value / 255 - expected).max() <= 0.5 / 255 + 1e-6


def test_depth_is_kept_raw_and_coloured_as_recorded(recorded: dict[str, Array]) -> None:
    outputs = torch.from_numpy(recorded["pictures/depth/decoder_output"])
    for i, output in enumerate(outputs):
        value = FORMS["tok_depth"].finish(output)
        assert np.array_equal(value, recorded["pictures/depth/raw"][i])
        assert np.abs(turbo(value) / 255 - recorded["pictures/depth/picture"][i]).max() <= 0.5 / 255 + 1e-6


def test_labels_are_stored_from_class_0_with_255_for_none(
    recorded: dict[str, Array],
) -> None:
    logits = torch.from_numpy(recorded["pictures/semseg/logits"].astype(np.float32))[0]
    value = FORMS["tok_semseg"].finish(logits)
    assert np.array_equal((value.astype(int) + 1) % 256, recorded["pictures/semseg/labels"])


def test_labels_have_the_public_coco_colours(golden: Path) -> None:
    labels = json.loads((golden / "data" / "semseg_palette.json").read_text())["labels"]
    assert len(labels) == NUM_COCO_LABELS
    stored = np.array([[(row["label"] - 1) % 256 for row in labels]], dtype=np.uint8)
    painted = label_colours(NUM_COCO_LABELS)[stored][0]
    assert painted[1:].tolist() == [row["colour"] for row in labels[1:]]
    assert painted[0].tolist() == [128, 128, 128]


@pytest.mark.parametrize("num_labels", [2, 4, 20, 400])
def test_labels_of_other_tables_have_distinct_colours(num_labels: int) -> None:
    count = min(num_labels - 1, 20)
    painted = label_colours(num_labels)[np.arange(count, dtype=np.uint8)[None]][0]
    assert len({tuple(colour) for colour in painted.tolist()}) == count


@pytest.mark.parametrize("i", [0, 1, 2])
def test_features_are_painted_by_the_recorded_components(recorded: dict[str, Array], i: int) -> None:
    stem = f"pictures/pca_{i}"
    features, projected = recorded[f"{stem}/features"], recorded[f"{stem}/projected"].astype(np.float64)
    painted = paint_features(features)[0] / 255
    # Signs are free: the picture must be the common scaling of one choice of signs.
    errors = []
    for signs in np.array(np.meshgrid([1, -1], [1, -1], [1, -1])).reshape(3, -1).T:
        x = projected * signs
        errors.append(np.abs((x - x.min()) / (x.max() - x.min()) - painted).max())
    assert min(errors) < 0.5 / 255 + 1e-4


@pytest.mark.parametrize("shape", [(2, 8, 8), (8, 1, 2), (8, 4, 4)])
def test_features_without_three_components_are_mid_grey(shape: tuple[int, int, int]) -> None:
    assert (paint_features(np.full(shape, 3.0, dtype=np.float32))[0] == 128).all()


def test_constant_depth_has_the_lowest_colour() -> None:
    ramp = turbo(np.arange(9.0).reshape(3, 3))
    assert (turbo(np.full((2, 2), 5.0)) == ramp[0, 0]).all()


@pytest.mark.parametrize(
    ("codec", "config", "dtype", "shape", "suffix"),
    [
        ("tok_rgb", {}, np.uint8, (32, 32, 3), ".png"),
        ("tok_normal", {}, np.uint8, (32, 32, 3), ".png"),
        ("tok_depth", {"n_channels": 1}, np.float32, (32, 32), ".npy"),
        ("tok_edge", {"n_channels": 1}, np.uint8, (32, 32), ".png"),
        ("tok_edge", {"n_channels": 3}, np.uint8, (32, 32), ".png"),
        ("tok_semseg", {"n_labels": 5}, np.uint8, (32, 32), ".png"),
        ("tok_feature", {"n_channels": 7, "patch_proj": False}, np.float32, (7, 4, 4), ".npy"),
    ],
)
def test_decoded_values_survive_their_file_and_become_tokens_again(
    tmp_path: Path, codec: str, config: dict[str, Any], dtype: type, shape: tuple[int, ...], suffix: str
) -> None:
    codec_ = grid_codec(codec, **config)
    ids = torch.randint(0, 20, (2, 16), generator=torch.Generator().manual_seed(1))
    values = codec_.decode(full_grid(ids))
    for value in values:
        assert (value.dtype, value.shape) == (dtype, shape)
        (tmp_path / f"x{suffix}").write_bytes(codec_.pack(value, {"prompt": "a red circle"}))
        assert np.array_equal(codec_.read(tmp_path / f"x{suffix}"), value)
        height, width = shape[-2:] if suffix == ".npy" else shape[:2]
        assert codec_.picture(value).size == (width, height)
    assert codec_.encode(values).values.shape == (2, 16)


def test_rgb_is_tokenised_between_minus_one_and_one() -> None:
    codec = grid_codec("tok_rgb")
    value = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    torch.manual_seed(0)
    tokenizer = VQTokenizer(SMALL)
    x = torch.from_numpy(value.astype(np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.equal(codec.encode([value]).values, tokenizer.tokenize(x).flatten(1))


@pytest.mark.parametrize(
    ("codec", "channels"), [("tok_rgb", 4), ("tok_normal", 4), ("tok_depth", 2), ("tok_edge", 2)]
)
def test_a_tokenizer_with_a_mask_of_valid_pixels_is_told_that_all_are(codec: str, channels: int) -> None:
    masked = grid_codec(codec, n_channels=channels)
    ids = torch.randint(0, 20, (1, 16), generator=torch.Generator().manual_seed(1))
    (value,) = masked.decode(full_grid(ids))
    assert value.shape == ((32, 32, 3) if channels == 4 else (32, 32))
    prepared = FORMS[codec].prepare(value)
    torch.manual_seed(0)
    tokenizer = VQTokenizer(replace(SMALL, n_channels=channels))
    with_mask = torch.cat([prepared, torch.ones(1, 32, 32)])[None]
    assert torch.equal(masked.encode([value]).values, tokenizer.tokenize(with_mask).flatten(1))
    if codec == "tok_depth":
        torch.testing.assert_close(
            torch.from_numpy(value), tokenizer.decode_tokens(ids.view(1, 4, 4))[0, 0], rtol=0, atol=0
        )


def test_a_decoded_value_does_not_depend_on_its_batch() -> None:
    codec = grid_codec("tok_depth", n_channels=1)
    ids = torch.randint(0, 20, (5, 16), generator=torch.Generator().manual_seed(2))
    together = codec.decode(full_grid(ids))
    for i in range(5):
        assert np.array_equal(codec.decode(full_grid(ids[i : i + 1]))[0], together[i])


def test_global_features_are_tokens_of_several_codebooks() -> None:
    codec = grid_codec(
        "tok_feature", n_channels=9, quant_type="memcodes", num_codebooks=16, latent_dim=32,
        enc_type="BottleneckMLP/B_1-Wi_8", dec_type="BottleneckMLP/B_1-Wi_8",
    )  # fmt: skip
    (value,) = codec.decode(full_grid(torch.arange(16)[None]))
    assert value.shape == (9, 1, 1)
    assert codec.encode([value]).values.shape == (1, 16)


def test_labels_outside_the_table_and_wrong_channels_are_sample_errors() -> None:
    with pytest.raises(SampleError, match=r"tok_x@32: class 8 is not among the 4 classes of its tokenizer"):
        grid_codec("tok_semseg", n_labels=5).encode([np.full((32, 32), 8, dtype=np.uint8)])
    with pytest.raises(SampleError, match="tok_x@32: features of width 9, where its tokenizer reads 3"):
        grid_codec("tok_feature", patch_proj=False).encode([np.zeros((9, 4, 4), dtype=np.float32)])
    with pytest.raises(SampleError, match="features of 5 x 5 places, not 4 x 4"):
        grid_codec("tok_feature", patch_proj=False).encode([np.zeros((3, 5, 5), dtype=np.float32)])


def test_pictures_of_the_wrong_sort_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(SampleError, match="16-bit grey"):
        FORMS["tok_depth"].read(tmp_path / "x.png")
    with pytest.raises(SampleError, match="8-bit grey or palette"):
        FORMS["tok_semseg"].read(tmp_path / "x.png")
    write_array(np.array([[np.inf, 1.0]], dtype=np.float32), tmp_path / "x.npy")
    with pytest.raises(SampleError, match="finite"):
        FORMS["tok_depth"].read(tmp_path / "x.npy")


def test_png_text_reads_back_and_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    text = {
        "prompt": "ein roter Kreis, 赤い円 🙂",
        "seed": "3",
        "schedule": "--target tok_rgb:steps=8\n" * 200,
    }
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(pack_png(pixels, text))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == text
        assert np.array_equal(np.asarray(image), pixels)


@FEW
@given(prompt=st.text())
def test_any_prompt_can_be_kept_in_a_png(tmp_path: Path, prompt: str) -> None:
    (tmp_path / "x.png").write_bytes(pack_png(np.zeros((2, 2), dtype=np.uint8), {"prompt": prompt}))
    assert read_picture(tmp_path / "x.png").size == (2, 2)


def test_a_prompt_of_stray_bytes_can_be_kept_in_a_png(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(
        pack_png(np.zeros((2, 2), dtype=np.uint8), {"prompt": "a \udcff circle"})
    )
    assert read_picture(tmp_path / "x.png").size == (2, 2)
