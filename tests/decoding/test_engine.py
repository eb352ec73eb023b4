"""The engine: greedy results of the reference, fast = plain, and samples that know nothing of their batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise, guide
from fourm.decoding.steps import Progress
from fourm.hub.files import find_model
from fourm.modalities.registry import Kind, Modality, Registry
from fourm.networks.checkpoint import load_model
from fourm.networks.model import Context, FourM, FourMConfig
from fourm.networks.state import Batch, full_grid, full_sequence, partly_given
from fourm.schedule.chain import Branch, Chain, Step, TargetSpec
from fourm.schedule.chain import make_chain as plan_chain
from fourm.schedule.schemes import halton_order
from tests.networks.test_model import cases, check_digest, read_batch

CHAINS = [("swiglu_nobias", "chain_caption_clip_rgb_det"), ("superres", "sr_chain_roar2")]


def make_chain(steps: list[Step], top_k: int | float = 0, top_p: float = 1.0) -> Chain:
    return Chain(conditions=(), specs=(), steps=tuple(steps), top_k=top_k, top_p=top_p)


def make_step(
    index: int,
    target: str,
    scheme: str,
    num_tokens: int,
    temperature: float = 0.0,
    scale: float = 1.0,
    hidden: tuple[str, ...] = (),
) -> Step:
    guided = frozenset(hidden if scale != 1.0 else ())
    branches = (Branch(guided, scale),) if guided and scale != 0.0 else ()
    return Step(index, target, scheme, num_tokens, temperature, guided, branches)


@dataclass(frozen=True)
class Recorded:
    """Puts the recorded positions of each step first in the random order."""

    arrays: dict[str, np.ndarray]

    def uniforms(self, step: int, purpose: int, positions: Tensor) -> Tensor:
        values = torch.full(positions.shape, 0.5)
        if f"step{step}.positions" in self.arrays:
            first = torch.from_numpy(self.arrays[f"step{step}.positions"]).long().view(-1)
            values[torch.isin(positions, first)] = 0.0
        return values


def last(run: list[Progress]) -> Batch:
    return run[-1].batch


def load_fixture(unpacked: Path, name: str) -> FourM:
    in_header = not (unpacked / name / "config.json").exists()
    return load_model(find_model(unpacked / name / "model.safetensors" if in_header else unpacked / name))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(("fixture", "name"), CHAINS)
def test_greedy_chains_equal_the_reference(
    golden: Path, unpacked: Path, fixture: str, name: str, plain: bool
) -> None:
    case = next(c for c in cases(golden, fixture, "chain") if c["name"] == name)
    arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
    steps = [
        make_step(
            i, s["target_domain"], s["scheme"], s["num_tokens"] or 256, s["temperature"],
            s.get("cfg_scale", 1.0), tuple(s.get("cfg_cond_domains", ())),
        )
        for i, s in enumerate(case["schedule"])
    ]  # fmt: skip
    batch = read_batch(golden, fixture, case, arrays)
    engine = Engine(load_fixture(unpacked, fixture), plain=plain)
    reports = list(engine.run(batch, make_chain(steps), Recorded(arrays)))
    for name in {s.target for s in steps}:
        out = last(reports).slots[name]
        want = torch.from_numpy(arrays[f"out.{name}.tensor"]).long()
        assert torch.equal(out.values[:, : want.shape[1]], want)
        assert not bool(out.wanted.any())


@pytest.mark.parametrize("plain", [False, True])
def test_a_weighted_chain_of_two_targets_equals_the_repaired_reference(
    golden: Path, unpacked: Path, plain: bool
) -> None:
    case = cases(golden, "swiglu_nobias", "multi_guided_chain")[0]
    arrays = dict(np.load(golden / "fm" / "swiglu_nobias" / case["file"]))
    batch = read_batch(golden, "swiglu_nobias", {}, arrays, "in.uncond.")
    for i, names in enumerate(case["input_order_cond"]):
        given = read_batch(golden, "swiglu_nobias", {}, arrays, f"in.cond{i}.")
        batch = batch.with_slot(names[0], given.slots[names[0]])
    weights = [["caption", "det"], ["caption", "det", "tok_clip@224"]]
    steps = []
    for i, s in enumerate(case["schedule"]):
        names = weights[s["target_domain"] == "tok_rgb@224"]
        branches = tuple(Branch(frozenset([n]), w) for n, w in zip(names, s["cfg_scale"], strict=True))
        guided = frozenset(names)
        steps.append(Step(i, s["target_domain"], "roar", s["num_tokens"], 0.0, guided, branches, True))
    engine = Engine(load_fixture(unpacked, "swiglu_nobias"), plain=plain)
    out = last(list(engine.run(batch, make_chain(steps), Recorded(arrays))))
    for name in ("tok_clip@224", "tok_rgb@224"):
        want = torch.from_numpy(arrays[f"out.{name}.tensor"]).long()
        assert torch.equal(out.slots[name].values, want)


AUTOREGRESSIVE = ["swiglu_nobias", "gelu_bias", "swiglu_qknorm"]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("fixture", AUTOREGRESSIVE)
def test_greedy_texts_equal_the_reference(golden: Path, unpacked: Path, fixture: str, plain: bool) -> None:
    engine = Engine(load_fixture(unpacked, fixture), plain=plain)
    for case in cases(golden, fixture, "autoregressive"):
        arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
        batch = read_batch(golden, fixture, case, arrays)
        scale = case.get("guidance_scale")
        step = make_step(
            0, case["target"], "autoregressive", 290, 0.0,
            1.0 if scale is None else scale, tuple(case["conditioning"]),
        )  # fmt: skip
        out = last(list(engine.run(batch, make_chain([step]), Recorded({})))).slots[case["target"]]
        want, hidden = arrays["merged.tensor"], arrays["merged.input_mask"]
        for row in range(want.shape[0]):
            ours = out.values[row][out.known[row]].tolist()
            assert ours == want[row][~hidden[row]].tolist(), case["name"]


@pytest.mark.parametrize("fixture", AUTOREGRESSIVE)
def test_logits_behind_every_decoded_word(golden: Path, unpacked: Path, fixture: str) -> None:
    model = load_fixture(unpacked, fixture)
    for case in cases(golden, fixture, "autoregressive"):
        arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
        batch = read_batch(golden, fixture, case, arrays)
        ids = torch.from_numpy(arrays["raw_ids"]).long()[:, :-1]
        places = torch.arange(ids.shape[1]).expand_as(ids)
        passes = [batch] if not case["conditioning"] else [batch.hide(case["conditioning"]), batch]
        logits = [model.decode(case["target"], places, ids, model.encode(one)) for one in passes]
        scale = case.get("guidance_scale")
        weights = torch.tensor([scale] if case["conditioning"] else [])
        check_digest(guide(torch.stack(logits), weights), arrays, "step.")


SMALL = Registry(
    {
        m.name: m
        for m in (
            Modality("caption", Kind.SEQUENCE, 12, 40, max_positions=12, positions="sincos1d"),
            Modality("tok_a@32", Kind.GRID, 16, 24, grid=(4, 4), patch_size=8, image_size=32),
            Modality("tok_b@32", Kind.GRID, 16, 24, grid=(4, 4), patch_size=8, image_size=32),
        )
    }
)


def build_small() -> FourM:
    """A model of two layers and width 16 with seeded weights."""
    names = list(SMALL.rows)
    config = FourMConfig.from_dict(
        {
            "domains_in": names, "domains_out": names, "image_size": 32, "patch_size": 8,
            "norm_bias": False, "act_layer": "SiLU", "dim": 16, "encoder_depth": 2, "decoder_depth": 2,
            "num_heads": 2, "gated_mlp": True,
        },
        SMALL,
    )  # fmt: skip
    model = FourM(config)
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def small() -> FourM:
    return build_small()


SMALL_CHAIN = make_chain(
    [
        make_step(0, "tok_a@32", "roar", 7, 2.0, 3.0, ("caption",)),
        make_step(1, "tok_a@32", "roar", 9, 1.0, 3.0, ("caption",)),
        make_step(2, "tok_b@32", "maskgit", 6, 1.0, -0.5, ("caption", "tok_a@32")),
        make_step(3, "tok_b@32", "maskgit", 10, 0.5, 0.0, ("caption", "tok_a@32")),
    ],
    top_p=0.9,
)
TEXT_CHAIN = make_chain([make_step(0, "caption", "autoregressive", 12, 1.5, 2.0, ("tok_a@32",))])


def captions(count: int) -> Batch:
    """Prompts of different lengths, padded."""
    rows = [[20 + (i * 7 + j) % 19 for j in range(1 + i % 5)] + [3] for i in range(count)]
    ids = torch.tensor([row + [0] * (12 - len(row)) for row in rows])
    return Batch(tuple(f"s{i}" for i in range(count)), {"caption": full_sequence(ids)})


def pictures(count: int) -> Batch:
    ids = torch.arange(count * 16).view(count, 16) * 5 % 24
    return Batch(tuple(f"s{i}" for i in range(count)), {"tok_a@32": full_grid(ids)})


def finish(engine: Engine, batch: Batch, chain: Chain) -> Batch:
    noise = Noise.for_samples(4, [(key, 0) for key in batch.keys])
    return last(list(engine.run(with_targets(batch, chain, SMALL), chain, noise)))


@pytest.mark.parametrize(("start", "chain"), [(captions, SMALL_CHAIN), (pictures, TEXT_CHAIN)])
def test_the_fast_query_equals_the_plain_one(small: FourM, start, chain: Chain) -> None:
    fast, plain = (finish(Engine(small, plain=p), start(6), chain) for p in (False, True))
    for name in fast.slots:
        assert torch.equal(fast.slots[name].values, plain.slots[name].values)


@pytest.mark.parametrize(("start", "chain"), [(captions, SMALL_CHAIN), (pictures, TEXT_CHAIN)])
def test_a_batch_of_n_equals_n_batches_of_one_in_any_order(small: FourM, start, chain: Chain) -> None:
    engine, whole = Engine(small), start(7)
    together = finish(engine, whole, chain)
    backwards = finish(engine, whole.select(torch.arange(6, -1, -1)), chain)
    for row in range(7):
        alone = finish(engine, whole.select(torch.tensor([row])), chain)
        for name in alone.slots:
            kept = alone.slots[name].known[0]
            ids = alone.slots[name].values[0][kept]
            for other, place in ((together, row), (backwards, 6 - row)):
                slot = other.slots[name]
                assert torch.equal(slot.values[place][slot.known[place]], ids)


def test_steps_report_what_they_fixed_and_leave_earlier_states_alone(small: FourM) -> None:
    batch = with_targets(captions(2), SMALL_CHAIN, SMALL)
    noise = Noise.for_samples(0, [("s0", 0), ("s1", 0)])
    reports = list(Engine(small).run(batch, SMALL_CHAIN, noise))
    assert [r.fixed for r in reports] == [7, 9, 6, 10]
    assert [(r.done, r.total) for r in reports] == [(7, 16), (16, 16), (6, 16), (16, 16)]
    assert int(reports[0].batch.slots["tok_a@32"].known.sum()) == 2 * 7
    assert int(batch.slots["tok_a@32"].known.sum()) == 0


def planned(guidance_curve: str) -> Chain:
    """Two targets in the fixed order of positions, and what each guides."""
    spec = TargetSpec(
        "tok_a@32", 16, "halton", 5, "arccos", temperature=2.0, guidance=3.0,
        guidance_curve=guidance_curve, grid=(4, 4),
    )  # fmt: skip
    return plan_chain([spec, replace(spec, target="tok_b@32")], ["caption"], top_p=0.9)


def test_a_fixed_order_is_followed_in_every_row_and_given_positions_are_skipped(small: FourM) -> None:
    batch, ids = captions(2), torch.zeros(2, 16, dtype=torch.int64)

    assert halton_order(4, 4)[:3] == (9, 6, 12)
    keep = torch.zeros(2, 16, dtype=torch.bool)
    keep[0, 6], keep[1, 9] = True, True
    batch = batch.with_slot("tok_a@32", partly_given(ids, keep))
    chain = planned("constant").for_counts({"tok_a@32": 15})
    noise = Noise.for_samples(0, [("s0", 0), ("s1", 0)])
    first = next(iter(Engine(small).run(with_targets(batch, chain, SMALL), chain, noise)))
    assert first.fixed == 1
    known = first.batch.slots["tok_a@32"].known
    assert [row.nonzero().view(-1).tolist() for row in known] == [[6, 9], [6, 9]]


@pytest.mark.parametrize("curve", ["linear", "interval:0.2:0.8"])
def test_guidance_schedules_give_the_same_fast_and_plain(small: FourM, curve: str) -> None:
    fast, plain = (finish(Engine(small, plain=p), captions(6), planned(curve)) for p in (False, True))
    for name in fast.slots:
        assert torch.equal(fast.slots[name].values, plain.slots[name].values)


def test_guidance_in_all_steps_is_constant_and_in_none_is_no_guidance(small: FourM) -> None:
    def tokens(curve: str) -> Tensor:
        return finish(Engine(small), captions(6), planned(curve)).slots["tok_b@32"].values

    assert torch.equal(tokens("interval:0:1"), tokens("constant"))
    unguided = planned("constant")
    specs = [replace(spec, guidance=1.0) for spec in unguided.specs]
    plain = finish(Engine(small), captions(6), plan_chain(specs, ["caption"], top_p=0.9))
    assert torch.equal(tokens("interval:0.3:0.4"), plain.slots["tok_b@32"].values)
    assert not torch.equal(tokens("constant"), plain.slots["tok_b@32"].values)


def test_only_guided_steps_run_guided_passes(small: FourM, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, decode = list[int](), FourM.decode

    def watched(self: FourM, target: str, positions: Tensor, *rest: Any, **more: Any) -> Tensor:
        rows.append(len(positions))
        return decode(self, target, positions, *rest, **more)

    monkeypatch.setattr(FourM, "decode", watched)
    finish(Engine(small), captions(3), planned("interval:0.2:0.8"))
    assert rows == [3, 6, 6, 6, 3] * 2


def test_rows_with_different_numbers_of_targets_are_refused(small: FourM) -> None:
    batch = with_targets(captions(2), SMALL_CHAIN, SMALL)
    slot = batch.slots["tok_a@32"]
    ragged = slot.fill(torch.tensor([[0, 1], [0, 0]]), torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="14 to 15 tokens"):
        list(Engine(small).run(batch.with_slot("tok_a@32", ragged), SMALL_CHAIN, Recorded({})))


def test_a_partly_given_target_is_completed_and_what_was_given_stays(small: FourM) -> None:
    batch = with_targets(captions(2), SMALL_CHAIN, SMALL)
    given = torch.tensor([[0, 5, 9], [1, 2, 3]])
    slot = batch.slots["tok_a@32"].fill(given, given)
    noise = Noise.for_samples(0, [("s0", 0), ("s1", 0)])
    reports = list(Engine(small).run(batch.with_slot("tok_a@32", slot), SMALL_CHAIN, noise))
    assert [r.fixed for r in reports] == [7, 6, 6, 10]
    assert torch.equal(last(reports).slots["tok_a@32"].values.gather(1, given), given)


def test_the_scale_zero_is_the_unconditional_pass(small: FourM) -> None:
    step = make_step(0, "tok_a@32", "maskgit", 16, 0.0, 0.0, ("caption",))
    with_caption = finish(Engine(small), captions(3), make_chain([step]))
    other = captions(3)
    other = other.with_slot("caption", other.slots["caption"].select(torch.tensor([2, 2, 2])))
    without = finish(Engine(small), other, make_chain([step]))
    assert torch.equal(with_caption.slots["tok_a@32"].values, without.slots["tok_a@32"].values)


@dataclass(frozen=True)
class Fixed:
    """A network whose answer is always the same: logits (V,) for any position of any target."""

    logits: Tensor
    reads: str = "tok_a@32"
    attention: str = "sdpa"

    def embed(self, batch: Batch) -> dict[str, Any]:
        return {}

    def encode_embedded(self, embedded: Any, counts: Sequence[int], budget: int, room: int | None) -> Context:
        rows = len(counts)
        return Context(torch.zeros(rows, 0, 1), torch.zeros(rows, 0, dtype=torch.bool), None)

    def decode(self, target, positions, ids, context, *rest) -> Tensor:
        return self.logits.expand(*positions.shape, -1)

    def start_cache(self, context: Context, max_tokens: int, copies: int = 1) -> None:
        return None


def test_sampled_tokens_follow_the_exact_probabilities() -> None:
    """Chi-square over 6 tokens; the 99.99 % point for 5 degrees of freedom is 25.7."""
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0, 0.5, -0.5])
    chain = make_chain([make_step(0, "tok_a@32", "roar", 5, 0.8), make_step(1, "tok_a@32", "roar", 11, 0.8)])
    batch = Batch(tuple(f"s{i}" for i in range(2000)), {})
    noise = Noise.for_samples(1, [(key, 0) for key in batch.keys])
    out = last(list(Engine(Fixed(logits)).run(with_targets(batch, chain, SMALL), chain, noise)))
    seen = torch.bincount(out.slots["tok_a@32"].values.view(-1), minlength=6).float()
    expected = (logits / 0.8).softmax(-1) * seen.sum()
    assert float(((seen - expected) ** 2 / expected).sum()) < 25.7


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("target", "scheme"), [("tok_a@32", "maskgit"), ("caption", "autoregressive")])
def test_rows_whose_logits_are_not_finite_are_reported(bad: float, target: str, scheme: str) -> None:
    chain = make_chain([make_step(0, target, scheme, 16, 1.0)])
    batch, noise = with_targets(Batch(("s0", "s1"), {}), chain, SMALL), Noise.for_samples(0, [("s0", 0)] * 2)
    for logits, wanted in ((torch.ones(64), True), (torch.tensor([bad, *[1.0] * 63]), False)):
        reports = list(Engine(Fixed(logits)).run(batch, chain, noise))
        assert reports[-1].sound.tolist() == [wanted] * 2


def test_a_text_that_ended_is_not_touched_by_longer_ones() -> None:
    """Every row stops at its own [S_2]; what follows in the batch may not leak into it."""
    logits = torch.full((40,), -5.0)
    logits[[6, 21, 22]] = torch.tensor([1.0, 1.5, 1.5])
    chain = make_chain([make_step(0, "caption", "autoregressive", 12, 1.0)])
    batch = Batch(tuple(f"s{i}" for i in range(50)), {})
    noise = Noise.for_samples(2, [(key, 0) for key in batch.keys])
    out = last(
        list(
            Engine(Fixed(logits), sentinels=range(4, 10)).run(with_targets(batch, chain, SMALL), chain, noise)
        )
    )
    lengths = out.slots["caption"].known.sum(dim=1)
    assert int(lengths.min()) == 0
    assert int(lengths.max()) == 11
    for values, known in zip(out.slots["caption"].values, out.slots["caption"].known, strict=True):
        assert not bool(torch.isin(values[known], torch.tensor([0, 5, 6])).any())
