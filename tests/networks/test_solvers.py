"""DPM-Solver++ and UniPC as recorded: noise levels, steps, whole runs, the limit where no signal is left."""

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fourm.errors import CheckpointError, UsageError
from fourm.networks.tokenizers.diffusion import DiVAE, Sampler, State, cumulative_alphas
from fourm.schedule.solvers import (
    DDIM,
    SOLVERS,
    SPACINGS,
    Solver,
    SolverStep,
    parse_solver,
    plan_orders,
)
from tests.networks.test_divae import noise_of, recorded, tiny

# Relative to the largest value of a sample, at least to 1; the folder's README allows 5e-6.
LIMIT = 5e-6
FILES = ("driven", "linear", "limits")


@pytest.fixture(scope="module")
def alphas(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "divae/schedulers/alphas_cumprod.safetensors")


def records(golden: Path, name: str) -> list[dict[str, Any]]:
    """The records whose options a name of a solver, or a config, can stand for."""
    found: list[dict[str, Any]] = json.loads((golden / f"solvers/{name}.json").read_text())
    return [record for record in found if is_offered(record)]


def is_offered(record: dict[str, Any]) -> bool:
    options = record.get("options", {})
    usual = {
        "solver_type": ("midpoint", "bh2"), "final_sigmas_type": ("zero",), "lower_order_final": (True,),
        "euler_at_final": (False,), "sample_max_value": (1.0,), "steps_offset": (0,),
    }  # fmt: skip
    return all(options.get(name, values[0]) in values for name, values in usual.items())


def solver_of(record: dict[str, Any]) -> Solver:
    """What a record's options mean; a number stands where another library has a name."""
    options = record.get("options", {"solver_order": record.get("order")})
    spacing = options.get("timestep_spacing", "trailing")
    for name, key in (("karras", "use_karras_sigmas"), ("lu", "use_lu_lambdas")):
        spacing = name if options.get(key) else spacing
    return Solver(record["solver"] != "dpm", options.get("solver_order", 2), spacing)


def alphas_of(record: dict[str, Any], alphas: dict[str, Tensor]) -> Tensor:
    """The cumulative alphas of a record: with 2^-24 in place of a last 0, as in other libraries."""
    if "alphas_cumprod" in record:
        return alphas[record["alphas_cumprod"]]
    options = record["options"]
    name = f"T{options.get('num_train_timesteps', 1000)}/{options['beta_schedule']}"
    if not options["beta_schedule"].startswith("shifted_cosine"):
        name += "/zero_terminal_snr" if options.get("rescale_betas_zero_snr") else "/plain"
    return alphas[name].where(alphas[name] > 0, 2.0**-24)


def sampler_of(record: dict[str, Any], alphas: dict[str, Tensor]) -> Sampler:
    options = record.get("options", record)
    clips = bool(record.get("clamp") or options.get("thresholding"))
    return Sampler("ddim", alphas_of(record, alphas), options["prediction_type"], clips)


def no_draw() -> Tensor:
    raise AssertionError("solvers take no fresh noise")


def plan_of(solver: Solver, alphas: Tensor, count: int) -> list[SolverStep]:
    steps = Sampler("ddim", alphas, "sample").plan(count, solver)
    return [step for step in steps if isinstance(step, SolverStep)]


def assert_near(got: Tensor, wanted: Tensor, what: object) -> None:
    assert (got - wanted).abs().max() <= LIMIT * max(1.0, float(wanted.abs().max())), what


def test_timesteps_levels_and_orders_are_the_recorded_ones(golden: Path, alphas: dict[str, Tensor]) -> None:
    tensors = load_file(golden / "solvers/schedules.safetensors")
    cases = records(golden, "schedules")
    for r in cases:
        solver, signal = solver_of(r), alphas_of(r, alphas).double()
        ratios = ((1 - signal) / signal).sqrt().tolist()
        timesteps, levels = SPACINGS[solver.spacing](ratios, r["steps"])
        wanted = r["timesteps"]
        if "use_karras_sigmas" in r["options"] and "rescale_betas_zero_snr" in r["options"]:
            wanted = [999, *wanted[1:]]  # where the schedule ends; `traps.json`, D9
        cut = r["solver"] == "dpm" and r["options"]["beta_schedule"] == "squaredcos_cap_v2"
        if cut and solver.spacing in (
            "karras",
            "lu",
        ):  # there, and only there, they were cut to whole numbers
            assert {a - b for a, b in zip(timesteps, wanted, strict=True)} <= {0, 1}, r
        else:
            assert timesteps == wanted, r
        levels.append(0.0)
        got = torch.tensor(levels, dtype=torch.float64)
        torch.testing.assert_close(got, tensors[f"{r['id']}.sigmas"].double(), rtol=1e-6, atol=0)
        assert plan_orders(solver, r["steps"]) == r["orders"], r
        if any(a <= b for a, b in pairwise(levels)):
            continue
        steps = plan_of(solver, alphas_of(r, alphas), r["steps"])
        for name, key in (("alpha", "alpha"), ("sigma", "sigma"), ("log_ratio", "lambda_")):
            values = torch.tensor([getattr(step.level, name) for step in steps])
            torch.testing.assert_close(values, tensors[f"{r['id']}.{key}"][:-1], rtol=2e-6, atol=2e-6)
    assert len(cases) > 130


