"""Packed rows, `--attention varlen`: what padded ones give, judged on a CPU by a loop over the rows.

Its kernel runs on NVIDIA GPUs only; the loop demands what the kernel does, and leaves whatever is behind the
last row, as memory that nobody wrote, not a number.
"""

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.decoding.steps import MOST_LENGTHS, shapes_of
from fourm.errors import UsageError
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED
from fourm.networks.attention import Mask, Packing, attention, check_kernel, is_packed, set_attention
from fourm.networks.checkpoint import load_model
from fourm.networks.graphs import Graphs
from fourm.networks.model import FourM, FourMConfig
from fourm.networks.state import Batch, full_grid, full_sequence, partly_given
from fourm.schedule.chain import TargetSpec, make_chain
from tests.emulated_gpu import Gpu, GpuTensor, Graph, emulated

Command = Callable[..., tuple[int, str, str]]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NAMES = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]


def by_rows(q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor, *most: int) -> Tensor:
    """`varlen_attn` as it is documented."""
    out = torch.full_like(q, float("nan"))
    bounds = [torch.stack([one[:-1], one[1:]], 1).tolist() for one in (starts_q, starts_k)]
    for (first, end), (start, stop) in zip(*bounds, strict=True):
        assert 0 <= end - first <= most[0]
        assert 0 <= stop - start <= most[1]
        if end > first and stop > start:
            row = (x.float().transpose(0, 1) for x in (q[first:end], k[start:stop], v[start:stop]))
            out[first:end] = F.scaled_dot_product_attention(*row).transpose(0, 1).to(q.dtype)
    return out


