"""Targets of which a part is given, and texts with places to fill, equal the recorded reference."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourm.decoding.engine import Engine, group_by_counts, with_targets
from fourm.decoding.sampling import Noise, guide
from fourm.modalities.registry import RELEASED, Kind
from fourm.networks.model import FourM
from fourm.networks.state import Batch, partly_given, typed_text
from fourm.schedule.chain import KEPT, Branch, Chain, TargetSpec, make_chain
from fourm.schedule.schemes import SCHEMES, TOKEN_CURVES
from tests.decoding.test_engine import SMALL, Recorded, build_small, captions, last, load_fixture
from tests.networks.test_model import assert_close, check_digest, check_pass, read_batch

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]
# What the reference damages and we don't copy, as its README says.
DEFECTS = ("multi_roar_clip_then_partial_rgb_defect",)


def cases(golden: Path, *kinds: str) -> list[Case]:
    found = json.loads((golden / "fm_partial" / "cases.json").read_text())
    return [case for case in found if case["kind"] in kinds and case["name"] not in DEFECTS]


def read(golden: Path, case: Case) -> tuple[Arrays, Batch]:
    """The arrays of a case, and its batch with what was given of the targets."""
    arrays = dict(np.load(golden / "fm_partial" / case["file"]))
    pixels = next(iter(json.loads((golden / "fm" / case["model"] / "cases.json").read_text())))
    described = {"rgb": "rgb_224.npz", "rgb448": "rgb_448.npz"} | pixels | case
    if "input_order_uncond" in case:
        batch = read_batch(golden, case["model"], {}, arrays, "in.uncond.")
        for number, names in enumerate(case["input_order_cond"]):
            own = read_batch(golden, case["model"], {}, arrays, f"in.cond{number}.")
            batch = batch.with_slot(names[0], own.slots[names[0]])
    else:
        batch = read_batch(golden, case["model"], described, arrays)
    for name, slot in batch.slots.items():
        if slot.kind is Kind.GRID and name in case["given"] if isinstance(case.get("given"), dict) else ():
            batch = batch.with_slot(name, partly_given(slot.values, slot.known))
    if case["kind"] in ("chain_rows", "guided_hide_given"):
        slot = batch.slots[case["target"]]
        batch = batch.with_slot(case["target"], partly_given(slot.values, slot.known))
    return arrays, batch


def plan(case: Case, schedule: list[Case], steps: int | None = None, hides_given: bool = False) -> Chain:
    """The chain of a recorded schedule for targets of which nothing is given."""
    targets = list(dict.fromkeys(step["target_domain"] for step in schedule))
    specs = []
    for target in targets:
        own = [step for step in schedule if step["target_domain"] == target]
        scheme, counts = own[0]["scheme"], [step["num_tokens"] for step in own]
        scale = own[0]["cfg_scale"]
        row = RELEASED.get(target)
        causal = SCHEMES[scheme].causal
        curves = [c for c, curve in TOKEN_CURVES.items() if causal or curve(len(own), sum(counts)) == counts]
        number, curve = None if causal else steps or len(own), (curves or ["linear"])[0]
        # A weight for each condition, then one for the target before, which is its own scale here.
        weight = scale[-1] if isinstance(scale, list) else scale
        specs.append(
            TargetSpec(
                target, row.max_tokens, scheme, number, curve, temperature=0.0, guidance=weight
            )
        )  # fmt: skip
    if "input_order_cond" in case:
        conditions = [names[0] for names in case["input_order_cond"]]
        weights = dict(zip(conditions, schedule[0]["cfg_scale"], strict=True))
    else:
        conditions, weights = [c for c in schedule[-1]["cfg_cond_domains"] if c not in targets], {}
    kept = targets if hides_given else ()
    chain = make_chain(specs, conditions, weights=weights, guided_kept=kept)
    if not weights:
        return chain
    # The reference takes weights of the conditions for each target anew.
    scales = {step["target_domain"]: step["cfg_scale"] for step in schedule}

    def weighted(branches: Sequence[Branch], target: str) -> tuple[Branch, ...]:
        return tuple(replace(b, weight=w) for b, w in zip(branches, scales[target], strict=True))

    steps = (replace(step, branches=weighted(step.branches, step.target)) for step in chain.steps)
    full = (weighted(branches, target) for target, branches in zip(chain.targets, chain.full, strict=True))
    return replace(chain, steps=tuple(steps), full=tuple(full))


def row_chain(chain: Chain, batch: Batch) -> Chain:
    """The chain for a batch whose rows want equally many tokens."""
    (rows, own), *others = group_by_counts(batch, chain)
    assert rows == list(range(len(batch.keys)))
    assert not others
    return own


@contextmanager
def swapped(model: FourM, target: str, pairs: list[list[int]]) -> Iterator[None]:
    """Exchange rows of every table of words, so that random weights emit the words that a case needs."""
    tables = {
        tensor.data_ptr(): tensor
        for name, tensor in model.state_dict().items()
        if f".{target}." in name and tensor.ndim == 2 and tensor.shape[0] == RELEASED.get(target).vocab_size
    }
    assert tables

    def exchange(order: list[list[int]]) -> None:
        for first, second in order:
            for tensor in tables.values():
                tensor[[first, second]] = tensor[[second, first]].clone()

    exchange(pairs)
    yield
    exchange(pairs[::-1])


@pytest.fixture(scope="module")
def models(unpacked: Path) -> dict[str, FourM]:
    return {name: load_fixture(unpacked, name) for name in ("swiglu_nobias", "superres")}


def test_guided_logits_at_every_scale(golden: Path, models: dict[str, FourM]) -> None:
    """What is given is read by both passes, or with its name among the hidden ones by one of them."""
    found = cases(golden, "guided", "guided_hide_given")
    assert len(found) >= 8
    for case in found:
        arrays, batch = read(golden, case)
        model, target = models[case["model"]], case["target"]
        hidden = list(case["conditioning"])
        if case["kind"] == "guided_hide_given":
            hidden.append(target + KEPT)
        with_all = check_pass(model, target, batch, arrays, "cond.")
        without = check_pass(model, target, batch.hide(hidden), arrays, "uncond.")
        for scale in case["scales"]:
            logits = guide(torch.stack([without, with_all]), torch.tensor([scale]))
            columns = torch.from_numpy(arrays["logit_cols"])
            assert_close(
                logits[..., columns], arrays[f"guided.{scale}.logits_at_cols"], float(logits.abs().max())
            )
            clear = torch.from_numpy(arrays[f"guided.{scale}.top2_gap"]) > 1e-3
            best = torch.from_numpy(arrays[f"guided.{scale}.argmax"])
            assert torch.equal(logits.argmax(-1)[clear], best[clear].long())


@pytest.mark.parametrize("plain", [False, True])
def test_chains_equal_the_reference(golden: Path, models: dict[str, FourM], plain: bool) -> None:
    """The counts follow from what is wanted; positions, tokens and what was given are as recorded."""
    found = cases(golden, "chain", "chain_hide_given", "multi_guided_chain")
    assert len(found) >= 20
    for case in found:
        arrays, batch = read(golden, case)
        hides = case["kind"] == "chain_hide_given"
        chain = row_chain(plan(case, case["schedule"], hides_given=hides), batch)
        counts = [step.num_tokens for step in chain.steps if step.scheme != "autoregressive"]
        assert counts == [s["num_tokens"] for s in case["schedule"] if s["num_tokens"]], case["name"]
        engine = Engine(models[case["model"]], plain=plain)
        with swapped(models[case["model"]], "caption", case.get("label_swaps", [])):
            out = last(list(engine.run(batch, chain, Recorded(arrays))))
        for target in chain.targets:
            slot, want = out.slots[target], torch.from_numpy(arrays[f"out.{target}.tensor"]).long()
            assert torch.equal(slot.values[:, : want.shape[1]], want), (case["name"], target)
            assert not bool(slot.wanted.any())
        for target, slot in batch.slots.items():
            if slot.given is not None and slot.kind is Kind.GRID:
                assert torch.equal(out.slots[target].values[slot.given], slot.values[slot.given])


def test_rows_with_unequal_parts_equal_the_recorded_rows_alone(
    golden: Path, models: dict[str, FourM]
) -> None:
    for case in cases(golden, "chain_rows"):
        arrays, batch = read(golden, case)
        longest = max(map(len, case["schedules"]))
        chain = plan(case, max(case["schedules"], key=len), steps=8 if "roar" in case["name"] else longest)
        groups = group_by_counts(batch, chain)
        assert sorted(row for rows, _ in groups for row in rows) == list(range(len(batch.keys)))
        for rows, own in groups:
            assert len(rows) == 1
            schedule = case["schedules"][rows[0]]
            assert [step.num_tokens for step in own.steps] == [s["num_tokens"] for s in schedule]
            recorded = {name.removeprefix(f"row{rows[0]}."): array for name, array in arrays.items()}
            engine = Engine(models[case["model"]])
            out = last(list(engine.run(batch.select(torch.tensor(rows)), own, Recorded(recorded))))
            want = torch.from_numpy(arrays[f"out.{case['target']}.tensor"][rows]).long()
            assert torch.equal(out.slots[case["target"]].values, want)


@pytest.mark.parametrize("plain", [False, True])
def test_filled_texts_equal_the_reference(golden: Path, models: dict[str, FourM], plain: bool) -> None:
    found = cases(golden, "autoregressive")
    assert len(found) >= 12
    for case in found:
        arrays, batch = read(golden, case)
        target, scale = case["target"], case["guidance_scale"]
        spec = TargetSpec(
            target, 256, "autoregressive", temperature=0.0, guidance=1.0 if scale is None else scale
        )
        hides = target in case["conditioning"]
        conditions = [name for name in case["conditioning"] if name != target]
        slot = batch.slots[target]
        batch = batch.with_slot(target, _as_typed(slot.values, slot.known, case["target_max_len"]))
        assert torch.equal(batch.slots[target].wanted, slot.wanted)
        chain = make_chain([spec], conditions, guided_kept=[target] if hides else [])
        with swapped(models[case["model"]], target, case["label_swaps"]):
            out = last(list(Engine(models[case["model"]], plain=plain).run(batch, chain, Recorded({}))))
        for row in range(len(batch.keys)):
            alone = f"row{row}.merged.tensor"
            want = arrays[alone][0] if alone in arrays else arrays["merged.tensor"][row]
            ours = out.slots[target].values[row][out.slots[target].known[row]].tolist()
            assert ours == want[: len(ours)].tolist(), case["name"]
            assert alone not in arrays or len(ours) == len(want)


def _as_typed(values: Tensor, known: Tensor, room: int):
    length = int(known.sum(dim=1).max())
    return typed_text(values[:, :length], room, known=known[:, :length])


def test_the_step_logits_of_filled_texts(golden: Path, models: dict[str, FourM]) -> None:
    for case in cases(golden, "autoregressive"):
        arrays, batch = read(golden, case)
        target, model = case["target"], models[case["model"]]
        ids = torch.from_numpy(arrays["raw_ids"]).long()[:, :-1]
        places = torch.arange(ids.shape[1]).expand_as(ids)
        passes = [batch.hide(case["conditioning"]), batch] if case["conditioning"] else [batch]
        with swapped(model, target, case["label_swaps"]):
            logits = [model.decode(target, places, ids, model.encode(one)) for one in passes]
        weights = torch.tensor([case["guidance_scale"]] if case["conditioning"] else [])
        check_digest(guide(torch.stack(logits), weights), arrays, "step.")


SPECS = (
    TargetSpec("tok_a@32", 16, "roar", 4, temperature=2.0, guidance=3.0),
    TargetSpec(
        "tok_b@32", 16, "maskgit", 5, "cosine", temperature=1.0, temperature_curve="linear", guidance=2.0
    ),
)
FIXED_ORDER = (
    TargetSpec(
        "tok_a@32", 16, "halton", 4, "arccos", temperature=2.0, guidance=3.0, guidance_curve="linear",
        grid=(4, 4),
    ),
    replace(SPECS[1], guidance_curve="interval:0.2:0.8"),
)  # fmt: skip
CHAIN = make_chain(SPECS, ["caption"], top_p=0.9)
MASKS = st.lists(st.lists(st.booleans(), min_size=16, max_size=16), min_size=4, max_size=4)
NETWORK = build_small()


def generate(batch: Batch, chain: Chain) -> dict[str, Tensor]:
    """Tokens of every row, decoded in groups of equal counts."""
    batch = with_targets(batch, chain, SMALL)
    made = {target: torch.full((len(batch.keys), 16), -1) for target in chain.targets}
    for rows, own in group_by_counts(batch, chain):
        part = batch.select(torch.tensor(rows))
        noise = Noise.for_samples(4, [(key, 0) for key in part.keys])
        for progress in Engine(NETWORK).run(part, own, noise):
            part = progress.batch
        for target in chain.targets:
            made[target][rows] = part.slots[target].values
    return made


@given(first=MASKS, second=MASKS, guided=st.booleans(), specs=st.sampled_from([SPECS, FIXED_ORDER]))
def test_unequal_rows_equal_single_rows_and_what_is_given_stays(first, second, guided: bool, specs) -> None:
    chain = make_chain(specs, ["caption"], top_p=0.9, guided_kept=[s.target for s in specs] if guided else ())
    ids = torch.arange(4 * 16).view(4, 16) * 5 % 24
    masks = {"tok_a@32": torch.tensor(first), "tok_b@32": torch.tensor(second)}
    batch = captions(4)
    for target, keep in masks.items():
        batch = batch.with_slot(target, partly_given(ids, keep))
    together = generate(batch, chain)
    for target, keep in masks.items():
        assert torch.equal(together[target][keep], ids[keep])
        assert bool(((together[target] >= 0) & (together[target] < 24)).all())
    for row in range(4):
        alone = generate(batch.select(torch.tensor([row])), chain)
        for target, tokens in alone.items():
            assert torch.equal(tokens[0], together[target][row])


@pytest.mark.parametrize("guided", [False, True])
def test_nothing_kept_is_the_same_as_no_part_at_all(guided: bool) -> None:
    chain = make_chain(SPECS, ["caption"], top_p=0.9, guided_kept=[s.target for s in SPECS] if guided else ())
    nothing = torch.zeros(3, 16, dtype=torch.bool)
    batch = captions(3)
    for target in chain.targets:
        batch = batch.with_slot(target, partly_given(torch.full((3, 16), 7), nothing))
    with_parts, without = generate(batch, chain), generate(captions(3), CHAIN)
    for target, tokens in without.items():
        assert torch.equal(with_parts[target], tokens)


def test_a_target_that_is_all_given_has_no_step() -> None:
    counts = {"tok_a@32": 0, "tok_b@32": 3}
    chain = CHAIN.for_counts(counts)
    assert {step.target for step in chain.steps} == {"tok_b@32"}
    assert [step.index for step in chain.steps] == list(range(len(chain.steps)))
    assert chain.num_tokens == {"tok_b@32": 3}
    assert CHAIN.for_counts({}) == CHAIN
    assert CHAIN.for_counts({"tok_a@32": 16, "tok_b@32": 16}) == CHAIN
