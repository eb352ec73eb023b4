"""The demo's diffusion detokenizer draws the pictures of the tokens that it is given."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from demo.bench import DIFFUSED, Bench, Value
from demo.bundle import BUNDLE
from demo.diffusion import CODEBOOK, NAME, READS, Plan, config_of, draw, picture_of, train_diffusion
from demo.patches import network_input, tokens_of
from demo.readback import caption_of
from demo.render import render
from demo.world import describe, normalise, sample_scene
from fourm.networks.checkpoint import load_tokenizer
from fourm.networks.tokenizers.diffusion import DiVAE

SCENES = [sample_scene(random.Random(seed), held_out=True) for seed in range(6)]
FOLDER = BUNDLE / "tokenizers"
LEAST_PSNR = 30.0  # dB, of any picture


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.load()


@pytest.fixture(scope="module")
def shown(bench: Bench) -> list[Value]:
    return bench.diffused(bench.condition(SCENES, DIFFUSED), steps=10)


def test_the_bundles_detokenizer_is_a_divae_without_an_encoder() -> None:
    tokenizer, other = load_tokenizer(FOLDER / NAME), load_tokenizer(FOLDER / READS)
    assert isinstance(tokenizer, DiVAE)
    names = set(tokenizer.state_dict())
    assert {name.partition(".")[0] for name in names} == {"decoder", "quantize"}
    assert torch.equal(tokenizer.state_dict()[CODEBOOK], other.state_dict()[CODEBOOK])


def test_pictures_drawn_in_ten_steps_are_those_of_their_scenes(shown: list[Value]) -> None:
    for scene, value in zip(SCENES, shown, strict=True):
        error = np.square((value.astype(float) - render(scene).rgb) / 255).mean()
        assert -10 * np.log10(error) > LEAST_PSNR
        assert caption_of(value) == normalise(describe(scene))


def test_a_picture_is_the_same_in_any_batch(bench: Bench, shown: list[Value]) -> None:
    few = bench.diffused(bench.condition(SCENES[:2], DIFFUSED), steps=10)
    assert all(np.array_equal(a, b) for a, b in zip(few, shown, strict=False))


def test_patches_side_by_side_are_the_rendered_picture() -> None:
    for scene in SCENES:
        tokens = torch.from_numpy(tokens_of(scene, READS).astype(np.int64))[None]
        assert np.array_equal(picture_of(tokens)[0].numpy(), network_input("rgb", render(scene)))


def test_batches_are_fixed_by_their_step() -> None:
    plan = Plan(batch_size=4)
    for one, same, other in zip(draw(plan, 3), draw(plan, 3), draw(plan, 4), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_an_interrupted_training_ends_like_one_in_one_piece(tmp_path: Path) -> None:
    plan, codebook = Plan(steps=3, batch_size=2), FOLDER / READS / "model.safetensors"
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_diffusion(whole, codebook, plan)
    assert not train_diffusion(parts, codebook, plan, minutes=0, every=2)
    assert train_diffusion(parts, codebook, plan, every=2)
    weights = f"tokenizers/{NAME}/model.safetensors"
    assert (parts / weights).read_bytes() == (whole / weights).read_bytes()
    assert isinstance(load_tokenizer(parts / "tokenizers" / NAME), DiVAE)
    assert (parts / "tokenizers" / NAME / "config.json").read_text() == (
        FOLDER / NAME / "config.json"
    ).read_text()
    assert config_of()["has_encoder"] is False
