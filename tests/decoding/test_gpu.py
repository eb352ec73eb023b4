"""What a GPU makes of the embedded model, against the CPU: tokens, values, every dtype, every batch size."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fourm.decoding.engine import Engine, with_targets
from fourm.decoding.sampling import Noise
from fourm.hub.files import find_model
from fourm.networks.checkpoint import load_model, load_tokenizer
from fourm.networks.graphs import Graphs
from fourm.networks.memory import release_memory
from fourm.networks.precision import arithmetic
from fourm.networks.state import Batch
from fourm.networks.tokenizers.diffusion import DiVAE
from fourm.schedule.chain import TargetSpec, make_chain

Run = Callable[..., tuple[int, str, str]]
DEVICE = "cuda"
PROMPTS = ("a small red circle", "a large blue square", "a green triangle", "a small white square")

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """float32 in products and convolutions, whatever ran before."""
    with arithmetic("float32"):
        yield


def generate(run: Run, out: Path, *options: object) -> dict[str, list[int]]:
    """The token files of a run, by their path."""
    code, _, err = run("generate", *PROMPTS, "--out", out, "--quiet", *options)
    assert code == 0, err
    files = sorted(out.glob("tok_*/*/*.npy"))
    return {str(p.relative_to(out)): np.load(p, allow_pickle=False).flatten().tolist() for p in files}


@pytest.mark.parametrize("size", [1, 3, 4])
def test_tokens_in_float32_are_those_of_the_cpu_in_every_batch(run: Run, tmp_path: Path, size: int) -> None:
    options = ("--targets", "tok_clip-tok_rgb-tok_depth", "--no-decode", "--dtype", "float32")
    wanted = generate(run, tmp_path / "cpu", "--device", "cpu", *options)
    got = generate(run, tmp_path / "gpu", "--device", DEVICE, "--batch-size", size, *options)
    assert len(wanted) == 3 * len(PROMPTS)
    assert got == wanted


def test_a_run_can_be_repeated(run: Run, tmp_path: Path) -> None:
    one, other = (generate(run, tmp_path / name, "--device", DEVICE) for name in ("one", "other"))
    assert one == other


@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("guidance", ["1.0", "3.0"])
def test_every_dtype_makes_pictures(run: Run, tmp_path: Path, dtype: str, guidance: str) -> None:
    out = tmp_path / "out"
    tokens = generate(run, out, "--device", DEVICE, "--dtype", dtype, "--cfg", f"{guidance}-{guidance}")
    assert len(tokens) == 2 * len(PROMPTS)
    assert len(list(out.glob("rgb/*/*.png"))) == len(PROMPTS)


def test_pictures_become_captions_and_maps(run: Run, tmp_path: Path) -> None:
    generate(run, tmp_path / "data", "--device", "cpu")
    targets = "tok_depth-tok_normal-tok_semseg-tok_canny_edge-caption-det"
    words = ("generate", "--data", tmp_path / "data", "--cond", "rgb", "--targets", targets, "--quiet",
             "--dtype", "float32")  # fmt: skip
    texts = []
    for name, device in {"one": "cpu", "other": DEVICE}.items():
        code, _, err = run(*words, "--device", device, "--out", tmp_path / name)
        assert code == 0, err
        texts.append([p.read_text() for p in sorted((tmp_path / name).glob("caption/*/*.txt"))])
    assert len(texts[0]) == len(PROMPTS)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("key", ["rgb", "clip", "depth", "normal", "semseg", "edge"])
@pytest.mark.parametrize("batch", [1, 5])
def test_tokenizers_give_nearly_what_they_give_on_a_cpu(key: str, batch: int) -> None:
    path = find_model("demo").tokenizers[key]
    cpu, gpu = load_tokenizer(path), load_tokenizer(path, DEVICE)
    config, generator = cpu.config, torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.codebook_size, (batch, 8, 8), generator=generator)
    assert not isinstance(cpu, DiVAE)
    assert not isinstance(gpu, DiVAE)
    wanted, got = cpu.decode_tokens(tokens), gpu.decode_tokens(tokens.to(DEVICE)).cpu()
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    if key != "semseg":  # its tokenizer reads classes, not what it decodes
        same = gpu.tokenize(wanted.to(DEVICE)).cpu() == cpu.tokenize(wanted)
        assert same.float().mean() > 0.99


@pytest.mark.parametrize("batch", [1, 8])
def test_a_picture_by_diffusion_is_nearly_that_of_a_cpu(batch: int) -> None:
    path = find_model("demo").tokenizers["rgb_divae"]
    cpu, gpu = load_tokenizer(path), load_tokenizer(path, DEVICE)
    assert isinstance(cpu, DiVAE)
    assert isinstance(gpu, DiVAE)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, cpu.config.codebook_size, (batch, 8, 8), generator=generator)
    noise = Noise.for_samples(0, [(str(i), 0) for i in range(batch)])
    shape = cpu.output_shape((8, 8))
    *_, wanted = cpu.sample(tokens, lambda i: noise.normals(i, shape), 10)
    *_, last = gpu.sample(tokens.to(DEVICE), lambda i: noise.normals(i, shape), 10)
    got = last.cpu()
    torch.testing.assert_close(got, wanted, rtol=1e-2, atol=1e-2)


def test_a_capture_that_fails_disturbs_no_other_work() -> None:
    """It asks for a value, which torch refuses in a capture, and which makes that invalid."""
    graphs, x = Graphs(), torch.arange(1.0, 65.0, device=DEVICE).view(8, 8)
    stream = torch.cuda.current_stream()
    for _ in range(3):
        (made,) = graphs.run("waits", lambda x: [x * float(x.sum())], x)
        assert torch.equal(made.cpu(), x.cpu() * float(x.sum()))
        assert torch.cuda.current_stream() == stream
    release_memory()
    for number in range(4):
        (made,) = graphs.run("plain", lambda x: [x @ x + 1], x + number)
        torch.testing.assert_close(made, (x + number) @ (x + number) + 1)


def test_graphs_are_captured_in_every_mode_and_by_several_threads() -> None:
    """In inference mode, as steps of images are, and outside of it, as diffusions are in another thread."""
    graphs, x = Graphs(), torch.randn(8, 8, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0))

    def call(key: str, is_inference: bool) -> list[Tensor]:
        with torch.inference_mode(is_inference), torch.no_grad():
            return [graphs.run(key, lambda x: [x @ x], x * n)[0] for n in range(1, 5)]

    wanted = [(x * n) @ (x * n) for n in range(1, 5)]
    made = call("image", True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        for future in [pool.submit(call, key, False) for key in ("picture", "image", "picture")]:
            made += future.result()
    assert graphs.count == 2
    for number, one in enumerate(made):
        torch.testing.assert_close(one, wanted[number % 4])


def test_graphs_give_the_tokens_of_steps_that_are_not_captured() -> None:
    files = find_model("demo")
    network, graphs = load_model(files, DEVICE), Graphs()
    specs = [
        TargetSpec("tok_clip@64", 64, "roar", 8, guidance=2.0, grid=(8, 8)),
        TargetSpec("tok_rgb@64", 64, "maskgit", 8, guidance=2.0, grid=(8, 8)),
        TargetSpec("caption", 16, "autoregressive", guidance=2.0),
    ]
    chain, found = make_chain(specs, [], top_p=0.9), list[dict[str, Tensor]]()
    for one in (None, graphs, graphs):
        batch = with_targets(Batch(("a", "b", "c"), {}), chain, files.registry).to(DEVICE)
        noise = Noise.for_samples(0, [(key, 0) for key in batch.keys]).to(DEVICE)
        *_, last = Engine(network, graphs=one).run(batch, chain, noise)
        found.append({name: slot.values.cpu() for name, slot in last.batch.slots.items()})
    assert graphs.count > 3
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)
