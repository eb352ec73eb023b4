"""Likelihoods of conditions: equal to the product of single steps, whatever the batch."""

from pathlib import Path

import pytest
import torch

from fourm.decoding.scoring import log_likelihood
from fourm.hub.files import find_model
from fourm.networks.checkpoint import load_model
from fourm.networks.model import FourM
from fourm.networks.state import S1_ID, Batch, full_grid, full_sequence, stack_batches, typed_text


@pytest.fixture(scope="module")
def network(tiny: Path) -> FourM:
    return load_model(find_model(tiny))


@pytest.fixture(scope="module")
def rows() -> list[Batch]:
    """Captions of different lengths, with tokens of a picture."""
    torch.manual_seed(0)
    found = list[Batch]()
    for number, length in enumerate((3, 9, 1)):
        ids, known = torch.zeros(1, 16, dtype=torch.int64), torch.zeros(1, 16, dtype=torch.bool)
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
    wanted = torch.tensor([step_by_step(network, row) for row in rows])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    alone = torch.cat([log_likelihood(network, row, "caption", ["tok_clip@64"]) for row in rows])
    assert torch.equal(found, alone)


@torch.inference_mode()
def test_a_grid_is_scored_where_nothing_of_it_is_seen(network: FourM, rows: list[Batch]) -> None:
    row = rows[0]
    context = network.encode(row.without(["tok_clip@64"]))
    logits = network.decode("tok_clip@64", torch.arange(64)[None], None, context)
    ids = row.slots["tok_clip@64"].values
    wanted = logits.log_softmax(-1).gather(-1, ids[..., None]).mean()
    found = log_likelihood(network, row, "tok_clip@64", ["caption"])
    torch.testing.assert_close(found[0], wanted, rtol=1e-5, atol=1e-5)
