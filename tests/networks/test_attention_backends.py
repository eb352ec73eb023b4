"""What is handed to xFormers, judged on a CPU: by a stand-in that computes what its documents say.

Where xFormers itself is installed its own checks of shapes, strides and biases judge too.
"""

import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.modalities.text import EOS_ID
from fourm.networks.attention import Mask, attention, check_kernel, set_attention, xformers
from fourm.networks.checkpoint import load_model
from fourm.networks.layers import SelfAttention
from fourm.networks.model import FourM
from fourm.networks.state import Batch, full_grid, full_sequence
from fourm.networks.tokenizers.unet import AttentionBlock

CUDA = torch.device("cuda")
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


class LowerTriangularMask:
    """Query i reads keys 0 to i."""

    def materialize(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(shape, float("-inf"), dtype=dtype, device=device).triu(1)


class Judge:
    """`memory_efficient_attention` as it is documented, and strict about all that its GPU kernels demand."""

    def __init__(self) -> None:
        self.calls = 0
        self.bias_numbers = 0  # stored for the last bias

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, attn_bias: object = None, scale: float | None = None
    ) -> Tensor:
        self.calls += 1
        batch, queries, heads, width = q.shape
        assert queries
        assert k.shape == v.shape == (batch, k.shape[1], heads, width)
        assert q.dtype == k.dtype == v.dtype
        for part in (q, k, v):
            assert part.stride(-1) == 1
            assert part.shape[-1] % 8 == 0
            assert part.stride(-2) % 8 == 0
        scores = torch.einsum("bmhk,bnhk->bhmn", q.float(), k.float()) * (scale or width**-0.5)
        if isinstance(attn_bias, Tensor):
            assert attn_bias.shape == scores.shape
            assert attn_bias.dtype == q.dtype
            assert attn_bias.stride(-1) == 1
            assert all(step % 8 == 0 for step in attn_bias.stride()[:-1])
            self.bias_numbers = attn_bias.untyped_storage().nbytes() // attn_bias.element_size()
            scores = scores + attn_bias.float()
        elif attn_bias is not None:
            scores = scores + attn_bias.materialize(tuple(scores.shape), scores.dtype, scores.device)  # type: ignore[attr-defined]
        out = torch.einsum("bhmn,bnhk->bmhk", scores.softmax(dim=-1), v.float())
        return out.to(q.dtype)


@pytest.fixture(params=["stand-in", "installed"])
def judge(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    judge = Judge()
    if request.param == "stand-in":
        package, ops = ModuleType("xformers"), ModuleType("xformers.ops")
        package.__spec__ = ModuleSpec("xformers", None)
        ops.memory_efficient_attention = judge  # type: ignore[attr-defined]
        ops.LowerTriangularMask = LowerTriangularMask  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "xformers", package)
        monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    else:
        ops = pytest.importorskip("xformers.ops")
        monkeypatch.setattr(ops, "memory_efficient_attention", also_judged_by_xformers(judge))
    yield judge
    assert judge.calls


def also_judged_by_xformers(judge: Judge) -> Callable[..., Tensor]:
    """The same, after the checks that xFormers makes before it calls its float32 kernel."""
    from xformers.ops.fmha import cutlass
    from xformers.ops.fmha.common import Inputs

    # What only says that this machine has no such GPU.
    not_here = (
        "device=", "operator wasn't built", "requires device", "xFormers wasn't build", "bf16 is only"
    )  # fmt: skip

    def call(q: Tensor, k: Tensor, v: Tensor, attn_bias: object = None, scale: float | None = None) -> Tensor:
        inputs = Inputs(q, k, v, attn_bias=attn_bias, scale=scale)  # type: ignore[arg-type]
        inputs.validate_inputs()
        reasons = cutlass.FwOp.not_supported_reasons(inputs)
        assert [reason for reason in reasons if not reason.startswith(not_here)] == []
        return judge(q, k, v, attn_bias=attn_bias, scale=scale)

    return call


