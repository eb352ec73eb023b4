"""Features are what the blocks of the encoder give for each sample alone, whatever the batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import fourm
from fourm.decoding.features import encode_features
from fourm.networks.model import FourM
from fourm.networks.state import Batch, full_grid, full_sequence, stack_batches


@pytest.fixture(scope="module")
def rows() -> list[Batch]:
    """Texts of different lengths, some with tokens of a picture; one fills its row up to a multiple of 16."""
    torch.manual_seed(0)
    found = list[Batch]()
    for number, length in enumerate((3, 9, 1, 16, 12)):
        ids = F.pad(torch.randint(20, 30, (1, length)), (0, 16 - length))
        slots = {"caption": full_sequence(ids)}
        if number % 2:
            slots["tok_clip@64"] = full_grid(torch.randint(0, 32, (1, 64)))
        found.append(Batch((str(number),), slots))
    return found


@torch.inference_mode()
def hooked(network: FourM, row: Batch) -> list[Tensor]:
    """What the encoder's blocks (N, D), then its norm, give while it runs for this sample alone."""
    found = list[Tensor]()
    hooks = [
        module.register_forward_hook(lambda _, __, out: found.append(out[0]))
        for module in (*network.encoder, network.encoder_norm)
    ]
    network.encode(row)
    for hook in hooks:
        hook.remove()
    return found


def test_features_are_what_the_blocks_of_the_encoder_give(network: FourM, rows: list[Batch]) -> None:
    for row, output in zip(rows, encode_features(network, stack_batches(rows), [1, -1, 0]), strict=True):
        first, second, last = hooked(network, row)
        assert output.shape == (3, sum(slot.known.sum() for slot in row.slots.values()), 32)
        torch.testing.assert_close(output, torch.stack([second, last, first]), rtol=1e-5, atol=1e-5)


def test_a_program_gets_what_the_blocks_of_the_encoder_give(network: FourM, tiny: Path) -> None:
    ids = torch.randint(0, 64, (1, 64), generator=torch.Generator().manual_seed(0))
    wanted = torch.stack(hooked(network, Batch(("x",), {"tok_rgb@64": full_grid(ids)}))).numpy()
    with fourm.load(tiny, device="cpu") as model:
        given = {"tok_rgb": ids[0].numpy(), "layers": [0, 1, "last"]}
        tokens, means = model.embed(**given, pool="tokens"), model.embed(**given)
    np.testing.assert_allclose(tokens, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(means, wanted.mean(axis=1), rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(network: FourM, rows: list[Batch]) -> None:
    together = encode_features(network, stack_batches(rows), [0, -1])
    backwards = encode_features(network, stack_batches(rows[::-1]), [0, -1])[::-1]
    for row, one, other in zip(rows, together, backwards, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, encode_features(network, row, [0, -1])[0])
