"""Everything that computes runs on an emulated GPU: no tensor there meets one of the CPU, and few steps wait.

The emulated values are real, so what is made is what a CPU makes.
"""

import gc
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast
from weakref import ref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.decoding.steps import Progress
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED
from fourm.networks.checkpoint import load_model
from fourm.networks.graphs import Graphs
from fourm.networks.memory import release_memory
from fourm.networks.model import Context, FourM, FourMConfig, Head
from fourm.networks.state import Batch, full_sequence, partly_given
from fourm.schedule.chain import Chain, TargetSpec, make_chain
from tests.emulated_gpu import Gpu, GpuError, GpuTensor, Graph, emulated

Command = Callable[..., tuple[int, str, str]]
GPU = ("--quiet", "--device", "cuda", "--out", "o")
TYPED_PROMPTS = ("generate", "a red circle", "a small blue square", "--quiet", "--steps", 2)
PROMPTS = (*TYPED_PROMPTS, "--device", "cuda", "--out", "o")
ALL = "det-metadata-tok_canny_edge-tok_clip-tok_depth-tok_normal-tok_rgb-tok_semseg"
TYPED = full_sequence(torch.tensor([[20, 21, 25, 3, 0], [24, 23, 3, 0, 0], [29, 28, 27, 26, 3]]))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    with emulated(monkeypatch) as gpu:
        yield gpu


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two pictures with their depth."""
    rng = np.random.default_rng(0)
    for folder, shape in (("rgb", (64, 80, 3)), ("depth", (64, 80))):
        (tmp_path / "data" / folder / "a").mkdir(parents=True)
        for name in "xy":
            array = rng.integers(0, 256 if folder == "rgb" else 65536, shape)
            picture = Image.fromarray(array.astype(np.uint8 if folder == "rgb" else np.uint16))
            picture.save(tmp_path / "data" / folder / "a" / f"{name}.png")
    return tmp_path / "data"


def tokens(out: str) -> dict[str, list[int]]:
    files = sorted(Path(out).glob("tok_*/**/*.npy"))
    return {path.relative_to(out).as_posix(): np.load(path).ravel().tolist() for path in files}


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16", "float16"])
def test_every_target_of_the_demo_is_made_in_every_dtype(gpu: Gpu, run: Command, dtype: str) -> None:
    assert run(*PROMPTS, "--targets", ALL, "--dtype", dtype)[0] == 0
    assert len(tokens("o")) == 12
    record = json.loads(Path("o/run.json").read_text())
    assert (record["dtype"], record["device_type"]) == (dtype, "cuda")
    code, _, err = run(*PROMPTS, "--targets", ALL, "--dtype", "float32", "--resume")
    assert code == 2
    assert f'dtype is "{dtype}" there and "float32" here' in err


def dtype_of(record: str) -> str:
    return str(json.loads(Path(record).read_text())["dtype"])


def test_a_gpu_with_bfloat16_computes_in_it_unless_told_otherwise(
    gpu: Gpu, run: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", "a red circle", "--steps", 2, "--targets", "tok_rgb", "--sr-targets", "tok_rgb",
             "--sr-steps", 1, "--device", "cuda", "--no-decode")  # fmt: skip
    code, _, err = run(*words, "--out", "o")
    assert (code, err.count("on cuda:0 in bfloat16")) == (0, 2), err
    assert {dtype_of("o/run.json"), dtype_of("o/run.sr.json")} == {"bfloat16"}
    tokenize = ("tokenize", data, "--modalities", "rgb", "-q", "--device", "cuda")
    assert run(*tokenize, "--out", "t")[0] == 0
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert run(*words, "--quiet", "--out", "older")[0] == 0
    assert run(*tokenize, "--out", "older-t")[0] == 0
    assert {dtype_of("older/run.json"), dtype_of("older/run.sr.json")} == {"float32"}
    made = [dtype_of(f"{out}/tok_rgb@64/tokenizer.json") for out in ("t", "older-t")]
    assert made == ["bfloat16", "float32"]


def test_what_goes_on_computes_in_the_dtype_that_it_was_begun_in(gpu: Gpu, run: Command, data: Path) -> None:
    words = (*PROMPTS, "--targets", "tok_rgb", "--no-decode")
    assert run(*words, "--dtype", "float32", "--shard", "0/2")[0] == 0
    assert run(*words, "--shard", "1/2")[0] == 0  # a later rank joins
    assert dtype_of("o/run.json") == "float32"
    made = tokens("o")
    assert len(made) == 2
    (Path("o") / min(made)).unlink()
    code, _, err = run(*words, "--resume", "--dtype", "bfloat16")
    assert (code, 'dtype is "float32" there and "bfloat16" here' in err) == (2, True), err
    assert run(*words, "--resume")[0] == 0
    assert tokens("o") == made
    finer = ("sr", "o", "--targets", "tok_rgb", "--steps", 1, "--no-decode", "--device", "cuda", "-q")
    assert run(*finer)[0] == 0
    assert dtype_of("o/run.sr.json") == "float32"
    assert run(*finer, "--dtype", "bfloat16", "--out", "other")[0] == 0
    assert run(*finer, "--out", "other", "--resume")[0] == 0  # the record of its own comes first
    assert run(*words, "--overwrite")[0] == 0  # a new run
    assert dtype_of("o/run.json") == "bfloat16"
    tokenize = ("tokenize", data, "--modalities", "rgb", "-q", "--device", "cuda", "--out", "t")
    assert run(*tokenize, "--dtype", "float32")[0] == 0
    (path,) = Path("t/tok_rgb@64").rglob("x.npy")
    path.unlink()
    assert run(*tokenize)[0] == 0
    assert (path.is_file(), dtype_of("t/tok_rgb@64/tokenizer.json")) == (True, "float32")


@pytest.mark.parametrize(
    "words",
    [
        ("--targets", "tok_depth-tok_rgb", "--schemes", "maskgit", "--top-p", "0.9", "--preview", 1),
        ("--targets", "tok_clip-tok_rgb", "--temps", 0, "--temp-schedules", "constant"),
        ("--targets", "tok_rgb", "--cond", "caption:2.0", "--tokenizer", "rgb=rgb_divae",
         "--detokenizer-steps", 2, "--preview", 2, "--num-variations", 2),
        ("--targets", "tok_clip-tok_rgb", "--sr-targets", "tok_rgb", "--sr-steps", 2),
        ("--targets", "tok_rgb", "--temps", 2, "--best", "2/3", "--by", "caption"),
    ],
    ids=["maskgit with previews", "greedy", "weighted, by diffusion", "super-resolution", "best of three"],
)  # fmt: skip
def test_pictures_are_those_of_a_cpu(gpu: Gpu, run: Command, words: tuple[object, ...]) -> None:
    assert run(*PROMPTS, *words, "--dtype", "float32")[0] == 0
    assert run(*TYPED_PROMPTS, *words, "--device", "cpu", "--out", "cpu")[0] == 0
    made, expected = tokens("o"), tokens("cpu")
    assert made.keys() == expected.keys()
    same = [a == b for name in made for a, b in zip(made[name], expected[name], strict=True)]
    assert np.mean(same) > 0.95  # rows are padded otherwise, which may show in last bits


def test_pictures_and_maps_are_conditions(gpu: Gpu, run: Command, data: Path) -> None:
    words = ("generate", "--data", data, "--cond", "rgb-depth", "--targets", "tok_normal-caption", *GPU)
    assert run(*words, "--steps", 2)[0] == 0
    assert len(tokens("o")) == 4
    assert len(list(Path("o/caption").rglob("*.txt"))) == 2


def test_pictures_and_maps_become_the_tokens_of_a_cpu(gpu: Gpu, run: Command, data: Path) -> None:
    for device in ("cuda", "cpu"):
        words = ("tokenize", data, "--modalities", "rgb-depth", "--crops", 3, "--quiet", "--dtype", "float32")
        assert run(*words, "--device", device, "--out", device)[0] == 0
    assert tokens("cuda") == tokens("cpu")
    assert len(tokens("cpu")) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mac_is_asked_for_nothing_that_it_lacks(
    monkeypatch: pytest.MonkeyPatch, run: Command, dtype: str
) -> None:
    with emulated(monkeypatch, "mps"):
        words = (
            "--targets",
            "det-tok_clip-tok_rgb",
            "--tokenizer",
            "rgb=rgb_divae",
            "--detokenizer-steps",
            2,
        )
        assert run(*TYPED_PROMPTS, *words, "--device", "mps", "--dtype", dtype, "--out", "o")[0] == 0


# Waits


def test_logits_of_16_bits_are_summed_up_in_float32(gpu: Gpu, tiny: Path) -> None:
    networks = [load_model(find_model(tiny), device, torch.bfloat16) for device in ("cpu", "cuda")]
    on_cpu, on_gpu = (cast("Head", network.decoder_embeddings["tok_rgb@64"]) for network in networks)
    y = torch.randn(2, 3, on_cpu.to_logits.in_features, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = y.float() @ on_cpu.to_logits.weight.float().T
    assert torch.equal(on_gpu.logits(y.to("cuda")).view(6, -1).cpu(), exact.view(6, -1))
    assert not torch.equal(on_cpu.logits(y).float(), exact)


@pytest.fixture
def network(gpu: Gpu, tiny: Path) -> FourM:
    return load_model(find_model(tiny), "cuda")


def steps_of(
    network: FourM, tiny: Path, chain: Chain, gpu: Gpu, **engine: Any
) -> list[tuple[Progress, dict]]:
    """What each step did, and what the host waited for on the way to it."""
    batch = Batch(("a", "b", "c"), {"caption": TYPED} if chain.conditions else {})
    batch = with_targets(batch, chain, find_model(tiny).registry).to("cuda")
    noise, found = Noise.for_samples(0, [(key, 0) for key in batch.keys]).to("cuda"), []
    gpu.waits.clear()
    for progress in Engine(network, **engine).run(batch, chain, noise):
        found.append((progress, dict(gpu.waits)))
        gpu.waits.clear()
    return found


@pytest.mark.parametrize("scheme", ["roar", "maskgit", "halton"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_no_step_of_an_image_waits_for_the_device(
    gpu: Gpu, network: FourM, tiny: Path, scheme: str, guidance: float
) -> None:
    """The masks of a batch and the numbers of all steps are copied once, before the first step."""
    specs = [
        TargetSpec(f"{name}@64", 64, scheme, 4, guidance=guidance, grid=(8, 8))
        for name in ("tok_clip", "tok_rgb")
    ]
    (_, first), *others = steps_of(network, tiny, make_chain(specs, ["caption"], top_p=0.9), gpu)
    assert len(others) == 7
    assert all("copy from GPU" in wait for wait in first)
    assert sum(first.values()) <= 10
    assert [waits for _, waits in others if waits] == []


@pytest.mark.parametrize(
    "words",
    [
        ("--targets", "caption-tok_rgb"),
        ("--targets", "tok_rgb", "--tokenizer", "rgb=rgb_divae", "--detokenizer-steps", 2),
    ],
    ids=["texts and pictures", "by diffusion"],
)
def test_nothing_of_a_batch_is_copied_to_the_device_with_a_wait(
    gpu: Gpu, run: Command, data: Path, words: tuple[object, ...]
) -> None:
    """One batch has as many waits as two: those of the weights."""
    command = ("generate", "--data", data, "--cond", "rgb@64-depth", "--steps", 2, "--batch-size", 1, *words)
    copies = list[dict[str, int]]()
    for count in (1, 2):
        gpu.waits.clear()
        assert run(*command, *GPU[:-1], f"o{count}", "--num-samples", count)[0] == 0
        copies.append({wait: times for wait, times in gpu.waits.items() if "copy from CPU" in wait})
    assert copies[0] == copies[1]


@pytest.mark.parametrize("passes", [1, 3])
def test_a_text_waits_once_for_eight_tokens_and_a_few_times_in_all(
    gpu: Gpu, network: FourM, tiny: Path, passes: int
) -> None:
    text = TargetSpec("caption", 20, "autoregressive", guidance=2.0, passes=passes)
    chain = make_chain([TargetSpec("tok_clip@64", 64, "roar", 2), text], [])
    found = [(p, waits) for p, waits in steps_of(network, tiny, chain, gpu) if p.step.target == "caption"]
    tokens = [sum(waits.values()) for progress, waits in found if progress.fixed]
    assert len(tokens) > 9
    assert tokens[1:16] == [int(number % 8 == 0) for number in range(1, len(tokens[:16]))]
    assert sum(sum(waits.values()) for _, waits in found) - len(tokens) <= 20


def test_the_fast_texts_on_a_gpu_are_the_plain_ones(gpu: Gpu, network: FourM, tiny: Path) -> None:
    text = TargetSpec("caption", 6, "autoregressive", guidance=2.0, passes=3)
    chain = make_chain([TargetSpec("tok_clip@64", 64, "roar", 2), text], [])
    graphs, before = Graphs(), Graph.replays
    fast, plain, split, captured, again = (
        steps_of(network, tiny, chain, gpu, **how)[-1][0].batch.slots["caption"].values.cpu()
        for how in ({}, {"plain": True}, {"max_rows": 3}, {"graphs": graphs}, {"graphs": graphs})
    )
    assert all(torch.equal(one, plain) for one in (fast, split, captured, again))
    assert Graph.replays - before > 9  # tokens of texts, most of them of the second run


# Fixed shapes and graphs


@pytest.mark.parametrize("scheme", ["roar", "maskgit", "halton"])
def test_steps_that_are_met_again_are_captured_and_give_the_same(
    gpu: Gpu, network: FourM, tiny: Path, scheme: str
) -> None:
    specs = [
        TargetSpec(f"{name}@64", 64, scheme, 9, guidance=2.0, grid=(8, 8)) for name in ("tok_clip", "tok_rgb")
    ]
    chain = make_chain(specs, ["caption"], top_p=0.9)
    graphs, before = Graphs(), Graph.replays
    plain, captured, again = (
        {
            name: slot.values.cpu()
            for name, slot in steps_of(network, tiny, chain, gpu, graphs=one)[-1][0].batch.slots.items()
        }
        for one in (None, graphs, graphs)
    )
    assert Graph.replays - before >= 18  # all steps of the second run
    assert all(torch.equal(plain[name], one[name]) for one in (captured, again) for name in plain)


def test_graphs_are_the_same_whatever_the_weights(gpu: Gpu, network: FourM, tiny: Path) -> None:
    """A scale that rises over the steps needs no graph of its own for each of them."""
    captures, graphs = list[int](), Graphs()
    for curve in ("constant", "linear"):
        spec = TargetSpec("tok_rgb@64", 64, "roar", 9, guidance=2.0, guidance_curve=curve)
        before = Graph.captures
        for _ in range(2):
            steps_of(network, tiny, make_chain([spec], ["caption"]), gpu, graphs=graphs)
        captures.append(Graph.captures - before)
    assert captures[1] <= 1  # its first step is not guided


def test_steps_of_diffusion_are_captured(gpu: Gpu, run: Command) -> None:
    words = ("--targets", "tok_rgb", "--tokenizer", "rgb=rgb_divae", "--detokenizer-steps", 4)
    before = Graph.replays
    assert run(*PROMPTS, *words, "--dtype", "float32")[0] == 0
    assert Graph.replays - before >= 3
    assert run(*TYPED_PROMPTS, *words, "--device", "cpu", "--out", "cpu")[0] == 0
    pictures = [
        [np.asarray(Image.open(path)).astype(int) for path in sorted(Path(out).glob("rgb/*/*.png"))]
        for out in ("o", "cpu")
    ]
    assert len(pictures[0]) == 2
    assert all(abs(one - other).mean() < 3 for one, other in zip(*pictures, strict=True))


def test_work_that_asks_for_a_value_is_not_captured(gpu: Gpu) -> None:
    x, graphs, before = torch.arange(4, device="cuda"), Graphs(), Graph.captures
    for _ in range(4):
        (doubled,) = graphs.run("key", lambda x: [x * int(x.sum() / 3)], x)
        assert doubled.tolist() == [0, 2, 4, 6]
    assert Graph.captures - before == 1
    assert torch.cuda.current_stream() is None  # that of all other work, as before


def test_a_graph_reads_its_new_inputs_and_leaves_earlier_results_alone(gpu: Gpu) -> None:
    graphs, made = Graphs(), list[Tensor]()
    for number in range(5):
        made += graphs.run("key", lambda x: [(x + 1).cumsum(0)], torch.full((3,), number, device="cuda"))
    assert [one.tolist() for one in made] == [[n + 1, 2 * n + 2, 3 * n + 3] for n in range(5)]


def test_a_graph_is_captured_on_the_device_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated(monkeypatch, "cuda:1"):
        graphs, before = Graphs(), Graph.replays
        for number in range(4):
            (made,) = graphs.run("key", lambda x: [x + 1], torch.full((3,), number, device="cuda:1"))
            assert made.tolist() == [number + 1] * 3
        assert Graph.replays - before == 3


def test_memory_that_work_reads_stays_and_is_not_kept_for_ever(gpu: Gpu) -> None:
    graphs, before = Graphs(), Graph.captures
    for number in (*range(9), 0):
        for value in (number, number + 1):
            with graphs.hold(number, [torch.full((2,), value, device="cuda")]) as tensors:
                assert tensors is not None
                (held,) = tensors
                (made,) = graphs.run(number, lambda x, held=held: [x + held], torch.ones(2, device="cuda"))
            assert made.tolist() == [value + 1] * 2
    assert graphs.count == 8
    assert Graph.captures - before == 10


def test_work_is_captured_by_a_thread_that_did_it_before(gpu: Gpu) -> None:
    """A thread's handles of CUDA's libraries are made by its first call, and cannot be in a capture."""
    graphs, x, captures = Graphs(), torch.ones(2, device="cuda"), [Graph.captures]

    def call() -> None:
        assert graphs.run("key", lambda x: [x + 1], x)[0].tolist() == [2, 2]
        captures.append(Graph.captures)

    call()
    with ThreadPoolExecutor() as pool:
        pool.submit(call).result()
    call()
    assert [after - captures[0] for after in captures[1:]] == [0, 0, 1]


def test_a_graph_serves_work_in_and_outside_of_inference_mode(gpu: Gpu) -> None:
    graphs, before = Graphs(), Graph.replays
    for number, is_inference in enumerate((True, True, False, True, False)):
        with torch.inference_mode(is_inference):
            (made,) = graphs.run("key", lambda x: [x + 1], torch.full((2,), number, device="cuda"))
        assert made.tolist() == [number + 1] * 2
    assert Graph.replays - before == 4


def test_graphs_keep_no_inputs_alive(gpu: Gpu) -> None:
    graphs, found = Graphs(), list[ref[Tensor]]()
    for number in range(3):
        x = torch.full((2,), number, device="cuda")
        assert graphs.run("key", lambda x: [x + 1], x)[0].tolist() == [number + 1] * 2
        found.append(ref(x))
    del x
    gc.collect()
    assert [one() for one in found] == [None] * 3


def test_memory_that_is_given_up_while_in_use_is_read_by_no_later_graph(gpu: Gpu) -> None:
    graphs, ones = Graphs(), torch.ones(2, device="cuda")
    for value in (1, 5):
        with graphs.hold("key", [ones * value]) as tensors:
            assert tensors is not None
            (held,) = tensors
            for other in range(8):
                with graphs.hold(other, [ones]):
                    pass
            for _ in range(2):
                (made,) = graphs.run("key", lambda x, held=held: [x + held], ones)
                assert made.tolist() == [1 + value] * 2


def test_memory_that_is_released_is_also_that_of_graphs(gpu: Gpu) -> None:
    graphs, ones = Graphs(), torch.ones(2, device="cuda")
    with graphs.hold("key", [ones]) as tensors:
        assert tensors is not None
        (held,) = tensors
        for number in range(6):
            if number == 3:
                release_memory()
                assert graphs.count == 0
            (made,) = graphs.run("key", lambda x: [x + held], ones)
            held.add_(1)  # what is in use stays
            assert made.tolist() == [2 + number] * 2
    assert graphs.count == 1


def test_memory_that_is_in_use_is_given_to_nobody_else(gpu: Gpu) -> None:
    """Two streams of one loaded model take turns, and must not write each other's keys and values."""
    graphs, ones, twos = Graphs(), torch.ones(2, device="cuda"), torch.full((2,), 2, device="cuda")
    for _ in range(2):
        with graphs.hold("key", [ones]) as first, graphs.hold("key", [twos]) as second:
            assert first is not None
            assert first[0].tolist() == [1, 1]
            assert second is None
        with graphs.hold("key", [twos]) as third:
            assert third is not None
            assert third[0].tolist() == [2, 2]


