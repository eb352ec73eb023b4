"""Values through their tokenizers: the recorded tokens, values that do not fit, groups of rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fourm.codecs.files import write_array
from fourm.codecs.images import _SIZES, GridCodec, _groups
from fourm.codecs.maps import FORMS
from fourm.errors import SampleError
from fourm.hub.header import TokenizerPart
from fourm.modalities.registry import RELEASED, Kind, Modality
from fourm.networks.checkpoint import load_tokenizer
from fourm.networks.precision import arithmetic
from fourm.networks.tokenizers.config import VQConfig
from fourm.networks.tokenizers.vq import IMAGENET, VQTokenizer

SMALL = VQConfig(
    image_size=(32, 32), enc_type="vit_demo_enc", dec_type="vit_demo_dec", patch_size=(8, 8),
    codebook_size=20, latent_dim=6,
)  # fmt: skip


def recorded(vq: Path, name: str, codec: str, tokens: int, grid: tuple[int, int], side: int = 0) -> GridCodec:
    tokenizer = load_tokenizer(vq / name, part=TokenizerPart.ENCODER)
    size = tokenizer.config.codebook_size
    row = Modality("tok_x", Kind.GRID, tokens, size, grid, 8, side, codec=codec, tokenizer="x")
    return GridCodec(row, FORMS[codec], tokenizer)


def made(codec: str, **config: Any) -> GridCodec:
    torch.manual_seed(0)
    row = Modality("tok_x@32", Kind.GRID, 16, 20, (4, 4), 8, 32, codec=codec, tokenizer="x")
    return GridCodec(row, FORMS[codec], VQTokenizer(replace(SMALL, **config)).requires_grad_(False))


@pytest.mark.parametrize(("case", "grid"), [("native", (8, 8)), ("large", (10, 10)), ("rect", (5, 7))])
def test_recorded_feature_maps_become_the_recorded_tokens(
    vq: Path, tmp_path: Path, case: str, grid: tuple[int, int]
) -> None:
    tensors = load_file(vq / "vit_feature_map" / "tensors.safetensors")
    codec = recorded(vq, "vit_feature_map", "tok_clip", grid[0] * grid[1], grid)
    values = []
    for number, features in enumerate(tensors[f"{case}.input"]):
        write_array(features.numpy(), tmp_path / f"{number}.npy")
        values.append(codec.read(tmp_path / f"{number}.npy"))
    assert torch.equal(codec.encode(values).values, tensors[f"{case}.tokens"].flatten(1))


def test_recorded_global_features_become_a_token_of_each_codebook(vq: Path, tmp_path: Path) -> None:
    tensors = load_file(vq / "mlp_global_memcodes" / "tensors.safetensors")
    codec = recorded(vq, "mlp_global_memcodes", "tok_dinov2_global", 4, (2, 2))
    values = []
    for number, features in enumerate(tensors["native.input"]):
        write_array(features.numpy(), tmp_path / f"{number}.npy")
        values.append(codec.read(tmp_path / f"{number}.npy"))
    assert torch.equal(codec.encode(values).values, tensors["native.tokens"].flatten(1))
    with pytest.raises(SampleError, match="features of 2 x 3 places, not 1 x 1"):
        codec.encode([tensors["spatial.input"][0].numpy()])


def test_recorded_labels_become_the_recorded_tokens(vq: Path, tmp_path: Path) -> None:
    tensors = load_file(vq / "vit_semseg" / "tensors.safetensors")
    codec = recorded(vq, "vit_semseg", "tok_semseg", 36, (6, 6), 48)
    labels = tensors["native.input"][0].numpy()
    Image.fromarray(labels.astype(np.uint8) - np.uint8(1)).save(tmp_path / "x.png")
    slot = codec.encode([codec.read(tmp_path / "x.png")])
    assert torch.equal(slot.values, tensors["native.tokens"].flatten(1))
    for wrong in (10, 254):
        stored = np.zeros((48, 48), np.uint8)
        stored[5, 5] = wrong
        with pytest.raises(
            SampleError, match=rf"class {wrong} is not among the 10 classes .* 0\.\.9 and 255"
        ):
            codec.encode([stored])


def test_a_tokenizer_that_undoes_imagenet_statistics_is_given_them() -> None:
    value = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    plain, undoing = made("tok_rgb"), made("tok_rgb", undo_std=True)
    mean, std = torch.tensor(IMAGENET).T.contiguous().view(2, 3, 1, 1)
    x = torch.from_numpy(value.astype(np.float32)).permute(2, 0, 1) / 255
    torch.testing.assert_close(undoing.prepare(value), (x - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(plain.encode([value]).values, undoing.encode([value]).values)


@pytest.mark.parametrize("channels", [1, 3])
def test_edges_have_as_many_channels_as_their_tokenizer(channels: int) -> None:
    codec = made("tok_canny_edge", n_channels=channels)
    edges = np.zeros((32, 32), np.uint8)
    edges[:, 3] = 255
    prepared = codec.prepare(edges)
    assert prepared.shape == (channels, 32, 32)
    assert (prepared[:, :, 3] == 1).all()
    assert (prepared[:, :, 4] == -1).all()


def test_what_a_mask_hides_is_zero_and_the_mask_goes_along() -> None:
    codec = made("tok_normal", n_channels=4)
    assert codec.takes_mask
    value = np.full((32, 32, 3), 200, np.uint8)
    valid = np.zeros((32, 32), np.uint8)
    valid[:8] = 255
    x = codec.prepare(value, valid)
    assert (x[:3, :8] == (200 / 255 - 0.5) / 0.5).all()
    assert (x[3, :8] == 1).all()
    assert (x[:3, 8:] == 0).all()
    assert (x[3, 8:] == -1).all()
    assert (codec.prepare(value)[3] == 1).all()
    assert not made("tok_normal").takes_mask
    assert not made("tok_semseg", n_labels=5, n_channels=4).takes_mask


def test_a_value_with_another_number_of_channels_is_refused() -> None:
    with pytest.raises(SampleError, match="tok_x@32: 3 channels, where its tokenizer reads 1"):
        made("tok_rgb", n_channels=1).prepare(np.zeros((32, 32, 3), np.uint8))


def test_results_that_are_no_numbers_are_told_not_stored() -> None:
    codec = made("tok_rgb")
    assert codec.tokenizer is not None
    codec.tokenizer.quant_proj.bias.data[0] = float("nan")
    with pytest.raises(SampleError, match=r"not finite numbers.*dtype float32"):
        codec.encode([np.zeros((32, 32, 3), np.uint8)])


def test_a_value_does_not_depend_on_its_neighbours() -> None:
    codec = made("tok_rgb")
    values = list(np.random.default_rng(0).integers(0, 256, (5, 40, 36, 3), dtype=np.uint8))
    together = codec.encode(values).values
    for index, value in enumerate(values):
        assert torch.equal(codec.encode([value]).values[0], together[index])


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(0, []), (1, [1]), (2, [2]), (3, [4]), (4, [4]), (5, [8]), (8, [8]), (9, [8, 1]), (20, [8, 8, 4])],
)
def test_gpus_see_groups_of_four_sizes_and_every_row_once(count: int, sizes: list[int]) -> None:
    groups = _groups(count, torch.device("cuda"))
    assert [len(group) for group in groups] == sizes
    assert [row for group in groups for row in group][:count] == list(range(count))
    assert {row for group in groups for row in group} == set(range(count))
    assert _groups(count, torch.device("cpu")) == [[row] for row in range(count)]


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_rows_that_fill_up_a_group_are_left_out(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    codec = made("tok_rgb")
    values = list(np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))
    alone = codec.encode(values).values
    monkeypatch.setitem(_SIZES, "cpu", (2, 4))  # as on a GPU, where there are more
    assert torch.equal(codec.encode(values).values, alone)
    assert len(codec.decode(codec.encode(values))) == count


@pytest.mark.gpu
def test_a_gpu_makes_nearly_the_tokens_of_a_cpu_in_every_batch() -> None:
    cpu, gpu = made("tok_rgb"), made("tok_rgb")
    assert gpu.tokenizer is not None
    gpu.tokenizer.to("cuda")
    values = list(np.random.default_rng(0).integers(0, 256, (13, 32, 32, 3), dtype=np.uint8))
    exact = cpu.encode(values).values
    with arithmetic("float32"):
        for first in (0, 3, 12):
            assert (gpu.encode(values[first:]).values == exact[first:]).float().mean() > 0.99


def test_a_codec_without_its_tokenizer_still_reads_and_shows(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 3).save(tmp_path / "x.png")
    codec = GridCodec(RELEASED.get("tok_semseg@224"), FORMS["tok_semseg"], None)
    value = codec.read(tmp_path / "x.png")
    assert codec.picture(value).getpixel((0, 0)) == (0, 0, 230)
    (entry,) = codec.legend(value)
    assert (entry.name, entry.colour, entry.share) == ("motorcycle", (0, 0, 230), 1.0)
    assert GridCodec(RELEASED.get("tok_rgb@224"), FORMS["tok_rgb"], None).legend(value) == ()
