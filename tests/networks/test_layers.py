"""Attention, norms and position tables: what the networks take for granted."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourm.networks.attention import Mask, attention, merge_heads, split_heads
from fourm.networks.layers import LayerNorm, SiLU, sincos_1d, sincos_2d

ROOT = Path(__file__).resolve().parents[2]


def random_heads(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_attention_reads_the_visible_keys_and_no_others() -> None:
    q, k, v = (random_heads(2, 3, length, 4, seed=length) for length in (5, 6, 7))
    k, v = k[:, :, :6], v[:, :, :6]
    visible = torch.tensor([[True, False, True, True, False, True], [False, True, True, False, True, True]])
    out = attention(q, k, v, Mask.of(visible, q.dtype))
    for row in range(2):
        kept = visible[row]
        weights = (q[row] @ k[row][:, kept].transpose(1, 2) / math.sqrt(4)).softmax(dim=-1)
        torch.testing.assert_close(out[row], weights @ v[row][:, kept])


def test_a_query_that_sees_nothing_gets_zeros_and_its_neighbours_are_as_before() -> None:
    q, k, v = (random_heads(2, 1, 3, 4, seed=seed) for seed in (1, 2, 3))
    visible = torch.tensor([[True, True, False], [False, False, False]])
    out = attention(q, k, v, Mask.of(visible, q.dtype))
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert torch.equal(out[0], attention(q[:1], k[:1], v[:1], Mask.of(visible[:1], q.dtype))[0])
    assert torch.equal(attention(q, k[:, :, :0], v[:, :, :0]), torch.zeros_like(q))


def test_a_causal_query_reads_nothing_behind_it() -> None:
    q, k, v = (random_heads(1, 2, 4, 4, seed=seed) for seed in (4, 5, 6))
    out = attention(q, k, v, causal=True)
    changed = v.clone()
    changed[:, :, 2:] = 9.0
    assert torch.equal(attention(q, k, changed, causal=True)[:, :, :2], out[:, :, :2])
    assert not torch.equal(attention(q, k, changed, causal=True)[:, :, 2:], out[:, :, 2:])


def test_heads_are_split_and_merged_without_loss() -> None:
    x = random_heads(2, 5, 12)
    heads = split_heads(x, 3)
    assert torch.equal(heads[0, 1, 2], x[0, 2, 4:8])
    assert torch.equal(merge_heads(heads), x)


def test_an_activation_has_the_same_bits_wherever_a_number_stands() -> None:
    x = random_heads(2000) * 4
    whole = SiLU()(x)
    torch.testing.assert_close(whole, torch.nn.functional.silu(x), rtol=1e-6, atol=0)
    for length in (1, 5, 16, 31, 43, 63):
        assert torch.equal(torch.cat([SiLU()(part) for part in x.split(length)]), whole)


@pytest.mark.parametrize("bias", [True, False])
def test_a_norm_has_its_bias_in_the_checkpoint_also_where_it_is_constant(bias: bool) -> None:
    norm = LayerNorm(4, bias)
    assert set(norm.state_dict()) == {"weight", "bias"}
    assert ("bias" in dict(norm.named_parameters())) == bias


def test_positions_are_sines_then_cosines_and_rows_come_before_columns() -> None:
    line = sincos_1d(7, 8)[0]
    assert line.shape == (7, 8)
    torch.testing.assert_close(line[3, 1], torch.tensor(math.sin(3 * 10000 ** (-2 / 8))))
    torch.testing.assert_close(line[3, 5], torch.tensor(math.cos(3 * 10000 ** (-2 / 8))))
    plane = sincos_2d(3, 5, 16)[0]
    assert plane.shape == (15, 16)
    torch.testing.assert_close(plane[2 * 5 + 4, :8], sincos_1d(3, 8)[0, 2])
    torch.testing.assert_close(plane[2 * 5 + 4, 8:], sincos_1d(5, 8)[0, 4])


def test_an_outline_of_a_network_loads_no_compiler() -> None:
    """Operations on the meta device would: a second and 75 MB before any work begins."""
    code = (
        "import sys, torch\n"
        "from fourm.networks.checkpoint import load_model, load_tokenizer\n"
        "from fourm.hub.files import find_model\n"
        "files = find_model('demo')\n"
        "load_model(files)\n"
        "[load_tokenizer(path) for path in files.tokenizers.values()]\n"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
