"""Discrete tokenizers against the recorded reference, and what they refuse."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourm.errors import CheckpointError
from fourm.hub.header import TRAINING_BUFFERS, TokenizerPart, parse_header_config, read_header
from fourm.networks.checkpoint import fit_tokenizer, load_tokenizer
from fourm.networks.layers import sincos_2d
from fourm.networks.tokenizers import build_tokenizer
from fourm.networks.tokenizers.config import VQConfig, read_config
from fourm.networks.tokenizers.vq import MlpPreset, VQTokenizer, parse_preset, positions_at

FIXTURES = (
    "vit_cosine", "vit_feature_map", "vit_out_conv", "vit_sam_mask", "vit_euclid_options", "vit_semseg",
    "mlp_global_memcodes", "mlp_pose_memcodes",
)  # fmt: skip
MANIFESTS = (
    "CLIP-B16_8k_224-448", "DINOv2-B14-global_8k_16_224", "DINOv2-B14_8k_224-448",
    "ImageBind-H14-global_8k_16_224", "ImageBind-H14_8k_224-448", "cfg-only_rgb_1k_224-448",
    "depth_8k_224-448", "edge_8k_224-512",
    "human-poses_1k_8", "normal_8k_224-448", "rgb_16k_224-448", "sam-instance_1k_64", "semseg_4k_224-448",
)  # fmt: skip
SMALL = VQConfig(
    image_size=(32, 32), enc_type="vit_demo_enc", dec_type="vit_demo_dec", patch_size=(8, 8), post_mlp=True,
    codebook_size=20, latent_dim=6,
)  # fmt: skip


def recorded_cases(folder: Path) -> dict[str, dict[str, Tensor]]:
    cases: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / "tensors.safetensors").items():
        case, name = key.split(".")
        cases.setdefault(case, {})[name] = tensor
    return cases


def assert_close(got: Tensor, expected: Tensor, what: str) -> None:
    assert got.shape == expected.shape, what
    assert (got - expected).abs().max() <= 1e-4 * expected.std(), what


@pytest.mark.parametrize("name", FIXTURES)
def test_every_recorded_tensor_is_reproduced(vq: Path, name: str) -> None:
    tokenizer = load_tokenizer(vq / name)
    checked = 0
    for case, expected in recorded_cases(vq / name).items():
        got: dict[str, Tensor] = {}
        with torch.no_grad():
            if "input" in expected:
                got["prepared"] = tokenizer.prepare(expected["input"])
                got["encoder_out"] = tokenizer.encoder(got["prepared"])
                got["latents"] = tokenizer.encode(expected["input"])
                assert torch.equal(tokenizer.tokenize(expected["input"]), expected["tokens"]), case
            got["quant"] = got["embedding"] = tokenizer.lookup(expected["tokens"])
            got["decoder_in"] = tokenizer.post_quant_proj(got["quant"])
            got["decoded"] = tokenizer.decode(got["quant"])
            assert torch.equal(tokenizer.decode_tokens(expected["tokens"]), got["decoded"])
        for part in got.keys() & expected.keys():
            assert_close(got[part], expected[part], f"{name} {case} {part}")
            checked += 1
    assert checked >= 8


@pytest.mark.parametrize("name", FIXTURES)
def test_an_encoder_alone_gives_the_same_tokens(vq: Path, name: str) -> None:
    tokenizer = load_tokenizer(vq / name, part=TokenizerPart.ENCODER)
    assert not [key for key in tokenizer.state_dict() if key.startswith(("decoder.", "post_quant_proj."))]
    for expected in recorded_cases(vq / name).values():
        if "input" in expected:
            assert torch.equal(tokenizer.tokenize(expected["input"]), expected["tokens"])
    with pytest.raises(ValueError, match="without a decoder"):
        tokenizer.decode_tokens(torch.zeros_like(expected["tokens"]))


def test_a_single_file_with_its_config_in_the_header_is_the_same_tokenizer(vq: Path) -> None:
    path = vq / "local_safetensors" / "checkpoint.safetensors"
    wanted = json.loads((path.parent / "expected_config.json").read_text())
    assert parse_header_config(read_header(path)[0]) == wanted
    expected = recorded_cases(vq / "mlp_global_memcodes")["native"]
    assert torch.equal(load_tokenizer(path).tokenize(expected["input"]), expected["tokens"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_released_tokenizers_have_exactly_the_listed_tensors(vq: Path, name: str) -> None:
    manifest = json.loads((vq / "manifests" / f"{name}.json").read_text())
    part = TokenizerPart.WHOLE if manifest["scope"] == "full model" else TokenizerPart.ENCODER
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_config(manifest["config"]), part)
    shapes = {key: list(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    listed = {key: row["shape"] for key, row in manifest["state_dict"].items() if key not in TRAINING_BUFFERS}
    assert shapes == listed
    assert len(manifest["state_dict"]) == manifest["n_tensors"]


def test_positions_are_resized_bicubically_without_antialiasing(vq: Path) -> None:
    recorded = load_file(vq / "posemb.safetensors")
    for key, expected in recorded.items():
        kind, form = key.split(".")
        if kind == "bicubic" and form != "source":
            h, w = (int(side) for side in form.removeprefix("to_").split("x"))
            resized = positions_at(recorded["bicubic.source"], h, w)
            assert_close(resized.transpose(1, 2).view(expected.shape), expected, key)


def test_positions_start_as_the_recorded_sine_cosine_table(vq: Path) -> None:
    for key, expected in load_file(vq / "posemb.safetensors").items():
        _, dim, h, w = expected.shape
        if key.startswith("sincos") and h == w:  # the others are scrambled, and in no checkpoint
            table = sincos_2d(h, w, dim).view(1, h, w, dim).permute(0, 3, 1, 2)
            torch.testing.assert_close(table, expected, rtol=0, atol=1e-5)


def test_gradients_flow_through_encoder_codebook_and_decoder() -> None:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(SMALL)
    x = torch.rand(2, 3, 32, 32)
    latents = tokenizer.encode(x)
    quant = tokenizer.lookup(tokenizer.quantize.indices(latents))
    tokenizer.decode(latents + quant).square().mean().backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None] == []


def test_tokens_follow_a_codebook_that_training_changed() -> None:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(SMALL)
    x = torch.rand(1, 3, 32, 32)
    before = tokenizer.tokenize(x)
    tokenizer.quantize._codebook.embed.data = tokenizer.quantize._codebook.embed.data.flip(0)
    assert torch.equal(tokenizer.tokenize(x), SMALL.codebook_size - 1 - before)


def test_an_encoder_without_attention_gives_equal_patches_equal_tokens() -> None:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(SMALL)
    tokenizer.encoder.pos_emb.data.zero_()
    tokens = tokenizer.tokenize(torch.rand(1, 3, 8, 8).repeat(1, 1, 4, 4))
    assert tokens.unique().numel() == 1


def test_a_network_in_half_precision_keeps_its_search_in_full(vq: Path) -> None:
    tokenizer = load_tokenizer(vq / "vit_cosine", dtype=torch.bfloat16)
    assert tokenizer.encoder.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert tokenizer.quantize._codebook.embed.dtype == torch.float32
    case = recorded_cases(vq / "vit_cosine")["native"]
    assert (tokenizer.tokenize(case["input"]) == case["tokens"]).float().mean() > 0.9
    decoded = tokenizer.decode_tokens(case["tokens"])
    assert decoded.dtype == torch.float32
    assert (decoded - case["decoded"]).abs().max() < 0.1 * case["decoded"].abs().max()


def test_label_maps_have_the_same_tokens_in_half_precision(vq: Path) -> None:
    tokenizer = load_tokenizer(vq / "vit_semseg", dtype=torch.bfloat16)
    assert tokenizer.decoder.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    for case in recorded_cases(vq / "vit_semseg").values():
        if "input" in case:
            assert torch.equal(tokenizer.tokenize(case["input"]), case["tokens"])


@pytest.mark.parametrize("shape", [(1, 4, 32, 32), (3, 32, 32), (1, 3, 32, 36), (1, 3, 4, 4)])
def test_inputs_of_a_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="input"):
        VQTokenizer(SMALL).tokenize(torch.zeros(shape))


def test_integers_for_pixels_and_floats_for_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="float"):
        VQTokenizer(SMALL).tokenize(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    labels = VQTokenizer(replace(SMALL, n_labels=5))
    with pytest.raises(ValueError, match="integers"):
        labels.tokenize(torch.zeros(1, 32, 32))
    with pytest.raises(ValueError, match=r"0\.\.4; found 5"):
        labels.tokenize(torch.full((1, 32, 32), 5))
    with pytest.raises(ValueError, match="found -1"):
        labels.tokenize(torch.full((1, 32, 32), -1))


def test_tokens_of_a_wrong_rank_type_or_range_are_refused() -> None:
    tokenizer = VQTokenizer(SMALL)
    with pytest.raises(ValueError, match=r"\(B, h, w\)"):
        tokenizer.lookup(torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="integers"):
        tokenizer.lookup(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"0\.\.19; found 20"):
        tokenizer.lookup(torch.full((1, 4, 4), 20))
    several = VQTokenizer(replace(SMALL, quant_type="memcodes", num_codebooks=3))
    with pytest.raises(ValueError, match="2 codebooks"):
        several.lookup(torch.zeros(1, 2, 4, 4, dtype=torch.int64))


def test_one_memcodes_codebook_has_tokens_without_a_codebook_axis() -> None:
    torch.manual_seed(0)
    tokenizer = VQTokenizer(replace(SMALL, quant_type="memcodes"))
    tokens = tokenizer.tokenize(torch.rand(2, 3, 16, 24))
    assert tokens.shape == (2, 2, 3)
    assert tokenizer.decode_tokens(tokens).shape == (2, 3, 16, 24)


def test_configs_take_pairs_and_digit_strings_and_ignore_training_settings() -> None:
    config = read_config(
        {"image_size": [48, 64], "codebook_size": "512", "n_labels": None, "ckpt_path": "x.pth", "blr": 1e-4}
    )
    assert config.image_size == (48, 64)
    assert config.codebook_size == 512
    assert config.encoder_grid == (3, 4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_type": "lucide"}, "did you mean 'lucid'"),
        ({"num_codebooks": 2}, "one codebook"),
        ({"quant_type": "memcodes", "num_codebooks": 5, "latent_dim": 32}, "evenly"),
        ({"undo_std": True, "n_channels": 1}, "undo_std"),
        ({"latent_dim": 0}, "latent_dim is 0, expected a whole number, 1 to 1048576"),
        ({"latent_dim": True}, "latent_dim is True"),
        ({"image_size": 10**12}, r"image_size\[0\] is 10+, expected a whole number"),
        ({"codebook_size": "9" * 5000}, "codebook_size is '9+"),
        ({"post_mlp": "yes"}, "post_mlp is 'yes', expected true or false"),
        ({"image_size": [1, 2, 3]}, "image_size is .*, expected a list of 2"),
        ({"enc_type": None}, "enc_type is None, expected text"),
        ({"n_channels": None}, "n_channels is None"),
    ],
)
def test_bad_configs_name_the_key(config: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message), torch.device("meta"):
        VQTokenizer(read_config(config))


def test_network_names_are_parsed_or_refused_with_a_near_match() -> None:
    assert parse_preset("BottleneckMLP/B_6-Wi_1024") == MlpPreset(6, 1024, 4096)
    assert parse_preset("BottleneckMLP/B_1-Wi_48-Ex_2") == MlpPreset(1, 48, 96)
    with pytest.raises(CheckpointError, match="did you mean 'vit_b_enc'"):
        parse_preset("vit_b_encoder")


def test_a_small_image_size_is_refused() -> None:
    with pytest.raises(CheckpointError, match="image_size"):
        VQTokenizer(replace(SMALL, image_size=(4, 4)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a small tokenizer as our own training saves it."""
    torch.manual_seed(0)
    config = {"image_size": 32, "enc_type": "vit_demo_enc", "dec_type": "vit_demo_dec", "patch_size": 8,
              "post_mlp": True, "codebook_size": 20, "latent_dim": 6}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = VQTokenizer(read_config(config)).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    return tmp_path


