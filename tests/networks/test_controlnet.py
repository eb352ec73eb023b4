"""Tokenizers that steer Stable Diffusion: recorded calls and runs, released tensors, what is refused."""

import json
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Never

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fourm.errors import CheckpointError, MissingError, UsageError
from fourm.networks.tokenizers.controlnet import (
    SD15,
    UNREAD,
    StableDiffusion,
    Steering,
    VQControlNet,
    VQControlNetConfig,
)
from fourm.networks.tokenizers.vq import TRAINING_BUFFERS, Part

NAMES = ("n5_noguidance", "n5_guided", "n25_guided")
MANIFEST = "config_rgb_ViTB-SD1.5_1k_224-448_vqcontrolnet"
SMALL = VQControlNetConfig(
    image_size=(32, 32), enc_type="vit_demo_enc", patch_size=(8, 8), codebook_size=20, latent_dim=6
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the reference was asked and what it answered, and our tokenizer with its weights."""

    record: dict[str, Any]
    cases: dict[str, Tensor]
    tokenizer: VQControlNet

    def run(self, name: str) -> tuple[int, Steering]:
        [run] = [one for one in self.record["runs"] if one["name"] == name]
        return run["requested_steps"], Steering(run["guidance_scale"], run["cond_scale"])

    def sample(self, name: str, **changes: Any) -> list[Tensor]:
        steps, steering = self.run(name)
        noise = self.cases[f"{name}/initial_noise"]
        arguments = {"steering": steering, **changes}
        return list(self.tokenizer.sample(self.cases["tokens"], lambda _: noise, steps, **arguments))


@pytest.fixture(scope="module")
def libraries() -> None:
    pytest.importorskip("diffusers", reason="the extra 'controlnet' is not installed")
    pytest.importorskip("transformers", reason="the extra 'controlnet' is not installed")


@pytest.fixture(scope="module")
def recorded(golden: Path, libraries: None) -> Recorded:
    folder = golden / "divae" / "vqcontrolnet"
    record = json.loads((folder / "config.json").read_text())
    networks = StableDiffusion(record["unet"], record["vae"], record["text_encoder"])
    with torch.device("meta"):
        tokenizer = VQControlNet(VQControlNetConfig.from_dict(record["vqcontrolnet"]), Part.DECODER, networks)
    weights = load_file(folder / "model.safetensors")
    state = {n: t.float() for n, t in weights.items() if not n.startswith(TRAINING_BUFFERS + UNREAD)}
    tokenizer.load_state_dict(state, strict=True, assign=True)
    tokenizer.requires_grad_(False).eval()
    return Recorded(record, load_file(folder / "cases.safetensors"), tokenizer)


def decoder_of(recorded: Recorded) -> Any:
    return recorded.tokenizer.decoder


def assert_call(got: Tensor, expected: Tensor) -> None:
    """The tolerance of single calls."""
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-5 * max(expected.std(), expected.abs().max())


def test_nothing_of_a_loaded_tokenizer_is_without_contents(recorded: Recorded) -> None:
    tokenizer = recorded.tokenizer
    assert not [name for name, one in tokenizer.named_parameters() if one.is_meta]
    assert not [name for name, one in tokenizer.named_buffers() if one.is_meta]


def test_recorded_calls_are_reproduced(recorded: Recorded) -> None:
    decoder, cases = decoder_of(recorded), recorded.cases
    quant = recorded.tokenizer.lookup(cases["tokens"])
    assert torch.equal(quant, cases["quant"])
    condition = decoder.condition(quant)
    assert_call(decoder.controlnet.controlnet_cond_embedding(condition), cases["cond_embedding"])
    for t in (1, 481):
        for scale in (0.8, 1.0):
            case, at = f"forward/t{t}/cond_scale{scale}", torch.tensor(t)
            both = decoder.both(cases["sample"], at, condition, None, Steering(cond_scale=scale))
            for kind, together in zip(("conditional", "unconditional"), both, strict=True):
                alone = decoder(
                    cases["sample"], at, condition, cond_scale=scale, unconditional=kind == "unconditional"
                )
                assert_call(alone, cases[f"{case}/{kind}"])
                assert_call(together, cases[f"{case}/{kind}"])


def test_masked_positions_steer_as_recorded(recorded: Recorded) -> None:
    decoder, cases = decoder_of(recorded), recorded.cases
    condition = decoder.condition(cases["quant"], cases["cond_mask"])
    got = decoder(cases["sample"], torch.tensor(481), condition)
    assert_call(got, cases["forward/t481/cond_mask"])


def test_latents_become_the_recorded_pictures(recorded: Recorded) -> None:
    latent = recorded.cases["vae/latent"]
    for clip in (True, False):
        expected = recorded.cases["vae/decoded_" + ("clipped" if clip else "unclipped")]
        assert_call(recorded.tokenizer.vae_decode(latent, clip), expected)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_runs_are_reproduced(recorded: Recorded, name: str) -> None:
    latents = recorded.sample(name)
    assert len(latents) == recorded.run(name)[0] + 1
    expected = recorded.cases[f"{name}/latent"]
    assert (latents[-1] - expected).abs().max() <= 2e-5 * expected.std()
    picture = recorded.cases[f"{name}/image"]
    assert (recorded.tokenizer.vae_decode(latents[-1]) - picture).abs().max() <= 2e-5 * picture.std()
    if f"{name}/x" in recorded.cases:
        for got, entering in zip(latents, recorded.cases[f"{name}/x"][1:], strict=False):
            assert (got - entering).abs().max() <= 2e-5 * entering.std()


def test_a_seed_gives_the_recorded_noise_and_tokens_a_picture(recorded: Recorded) -> None:
    cases, tokenizer, shape = recorded.cases, recorded.tokenizer, recorded.tokenizer.noise_shape
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(50))
    assert torch.equal(noise, cases["n5_guided/initial_noise"])
    picture = tokenizer.decode_tokens(cases["tokens"], lambda _: noise, *recorded.run("n5_guided"))
    expected = cases["n5_guided/image"]
    assert (picture - expected).abs().max() <= 2e-5 * expected.std()
    assert picture.aminmax().min >= -1
    assert picture.aminmax().max <= 1


def test_the_text_encoder_gives_the_stored_empty_prompt(recorded: Recorded) -> None:
    sizes, decoder = recorded.record["text_encoder"], decoder_of(recorded)
    ids = torch.full((2, sizes["max_position_embeddings"]), sizes["eos_token_id"])
    ids[:, 0] = sizes["bos_token_id"]
    encoded = decoder.encode_text(ids)
    assert_call(encoded, decoder.empty_str_encoding.expand(2, -1, -1))
    # Given as a prompt it changes nothing, though it takes another way: one prompt for all rows, or one each.
    for context in (encoded, encoded[:1]):
        latent = recorded.sample("n5_guided", context=context)[-1]
        expected = recorded.cases["n5_guided/latent"]
        assert (latent - expected).abs().max() <= 2e-5 * expected.std()


@pytest.mark.parametrize("keep_middle", [True, False])
def test_both_passes_together_are_the_passes_alone(recorded: Recorded, keep_middle: bool) -> None:
    decoder, cases, t = decoder_of(recorded), recorded.cases, torch.tensor(481)
    condition = decoder.condition(cases["quant"])
    ids = torch.tensor([[18, 3, 4, 19, 19, 19, 19], [18, 5, 19, 19, 19, 19, 19]])
    context = decoder.encode_text(ids)
    steering = Steering(cond_scale=0.8, keep_middle=keep_middle)
    conditional, unconditional = decoder.both(cases["sample"], t, condition, context, steering)
    assert_call(conditional, decoder(cases["sample"], t, condition, context, cond_scale=0.8))
    alone = decoder(
        cases["sample"], t, condition, context, cond_scale=0.8, unconditional=True, keep_middle=keep_middle
    )
    assert_call(unconditional, alone)
    assert (conditional - decoder(cases["sample"], t, condition, cond_scale=0.8)).abs().max() > 1e-3


def test_an_unconditional_pass_can_be_free_of_the_tokens(recorded: Recorded) -> None:
    decoder, cases, t = decoder_of(recorded), recorded.cases, torch.tensor(481)
    with_tokens, without = (
        decoder.both(
            cases["sample"], t, decoder.condition(cases["quant"] * scale), None, Steering(keep_middle=False)
        )
        for scale in (1, 0)
    )
    assert torch.equal(with_tokens[1], without[1])
    assert not torch.equal(with_tokens[0], without[0])
    kept = decoder.both(cases["sample"], t, decoder.condition(cases["quant"]), None, Steering())
    assert (kept[1] - without[1]).abs().max() > 1e-3


def test_without_a_prompt_the_controlnet_runs_once_for_both_passes(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, batches = decoder_of(recorded), dict[str, list[int]](controlnet=[], unet=[])
    for name, network in (("controlnet", decoder.controlnet), ("unet", decoder.unet)):

        def counted(
            x: Tensor, *rest: Any, _name: str = name, _call: Any = network.forward, **words: Any
        ) -> Any:
            batches[_name].append(len(x))
            return _call(x, *rest, **words)

        monkeypatch.setattr(network, "forward", counted)
    recorded.sample("n5_guided")
    assert batches == {"controlnet": [2] * 6, "unet": [4] * 6}


def test_a_sample_does_not_depend_on_its_batch(recorded: Recorded) -> None:
    whole = recorded.sample("n5_guided")[-1]
    steps, steering = recorded.run("n5_guided")
    for row in range(2):
        noise = recorded.cases["n5_guided/initial_noise"][row : row + 1]
        *_, alone = recorded.tokenizer.sample(
            recorded.cases["tokens"][row : row + 1], lambda _, noise=noise: noise, steps, steering
        )
        assert (alone - whole[row]).abs().max() <= 2e-5 * whole.std()


def test_bfloat16_networks_keep_a_float32_latent(recorded: Recorded) -> None:
    tokenizer, networks = recorded.tokenizer, recorded.record
    copy = VQControlNet(
        tokenizer.config,
        Part.DECODER,
        StableDiffusion(networks["unet"], networks["vae"], networks["text_encoder"]),
    )
    copy.load_state_dict(tokenizer.state_dict())
    copy.requires_grad_(False).eval().set_network_dtype(torch.bfloat16)
    steps, steering = recorded.run("n5_guided")
    noise = recorded.cases["n5_guided/initial_noise"]
    *_, latent = copy.sample(recorded.cases["tokens"], lambda _: noise, steps, steering)
    expected = recorded.cases["n5_guided/latent"]
    assert latent.dtype == copy.vae_decode(latent).dtype == torch.float32
    assert (latent - expected).std() <= 0.05 * expected.std()


def test_a_full_tokenizer_has_exactly_the_listed_tensors(golden: Path, libraries: None) -> None:
    folder = golden / "divae" / "manifests"
    own = json.loads((folder / f"{MANIFEST}.json").read_text())
    frozen = json.loads((folder / f"{MANIFEST}_frozen_sd15.json").read_text())
    for part in ("unet", "vae", "text_encoder"):
        assert json.loads(json.dumps(getattr(SD15, part))) == frozen[part]
    listed = {**own["tensors"], **frozen["tensors"]}
    assert len(listed) == own["num_state_dict_entries"]
    with torch.device("meta"):
        tokenizer = VQControlNet(VQControlNetConfig.from_dict(own["constructor"]))
    shapes = {name: list(tensor.shape) for name, tensor in tokenizer.state_dict().items()}
    assert shapes == {n: row["shape"] for n, row in listed.items() if n not in TRAINING_BUFFERS}
    assert tokenizer.noise_shape == (4, 64, 64)
    counts = own["parameter_counts"]["by_prefix"]
    for prefix in counts.keys() - {"quantize"}:
        tensors = [t for name, t in tokenizer.state_dict().items() if name.startswith(prefix)]
        assert sum(t.numel() for t in tensors) == counts[prefix], prefix


def test_building_and_loading_fetch_and_unpickle_nothing(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> Never:
        raise AssertionError("not here")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr("pickle.load", refuse)
    networks = recorded.record
    fresh = VQControlNet(
        recorded.tokenizer.config,
        Part.DECODER,
        StableDiffusion(networks["unet"], networks["vae"], networks["text_encoder"]),
    )
    fresh.load_state_dict(recorded.tokenizer.state_dict(), strict=True)


def test_stored_positions_of_text_are_not_part_of_the_tokenizer(recorded: Recorded) -> None:
    names = recorded.tokenizer.state_dict().keys()
    assert not names & set(UNREAD)
    assert UNREAD[0].rpartition(".")[0] + ".token_embedding.weight" in names


# ---- without the libraries


def test_unknown_keys_of_a_config_are_training_settings() -> None:
    config = VQControlNetConfig.from_dict(
        {"image_size": 448, "image_size_sd": 512, "sd_path": "x/y", "pretrained_cn": True,
         "enable_xformer": True, "adapter": None, "masked_cfg": False, "never_heard_of": [1]}
    )  # fmt: skip
    assert config == VQControlNetConfig(image_size=(448, 448), image_size_sd=(512, 512))
    assert replace(config, image_size_sd=None).size == (448, 448)


def test_an_encoder_alone_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("diffusers", "transformers"):
        monkeypatch.setitem(sys.modules, library, None)
    tokenizer = VQControlNet(replace(SMALL, image_size_sd=(64, 64)), Part.ENCODER)
    assert tokenizer.tokenize(torch.zeros(1, 3, 32, 32)).shape == (1, 4, 4)
    assert not [name for name in tokenizer.state_dict() if name.startswith(("decoder.", "vae."))]
    with pytest.raises(ValueError, match="without a decoder"):
        tokenizer.sample(torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros)
    with pytest.raises(ValueError, match="without a decoder"):
        tokenizer.vae_decode(torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_missing_library_is_one_sentence_that_says_what_brings_it(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if library == "transformers":
        pytest.importorskip("diffusers")
    monkeypatch.setitem(sys.modules, library, None)
    with torch.device("meta"), pytest.raises(MissingError, match="ControlNet") as caught:
        VQControlNet(replace(SMALL, image_size_sd=(64, 64)))
    assert "pip install 'fourm[controlnet]'" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_sizes_that_the_unet_cannot_halve_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"image_size_sd: .*100.* multiples of 64"):
        VQControlNet(replace(SMALL, image_size_sd=(128, 100)), Part.ENCODER)
    with pytest.raises(CheckpointError, match="n_labels"):
        VQControlNetConfig(n_labels=4)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"guidance_scale": float("nan")}, "guidance scale nan"),
        ({"cond_scale": float("inf")}, "conditioning scale inf"),
        ({"guidance_rescale": 1.5}, "guidance rescale 1.5 must lie in 0..1"),
    ],
)
def test_impossible_steering_is_refused(wrong: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Steering(**wrong)  # type: ignore[arg-type]


def test_what_cannot_be_sampled_is_refused_before_the_first_step(recorded: Recorded) -> None:
    tokenizer, tokens = recorded.tokenizer, recorded.cases["tokens"]
    good = recorded.cases["n5_guided/initial_noise"]
    with pytest.raises(ValueError, match=r"noise is \(2, 4, 8, 8\), not \(2, 4, 16, 16\)"):
        tokenizer.sample(tokens, lambda _: good[:, :, :8, :8])
    with pytest.raises(ValueError, match=r"context is \(3, 7, 16\), not \(2, 7, 16\)"):
        tokenizer.sample(tokens, lambda _: good, context=torch.zeros(3, 7, 16))
    with pytest.raises(ValueError, match=r"tokens must lie in 0\.\.31; found 32"):
        tokenizer.sample(torch.full_like(tokens, 32), lambda _: good)
    with pytest.raises(UsageError, match="1000 diffusion steps"):
        tokenizer.sample(tokens, lambda _: good, 1000)