@pytest.mark.parametrize("file", FILES)
def test_recorded_runs_are_reproduced(golden: Path, alphas: dict[str, Tensor], file: str) -> None:
    """With the recorded outputs of a network, with a linear one, and with alpha = 0 at the first timestep."""
    tensors, cases = load_file(golden / f"solvers/{file}.safetensors"), records(golden, file)
    assert len(cases) >= 12
    for r in cases:
        sampler = sampler_of(r, alphas)
        steps = sampler.plan(r["steps"], solver_of(r))
        assert plan_orders(solver_of(r), r["steps"]) == r["orders"]
        get = {name: tensors.get(f"{r['id']}.{name}") for name in ("model_output", "sample", "corrected")}
        samples, outputs, corrected = get["sample"], get["model_output"], get["corrected"]
        assert samples is not None
        state = State(samples[0])
        for i, step in enumerate(steps):
            if outputs is not None:
                output = outputs[i]
            else:
                linear = state.x.flatten(1) @ tensors["matrix"].T
                output = (linear + tensors["vector"] * (0.5 + r["timesteps"][i] / 1000)).view_as(state.x)
            state = sampler.advance(output, step, state, no_draw)
            assert_near(state.x, samples[i + 1], (r, i))
            if outputs is not None:
                assert_near(state.predictions[0], tensors[f"{r['id']}.x0"][i], (r, i))
            if corrected is not None and state.start is not None:
                assert_near(state.start, corrected[i], (r, i))