def spoil(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, tensor in changes.items():
        state.pop(name) if tensor is None else state.update({name: tensor})
    save_file(state, path)


def test_a_saved_tokenizer_loads_as_it_was(saved: Path) -> None:
    sizes = {"image_size_enc": (32, 32), "image_size_dec": (32, 32)}  # as the tables of positions say
    assert load_tokenizer(saved).config == replace(SMALL, **sizes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_proj.bias": None}, "'quant_proj.bias' is missing"),
        ({"quant_proj.bias": None, "quant_proj.bais": torch.zeros(6)}, "has no place|did you mean"),
        ({"extra": torch.zeros(1)}, "'extra' has no place"),
        ({"encoder.pos_emb": torch.zeros(1, 128, 5, 5)}, "decided by image_size"),
        ({"quantize._codebook.embed": torch.zeros(10, 6)}, "decided by codebook_size"),
        ({"quantize._codebook.initted": torch.zeros(1)}, "never trained"),
        (
            {
                "quantize._codebook.cluster_size": torch.ones(20),
                "quantize._codebook.embed_avg": torch.ones(20, 6),
            },
            "norm_codes",
        ),
    ],
)
def test_files_that_do_not_fit_their_config_are_refused(
    saved: Path, changes: dict[str, Tensor | None], message: str
) -> None:
    spoil(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(saved)


def test_training_buffers_and_an_unwanted_decoder_are_dropped() -> None:
    state = {**VQTokenizer(SMALL).state_dict(), "quantize._codebook.initted": torch.ones(1)}
    full, encoder = (
        fit_tokenizer(SMALL, state, part)[1] for part in (TokenizerPart.WHOLE, TokenizerPart.ENCODER)
    )
    assert "quantize._codebook.initted" not in full
    assert {
        name for name in full if name.startswith(("decoder.", "post_quant_proj."))
    } == full.keys() - encoder.keys()
