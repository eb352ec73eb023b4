"""Attention kernels are interchangeable; the second one needs a GPU."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.networks.attention import Mask, attention, check_kernel, sdpa, set_attention
from fourm.networks.checkpoint import load_model
from fourm.networks.layers import CrossAttention, SelfAttention
from fourm.networks.tokenizers import build_tokenizer
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.unet import AttentionBlock

UNET = {"dec_type": "unet_patched", "has_encoder": False,
        "dec_structure": {"model_channels": 32, "num_res_blocks": 1, "channel_mult": [1],
                          "attention_resolutions": [1]}}  # fmt: skip


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    """Attention as it is written down."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        bias = Mask.of(torch.ones(1, *scores.shape[-2:], dtype=torch.bool).tril(), q.dtype).bias
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1) @ v


def tensors(queries: int, keys: int, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, width, generator=g) for n in (queries, keys, keys))
    return q, k, v


@pytest.mark.parametrize("keys", [1, 7, 8, 13])
def test_a_mask_is_a_bias_that_kernels_can_read(keys: int) -> None:
    q, k, v = tensors(5, keys)
    mask = Mask.of(torch.rand(2, keys, generator=torch.Generator().manual_seed(1)) < 0.6, q.dtype)
    assert mask.bias.shape == (2, 1, 1, keys)
    assert mask.bias.stride(0) % 8 == 0
    for kernel in (sdpa, plain):
        for visible in (None, mask):
            wanted = attention(q, k, v, visible)
            torch.testing.assert_close(
                attention(q, k, v, visible, kernel=kernel), wanted, rtol=1e-5, atol=1e-6
            )
    causal = attention(q, *tensors(5, 5)[1:], causal=True)
    torch.testing.assert_close(
        attention(q, *tensors(5, 5)[1:], causal=True, kernel=plain), causal, rtol=1e-5, atol=1e-6
    )


def test_every_attention_of_a_network_takes_the_kernel(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["fourm.networks.attention"]._KERNELS, "sdpa", plain)
    model = load_model(find_model(tiny))
    unet = build_tokenizer(read_config(UNET))
    for network, kinds in ((model, (SelfAttention, CrossAttention)), (unet, (AttentionBlock,))):
        set_attention(network, "sdpa", torch.device("cpu"))
        found = [module for module in network.modules() if isinstance(module, kinds)]
        assert found
        assert all(module.kernel is plain for module in found)


def test_a_kernel_that_cannot_run_here_is_refused(
    tiny: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", "a red circle", "--model", tiny, "--device", "cpu", "--out", "results")
    code, _, err = run(*words, "--attention", "xformers")
    assert (code, "NVIDIA GPUs only" in err) == (2, True)
    code, _, err = run(*words, "--attention", "xformer")
    assert (code, "did you mean 'xformers'" in err) == (2, True)
    assert not Path("results").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"pip install 'fourm\[fast\]'"):
        check_kernel("xformers", torch.device("cuda"), torch.empty(0))
