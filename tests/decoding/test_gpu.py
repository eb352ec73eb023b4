"""What a GPU makes of the embedded model, against the CPU: tokens, values, every dtype, every batch size."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fourm.decoding.sampling import Noise
from fourm.hub.files import find_model
from fourm.networks.checkpoint import load_tokenizer
from fourm.networks.precision import arithmetic
from fourm.networks.tokenizers.diffusion import DiVAE

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
