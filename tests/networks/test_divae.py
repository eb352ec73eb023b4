"""Tokenizers that decode by diffusion: recorded calls and whole runs, released tensors, noise, sizes."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourm.errors import CheckpointError, UsageError
from fourm.hub.header import TRAINING_BUFFERS, TokenizerPart
from fourm.networks.checkpoint import fit_tokenizer, load_tokenizer
from fourm.networks.linears import pack
from fourm.networks.tokenizers import build_tokenizer
from fourm.networks.tokenizers.config import DiVAEConfig, Size, VQConfig, read_config
from fourm.networks.tokenizers.diffusion import DiVAE, make_sampler

FOLDERS = ("unet_concat", "uvit_concat", "uvit_xattn")
RUNS = [
    *(("unet_concat", run) for run in (
        "ddpm_5", "ddpm_25", "ddim_1", "ddim_5", "ddim_25",
        "ddim_7_runs_8", "ddim_5_nonsquare", "ddim_5_cond_3x3_to_64", "ddpm_5_noclip",
        "ddpm_5_nozerosnr_cosine",
    )),
    *(("uvit_concat", run) for run in ("ddpm_5", "ddpm_25", "ddim_5", "ddim_25", "ddim_5_cond_3x3_to_64")),
    *(("uvit_xattn", run) for run in ("ddpm_5", "ddim_5", "ddim_25", "ddim_5_image48")),
]  # fmt: skip
# Epsilon prediction that divides by next to no signal. In units of the standard deviation the recorded result
# is 0.90e-4 from the same run in float64, ours 1.12e-4, and the two 1.03e-4 from each other; noise larger by
# 1e-6, one or two roundings, moves it by 0.82e-4. The folder's README allows 1e-3 for this run alone.
ROUNDED = ("uvit_xattn", "ddim_25")
MANIFESTS = (
    "4M_tokenizers_rgb_16k_224-448", "4M_tokenizers_depth_8k_224-448", "4M_tokenizers_normal_8k_224-448",
    "4M_tokenizers_edge_8k_224-512", "config_rgb_ViTB-UNetP4_16k_224_predx0",
    "config_rgb_ViTB-UViTB_1k_224_predv_frozenenc", "config_rgb_ViTB-UViTB_1k_224-448_predv_frozenenc",
    "variant_rgb_UViTB_1k_224-448_xattn",
)  # fmt: skip
TINY = DiVAEConfig(
    image_size=(32, 32), n_channels=3, enc_type="vit_demo_enc", patch_size=(8, 8), codebook_size=20,
    latent_dim=6, scheduler="ddim", beta_schedule="linear", prediction_type="sample",
    dec_structure={"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 1],
                   "attention_resolutions": [2]},
)  # fmt: skip


def recorded(golden: Path, folder: str, **changes: Any) -> tuple[dict[str, Any], DiVAE]:
    """What the reference was asked, and our tokenizer with its weights."""
    record = json.loads((golden / "divae" / folder / "config.json").read_text())
    weights = load_file(golden / "divae" / folder / "model.safetensors")
    state = {name: tensor.float() for name, tensor in weights.items()}
    config = read_config(
        {**record["divae"], "dec_structure": record["decoder"]["structural"], "has_encoder": False,
         "dec_type": record["decoder"]["replaces_dec_type"]}
    )  # fmt: skip
    config = replace(config, **changes)
    tokenizer, sources = fit_tokenizer(config, state, TokenizerPart.DECODER)
    assert isinstance(tokenizer, DiVAE)
    tokenizer.load_state_dict({name: state[source] for name, source in sources.items()}, assign=True)
    return record, tokenizer.requires_grad_(False).eval()


def case_of(golden: Path, folder: str, name: str) -> dict[str, Any]:
    record = json.loads((golden / "divae" / folder / "config.json").read_text())
    (case,) = [c for c in record["end_to_end"] if c["file"] == f"e2e_{name}.safetensors"]
    return case


def decoded(
    tokenizer: DiVAE, tokens: Tensor, draws: Callable[[int], Tensor], steps: int, size: Size | None = None
) -> Tensor:
    *_, last = tokenizer.sample(tokens, draws, steps, size)
    return last


def tiny(**changes: Any) -> DiVAE:
    torch.manual_seed(0)
    tokenizer = DiVAE(replace(TINY, **changes)).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in tokenizer.parameters():
        parameter.normal_(0, 0.05, generator=generator)
    return tokenizer


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_recorded_call_of_a_decoder_is_reproduced(golden: Path, folder: str) -> None:
    record, tokenizer = recorded(golden, folder)
    cases = load_file(golden / "divae" / folder / "decoder_cases.safetensors")
    assert tokenizer.decoder is not None
    for case in record["decoder_cases"]["cases"]:
        name = case["name"]
        if f"{name}.cond_mask" in cases:  # which only training hides latents by
            continue
        sample, wanted = cases[f"{name}.sample"], cases[f"{name}.output"]
        size = (sample.shape[-2], sample.shape[-1])
        condition = tokenizer.decoder.condition(cases[f"{name}.condition"], size)
        got = tokenizer.decoder(sample, tokenizer.decoder.embed_time(cases[f"{name}.timestep"]), condition)
        assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.std()), name


@pytest.mark.parametrize(("folder", "name"), RUNS)
def test_every_recorded_run_is_reproduced(golden: Path, folder: str, name: str) -> None:
    case = case_of(golden, folder, name)
    tensors = load_file(golden / "divae" / folder / case["file"])
    _, tokenizer = recorded(golden, folder, **case["scheduler"])
    assert torch.equal(tokenizer.lookup(tensors["tokens"]), tensors["quant"])
    noise = [tensors["initial_noise"], *tensors.get("step_noise", ())]
    size = case["image_size"] if isinstance(case["image_size"], list) else [case["image_size"]] * 2
    states = list(
        tokenizer.sample(
            tensors["tokens"], noise.__getitem__, case["requested_steps"], (size[0], size[1])
        )
    )  # fmt: skip
    assert len(states) == case["executed_steps"]
    limit = 1e-4 * float(tensors["output"].std())
    if (folder, name) == ROUNDED:
        limit = 2 * case["sens_init_noise_rel_1e_6"]
    for index, x in zip(tensors["x_index"].tolist(), tensors["x"], strict=True):
        before = noise[0] if index == 0 else states[index - 1]
        assert float((before - x).abs().max()) <= limit, index
    assert float((states[-1] - tensors["output"]).abs().max()) <= limit


@pytest.mark.parametrize(("folder", "name"), [("unet_concat", "ddpm_5"), ("unet_concat", "ddim_5")])
def test_a_seeded_generator_gives_the_recorded_noise(golden: Path, folder: str, name: str) -> None:
    case = case_of(golden, folder, name)
    tensors = load_file(golden / "divae" / folder / case["file"])
    generator = torch.Generator().manual_seed(case["generator_seed"])
    for wanted in (tensors["initial_noise"], *tensors.get("step_noise", ())):
        assert torch.equal(torch.randn(wanted.shape, generator=generator), wanted)


@pytest.mark.parametrize("name", MANIFESTS)
def test_full_size_tokenizers_have_exactly_the_listed_tensors(golden: Path, name: str) -> None:
    manifest = json.loads((golden / "divae" / "manifests" / f"{name}.json").read_text())
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_config(manifest["constructor"]))
    shapes = {key: tuple(tensor.shape) for key, tensor in tokenizer.state_dict().items()}
    aliases = {names[0] for names in manifest["aliased_entries"]}
    listed = {
        key: tuple(row["shape"]) for key, row in manifest["tensors"].items() if key not in TRAINING_BUFFERS
    }
    counts = dict[str, int]()
    for key, tensor in tokenizer.state_dict().items():
        top = key.split(".")[0]
        counts[top] = counts.get(top, 0) + tensor.numel()
    wanted = manifest["parameter_counts"]["by_top_level_prefix"]
    dropped = [row["shape"] for key, row in manifest["tensors"].items() if key in TRAINING_BUFFERS]
    assert counts == {**wanted, "quantize": wanted["quantize"] - sum(prod(shape) for shape in dropped)}
    missing = listed.keys() - shapes.keys()
    assert missing <= aliases
    assert shapes == {key: shape for key, shape in listed.items() if key not in missing}


def noise_of(tokens: Tensor, side: int = 32) -> Tensor:
    """Noise that belongs to the row."""
    rows = [torch.randn(3, side, side, generator=torch.Generator().manual_seed(int(t.sum()))) for t in tokens]
    return torch.stack(rows)


def test_a_batch_is_decoded_like_its_rows() -> None:
    tokenizer = tiny()
    tokens = torch.randint(0, 20, (5, 4, 4), generator=torch.Generator().manual_seed(3))
    noise = noise_of(tokens)
    together = decoded(tokenizer, tokens, lambda _: noise, steps=4)
    for row in range(5):
        alone = decoded(tokenizer, tokens[row : row + 1], lambda _, r=row: noise[r : r + 1], steps=4)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_tokens_decide_what_is_decoded_and_noise_how() -> None:
    tokenizer = tiny()
    tokens = torch.arange(16).view(1, 4, 4)
    first = decoded(tokenizer, tokens, lambda _: noise_of(tokens), steps=5)
    assert first.shape == (1, 3, 32, 32)
    assert torch.equal(first, decoded(tokenizer, tokens, lambda _: noise_of(tokens), steps=5))
    other = decoded(tokenizer, tokens.flip(1), lambda _: noise_of(tokens), steps=5)
    assert float((first - other).abs().max()) > 1e-3


def test_every_step_is_yielded_and_ddpm_draws_at_all_but_the_last() -> None:
    tokens, drawn = torch.zeros(1, 4, 4, dtype=torch.int64), list[int]()

    def draws(index: int) -> Tensor:
        drawn.append(index)
        return torch.zeros(1, 3, 32, 32)

    assert len(list(tiny().sample(tokens, draws, steps=5))) == 5
    assert drawn == [0]
    assert len(list(tiny(scheduler="ddpm").sample(tokens, draws, steps=5))) == 5
    assert drawn == [0, 0, 1, 2, 3, 4]


def test_no_gradient_mode_leaks_out_of_a_run_that_is_left_half_way() -> None:
    tokens = torch.zeros(1, 4, 4, dtype=torch.int64)
    steps = tiny().sample(tokens, lambda _: torch.zeros(1, 3, 32, 32), steps=5)
    next(steps)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_stays_close(dtype: torch.dtype, limit: float) -> None:
    tokens = torch.arange(16).view(1, 4, 4)
    wanted = decoded(tiny(), tokens, lambda _: noise_of(tokens), steps=5)
    half = tiny()
    for name, parameter in half.named_parameters():
        parameter.data = half.converted(name, parameter.data, "cpu", dtype)
    got = decoded(half, tokens, lambda _: noise_of(tokens), steps=5)
    assert got.dtype == torch.float32
    assert float((got - wanted).std() / wanted.std()) < limit


def test_a_file_without_encoder_decodes_only() -> None:
    tokenizer = tiny(has_encoder=False)
    assert not [name for name in tokenizer.state_dict() if name.startswith(("encoder.", "quant_proj."))]
    with pytest.raises(ValueError, match="without an encoder"):
        tokenizer.tokenize(torch.zeros(1, 3, 32, 32))
    with pytest.raises(CheckpointError, match="has_encoder"):
        DiVAE(replace(TINY, has_encoder=False), TokenizerPart.ENCODER)


def test_either_half_of_a_checkpoint_loads_alone() -> None:
    whole = tiny()
    state = {**whole.state_dict(), "quantize._codebook.initted": torch.ones(1)}
    x, tokens = torch.rand(1, 3, 32, 32), torch.arange(16).view(1, 4, 4)
    encoder, decoder = DiVAE(TINY, TokenizerPart.ENCODER), DiVAE(TINY, TokenizerPart.DECODER)
    for half, part in ((encoder, TokenizerPart.ENCODER), (decoder, TokenizerPart.DECODER)):
        sources = fit_tokenizer(TINY, state, part)[1]
        half.load_state_dict({name: state[source] for name, source in sources.items()})
    assert torch.equal(encoder.tokenize(x), whole.tokenize(x))
    noise = noise_of(tokens)
    wanted = decoded(whole, tokens, lambda _: noise, steps=2)
    assert torch.equal(decoded(decoder, tokens, lambda _: noise, steps=2), wanted)
    assert set(encoder.state_dict()) | set(decoder.state_dict()) == set(whole.state_dict())
    with pytest.raises(ValueError, match="without a decoder"):
        decoded(encoder, tokens, lambda _: noise, steps=2)


@pytest.mark.parametrize(
    ("size", "steps", "message"),
    [((40, 36), 5, "multiples of 8"), (None, 0, "from 1 to 1,000"), (None, 1001, "from 1 to 1,000")],
)
def test_sizes_and_steps_that_cannot_be_are_refused(
    size: tuple[int, int] | None, steps: int, message: str
) -> None:
    tokens = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises((ValueError, UsageError), match=message):
        decoded(tiny(), tokens, lambda _: torch.zeros(1, 3, 32, 32), steps, size)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"dec_type": "unet_patchd"}, "did you mean 'unet_patched'"),
        ({"dec_type": "uvit_c_p4_f16"}, "did you mean 'uvit_"),
        ({"beta_schedule": "linea"}, "did you mean 'linear'"),
        ({"beta_schedule": "shifted_cosine:x"}, "above 0 after the colon"),
        ({"beta_schedule": "shifted_cosine:nan"}, "above 0 after the colon"),
        ({"prediction_type": "v"}, "expected one of sample, epsilon, v_prediction"),
        ({"conditioning": "cross"}, "conditioning is 'cross', expected one of concat, xattn"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0, expected a whole number, 1 to"),
        ({"thresholding": "yes"}, "thresholding is 'yes', expected true or false"),
        ({"dec_structure": [1]}, "dec_structure is .*, expected a mapping"),
        ({"dec_structure": {"widths": 3}}, "dec_structure has an unknown key 'widths'"),
        ({"dec_structure": {"model_channels": "32"}}, "dec_structure.model_channels is '32'"),
        ({"dec_structure": {"model_channels": 48, "channel_mult": [1]}}, "multiples of 32"),
        ({"dec_structure": {"model_channels": 32, "channel_mult": 1}}, "channel_mult is 1, expected a list"),
        ({"dec_structure": {"model_channels": True}}, "model_channels is True"),
        ({"dec_structure": {"num_res_blocks": 1.5}}, "num_res_blocks is 1.5"),
        ({"dec_structure": {"num_res_blocks": 65}}, "num_res_blocks is 65, expected a whole number, 0 to 64"),
        ({"dec_structure": {"attention_resolutions": 4}}, "attention_resolutions is 4, expected a list"),
        ({"dec_structure": {"channel_mult": []}}, "channel_mult is .*, expected a list of length 1 to 16"),
        ({"dec_structure": {"channel_mult": [1] * 17}}, "expected a list of length 1 to 16"),
        ({"dec_structure": {"patch_size": 0}}, "patch_size is 0, expected a whole number, 1 to"),
        ({"dec_structure": {"model_channels": 1, "channel_mult": [32]}}, "not even"),
        ({"n_labels": 4}, "n_labels"),
    ],
)
def test_configs_that_make_no_sense_are_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message), torch.device("meta"):
        build_tokenizer(read_config({"dec_type": "unet_patched", "patch_size": 16, **config}))


def test_what_cannot_be_is_refused_before_anything_is_drawn() -> None:
    tokens, tokenizer = torch.zeros(1, 4, 4, dtype=torch.int64), tiny()

    def draws(index: int) -> Tensor:
        raise AssertionError(index)

    with pytest.raises(ValueError, match="multiples of 8"):
        tokenizer.sample(tokens, draws, 5, (0, 8))
    with pytest.raises(ValueError, match="latents have 7 channels"):
        tokenizer.sample(torch.zeros(1, 7, 4, 4), draws, 5)
    with pytest.raises(CheckpointError, match="epsilon"):
        tiny(prediction_type="epsilon").sample(tokens, draws, 5)


def test_every_draw_has_the_shape_of_the_value_and_becomes_float32() -> None:
    tokens, tokenizer = torch.zeros(1, 4, 4, dtype=torch.int64), tiny(scheduler="ddpm")
    for bad in (0, 2):
        with pytest.raises(ValueError, match=r"noise is \(1, 1, 32, 32\)"):
            decoded(tokenizer, tokens, lambda i, b=bad: torch.zeros(1, 1 if i == b else 3, 32, 32), 5)
    double = decoded(tokenizer, tokens, lambda _: torch.zeros(1, 3, 32, 32, dtype=torch.float64), 5)
    assert double.dtype == torch.float32


def test_latents_are_decoded_like_the_tokens_they_stand_for() -> None:
    tokens, tokenizer = torch.arange(16).view(1, 4, 4), tiny()
    wanted = decoded(tokenizer, tokens, lambda _: noise_of(tokens), steps=3)
    *_, got = tokenizer.sample(tokenizer.lookup(tokens), lambda _: noise_of(tokens), steps=3)
    assert torch.equal(got, wanted)


def test_a_sampler_takes_the_place_of_the_one_that_the_config_asks_for() -> None:
    tokens = torch.arange(16).view(1, 4, 4)
    wanted = decoded(tiny(scheduler="ddpm"), tokens, lambda _: noise_of(tokens), steps=4)
    tokenizer = tiny()
    tokenizer.sampler = make_sampler(replace(TINY, scheduler="ddpm"))
    *_, got = tokenizer.sample(tokens, lambda _: noise_of(tokens), steps=4)
    assert torch.equal(got, wanted)


def test_noise_prediction_says_nothing_without_any_signal() -> None:
    tokens = torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(CheckpointError, match="epsilon"):
        decoded(tiny(prediction_type="epsilon"), tokens, lambda _: torch.zeros(1, 3, 32, 32), 5)


def test_a_config_says_by_its_decoder_or_else_its_schedule_that_it_diffuses() -> None:
    assert isinstance(read_config({"dec_type": "unet_patched", "some_training_key": 1}), DiVAEConfig)
    for key, value in (("beta_schedule", "linear"), ("num_train_timesteps", 1000)):
        config = read_config({key: value})
        assert isinstance(config, DiVAEConfig)
        assert config.dec_type == "unet_patched"
    for config in ({}, {"dec_type": "vit_b_dec", "beta_schedule": "linear"}):
        assert type(read_config(config)) is VQConfig


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 8, 10])
def test_numbers_that_divide_the_steps_of_training_are_taken_as_asked(steps: int) -> None:
    tokens = torch.zeros(1, 4, 4, dtype=torch.int64)
    states = list(tiny().sample(tokens, lambda _: torch.zeros(1, 3, 32, 32), steps))
    assert len(states) == steps
    assert float(states[-1].abs().max()) <= 1


def test_a_whole_tokenizer_is_loaded_from_its_folder(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    whole = tiny()
    save_file({k: v.contiguous() for k, v in whole.state_dict().items()}, tmp_path / "model.safetensors")
    config = {
        "image_size": 32, "enc_type": "vit_demo_enc", "patch_size": 8, "codebook_size": 20, "latent_dim": 6,
        "scheduler": "ddim", "beta_schedule": "linear", "prediction_type": "sample", "training_lr": 1e-4,
        "dec_type": "unet_patched", "dec_structure": dict(TINY.dec_structure or {}),
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokens = torch.arange(16).view(1, 4, 4)
    noise = noise_of(tokens)
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, DiVAE)
    wanted = decoded(whole, tokens, lambda _: noise, steps=3)
    assert torch.equal(decoded(loaded, tokens, lambda _: noise, steps=3), wanted)


@pytest.mark.parametrize("decoder", ["unet_patched", "uvit_b_p4_f16"])
def test_a_loaded_decoder_has_channels_last_and_decodes_the_same_bits(tmp_path: Path, decoder: str) -> None:
    wide = {} if decoder == "unet_patched" else {"block_out_channels": [32, 32], "mid_layers": 1}
    sizes = wide or {"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1, 2]}
    torch.manual_seed(0)
    config = {**asdict(TINY), "dec_type": decoder, "dec_structure": sizes, "has_encoder": False}
    plain = build_tokenizer(read_config(config))
    assert isinstance(plain, DiVAE)
    torch.nn.init.normal_(plain.state_dict()["quantize._codebook.embed"])
    save_file(plain.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, DiVAE)
    assert loaded.decoder is not None
    kernels = [p for p in loaded.decoder.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    tokens, noise = torch.arange(16).view(1, 4, 4), torch.randn(1, 3, 32, 32)
    pack(plain)  # large linear layers have other last bits, where the loaded one has them
    steps = [list(one.sample(tokens, lambda _: noise, 4)) for one in (plain.eval(), loaded)]
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))
