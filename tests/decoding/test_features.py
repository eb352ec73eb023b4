"""Features are what a plain encoder makes of each sample alone, whatever the batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourm.decoding.features import encode_features
from fourm.hub.files import find_model
from fourm.networks.checkpoint import load_model
from fourm.networks.model import FourM
from fourm.networks.state import Batch, full_grid, full_sequence, stack_batches


@pytest.fixture(scope="module")
def network(tiny: Path) -> FourM:
    return load_model(find_model(tiny))


@pytest.fixture(scope="module")
def rows() -> list[Batch]:
    """Texts of different lengths, some with tokens of a picture."""
    torch.manual_seed(0)
    found = list[Batch]()
    for number, length in enumerate((3, 9, 1, 5, 12)):
        slots = {"caption": full_sequence(torch.randint(4, 30, (1, length)))}
        if number % 2:
            slots["tok_clip@64"] = full_grid(torch.randint(0, 32, (1, 64)))
        found.append(Batch((str(number),), slots))
    return found


@torch.inference_mode()
def plain(network: FourM, row: Batch) -> list[Tensor]:
    """Outputs (N, D) of all blocks, then of the norm, without padding and masks."""
    parts = network.embed(row).values()
    x = torch.cat([(content + address)[known] for content, address, known in parts]).unsqueeze(0)
    found = list[Tensor]()
    for block in network.encoder:
        x = block(x, None, None)
        found.append(x[0])
    return [*found, network.encoder_norm(x)[0]]


def test_features_are_those_of_the_plain_encoder(network: FourM, rows: list[Batch]) -> None:
    for row, output in zip(rows, encode_features(network, stack_batches(rows), [1, -1, 0]), strict=True):
        blocks = plain(network, row)
        wanted = torch.stack([blocks[1], blocks[2], blocks[0]])
        assert output.shape == wanted.shape
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_its_batch(network: FourM, rows: list[Batch]) -> None:
    together = encode_features(network, stack_batches(rows), [0, -1])
    backwards = encode_features(network, stack_batches(rows[::-1]), [0, -1])[::-1]
    for row, one, other in zip(rows, together, backwards, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, encode_features(network, row, [0, -1])[0])
