"""Packed linear layers: the same results as plain ones but for rounding, the same bits in every batch."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from fourm.networks.linears import MIN_FEATURES, PackedLinear, pack


def network_of(*widths: int, bias: bool = True) -> nn.Sequential:
    """Linear layers with seeded weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(width, out, bias) for width, out in pairwise(widths)]
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (0,), (2, 3), (0, 2), (5, 1, 2)])
def test_packed_layers_compute_the_same(bias: bool, shape: tuple[int, ...]) -> None:
    plain, packed = network_of(MIN_FEATURES, 900, 5, bias=bias), network_of(MIN_FEATURES, 900, 5, bias=bias)
    pack(packed)
    assert all(isinstance(layer, PackedLinear) for layer in packed)
    x = torch.randn(*shape, MIN_FEATURES, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed(x.mT.contiguous().mT), plain(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(packed[0].weight.to_dense(), plain[0].weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_layers_and_other_dtypes_stay_as_they_are(dtype: torch.dtype) -> None:
    network = network_of(MIN_FEATURES - 1, MIN_FEATURES, 8).to(dtype)
    pack(network)
    kinds = [type(layer) for layer in network]
    assert kinds == [nn.Linear, PackedLinear if dtype == torch.float32 else nn.Linear]


@pytest.mark.parametrize("width", [MIN_FEATURES, 2048])
def test_a_row_has_the_same_bits_beside_any_others(width: int) -> None:
    """On every processor, for any number of rows and threads; plain layers differ on AMD's."""
    network = network_of(width, 900, 2048, 770, bias=False)
    pack(network)
    x, threads = torch.randn(300, width, generator=torch.Generator().manual_seed(2)), torch.get_num_threads()
    wanted = network(x)
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            assert torch.equal(network(x), wanted)
            for count in range(1, 8):
                assert torch.equal(network(x[:count]), wanted[:count])
                assert torch.equal(network(x[300 - count :].unsqueeze(1)), wanted[300 - count :].unsqueeze(1))
    finally:
        torch.set_num_threads(threads)


def test_without_the_operators_layers_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    network = network_of(MIN_FEATURES, 8)
    pack(network)
    assert type(network[0]) is nn.Linear
