"""Super-resolution from a base result, and weighted guidance: recorded states and logits, and the formula."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fourm.codecs.table import build_codec
from fourm.decoding.branches import Branches, branch_inputs, count_known
from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise, draw
from fourm.decoding.steps import DRAW, ORDER
from fourm.modalities.registry import RELEASED, Kind
from fourm.modalities.text import EOS_ID, WordPiece
from fourm.networks.model import FourM
from fourm.networks.state import Batch, Slot, full_grid, full_sequence
from fourm.schedule.chain import Branch, Step, TargetSpec, make_chain
from fourm.schedule.schemes import SCHEMES
from tests.decoding.test_engine import SMALL, build_small, captions, last, load_fixture
from tests.networks.test_model import Arrays, cases, check_digest, read_batch

GUIDED = ("swiglu_nobias", "gelu_bias", "swiglu_qknorm", "superres", "registers_geglu")
HIDDEN_HAVE_CONTENT = (Kind.GRID, Kind.PIXELS)


def load_case(golden: Path, kind: str, name: str, fixture: str = "superres") -> tuple[dict, Arrays]:
    (case,) = [c for c in cases(golden, fixture, kind) if c["name"] == name]
    return case, dict(np.load(golden / "fm" / fixture / case["file"]))


@pytest.fixture(scope="module")
def words(golden: Path) -> WordPiece:
    return WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")


def visible(slot: Slot, row: int = 0) -> list[int]:
    return slot.values[row][slot.known[row]].tolist()


def assert_recorded(slot: Slot, arrays: Arrays, prefix: str) -> None:
    """Values and both masks, entry by entry; recorded masks mean True = hidden."""
    assert slot.values.tolist() == arrays[f"{prefix}.tensor"].tolist()
    assert torch.equal(slot.known, ~torch.from_numpy(arrays[f"{prefix}.input_mask"]))
    assert torch.equal(slot.wanted, ~torch.from_numpy(arrays[f"{prefix}.target_mask"]))


def test_a_base_result_becomes_the_recorded_input(golden: Path) -> None:
    case, arrays = load_case(golden, "superres_input", "superres_input")
    base = read_batch(golden, "superres", {}, arrays, "base.")
    batch = Batch(base.keys, {})
    for name in case["sr_cond_domains"]:
        ids = base.slots[name].values
        made = full_sequence(ids) if RELEASED.get(name).kind is Kind.SEQUENCE else full_grid(ids)
        batch = batch.with_slot(name, made)
    specs = [TargetSpec(name, 784, "maskgit", 8, "cosine") for name in case["sr_target_domains"]]
    batch = with_targets(batch, make_chain(specs, case["sr_cond_domains"]), RELEASED)
    assert list(batch.slots) == case["input_order"]
    for name, slot in batch.slots.items():
        assert_recorded(slot, arrays, f"sr.{name}")


def test_texts_of_a_base_result_are_the_same_after_they_were_files(
    golden: Path, words: WordPiece, tmp_path: Path
) -> None:
    """Between the two stages lie files, not states."""
    _, arrays = load_case(golden, "superres_input", "superres_input")
    base = read_batch(golden, "superres", {}, arrays, "base.")
    for name in ("caption", "det"):
        codec = build_codec(RELEASED.get(name), wordpiece=words)
        (value,) = codec.decode(full_sequence(base.slots[name].values))
        path = tmp_path / f"{name}{RELEASED.get(name).suffix}"
        path.write_bytes(codec.pack(value))
        assert visible(codec.encode([codec.read(path)])) == arrays[f"sr.{name}.tensor"][0].tolist()


def test_a_caption_that_says_something_is_missing_keeps_its_visible_part(
    golden: Path, words: WordPiece
) -> None:
    """The reference makes its whole placeholder visible, 48 times [PAD] among it."""
    _, arrays = load_case(golden, "superres_input_defect", "superres_input_custom_text_defect")
    base = read_batch(golden, "superres", {}, arrays, "base.").slots["caption"]
    ids = visible(base)
    assert len(ids) == 8
    assert visible(full_sequence(base.values, base.known)) == ids
    assert int((~arrays["reference_sr.caption.input_mask"]).sum()) == 58
    codec = build_codec(RELEASED.get("caption"), wordpiece=words)
    assert visible(codec.encode([words.decode(ids)])) == ids


def test_a_caption_without_end_mark_loses_nothing(golden: Path, words: WordPiece, tmp_path: Path) -> None:
    """The reference overwrites its first token and hides the rest."""
    _, arrays = load_case(golden, "superres_input_defect", "superres_input_no_eos_defect")
    base = read_batch(golden, "superres", {}, arrays, "base.").slots["caption"]
    assert visible(full_sequence(base.values)) == [300, 301, 302]
    assert visible(base) == [300, 301, 302]
    assert arrays["reference_sr.caption.tensor"][0, 0] == EOS_ID
    codec = build_codec(RELEASED.get("caption"), wordpiece=words)
    (value,) = codec.decode(base)
    (tmp_path / "x.txt").write_bytes(codec.pack(value))
    # A file of text says nothing of an end mark: it is read as a whole text.
    assert visible(codec.encode([codec.read(tmp_path / "x.txt")])) == [300, 301, 302, EOS_ID]


@pytest.mark.parametrize("fixture", GUIDED)
def test_emptied_conditions_are_the_recorded_ones(golden: Path, fixture: str) -> None:
    checked = 0
    for case in cases(golden, fixture, "guided"):
        arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
        batch = read_batch(golden, fixture, case, arrays)
        emptied = batch.hide(case["conditioning"])
        for name in case["conditioning"]:
            prefix = f"uncond_state.{name}"
            if f"{prefix}.input_mask" not in arrays:
                continue
            checked += 1
            slot = emptied.slots[name]
            assert torch.equal(slot.known, ~torch.from_numpy(arrays[f"{prefix}.input_mask"])), (case, name)
            if slot.kind not in HIDDEN_HAVE_CONTENT:  # what cannot be seen may be anything
                seen, values = slot.known.numpy(), slot.values.numpy()
                want = arrays.get(f"{prefix}.tensor", np.zeros_like(values))  # T5: zeros, not recorded
                assert np.array_equal(values[seen], want[seen])
    assert checked


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["multi_guided_maskgit", "multi_guided_roar"])
def test_one_stacked_query_gives_the_recorded_weighted_logits(
    golden: Path, unpacked: Path, name: str, plain: bool
) -> None:
    case, arrays = load_case(golden, "multi_guided", name, "swiglu_nobias")
    order = {"input_order": case["input_order_uncond"]}
    batch, names = read_batch(golden, "swiglu_nobias", order, arrays, "in.uncond."), []
    for i, (condition, _) in enumerate(case["input_order_cond"]):
        one = read_batch(golden, "swiglu_nobias", {"input_order": [condition]}, arrays, f"in.cond{i}.")
        batch, names = batch.with_slot(condition, one.slots[condition]), [*names, condition]
    # The recorded passes of conditions lack what only the base holds, which is hidden there in any case.
    branches = tuple(Branch(frozenset([n]), w) for n, w in zip(names, case["weights"], strict=True))
    step = Step(0, case["target"], case["scheme"], 1, 0.0, frozenset(names), branches, removes_hidden=True)
    positions = torch.from_numpy(arrays["uncond.dec.pos"]).long()
    branches = Branches(load_fixture(unpacked, "swiglu_nobias"), plain)
    states = branch_inputs(batch, step)
    contexts = branches.encode(states, count_known(states, branches.network.reads))
    logits = branches.logits(step, positions, None, contexts)
    check_digest(logits, arrays, "guided.")


@pytest.fixture(scope="module")
def small() -> FourM:
    return build_small()


WEIGHT = st.sampled_from([0.0, 1.0, -1.0, 2.5]) | st.floats(-3, 3, width=32)
GIVEN = ("caption", "tok_a@32")
NETWORK = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None,
    derandomize=True,
)  # fmt: skip


def conditions(count: int) -> Batch:
    """A caption and a picture for each sample; captions have different lengths."""
    ids = torch.arange(count * 16).view(count, 16) * 7 % 24
    return captions(count).with_slot("tok_a@32", full_grid(ids))


def weighted(model: FourM, batch: Batch, target: str, positions: Tensor, weights: dict[str, float]) -> Tensor:
    """uncond + sum of w_i (cond_i - uncond), each pass alone, in float64."""

    def ask(names: set[str]) -> Tensor:
        slots = {n: s for n, s in batch.slots.items() if n in names or n not in weights}
        return model.decode(target, positions, None, model.encode(Batch(batch.keys, slots))).double()

    base = ask(set())
    return base + sum(w * (ask({name}) - base) for name, w in weights.items())


def alike(got: Tensor, want: Tensor) -> bool:
    return float((got - want).abs().max()) <= 1e-5 * float(want.abs().max())


@NETWORK
@given(
    weights=st.tuples(WEIGHT, WEIGHT), scheme=st.sampled_from(["maskgit", "roar"]), count=st.integers(1, 3),
    done=st.integers(0, 12),
)  # fmt: skip
def test_a_stacked_query_is_the_weighted_sum_of_separatebranch_inputs(
    small: FourM, weights: tuple[float, float], scheme: str, count: int, done: int
) -> None:
    by_name = dict(zip(GIVEN, weights, strict=True))
    chain = make_chain([TargetSpec("tok_b@32", 16, scheme, 1)], GIVEN, weights=by_name)
    (step,) = chain.steps
    batch = with_targets(conditions(count), chain, SMALL)
    decoded = torch.arange(done).expand(count, -1)
    batch = batch.with_slot("tok_b@32", batch.slots["tok_b@32"].fill(decoded, decoded))
    positions = torch.arange(done, 16 if scheme == "maskgit" else done + 3).expand(count, -1)
    states = branch_inputs(batch, step)
    assert len(states) == 1 + sum(w != 0 for w in weights)
    contexts = Branches(small).encode(states, count_known(states, small.reads))
    logits = Branches(small).logits(step, positions, None, contexts)
    assert alike(logits, weighted(small, batch, "tok_b@32", positions, by_name))


@NETWORK
@given(
    weight=WEIGHT, scales=st.tuples(WEIGHT, WEIGHT),
    schemes=st.tuples(*[st.sampled_from(["maskgit", "roar"])] * 2),
    temperature=st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_finished_targets_join_with_the_weight_of_the_target_being_decoded(
    small: FourM, weight: float, scales: tuple[float, float], schemes: tuple[str, str], temperature: float
) -> None:
    """A chain of two targets beside a loop by hand: every pass alone, every token drawn from the sum."""
    names = ("tok_a@32", "tok_b@32")
    specs = [
        TargetSpec(name, 16, scheme, 3, temperature=temperature, guidance=scale)
        for name, scheme, scale in zip(names, schemes, scales, strict=True)
    ]
    chain = make_chain(specs, ["caption"], weights={"caption": weight}, top_p=1.0)
    batch = with_targets(captions(2), chain, SMALL)
    noise = Noise.for_samples(4, [(key, 0) for key in batch.keys])
    out = last(list(Engine(small).run(batch, chain, noise)))
    weights = {"tok_a@32": {"caption": weight}, "tok_b@32": {"caption": weight, "tok_a@32": scales[1]}}
    by_hand = batch
    for step in chain.steps:
        by_hand = step_by_hand(small, by_hand, step, weights[step.target], noise)
    for name in names:
        assert torch.equal(out.slots[name].values, by_hand.slots[name].values)


def step_by_hand(model: FourM, batch: Batch, step: Step, weights: dict[str, float], noise: Noise) -> Batch:
    scheme, slot = SCHEMES[step.scheme], batch.slots[step.target]
    places, left = torch.arange(16).expand(2, -1), int(slot.wanted[0].sum())
    order = scheme.order(slot.wanted, noise.uniforms(step.index, ORDER, places))
    positions = order[:, : left if scheme.rank else min(left, step.num_tokens)].sort(dim=1).values
    logits = weighted(model, batch, step.target, positions, weights)
    drawn = draw(logits, noise.uniforms(step.index, DRAW, positions), step.temperature)
    picks = torch.arange(positions.shape[1]).expand_as(positions)
    if scheme.rank is not None:
        picks = scheme.rank(drawn.confidence, drawn.raw_prob)[:, : step.num_tokens]
    filled = batch.slots[step.target].fill(positions.gather(1, picks), drawn.ids.gather(1, picks))
    return batch.with_slot(step.target, filled)