@pytest.mark.parametrize("scheme", ["roar", "maskgit", "halton"])
def test_few_shapes_are_met_whatever_is_known(
    gpu: Gpu, network: FourM, tiny: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    """Captions of all lengths, any number of kept tokens and samples, many steps."""
    shapes = set[tuple[int, ...]]()
    decode = FourM.decode

    def watched(
        self: FourM, target: str, positions: Tensor, ids: None, context: Context, *rest: Any
    ) -> Tensor:
        shapes.add((*positions.shape, context.tokens.shape[1]))
        return decode(self, target, positions, ids, context, *rest)

    monkeypatch.setattr(FourM, "decode", watched)
    registry = find_model(tiny).registry
    for rows, words, kept in ((1, 3, 0), (2, 40, 7), (3, 90, 20), (4, 12, 63), (7, 25, 33), (8, 60, 50)):
        caption = full_sequence(torch.randint(20, 30, (rows, words)))
        given = partly_given(
            torch.zeros(rows, 64, dtype=torch.int64), torch.arange(64).expand(rows, -1) < kept
        )
        batch = Batch(tuple(map(str, range(rows))), {"caption": caption, "tok_clip@64": given})
        spec = TargetSpec("tok_clip@64", 64 - kept, scheme, 16, "cosine", guidance=2.0, grid=(8, 8))
        chain = make_chain([spec], ["caption"])
        batch = with_targets(batch, chain, registry).to("cuda")
        noise = Noise.for_samples(0, [(key, 0) for key in batch.keys]).to("cuda")
        for progress in Engine(network).run(batch, chain, noise):
            assert len(progress.batch.keys) == rows
    assert {rows for rows, _, _ in shapes} <= {2, 4, 8, 16}
    assert len({length for _, _, length in shapes}) <= 3
    for rows in (2, 4, 8, 16):
        assert len({asked for count, asked, _ in shapes if count == rows}) <= 4


def test_a_step_of_4m_xl_starts_few_kernels() -> None:
    """Its numbers of blocks, narrow; 1,450 before masks and embeddings were made once."""
    rows = tuple(map(RELEASED.get, ("caption", "tok_clip@224", "tok_rgb@224")))
    config = FourMConfig(
        norm_bias=False, act_layer="SiLU", dim=32, encoder_depth=24, decoder_depth=24, num_heads=4,
        qkv_bias=False, proj_bias=False, mlp_bias=False, gated_mlp=True,
        modalities_in=rows, modalities_out=rows,
    )  # fmt: skip
    specs = [TargetSpec("tok_clip@224", 196, "roar", 4, guidance=3.0)]
    specs += [TargetSpec("tok_rgb@224", 196, "maskgit", 4, guidance=3.0)]
    chain = make_chain(specs, ["caption"])
    batch = with_targets(Batch(("a", "b", "c"), {"caption": TYPED}), chain, RELEASED)
    noise, counts = Noise.for_samples(0, [(key, 0) for key in batch.keys]), list[int]()
    with pytest.MonkeyPatch.context() as patch, Kernels() as kernels:
        patch.setattr("fourm.decoding.steps.SHAPES", {})  # the shapes of a GPU
        patch.setattr("fourm.networks.attention.PACKED_BELOW", 0.0)  # and its padding
        patch.setattr("fourm.networks.layers.SiLU.forward", torch.nn.SiLU.forward)  # and its activation
        for _ in Engine(FourM(config)).run(batch, chain, noise):
            counts.append(kernels.started)
            kernels.started = 0
    assert max(counts[1:4]) <= 850
    assert max(counts[5:]) <= 850


class Kernels(TorchDispatchMode):
    """Counts the operations that start a kernel on a GPU: all but views of tensors."""

    # `flatten` joins heads, which kernels of attention lay side by side on GPUs.
    VIEWS = frozenset(
        "view _unsafe_view transpose expand expand_as unsqueeze slice select t permute split chunk detach "
        "alias as_strided squeeze unbind reshape flatten unfold split_with_sizes lift_fresh".split()
    )
    started = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.started += func._schema.name.split("::")[1] not in self.VIEWS
        return func(*args, **(kwargs or {}))


# The emulation itself


def test_the_emulation_refuses_what_a_gpu_refuses(gpu: Gpu) -> None:
    here, there = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
    assert isinstance(here, GpuTensor)
    assert here.device == torch.device("cuda", 0)
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([here, there]),
        lambda: torch.where(there > 0, here, here),
        lambda: F.linear(there, here),
        lambda: there.gather(1, here.long()),
    ):
        with pytest.raises(GpuError, match="tensors on cuda:0 and on cpu"):
            mixed()
    assert (here * torch.tensor(2.0)).tolist() == [[2.0] * 3] * 2  # a number may come from anywhere
    with pytest.raises(TypeError, match="cuda:0 device type tensor to numpy"):
        here.numpy()
    with pytest.raises(TypeError, match="to numpy"):
        np.asarray(here)
    q = torch.ones(1, 1, 2, 4, device="cuda")
    with pytest.raises(GpuError, match="attention between"):
        F.scaled_dot_product_attention(q, q.bfloat16(), q)
    for open_order in (lambda: here.cumsum(0), lambda: here.scatter_add(0, here.long(), here)):
        with pytest.raises(GpuError, match="order of its sums is open"):
            open_order()
    assert here.long().cumsum(0).tolist() == [[1] * 3, [2] * 3]


