"""Noise schedules, timesteps and single steps, bit for bit as recorded; and the laws that they keep."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fourm.errors import CheckpointError, UsageError
from fourm.networks.tokenizers.config import DiVAEConfig
from fourm.networks.tokenizers.diffusion import (
    Sampler,
    Timestep,
    cumulative_alphas,
    make_sampler,
    predict,
)
from fourm.networks.tokenizers.unet import timestep_embedding

# The square roots and exponentials of vector libraries differ in the last bit from one kind of CPU to the
# next, and rescaled schedules are differences of such roots.
SCHEDULE, CALL = 1e-6, 1e-5


def no_draw() -> Tensor:
    raise AssertionError("this step takes no fresh noise")


def assert_met(got: Tensor, recorded: Tensor, limit: float, what: object = "") -> None:
    assert (got - recorded).abs().max() <= limit * recorded.std(), what


@pytest.fixture
def schedulers(golden: Path) -> Path:
    return golden / "divae" / "schedulers"


def test_noise_schedules_are_the_recorded_ones(schedulers: Path) -> None:
    checked = 0
    for name, wanted in load_file(schedulers / "alphas_cumprod.safetensors").items():
        steps, schedule, *ending = name.split("/")
        if ending[-1:] == ["betas"]:
            continue
        zero = ending != ["plain"]
        got = cumulative_alphas(schedule, int(steps[1:]), zero)
        torch.testing.assert_close(got, wanted, rtol=0, atol=SCHEDULE)
        assert (got[-1] == 0) == (wanted[-1] == 0)
        checked += 1
    assert checked >= 18


def test_timesteps_are_the_recorded_ones(schedulers: Path) -> None:
    records = json.loads((schedulers / "timesteps.json").read_text())
    # Offsets and DDIM's other spacings, which no config sets, do not exist here.
    usual = [r for r in records if not r["steps_offset"] and r["mode"] == "trailing"]
    for r in usual:
        sampler = Sampler(r["scheduler"], torch.ones(r["num_train_timesteps"]), "sample")
        got = sampler.plan(r["requested_steps"])
        assert got == list(zip(r["timesteps"], r["previous"], strict=True)), r
    assert len(usual) > 20


def test_single_steps_are_the_recorded_ones(schedulers: Path) -> None:
    tensors = load_file(schedulers / "one_step.safetensors")
    records = json.loads((schedulers / "one_step.json").read_text())
    # Options that no config sets do not exist here.
    other = ("set_alpha_to_one", "variance_type", "sample_max_value", "clip_sample_range")
    records = [
        r for r in records if not r["step_arguments"] and not any(key in r["constructor"] for key in other)
    ]
    for r in records:
        made = r["constructor"]
        sampler = Sampler(
            r["scheduler"],
            cumulative_alphas(made["beta_schedule"], 1000, made.get("zero_terminal_snr", True)),
            made["prediction_type"], made["thresholding"] or made["clip_sample"],
        )  # fmt: skip
        noise = tensors.get(f"{r['id']}.noise")
        draws = [] if noise is None else [noise]
        after, clean = sampler.step(
            tensors[f"{r['id']}.model_output"], Timestep(r["timestep"], r["previous_timestep"]),
            tensors[f"{r['id']}.sample"], draws.pop,
        )  # fmt: skip
        assert (noise is not None, draws) == (r["noise_used"], [])
        assert_met(after, tensors[f"{r['id']}.prev_sample"], CALL, r)
        assert_met(clean, tensors[f"{r['id']}.pred_original_sample"], CALL, r)
    assert len(records) > 50


def add_noise(clean: Tensor, noise: Tensor, a: Tensor) -> Tensor:
    """The forward process; a of any shape that broadcasts over the values."""
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def velocity(clean: Tensor, noise: Tensor, a: Tensor) -> Tensor:
    """What a v-prediction network predicts (Salimans and Ho 2022, arXiv:2202.00512)."""
    return a.sqrt() * noise - (1 - a).sqrt() * clean


def test_the_forward_process_is_the_recorded_one(schedulers: Path) -> None:
    tensors = load_file(schedulers / "forward_process.safetensors")
    for schedule in ("linear", "shifted_cosine:0.5"):
        get = {name: tensors[f"{schedule}/{name}"] for name in ("clean", "noise", "timesteps")}
        a = cumulative_alphas(schedule, 1000)[get["timesteps"]].view(-1, 1, 1, 1)
        noisy, v = add_noise(get["clean"], get["noise"], a), velocity(get["clean"], get["noise"], a)
        assert_met(noisy, tensors[f"{schedule}/noisy"], CALL)
        assert_met(v, tensors[f"{schedule}/velocity"], CALL)
        _, back = predict(v, a.sqrt(), (1 - a).sqrt(), noisy, "v_prediction")
        torch.testing.assert_close(back, tensors[f"{schedule}/recovered_noise"], rtol=1e-6, atol=1e-7)


def test_timesteps_are_embedded_as_recorded(schedulers: Path) -> None:
    tensors = load_file(schedulers / "timestep_embedding.safetensors")
    for dim in (32, 128, 256):
        got = timestep_embedding(tensors["timesteps"], dim)
        # An angle is a timestep times a frequency: where that is an ulp off, so is the angle.
        ulp = torch.finfo(torch.float32).eps
        limit = 1e-6 + tensors["timesteps"].double().view(-1, 1) * ulp
        assert ((got - tensors[f"dim{dim}"]).abs() <= limit).all()
    assert timestep_embedding(torch.tensor(7), 32).shape == (1, 32)


NUMBERS = st.floats(-2, 2, width=32)


def row(values: list[float]) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


@settings(deadline=None, max_examples=60)
@given(
    clean=st.lists(NUMBERS, min_size=4, max_size=4), noise=st.lists(NUMBERS, min_size=4, max_size=4),
    t=st.integers(20, 900), prediction=st.sampled_from(["sample", "epsilon", "v_prediction"]),
    schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "shifted_cosine:1"]),
)  # fmt: skip
def test_a_network_that_is_always_right_leads_straight_to_the_value(
    clean: list[float], noise: list[float], t: int, prediction: str, schedule: str
) -> None:
    x0, eps = row(clean), row(noise)
    alphas = cumulative_alphas(schedule, 1000)
    a, b = alphas[t], alphas[t - 20]
    right = {"sample": x0, "epsilon": eps, "v_prediction": velocity(x0, eps, a)}[prediction]
    noisy = add_noise(x0, eps, a)
    slack = 1e-5 / float(min(a, 1 - a).sqrt())  # rounding, divided by how much there is of each
    predicted_clean, predicted_noise = predict(right, a.sqrt(), (1 - a).sqrt(), noisy, prediction)
    torch.testing.assert_close(predicted_clean, x0, rtol=0, atol=slack)
    torch.testing.assert_close(predicted_noise, eps, rtol=0, atol=slack)
    after, _ = Sampler("ddim", alphas, prediction).step(right, Timestep(t, t - 20), noisy, no_draw)
    torch.testing.assert_close(after, add_noise(x0, eps, b), rtol=0, atol=2 * slack)
    no_noise = torch.zeros_like(noisy)
    last, _ = Sampler("ddpm", alphas, prediction).step(right, Timestep(t, -1), noisy, lambda: no_noise)
    torch.testing.assert_close(last, x0, rtol=0, atol=2 * slack)


@given(schedule=st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]),
       steps=st.integers(2, 400))  # fmt: skip
@settings(deadline=None, max_examples=40)
def test_signal_only_ever_falls(schedule: str, steps: int) -> None:
    for zero in (True, False):
        alphas = cumulative_alphas(schedule, steps, zero)
        assert bool((alphas.diff() <= 0).all())
        assert float(alphas[0]) <= 1
        assert (float(alphas[-1]) == 0) == zero or schedule == "squaredcos_cap_v2"


@pytest.mark.parametrize("thresholding", [True, False])
@pytest.mark.parametrize("clip_sample", [True, False])
def test_thresholds_of_one_are_a_clamp(thresholding: bool, clip_sample: bool) -> None:
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 3
    config = DiVAEConfig(prediction_type="sample", thresholding=thresholding, clip_sample=clip_sample)
    _, clean = make_sampler(config).step(x, Timestep(0, -1), x, no_draw)
    assert torch.equal(clean, x.clamp(-1, 1) if thresholding or clip_sample else x)


def test_what_cannot_be_is_refused() -> None:
    alphas = cumulative_alphas("linear", 100)
    with pytest.raises(CheckpointError, match="says nothing at timestep 99"):
        Sampler("ddim", alphas, "epsilon").plan(10)
    with pytest.raises(CheckpointError, match="did you mean 'squaredcos_cap_v2'"):
        cumulative_alphas("squaredcos", 100)
    with pytest.raises(UsageError, match="from 1 to 100"):
        Sampler("ddim", alphas, "sample").plan(101)
