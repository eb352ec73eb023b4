"""Filters and probabilities equal the recorded ones; draws follow them; noise belongs to the sample."""

import json
from bisect import bisect_right
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourm.decoding.sampling import Noise, draw, guide, keep_top_k, keep_top_p, probabilities
from fourm.schedule.schemes import SCHEMES


def rank(confidence: Tensor, raw_prob: Tensor) -> Tensor:
    """The answers of MaskGIT, (B, K), from the surest on."""
    found = SCHEMES["maskgit"].rank
    assert found is not None
    return found(confidence, raw_prob)


def recorded_top_k(case: dict) -> int | float:
    """A count, or a fraction; the reference reads a fraction of 1 or more as everything."""
    return int(case["top_k"]) if case["top_k_type"] == "int" else min(float(case["top_k"]), 1.0)


def test_filters_keep_the_recorded_entries(golden: Path) -> None:
    folder = golden / "fm" / "sampling"
    arrays = np.load(folder / "filter_cases.npz")
    cases = [c for c in json.loads((folder / "filter_cases.json").read_text()) if "keep" in c]
    assert len(cases) > 20
    for case in cases:
        if "defect" in case:
            continue
        logits = torch.from_numpy(arrays[f"logits.{case['logits']}"])
        kept = keep_top_p(keep_top_k(logits, recorded_top_k(case)), case["top_p"]).isfinite().numpy()
        want = np.unpackbits(arrays[case["keep"]], axis=-1, count=logits.shape[-1]).astype(bool)
        np.testing.assert_array_equal(kept, want, err_msg=str(case))


def test_probabilities_confidence_and_maskgit_choice_equal_the_recorded_ones(golden: Path) -> None:
    folder = golden / "fm" / "sampling"
    arrays = {k: torch.from_numpy(v) for k, v in np.load(folder / "select_cases.npz").items()}
    for case in json.loads((folder / "select_cases.json").read_text()):
        i = case["index"]
        found = probabilities(arrays[f"{i}.logits"], case["temperature"], recorded_top_k(case), case["top_p"])
        torch.testing.assert_close(found, arrays[f"{i}.probs"], rtol=1e-5, atol=1e-7)
        samples = arrays[f"{i}.samples"].long()
        confidence = found.gather(-1, samples[..., None])[..., 0]
        torch.testing.assert_close(confidence, arrays[f"{i}.sampled_probs"], rtol=1e-5, atol=1e-7)
        picks = rank(confidence, confidence)[:, : case["num_select"]].sort(dim=1).values
        assert torch.equal(picks, arrays[f"{i}.selected"].long())


def test_guidance_of_scale_one_is_the_plain_pass() -> None:
    base, branch = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guide(torch.stack([base, branch]), torch.tensor([1.0])), branch)
    assert torch.equal(guide(base[None], torch.tensor([])), base)
    assert torch.equal(guide(torch.stack([base, branch]), torch.tensor([0.0])), base)


def test_several_branches_add_their_own_weights() -> None:
    base, one, two = torch.randn(3, 1, 2, 4, generator=torch.Generator().manual_seed(1))
    want = base + 2.0 * (one - base) - 0.5 * (two - base)
    torch.testing.assert_close(guide(torch.stack([base, one, two]), torch.tensor([2.0, -0.5])), want)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 5, 1.0), (2.5, 0, 0.8)])
def test_draws_follow_the_exact_probabilities(temperature: float, top_k: int, top_p: float) -> None:
    """Chi-square over 8 tokens and 20,000 samples; the 99.99 % point for 7 degrees of freedom is 29.9."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.3, -1.0, -2.0, 1.5])
    count = 20_000
    noise = Noise.for_samples(3, [(str(i), 0) for i in range(count)])
    uniforms = noise.uniforms(0, 1, torch.zeros(count, 1, dtype=torch.int64))[:, 0]
    ids, confidence, _ = draw(logits.expand(count, -1), uniforms, temperature, top_k, top_p)
    exact = (keep_top_p(keep_top_k(logits, top_k), top_p) / temperature).softmax(-1)
    seen = torch.bincount(ids, minlength=8).float()
    assert not bool(seen[exact == 0].any())
    expected = exact[exact > 0] * count
    assert float(((seen[exact > 0] - expected) ** 2 / expected).sum()) < 29.9
    torch.testing.assert_close(confidence, exact[ids])


def test_temperature_zero_takes_the_best_token_and_ranks_by_its_true_probability() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.1, 0.0]])
    ids, confidence, raw_prob = draw(logits, torch.tensor([0.9, 0.9]), 0.0)
    assert ids.tolist() == [1, 1]
    assert confidence.tolist() == [1, 1]
    torch.testing.assert_close(raw_prob, logits.softmax(-1)[:, 1])
    assert rank(confidence[None], raw_prob[None]).tolist() == [[0, 1]]


def test_a_small_nucleus_still_leaves_an_order_of_certainty() -> None:
    logits = torch.tensor([[3.0, 0.0], [9.0, 0.0], [5.0, 0.0]])
    drawn = draw(logits, torch.tensor([0.5, 0.5, 0.5]), 1.0, top_p=0.5)
    assert drawn.confidence.tolist() == [1, 1, 1]
    assert rank(drawn.confidence[None], drawn.raw_prob[None]).tolist() == [[1, 2, 0]]


@given(st.integers(0, 2**24 - 1), st.integers(1, 40), st.integers(0, 2**31))
def test_a_draw_is_always_a_token_of_positive_probability(u: int, size: int, seed: int) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 20
    logits[::3] = float("-inf")
    if size == 1:
        logits[0] = 0.0
    ids, confidence, _ = draw(logits[None], torch.tensor([u * 2.0**-24]), 1.0)
    assert 0 <= int(ids) < size
    assert float(confidence) > 0


def shares_of(probabilities: torch.Tensor) -> list[int]:
    """Probabilities in units of 2^-60, in Python's integers of any size."""
    return [int(p * 2**60) for p in probabilities.tolist()]


