"""Likelihoods of conditions: equal to the product of single steps, whatever the batch."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fourm.decoding.scoring import log_likelihood
from fourm.modalities.registry import Kind
from fourm.networks.model import Context, Embedded, FourM
from fourm.networks.state import S1_ID, Batch, Slot, full_grid, full_sequence, stack_batches, typed_text
from fourm.schedule.best import Scores
from tests.decoding.test_engine import AUTOREGRESSIVE, load_fixture
from tests.networks.test_model import cases, read_batch


@pytest.fixture(scope="module")
def rows() -> list[Batch]:
    """Captions of different lengths, with tokens of a picture."""
    torch.manual_seed(0)
    found = list[Batch]()
    for number, length in enumerate((3, 90, 1, 33, 250)):
        ids, known = torch.zeros(1, 256, dtype=torch.int64), torch.zeros(1, 256, dtype=torch.bool)
        ids[:, :length], known[:, :length] = torch.randint(20, 30, (1, length)), True
        grid = full_grid(torch.randint(0, 32, (1, 64)))
        found.append(Batch((str(number),), {"caption": full_sequence(ids, known), "tok_clip@64": grid}))
    return found


@torch.inference_mode()
def step_by_step(network: FourM, row: Batch) -> float:
    """The mean log-probability of the tokens of a caption, each from a pass of its own over those before."""
    marker = typed_text(torch.full((1, 1), S1_ID), 2)
    context = network.encode(Batch(row.keys, {"tok_clip@64": row.slots["tok_clip@64"], "caption": marker}))
    slot, total = row.slots["caption"], 0.0
    tokens = slot.values[slot.known].tolist()
    for count, token in enumerate(tokens):
        ids = torch.tensor([[S1_ID, *tokens[:count]]])
        logits = network.decode("caption", torch.arange(count + 1)[None], ids, context)
        total += float(logits[0, -1].log_softmax(-1)[token])
    return total / len(tokens)


def test_the_likelihood_of_a_text_is_that_of_its_tokens_one_by_one(network: FourM, rows: list[Batch]) -> None:
    found = log_likelihood(network, stack_batches(rows), "caption", ["tok_clip@64"])
    assert found == pytest.approx([step_by_step(network, row) for row in rows], rel=1e-5)
    alone = [log_likelihood(network, row, "caption", ["tok_clip@64"])[0] for row in rows]
    assert found == pytest.approx(alone, rel=1e-6)


@torch.inference_mode()
def test_a_grid_is_scored_where_nothing_of_it_is_seen(network: FourM, rows: list[Batch]) -> None:
    row = rows[0]
    context = network.encode(row.without(["tok_clip@64"]))
    logits = network.decode("tok_clip@64", torch.arange(64)[None], None, context)
    ids = row.slots["tok_clip@64"].values
    wanted = float(logits.log_softmax(-1).gather(-1, ids[..., None]).mean())
    assert log_likelihood(network, row, "tok_clip@64", ["caption"]) == pytest.approx([wanted], rel=1e-5)
    assert log_likelihood(network, row, "tok_clip@64", []) != pytest.approx([wanted], rel=1e-5)


def test_the_mean_is_over_known_tokens() -> None:
    """A network that gives the next token of a text, 0 to 3, probability 1/2, 1/4, 1/8, 1/8."""

    class Fixed(FourM):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        reads, attention = ("tok_a",), "sdpa"

        def embed(self, batch: Batch) -> Embedded:
            return {}

        def encode_embedded(self, *given: object) -> Context:
            return Context(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), None)

        def decode(self, target: str, positions: Tensor, ids: Tensor | None, *given: object) -> Tensor:
            assert ids is not None
            assert ids[:, :3].tolist() == [[S1_ID, 0, 1], [S1_ID, 3, 0]]
            return torch.tensor([0.5, 0.25, 0.125, 0.125]).log().expand(*positions.shape, 4)

    known = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    texts = Slot(Kind.SEQUENCE, torch.tensor([[0, 1, 2], [3, 0, 0]]), known, ~known)
    batch = Batch(("a", "b"), {"text": texts, "tok_a": full_grid(torch.zeros(2, 4))})
    bits = [one / math.log(2) for one in log_likelihood(Fixed(), batch, "text", ["tok_a"])]
    assert bits == pytest.approx([-(1 + 2 + 3) / 3, -3])


def test_the_best_scores_are_kept_and_of_equal_ones_the_first() -> None:
    found = Scores.of(["a", "b"], [(-1.0, -3.0), None, (-2.0, -1.0), (-4.0, 0.0), (-1.5, -1.5)], 4)
    assert found.kept == (2, 4, 0, 3)
    assert Scores.of(["a"], [None, (-1.0,)], 2).kept == (1,)


@pytest.mark.parametrize("fixture", AUTOREGRESSIVE)
def test_likelihoods_follow_from_the_logits_of_the_reference(
    golden: Path, unpacked: Path, fixture: str
) -> None:
    """It decoded texts without guidance; of each token its logit and the sum over all are recorded."""
    model = load_fixture(unpacked, fixture)
    (case, *_) = [one for one in cases(golden, fixture, "autoregressive") if not one["conditioning"]]
    arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
    batch, name = read_batch(golden, fixture, case, arrays), case["target"]
    assert (arrays["step.top_ids"][..., 0] == arrays["raw_ids"][:, 1:]).all()
    written = torch.from_numpy(arrays["raw_ids"]).long()[:, 1:]
    known = torch.ones_like(written, dtype=torch.bool)
    found = log_likelihood(
        model, batch.with_slot(name, Slot(Kind.SEQUENCE, written, known, ~known)), name,
        [one for one in batch.slots if one != name],
    )  # fmt: skip
    wanted = (arrays["step.top_vals"][..., 0] - arrays["step.logsumexp"]).mean(axis=1)
    assert found == pytest.approx(wanted.tolist(), rel=1e-5)