def test_the_emulation_counts_every_wait(gpu: Gpu) -> None:
    x = torch.arange(6, device="cuda").view(2, 3)
    for number, wait in enumerate(
        (
            lambda: x[0, 0].item(), lambda: x.tolist(), lambda: int(x.max()), lambda: bool(x.any()),
            lambda: x[x > 1], lambda: x.nonzero(), lambda: x.cpu(), lambda: x.to("cpu"),
            lambda: torch.tensor([1], device="cuda"), lambda: torch.ones(2).to("cuda"), lambda: float(x.sum())
        ),
        start=1,
    ):  # fmt: skip
        wait()
        assert sum(gpu.waits.values()) == number, gpu.waits
    quick = (
        (x + 1).sum(),
        x[:, 1:],
        x.to("cuda"),
        x.to(torch.float32),
        torch.ones_like(x),
        x.argsort(),
        len(x),
    )
    assert quick
    assert sum(gpu.waits.values()) == number


def test_the_emulated_mac_has_no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    with emulated(monkeypatch, "mps"), pytest.raises(TypeError, match="float64"):
        torch.ones(2, device="mps").double()


def test_the_emulation_runs_out_of_memory(gpu: Gpu) -> None:
    gpu.most_bytes = 100
    torch.ones(25, device="cuda")
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        torch.ones(26, device="cuda")