@pytest.mark.parametrize("temperature", [1.0, 0.1, 3.0])
def test_a_draw_adds_up_integers_so_that_no_device_or_batch_can_round_it_otherwise(
    temperature: float,
) -> None:
    """Each drawn token is the one that exact arithmetic finds, of a vocabulary as large as any."""
    logits = torch.randn(3, 30_000, generator=torch.Generator().manual_seed(4)) * 3
    noise = Noise.for_samples(0, [(str(i), 0) for i in range(3)])
    uniforms = torch.cat(
        [noise.uniforms(0, 1, torch.arange(300).expand(3, -1)), torch.tensor([[0.0, 1 - 2.0**-24]] * 3)],
        dim=1,
    )
    found = draw(logits.unsqueeze(1).expand(-1, uniforms.shape[1], -1), uniforms, temperature).ids
    for row in range(3):
        sums = list(accumulate(shares_of(probabilities(logits[row], temperature))))
        wanted = [int(u * 2**24) * sums[-1] / Fraction(2**24) for u in uniforms[row].tolist()]
        assert found[row].tolist() == [bisect_right(sums, each) for each in wanted]


def test_tokens_down_to_a_probability_of_a_quintillionth_can_be_drawn() -> None:
    tiny = torch.tensor([0.0, -41.0, -60.0]).softmax(-1)  # 1, 1.6e-18, 8.8e-27
    assert [share > 0 for share in shares_of(tiny)] == [True, True, False]
    ids = draw(tiny.log().expand(2, -1).flip(-1), torch.tensor([0.0, 2.0**-24]), 1.0).ids
    assert ids.tolist() == [
        1,
        2,
    ]  # the first unit of all is the middle token's; one of 2^-24 is far beyond it


def test_a_nucleus_adds_up_integers() -> None:
    logits = torch.randn(5, 30_000, generator=torch.Generator().manual_seed(5))
    for row, kept in zip(logits, keep_top_p(logits, 0.9).isfinite(), strict=True):
        ordered, order = row.sort(descending=True, stable=True)
        sums = list(accumulate(shares_of(ordered.softmax(-1))))
        count = bisect_right([0, *sums[:-1]], int(0.9 * 2**60))
        assert set(order[:count].tolist()) == set(kept.nonzero().flatten().tolist())


def nucleus_by_order(logits: Tensor, top_p: float) -> Tensor:
    """The filter as it is defined: entries in stable order, until their probabilities exceed top_p."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    is_enough = (ordered.softmax(dim=-1) * 2**60).long().cumsum(dim=-1) > int(top_p * 2**60)
    is_late = F.pad(is_enough[..., :-1], (1, 0))
    outside = torch.empty_like(is_late).scatter(-1, order, is_late)
    return logits.masked_fill(outside, float("-inf"))


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 7, 40, 1000])),
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.5, 1e-3]), st.sampled_from([0.0, 0.3, 1.0]), st.floats(1e-6, 1, exclude_max=True),
    st.booleans(),
)  # fmt: skip
def test_a_nucleus_is_that_of_a_stable_order(
    shape: tuple[int, int, int], seed: int, level: float, hidden: float, top_p: float, turned: bool
) -> None:
    """Also of equal entries (of few levels), of hidden ones (-inf), and in any order of memory."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 3
    logits = (logits / level).round() * level if level else logits  # of both signs of 0
    logits[torch.rand(shape, generator=generator) < hidden] = float("-inf")
    logits[..., seed % shape[-1]] = 1.0
    logits = logits.mT.contiguous().mT if turned else logits
    assert torch.equal(keep_top_p(logits, top_p), nucleus_by_order(logits, top_p))
    assert torch.equal(keep_top_p(logits.double(), top_p), nucleus_by_order(logits.double(), top_p))