class Judge:
    """`varlen_attn`, strict about what its kernel demands, on a CPU and on the emulated GPU."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []  # of the queries and keys of each call

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        assert len(rest) == 4  # what is not handed over has its default in all releases
        assert key.shape == value.shape
        assert query.shape[1:] == key.shape[1:]
        assert query.shape[-1] % 8 == 0
        assert query.dtype == key.dtype == value.dtype
        assert {one.stride(-1) for one in (query, key, value)} == {1}
        assert rest[0].dtype == rest[1].dtype == torch.int32
        assert rest[0].shape == rest[1].shape
        assert {type(one) for one in rest[2:]} == {int}
        self.shapes.append((len(query), len(key), len(rest[0]), *rest[2:]))
        call = Gpu.active().call if isinstance(query, GpuTensor) else lambda f, args, _: f(*args)
        return call(by_rows, (query, key, value, *rest), {})


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    judge, module = Judge(), ModuleType("torch.nn.attention.varlen")
    module.__spec__ = ModuleSpec(module.__name__, None)
    module.varlen_attn = judge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield judge
    assert judge.shapes


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with emulated(monkeypatch) as gpu:
        yield gpu


def network_of(registers: int = 0, **config: Any) -> FourM:
    """A small network with random weights."""
    torch.manual_seed(0)
    rows = tuple(map(RELEASED.get, ("caption", "tok_clip@224", "tok_rgb@224")))
    network = FourM(
        FourMConfig(
            norm_bias=True, act_layer="GELU", dim=32, encoder_depth=2, decoder_depth=2, num_heads=4,
            num_register_tokens=registers, modalities_in=rows, modalities_out=rows, **config,
        )
    )  # fmt: skip
    for one in network.parameters():
        torch.nn.init.normal_(one, std=0.3)
    return network.eval()


def uneven(lengths: list[int], tokens: int = 70) -> Batch:
    """Captions of these lengths, and of a picture the first `tokens` tokens in every other row."""
    ids = torch.arange(len(lengths) * 64).view(-1, 64) % 50 + 20
    caption = full_sequence(ids)
    caption.known[:] = torch.arange(64) < torch.tensor(lengths).unsqueeze(1)
    picture = full_grid(torch.arange(len(lengths) * 196).view(-1, 196) % 900)
    picture.known[:] = torch.arange(196) < tokens
    picture.known[1::2] = False
    return Batch(tuple(map(str, range(len(lengths)))), {"caption": caption, "tok_clip@224": picture})


@pytest.mark.parametrize("registers", [0, 3])
@pytest.mark.parametrize("lengths", [[5, 0, 33, 64], [0, 0, 1, 64], [9, 9], [0, 12]])
@pytest.mark.parametrize("room", ["exact", "bucket"])
def test_packed_rows_are_padded_ones(judge: Judge, registers: int, lengths: list[int], room: str) -> None:
    network, batch = network_of(registers, qk_norm=registers > 0), uneven(lengths)
    known, shapes = batch.num_known(network.reads).tolist(), shapes_of("cuda")
    sizes = (max(known), sum(known))
    if room == "bucket":
        sizes = (shapes.num_tokens(max(known), 260), shapes.num_packed(known, 260))
    places = torch.arange(6).expand(len(lengths), 6)
    ids = torch.randint(20, 60, places.shape, generator=torch.Generator().manual_seed(1))
    found = []
    with torch.no_grad():
        for name, packed in (("sdpa", None), ("varlen", sizes[1])):
            network.attention = name
            context = network.encode_embedded(network.embed(batch), known, sizes[0], packed)
            cache = network.start_cache(context, 6)
            parts = [
                network.decode("caption", places[:, i : i + 1], ids[:, i : i + 1], context, cache)
                for i in range(6)
            ]
            found.append((
                context.tokens[context.visible], network.decode("tok_rgb@224", places, None, context),
                network.decode("caption", places, ids, context), torch.cat(parts, dim=1),
            ))  # fmt: skip
    assert context.packing is not None
    assert len(context.packing.taken) == sizes[1] + registers * len(lengths)
    for padded, packed in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1][2], found[1][3], rtol=1e-4, atol=1e-4)


def test_what_fills_up_the_shape_reaches_no_row(judge: Judge) -> None:
    """Memory that no kernel wrote stands behind the last row; a row without keys gets zeros."""
    visible = torch.arange(16) < torch.tensor([5, 0, 16]).unsqueeze(1)
    packing = Packing.of(visible, 32, has_rows=True)
    assert packing.rows is not None
    x, q = torch.randn(3, 16, 16), torch.randn(3, 2, 4, 8)
    k = packing.pack(x).view(1, 32, 2, 8).transpose(1, 2)
    out = attention(k, k, k, packing.rows)
    assert out.isnan().any()
    unpacked = packing.unpack(out.transpose(1, 2).flatten(2))
    assert unpacked.isfinite().all()
    padded = x.view(3, 16, 2, 8).transpose(1, 2)
    mask = Mask.of(visible, x.dtype)
    wanted = attention(padded, padded, padded, mask).transpose(1, 2).flatten(2)
    torch.testing.assert_close(unpacked[visible], wanted[visible])
    read = attention(q, k, k, packing.rows.asked(4, mask.seen))
    torch.testing.assert_close(read, attention(q, padded, padded, mask))
    assert torch.equal(read[1], torch.zeros_like(read[1]))


def test_the_rule() -> None:
    assert [is_packed("sdpa", CPU, share) for share in (0.2, 0.89, 0.9, 1.0)] == [True, True, False, False]
    assert not any(is_packed(name, CUDA, 0.1) for name in ("sdpa", "xformers"))
    assert [is_packed("varlen", CUDA, share) for share in (0.1, 0.99, 1.0)] == [True, True, False]


# The engine


def tokens_of(
    network: FourM, tiny: Path, gpu: Gpu, words: list[int], kept: int, **engine: Any
) -> dict[str, Tensor]:
    """Two guided pictures of captions with these numbers of words, and with some tokens of the first kept."""
    ids = torch.arange(len(words) * max(words)).view(len(words), -1) % 9 + 20
    caption = full_sequence(ids)
    caption.known[:] = torch.arange(ids.shape[1]) < torch.tensor(words).unsqueeze(1)
    given = torch.arange(64).expand(len(words), -1) < kept
    slots = {"caption": caption, "tok_clip@64": partly_given(torch.zeros(given.shape).long(), given)}
    specs = [
        TargetSpec("tok_clip@64", 64 - kept, "roar", 3, guidance=2.0, grid=(8, 8)),
        TargetSpec("tok_rgb@64", 64, "maskgit", 3, guidance=2.0, grid=(8, 8)),
    ]
    chain = make_chain(specs, ["caption"], top_p=0.9)
    batch = with_targets(Batch(tuple(map(str, words)), slots), chain, find_model(tiny).registry).to("cuda")
    noise = Noise.for_samples(0, [(key, 0) for key in batch.keys]).to("cuda")
    for number, progress in enumerate(Engine(network, **engine).run(batch, chain, noise)):
        if number:
            assert not gpu.waits
        assert progress.sound.all()
        gpu.waits.clear()
    return {name: slot.values.cpu() for name, slot in progress.batch.slots.items()}


def test_the_engine_decodes_the_same_with_and_without_graphs(gpu: Gpu, tiny: Path, judge: Judge) -> None:
    network, graphs, words, kept = load_model(find_model(tiny), "cuda"), Graphs(), [3, 40, 12], 20
    wanted = tokens_of(network, tiny, gpu, words, kept)
    network.attention = "varlen"
    replays = Graph.replays
    found = [tokens_of(network, tiny, gpu, words, kept, graphs=one) for one in (None, graphs, graphs)]
    assert Graph.replays - replays >= 6  # all steps of the last run
    for one in found:
        assert all(torch.equal(one[name], wanted[name]) for name in wanted)
    # 8 rows, those of both passes and one that fills up the batch; their keys are fewer than in padded rows.
    assert {(shape[1] % 256, shape[2], shape[4] % 64) for shape in judge.shapes} == {(0, 9, 0)}
    assert any(shape[1] < 8 * shape[4] for shape in judge.shapes)


@given(known=st.lists(st.integers(0, 425), min_size=1, max_size=16), room=st.integers(425, 2000))
def test_sizes_are_few_whatever_the_rows_hold(known: list[int], room: int) -> None:
    """So that graphs are met again: 24 sizes for each number of rows."""
    shapes = shapes_of("cuda")
    budget, places = shapes.num_tokens(max(known), room), shapes.num_packed(known, room)
    assert sum(known) <= places <= len(known) * budget
    share = len(known) * math.ceil(room / (64 * MOST_LENGTHS)) * 64 // 2
    assert places % share == 0
    assert places - sum(known) < share
    assert len(known) * shapes.num_tokens(room, room) <= 2 * MOST_LENGTHS * share
    assert shapes_of("cpu").num_packed(known, room) == max(sum(known), 4)


def test_a_run_says_so_in_its_record(gpu: Gpu, run: Command, judge: Judge) -> None:
    words = ("generate", "a red circle", "a small blue square above a large green one", "--quiet", "--steps",
             2, "--targets", "tok_clip-tok_rgb", "--device", "cuda", "--no-decode", "--cfg", 2)  # fmt: skip
    for name in ("sdpa", "varlen"):
        assert run(*words, "--attention", name, "--dtype", "bfloat16", "--out", name)[0] == 0
    assert json.loads(Path("varlen/run.json").read_text())["attention"] == "varlen"
    made, others = (
        [np.load(path) for path in sorted(Path(out).rglob("*.npy"))] for out in ("varlen", "sdpa")
    )
    assert len(made) == 4
    assert np.mean([np.mean(a == b) for a, b in zip(made, others, strict=True)]) > 0.9  # in last bits
    code, _, err = run(*words, "--attention", "varlen", "--dtype", "float32", "--out", "o")
    assert (code, "`attention" not in err, "--attention" in err) == (2, True, True), err


def test_what_the_kernel_does_not_take_is_refused(
    judge: Judge, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_kernel("varlen", CUDA, torch.empty(0, dtype=torch.bfloat16))
    for device, like, width, why in (
        (CPU, torch.bfloat16, 64, "NVIDIA GPUs only"),
        (CUDA, torch.float32, 64, "no kernel for float32"),
        (CUDA, torch.float16, 20, "heads have 20 numbers"),
    ):
        with pytest.raises(UsageError, match=why):
            check_kernel("varlen", device, torch.empty(0, dtype=like), width)
    network = load_model(find_model(tiny), dtype=torch.bfloat16)
    set_attention(network, "varlen", CUDA)
    assert network.attention == "varlen"
    set_attention(torch.nn.Linear(1, 1), "varlen", CUDA)  # tokenizers have rows of one length
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"needs torch 2\.10"):
        check_kernel("varlen", CUDA, torch.empty(0, dtype=torch.bfloat16))


# What torch has


def test_the_installed_function_is_the_one_that_the_loop_stands_for() -> None:
    varlen = pytest.importorskip("torch.nn.attention.varlen")
    names = inspect.signature(varlen.varlen_attn).parameters
    assert list(names)[:7] == NAMES
    assert all(one.default is not inspect.Parameter.empty for one in [*names.values()][7:])
    packing = Packing.of(torch.empty(3, 16, device="meta", dtype=torch.bool), 32, has_rows=True)
    assert packing.rows is not None
    k = torch.empty(1, 32, 3 * 64, device="meta", dtype=torch.bfloat16)[..., :64]
    k = k.view(1, 32, 4, 16).transpose(1, 2)
    q = torch.empty(3, 4, 7, 16, device="meta", dtype=torch.bfloat16)
    assert attention(k, k, k, packing.rows).shape == k.shape
    assert attention(q, k, k, packing.rows.asked(7, None)).shape == q.shape


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_gives_the_same_on_a_gpu(dtype: torch.dtype) -> None:
    try:
        check_kernel("varlen", CUDA, torch.empty(0, device="cuda", dtype=dtype))
    except UsageError as error:
        pytest.skip(str(error))
    network = network_of().to("cuda", dtype)
    batch, shapes = uneven([5, 0, 33, 64]).to("cuda"), shapes_of("cuda")
    known = batch.num_known(network.reads).tolist()
    sizes = (shapes.num_tokens(max(known), 260), shapes.num_packed(known, 260))
    places, found = torch.arange(6, device="cuda").expand(4, 6), []
    with torch.no_grad():
        for name, packed in (("sdpa", None), ("varlen", sizes[1])):
            set_attention(network, name, CUDA)
            context = network.encode_embedded(network.embed(batch), known, sizes[0], packed)
            found.append(network.decode("tok_rgb@224", places, None, context).float())
    limit = 0.05 * float(found[0].std())
    assert float((found[1] - found[0]).abs().mean()) < limit