@pytest.mark.parametrize("index", range(21))
def test_recorded_decoders_are_sampled_as_recorded(
    golden: Path, alphas: dict[str, Tensor], index: int
) -> None:
    r, tensors = records(golden, "divae")[index], load_file(golden / "solvers/divae.safetensors")
    given = load_file(golden / "divae" / r["model"] / r["noise_from"])
    _, tokenizer = recorded(golden, r["model"])
    tokenizer.sampler = sampler_of(r, alphas)
    noise, wanted = given["initial_noise"], tensors[f"{index}.output"]
    size = (wanted.shape[-2], wanted.shape[-1])
    states = list(tokenizer.sample(given["tokens"], lambda _: noise, r["steps"], size, solver_of(r)))
    limit = 1e-4
    if r["options"]["prediction_type"] == "epsilon" or r["output_absmax"] > 1:
        limit = max(limit, 10 * r["sens_init_noise_rel_1e_6"])
    assert float((states[-1] - wanted).abs().max()) <= limit
    for at, x in zip(tensors[f"{index}.x_index"].tolist(), tensors[f"{index}.x"], strict=True):
        assert float((states[at - 1][:1] - x).abs().max()) <= limit


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("schedule", ["linear", "shifted_cosine:0.5"])
def test_a_network_that_is_always_right_leads_straight_to_the_value(
    name: str, spacing: str, schedule: str
) -> None:
    clean, noise = torch.randn(2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
    sampler = Sampler("ddim", cumulative_alphas(schedule, 1000), "sample")
    for steps in (1, 2, 3, 7, 15, 30):
        plan = plan_of(replace(SOLVERS[name], spacing=spacing), sampler.alphas, steps)
        assert len(plan) == steps
        assert (plan[0].level.alpha == 0) == (plan[0].timestep == 999) == (spacing != "leading")
        state = State(plan[0].level.alpha * clean + plan[0].level.sigma * noise)
        for step, after in zip(plan, [*(step.level for step in plan[1:]), None], strict=True):
            state = sampler.advance(clean, step, state, no_draw)
            wanted = clean if after is None else after.alpha * clean + after.sigma * noise
            torch.testing.assert_close(state.x, wanted, rtol=0, atol=2e-5)


def test_the_first_order_is_ddim_without_clipping() -> None:
    tokens = torch.arange(16).view(1, 4, 4)
    tokenizer = tiny(thresholding=False)
    *_, ddim = tokenizer.sample(tokens, lambda _: noise_of(tokens), 5)
    *_, first = tokenizer.sample(tokens, lambda _: noise_of(tokens), 5, solver=SOLVERS["dpm++1"])
    torch.testing.assert_close(first, ddim, rtol=1e-4, atol=1e-4)


def test_a_solver_takes_the_place_of_ddpm_and_draws_once() -> None:
    tokens, drawn = torch.arange(16).view(1, 4, 4), list[int]()

    def draws(index: int) -> Tensor:
        drawn.append(index)
        return noise_of(tokens)

    results = dict[str, Tensor]()
    for scheduler in ("ddpm", "ddim"):
        tokenizer: DiVAE = tiny(scheduler=scheduler)
        *_, results[scheduler] = tokenizer.sample(tokens, draws, 4, solver=SOLVERS["unipc"])
    assert torch.equal(results["ddpm"], results["ddim"])
    assert drawn == [0, 0]


def test_the_result_is_the_last_prediction_and_evaluations_are_as_many_as_steps() -> None:
    tokens, tokenizer = torch.arange(16).view(1, 4, 4), tiny()
    for name, solver in SOLVERS.items():
        states = list(tokenizer.sample(tokens, lambda _: noise_of(tokens), 7, solver=solver))
        assert len(states) == 7, name
        assert float(states[-1].abs().max()) <= 1, name


def test_names_mean_solvers() -> None:
    assert parse_solver(DDIM) is None
    assert parse_solver("dpm++") == Solver(is_unipc=False, order=2)
    assert parse_solver("unipc3:lu") == Solver(True, 3, "lu")
    for text in ("unipcs", "dpm++:karas", "unipc:", "ddim:lu", ""):
        with pytest.raises(UsageError, match="`detokenizer_solver"):
            parse_solver(text)


def test_what_cannot_be_is_refused() -> None:
    signal = cumulative_alphas("linear", 1000)
    for spacing in ("leading", "linspace"):  # `traps.json`, D4 and D5
        with pytest.raises(UsageError, match=f"1,000 steps, spaced '{spacing}', repeat a level"):
            plan_of(Solver(False, 2, spacing), signal, 1000)
    for count in (0, 1001):
        with pytest.raises(UsageError, match="from 1 to 1,000"):
            plan_of(SOLVERS["dpm++"], signal, count)
    with pytest.raises(CheckpointError, match=r"epsilon.*says nothing at timestep 999"):
        Sampler("ddim", signal, "epsilon").plan(5, SOLVERS["unipc"])


def test_settings_that_fail_elsewhere_have_finite_weights(golden: Path) -> None:
    """`traps.json`, D1, D6, D7 and D10: levels without signal or noise, timesteps that occur twice."""
    signal, plain = cumulative_alphas("shifted_cosine:0.5", 1000), cumulative_alphas("linear", 1000, False)
    plans = {
        "D1": plan_of(SOLVERS["dpm++"], signal, 5),
        "D1u": plan_of(SOLVERS["unipc"], signal, 5),
        "D6": plan_of(Solver(False, 2, "karras"), cumulative_alphas("linear", 1000), 100),
        "D7": plan_of(Solver(False, 2, "lu"), signal, 15),
        "D10": plan_of(SOLVERS["dpm++"], plain, 61),
    }
    traps = json.loads((golden / "solvers/traps.json").read_text())
    steps = {r["id"]: r["steps"] for r in traps if "steps" in r}
    for name, plan in plans.items():
        assert len(plan) == steps.get(name, 61)
        sums = [one for step in plan for one in (step.predictor, step.corrector) if one is not None]
        assert all(math.isfinite(w) for one in sums for w in (one.x, *one.predictions)), name
    assert plans["D10"][-1].timestep >= 0


def test_schedules_of_few_timesteps_have_steps_of_every_spacing() -> None:
    for alphas in (torch.tensor([0.9, 0.0]), torch.tensor([0.9, 0.5, 0.0])):
        for spacing in SPACINGS:
            (step,) = plan_of(Solver(True, 3, spacing), alphas, 1)
            assert step.predictor.predictions == pytest.approx((1.0,))
        steps = plan_of(Solver(False, 3, "karras"), alphas, 2)
        assert [step.timestep for step in steps] == [len(alphas) - 1, 0]