def test_logits_that_are_no_numbers_still_give_an_id() -> None:
    """A GPU stops for good at an index beyond a table; that the numbers mean nothing is told later."""
    logits = torch.full((4, 7), float("nan"))
    logits[1, 3], logits[2, 6], logits[3] = 0.0, float("inf"), float("-inf")
    for top_p in (0.5, 1.0):
        drawn = draw(logits, torch.tensor([0.0, 0.3, 0.9, 1 - 2.0**-24]), 1.0, top_p=top_p)
        assert bool(((drawn.ids >= 0) & (drawn.ids < 7)).all())
        assert not bool(drawn.raw_prob.isfinite().any())


def test_filters_keep_at_least_one_token() -> None:
    logits = torch.arange(10.0)
    assert keep_top_k(logits, 0.001).isfinite().sum() == 1
    assert keep_top_p(logits, 1e-9).isfinite().sum() == 1
    assert torch.equal(keep_top_p(logits, 1.0), logits)
    assert torch.equal(keep_top_k(logits, 0), logits)


def test_noise_is_uniform_and_depends_on_nothing_but_its_names() -> None:
    places = torch.arange(500).expand(40, -1)
    noise = Noise.for_samples(0, [(f"k{i}", 0) for i in range(40)])
    values = noise.uniforms(2, 1, places)
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    histogram = torch.histc(values, 20, 0, 1)
    assert float(((histogram - 1000) ** 2 / 1000).sum()) < 50.8  # 99.99 % point, 19 degrees of freedom
    alone = Noise.for_samples(0, [("k7", 0)]).uniforms(2, 1, places[:1])
    assert torch.equal(alone[0], values[7])
    assert torch.equal(noise.uniforms(2, 1, places[:, 100:200]), values[:, 100:200])


def test_seeds_keep_the_noise_that_they_have_always_had() -> None:
    noise = Noise.for_samples(7, [("a", 0), ("00000/000001", 3)], "sr")
    drawn = noise.uniforms(2, 1, torch.tensor([[0, 5, 1000], [0, 5, 1000]]))
    assert (drawn * 2**24).tolist() == [[16719021, 7659375, 8775520], [16671091, 3874927, 4112963]]
    normals = [[0.32288163900375366, -1.0770376920700073], [0.24364615976810455, 2.4101436138153076]]
    torch.testing.assert_close(noise.normals(4, (2,)), torch.tensor(normals))


def test_neighbouring_seeds_steps_keys_and_variations_share_no_noise() -> None:
    places = torch.arange(64)[None]
    streams = [
        Noise.for_samples(seed, [(key, variation)], stage).uniforms(step, purpose, places)
        for seed in (0, 1)
        for key, variation in (("1", 23), ("12", 3), ("1", 0))
        for stage in ("", "sr")
        for step in (0, 1)
        for purpose in (0, 1)
    ]
    table = torch.cat(streams)
    assert len({tuple(row) for row in table.tolist()}) == len(streams)
    correlation = torch.corrcoef(table) - torch.eye(len(streams))
    assert float(correlation.abs().max()) < 0.6


def test_normal_noise_is_normal_and_belongs_to_the_sample() -> None:
    noise = Noise.for_samples(0, [(f"k{i}", 0) for i in range(10)])
    values = noise.normals(3, (3, 40, 50))
    assert (values.shape, values.dtype) == ((10, 3, 40, 50), torch.float32)
    flat, count = values.flatten().double(), values.numel()
    assert abs(float(flat.mean())) < 4 / count**0.5
    assert abs(float(flat.var()) - 1) < 4 * (2 / count) ** 0.5
    ordered = flat.sort().values
    normal = torch.distributions.Normal(0.0, 1.0).cdf(ordered)
    ranks = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    assert float((normal - ranks).abs().max()) < 1.95 / count**0.5  # Kolmogorov and Smirnov, 99.9 % point
    alone = Noise.for_samples(0, [("k7", 0)])
    assert torch.equal(alone.normals(3, (3, 40, 50))[0], values[7])
    assert not torch.equal(alone.normals(4, (3, 40, 50))[0], values[7])


@pytest.mark.gpu
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_equal_probabilities_lead_to_equal_draws_on_a_gpu_however_many_rows_there_are(top_p: float) -> None:
    logits = torch.randn(64, 16_384, generator=torch.Generator().manual_seed(6)) * 2
    noise = Noise.for_samples(0, [(str(i), 0) for i in range(64)]).uniforms(0, 1, torch.zeros(64, 1).long())[
        :, 0
    ]
    together = draw(logits.cuda(), noise.cuda(), 1.0, top_p=top_p).ids
    for rows in (1, 7, 64):
        assert torch.equal(
            draw(logits[:rows].cuda(), noise[:rows].cuda(), 1.0, top_p=top_p).ids, together[:rows]
        )
    on_cpu = draw(logits, noise, 1.0, top_p=top_p).ids
    assert float((together.cpu() == on_cpu).float().mean()) > 0.9


@pytest.mark.gpu
def test_noise_is_the_same_on_a_gpu() -> None:
    noise, places = Noise.for_samples(0, [("a", 0), ("b", 3)]), torch.arange(300).expand(2, -1)
    assert torch.equal(noise.to("cuda").uniforms(5, 1, places.cuda()).cpu(), noise.uniforms(5, 1, places))