def heads(batch: int, count: int, length: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, H, N, d), laid out in memory as the blocks do."""
    generator = torch.Generator().manual_seed(length * 31 + width)
    return torch.randn(batch, length, count, width, generator=generator).to(dtype).transpose(1, 2)


def assert_same(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool = False) -> Tensor:
    mask = None if visible is None else Mask.of(visible, q.dtype)
    wanted = attention(q, k, v, mask, causal)
    got = attention(q, k, v, mask, causal, xformers)
    assert got.dtype == q.dtype
    limit = TOLERANCE[q.dtype]
    torch.testing.assert_close(got, wanted, rtol=limit, atol=limit)
    return got


@FEW
@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 17), st.integers(0, 17)),
    width=st.sampled_from([1, 5, 8, 20, 64]),
    mask=st.sampled_from(["none", "keys", "keys of one", "pairs", "causal"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_both_kernels_give_the_same_for_every_shape_and_mask(
    judge: Judge, sizes: tuple[int, int, int, int], width: int, mask: str, dtype: torch.dtype
) -> None:
    batch, count, queries, keys = sizes
    q = heads(batch, count, queries, width, dtype)
    k, v = (heads(batch, count, keys, width, dtype) for _ in range(2))
    generator = torch.Generator().manual_seed(keys)
    shape = {"keys of one": (1, keys), "pairs": (batch, queries, keys)}.get(mask, (batch, keys))
    visible = None if mask in ("none", "causal") else torch.rand(shape, generator=generator) < 0.5
    assert_same(q, k, v, visible, causal=mask == "causal")
    judge.calls += not (queries and keys)


def test_hidden_rows_and_no_keys_are_zeros_in_both(judge: Judge) -> None:
    q, k, v = (heads(2, 2, 5, 8) for _ in range(3))
    visible = torch.tensor([[True, True, False, False, True], [False] * 5])
    got = assert_same(q, k, v, visible)
    assert torch.equal(got[1], torch.zeros_like(got[1]))
    assert torch.equal(attention(q, k[:, :, :0], v[:, :, :0], kernel=xformers), torch.zeros_like(q))


def test_a_mask_of_keys_is_stored_once_for_all_heads_and_queries(judge: Judge) -> None:
    q, k, v = (heads(2, 12, 50, 64) for _ in range(3))
    assert_same(q, k, v, torch.ones(2, 50, dtype=torch.bool))
    assert judge.bias_numbers == 2 * 56


def both(network: nn.Module, compute: Callable[[], Tensor]) -> None:
    """The same results of a network with either kernel."""
    set_attention(network, "sdpa", CUDA)
    wanted = compute()
    set_attention(network, "xformers", CUDA)
    torch.testing.assert_close(compute(), wanted, rtol=1e-4, atol=1e-5)


def batch_of(model: FourM) -> Batch:
    """Two rows, the second of them without a single known image token and with a shorter text."""
    ids = torch.full((2, 8), 10)
    ids[0, 5], ids[1, 1] = EOS_ID, EOS_ID
    slots = {"caption": full_sequence(ids)}
    for row in model.config.modalities_in:
        if row.name.startswith("tok_"):
            slot = full_grid(torch.arange(2 * row.max_tokens).view(2, -1) % row.vocab_size)
            slot.known[1] = False
            slots[row.name] = slot
    return Batch(("0", "1"), slots)


def test_a_transformer_decodes_alike_with_and_without_cache(tiny: Path, judge: Judge) -> None:
    model = load_model(find_model(tiny))
    batch = batch_of(model)
    target = next(row for row in model.config.modalities_out if row.name.startswith("tok_"))
    places = torch.arange(3).expand(2, 3)

    def pictures() -> Tensor:
        return model.decode(target.name, places, None, model.encode(batch))

    def texts() -> Tensor:
        return model.decode("caption", places, torch.tensor([[5, 9, 8], [5, 7, 6]]), model.encode(batch))

    def token_by_token() -> Tensor:
        context = model.encode(batch)
        cache = model.start_cache(context, 3)
        ids = torch.tensor([[5, 9, 8], [5, 7, 6]])
        steps = [slice(i, i + 1) for i in range(3)]
        parts = [model.decode("caption", places[:, s], ids[:, s], context, cache) for s in steps]
        return torch.cat(parts, dim=1)

    for compute in (pictures, texts, token_by_token):
        with torch.no_grad():
            both(model, compute)
    torch.testing.assert_close(texts(), token_by_token(), rtol=1e-4, atol=1e-5)


def test_the_single_wide_head_of_a_unet(judge: Judge) -> None:
    torch.manual_seed(0)
    block = AttentionBlock(96)
    x = torch.randn(2, 96, 5, 7)
    with torch.no_grad():
        both(block, lambda: block(x))


def test_a_kernel_without_support_is_refused_when_it_is_set(
    tiny: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_found(*_: object, **__: object) -> Tensor:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")

    model = load_model(find_model(tiny))
    judge.calls += 1
    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", none_found)
    with pytest.raises(UsageError, match=r"^`attention=xformers`: has no kernel for float32 on this GPU"):
        set_attention(model, "xformers", CUDA)
    assert all(m.kernel is not xformers for m in model.modules() if isinstance(m, SelfAttention))


def test_an_installation_that_does_not_load_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("xformers")
    package.__spec__ = ModuleSpec("xformers", None)
    monkeypatch.setitem(sys.modules, "xformers", package)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(UsageError, match=r"^`attention=xformers`: cannot be loaded"):
        check_kernel("xformers", CUDA, torch.empty(0))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("width", [20, 64, 512])
def test_xformers_itself_gives_the_same_on_a_gpu(dtype: torch.dtype, width: int) -> None:
    try:
        check_kernel("xformers", CUDA, torch.empty(0, device="cuda", dtype=dtype))
    except UsageError as error:  # not installed, or built for another torch or without CUDA
        pytest.skip(str(error))
    q = heads(2, 3, 33, width, dtype).cuda()
    for keys in (1, 7, 64, 197):
        k, v = (heads(2, 3, keys, width, dtype).cuda() for _ in range(2))
        visible = torch.rand(2, keys, device="cuda") < 0.5
        for mask in (None, visible, torch.zeros_like(visible)):
            wide, own = (None if mask is None else Mask.of(mask, x) for x in (torch.float32, dtype))
            wanted = attention(q.float(), k.float(), v.float(), wide)
            got = attention(q, k, v, own, kernel=xformers).float()
            torch.testing.assert_close(got, wanted, rtol=5 * TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])
    k, v = (heads(2, 3, 33, width, dtype).cuda() for _ in range(2))
    wanted = attention(q.float(), k.float(), v.float(), causal=True)
    got = attention(q, k, v, causal=True, kernel=xformers).float()
    torch.testing.assert_close(got, wanted, rtol=5 * TOLERANCE[dtype], atol=5 * TOLERANCE[dtype])
