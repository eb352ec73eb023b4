"""Pseudo linear multisteps and guidance: recorded runs, timesteps, and a path that they must not leave."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from fourm.errors import UsageError
from fourm.networks.tokenizers.plms import (
    TRAINED_STEPS,
    Plms,
    guide_noise,
    plms_timesteps,
    scaled_linear_signal,
)


def run_of(constructor: dict[str, object], steps: int) -> Plms:
    return Plms(
        scaled_linear_signal(),
        steps,
        offset=int(str(constructor["steps_offset"])),
        last_signal=1.0 if constructor["set_alpha_to_one"] else None,
        prediction=str(constructor["prediction_type"]),
    )


@pytest.mark.parametrize("name", ["plms_5", "plms_25", "plms_v_8"])
def test_recorded_runs_are_reproduced(golden: Path, name: str) -> None:
    folder = golden / "divae" / "schedulers"
    tensors = load_file(folder / "pndm.safetensors")
    [record] = [
        one for one in json.loads((folder / "pndm.json").read_text())["trajectories"] if one["name"] == name
    ]
    plms = run_of(record["constructor"], record["requested_steps"])
    assert list(plms.timesteps) == record["timesteps"]
    x = tensors[f"{name}/initial_sample"]
    expected = [*tensors[f"{name}/sample"][1:], tensors[f"{name}/final"]]
    for output, after in zip(tensors[f"{name}/model_output"], expected, strict=True):
        x = plms.step(output, x)
        assert (x - after).abs().max() <= 1e-5 * after.std()


def test_recorded_timesteps_are_reproduced(golden: Path) -> None:
    record = json.loads((golden / "divae" / "schedulers" / "pndm.json").read_text())
    for one in record["timestep_lists"]:
        assert list(plms_timesteps(one["requested_steps"])) == one["timesteps"]


def test_the_signal_falls_as_recorded(golden: Path) -> None:
    recorded = load_file(golden / "divae" / "schedulers" / "alphas_cumprod.safetensors")
    wanted = recorded["T1000/scaled_linear/plain"]
    torch.testing.assert_close(scaled_linear_signal(1e-4, 0.02), wanted, rtol=0, atol=1e-6)


def test_guidance_and_its_rescale_are_as_recorded(golden: Path) -> None:
    recorded = load_file(golden / "divae" / "schedulers" / "guidance.safetensors")
    pair = recorded["conditional"], recorded["unconditional"]
    for scale in (2.5, 5.0):
        assert torch.equal(guide_noise(*pair, scale), recorded[f"guided/{scale}"])
        for rescale in (0.5, 1.0):
            expected = recorded[f"guided/{scale}/rescaled/{rescale}"]
            torch.testing.assert_close(guide_noise(*pair, scale, rescale), expected, rtol=1e-6, atol=1e-6)


def test_a_rescaled_result_spreads_like_the_conditional_one_in_each_sample() -> None:
    noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditional, unconditional = noise[0] * torch.tensor([1.0, 5.0, 0.2]).view(3, 1, 1, 1), noise[1]
    out = guide_noise(conditional, unconditional, 4.0, rescale=1.0)
    torch.testing.assert_close(out.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)))


@given(st.integers(1, TRAINED_STEPS - 1))
def test_timesteps_fall_to_one_and_only_the_second_comes_twice(steps: int) -> None:
    times = plms_timesteps(steps)
    assert len(times) == (steps + 1 if steps > 1 else 1)
    assert times[-1] == 1
    assert times[0] < TRAINED_STEPS
    falls = [a - b for a, b in pairwise(times)]
    assert falls[1:2] == ([0] if steps > 1 else [])
    assert {*falls[:1], *falls[2:]} <= {TRAINED_STEPS // steps}


@pytest.mark.parametrize("steps", [-1, 0, TRAINED_STEPS, 10**9])
def test_steps_out_of_range_are_refused(steps: int) -> None:
    with pytest.raises(UsageError, match=r"must lie in 1\.\.999"):
        plms_timesteps(steps)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from(["epsilon", "v_prediction"]))
def test_a_network_that_is_right_stays_on_the_path_from_noise_to_latent(
    steps: int, seed: int, prediction: str
) -> None:
    clean, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(seed))
    signal = scaled_linear_signal()

    def at(a: torch.Tensor) -> torch.Tensor:
        return a.sqrt() * clean + (1 - a).sqrt() * noise

    plms = Plms(signal, steps, prediction=prediction)
    x = at(signal[plms.timesteps[0]])
    for index, t in enumerate(plms.timesteps):
        a = signal[t]
        velocity = a.sqrt() * noise - (1 - a).sqrt() * clean
        if prediction == "v_prediction" and index == 1:
            return  # the correction averages velocities of two timesteps, which are not the same noise
        x = plms.step(noise if prediction == "epsilon" else velocity, x)
        following = t if index == 1 else t - TRAINED_STEPS // steps
        torch.testing.assert_close(x, at(signal[max(following, 0)]), rtol=0, atol=1e-4)


def test_runs_do_not_share_anything() -> None:
    outputs = torch.randn(6, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))

    def run(plms: Plms, x: torch.Tensor) -> list[torch.Tensor]:
        return [x := plms.step(output, x) for output in outputs]

    alone = run(Plms(scaled_linear_signal(), 5), torch.ones(1, 4, 2, 2))
    one, two = Plms(scaled_linear_signal(), 5), Plms(scaled_linear_signal(), 5)
    x, y = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    for output, expected in zip(outputs, alone, strict=True):
        x, y = one.step(output, x), two.step(-output, y)
        assert torch.equal(x, expected)
