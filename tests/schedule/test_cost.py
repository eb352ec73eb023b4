"""Memory that a run needs, as counted beforehand, beside what it took; and what the counts depend on."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.bundle import CONFIGS, words, write_model, write_tokenizer
from fourm.hub.files import find_model
from fourm.hub.header import TokenizerPart, is_int8, read_header
from fourm.networks.checkpoint import load_model, load_tokenizer
from fourm.networks.linears import Int8Linear
from fourm.schedule.cost import advise_bfloat16, estimate, tokenizer_bytes
from fourm.schedule.plan import parse_chain
from tests import headers
from tests.headers import seven

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 0.15
GREEDY = "--temps 0 --temp-schedules constant"

# The peak of a run over the interpreter with torch and fourm imported, in bytes.
MEASURE = """
import os, sys
os.environ["MKL_CBWR"] = "AUTO,STRICT"
from pathlib import Path
import torch
from fourm.hub.files import find_model
from fourm.data.layout import Key, Sample
from fourm.runs.pipeline import run
from fourm.schedule.plan import parse_chain
from fourm.inputs.request import Request

def status(key):
    return int(next(x for x in open("/proc/self/status") if x.startswith(key)).split()[1]) * 1024

folder, out, text, dtype, batch, decode = sys.argv[1:]
model, before = find_model(folder), status("VmRSS")
samples = tuple(Sample(Key("s", f"{n}"), "a lake house") for n in range(int(batch)))
request = Request(model, parse_chain(text, model), samples, Path(out), batch_size=int(batch), device="cpu",
                  dtype=dtype, decode=bool(int(decode)), detokenizer_steps=1)
for event in run(request):
    assert type(event).__name__ != "Failed", event
print(status("VmHWM") - before)
"""


@dataclass(frozen=True)
class Case:
    """A model by its width and depth, and what is decoded with it."""

    chain: str
    dim: int
    depth: int
    batch: int
    decode: bool = False


PICTURES = Case("--cond caption --targets tok_clip-tok_rgb --steps 2", 512, 6, 4)
ALL_AT_ONCE = Case("--cond caption --targets tok_rgb --schemes maskgit --steps 2", 768, 4, 2)
TEXT = Case("--cond none --targets caption --tokens 40 --cfg 2", 768, 4, 8)
TO_PIXELS = Case("--cond caption --targets tok_rgb --steps 1", 512, 6, 1, decode=True)


def write(folder: Path, case: Case) -> Path:
    """About 130 or 170 million random weights and 30,000 words; RGB by diffusion where it is decoded."""
    names = ["caption", "tok_clip@224", "tok_rgb@224"] if case.dim == 512 else ["caption", "tok_rgb@224"]
    config = {
        "domains_in": names, "domains_out": names, "image_size": 224, "patch_size": 16, "dim": case.dim,
        "encoder_depth": case.depth, "decoder_depth": case.depth, "num_heads": case.dim // 64,
        "mlp_ratio": 4, "norm_bias": False, "qkv_bias": False, "proj_bias": False, "mlp_bias": False,
        "gated_mlp": True, "act_layer": "SiLU",
    }  # fmt: skip
    write_model(folder, config)
    words().save(str(folder / "text_tokenizer.json"))
    if case.decode:
        write_tokenizer(folder / "tokenizers/rgb", CONFIGS["tok-rgb"])
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured as Linux does")
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.more)])
@pytest.mark.parametrize(
    "case",
    [PICTURES, TO_PIXELS, *(pytest.param(case, marks=pytest.mark.more) for case in (ALL_AT_ONCE, TEXT))],
    ids=lambda case: case.chain,
)
def test_a_run_takes_the_memory_that_was_estimated(tmp_path: Path, case: Case, dtype: str) -> None:
    folder = write(tmp_path / "model", case)
    model = find_model(folder)
    chain = parse_chain(case.chain, model)
    expected = estimate(chain, model, dtype, case.batch, case.decode).memory
    words = [folder, tmp_path / "out", case.chain, dtype, case.batch, int(case.decode)]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])
    assert (1 - WITHIN) * measured < expected < (1 + WITHIN) * measured


def test_weights_are_counted_as_they_are_loaded(tiny: Path) -> None:
    model = find_model(tiny)
    state = load_model(model).state_dict()
    chain = parse_chain("--cond none --targets tok_rgb", model)
    counted = estimate(chain, model, decode=False).weights
    assert counted == sum(t.numel() * t.element_size() for t in state.values())
    assert estimate(chain, model, "bfloat16", decode=False).weights * 2 == counted
    layers = [one for one in load_model(model, weights="int8").modules() if isinstance(one, Int8Linear)]
    plain = [one for name, one in load_model(model).named_modules() if is_int8(f"{name}.weight", (1, 1))]
    rounded = sum(layer.in_features * layer.out_features for layer in layers)
    saved = 3 * rounded - 4 * sum(layer.out_features for layer in layers)
    assert len(layers) == sum(isinstance(one, nn.Linear) for one in plain) > 10
    assert estimate(chain, model, decode=False, weights="int8").weights == counted - saved
    for key, path in model.tokenizers.items():
        for width, dtype in ((4, torch.float32), (2, torch.bfloat16)):
            state = load_tokenizer(path, dtype=dtype, part=TokenizerPart.DECODER).state_dict()
            assert tokenizer_bytes(model, key, width) == sum(
                t.numel() * t.element_size() for t in state.values()
            )


def test_embeddings_that_nothing_reads_are_not_counted(tiny: Path) -> None:
    model = find_model(tiny)
    held = sum(info.num_elements * 4 for info in read_header(model.weights)[1].values())
    unused = [name for name in read_header(model.weights)[1] if ".tok_" in name and "token_emb" in name]
    unused = [name for name in unused if name.startswith("decoder_embeddings.")]
    assert len(unused) == 3
    counted = estimate(parse_chain("--cond none --targets tok_rgb", model), model, decode=False).weights
    assert counted == held - 4 * len(unused)  # one number each in this model


def test_only_the_tokenizers_of_decoded_targets_are_counted(tiny: Path) -> None:
    model = find_model(tiny)
    chain = parse_chain("--cond none --targets tok_rgb", model)
    with_values, without = estimate(chain, model), estimate(chain, model, decode=False)
    assert with_values.weights - without.weights == tokenizer_bytes(model, "rgb")


def test_more_samples_and_filters_take_more_and_fewer_bytes_less(tmp_path: Path) -> None:
    model = find_model(seven(tmp_path))

    def memory(options: str = "", dtype: str = "float32", batch: int = 1) -> int:
        chain = parse_chain(f"--cond caption --targets tok_rgb --schemes maskgit --steps 1 {options}", model)
        return estimate(chain, model, dtype, batch).memory

    assert memory(batch=2) > memory()
    assert memory(GREEDY) < memory("--top-p 1") < memory("--top-p 0.5") < memory("--top-p 0.5 --top-k 5")
    assert memory(f"{GREEDY} --cfg 1") < memory(f"{GREEDY} --cfg 2")
    assert memory("--temps 0", "bfloat16") != memory(GREEDY)


def test_tokenizers_that_encode_are_counted_by_the_half_that_is_loaded(tiny: Path) -> None:
    model = find_model(tiny)
    for key, path in model.tokenizers.items():
        for part in (TokenizerPart.ENCODER, TokenizerPart.WHOLE):
            state = load_tokenizer(path, part=part).state_dict()
            held = sum(t.numel() * t.element_size() for t in state.values())
            assert tokenizer_bytes(model, key, 4, part) == held

    def weights(options: str, decode: bool = True) -> int:
        return estimate(parse_chain(options, model), model, decode=decode).weights

    encoder = tokenizer_bytes(model, "depth", 4, TokenizerPart.ENCODER)
    tokens, maps = (weights(f"--cond {name} --targets tok_rgb") for name in ("tok_depth", "depth"))
    assert maps - tokens == encoder
    halves = (TokenizerPart.DECODER, TokenizerPart.WHOLE)
    decoder, both = (tokenizer_bytes(model, "depth", 4, part) for part in halves)
    transformer = weights("--cond none --targets tok_depth", decode=False)
    assert weights("--cond rgb --targets tok_depth") - transformer == decoder
    assert both > max(encoder, decoder)


@pytest.mark.parametrize(
    ("flags", "num_elements", "is_advised"),
    [
        ("fpu avx512f avx512_bf16", 50_000_000, True),
        ("fpu amx_tile amx_bf16", 50_000_000, True),
        ("fpu avx512f avx512_vnni", 50_000_000, False),
        ("fpu avx512f avx512_bf16", 49_999_999, False),
        (None, 50_000_000, False),
    ],
)
def test_bfloat16_is_advised_for_large_models_on_cpus_that_multiply_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str | None, num_elements: int, is_advised: bool
) -> None:
    monkeypatch.setattr("fourm.schedule.cost.CPU_INFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n")
    model = find_model(headers.write_model(tmp_path / "m", headers.SEVEN, headers.SEVEN, num_elements))
    pictures = parse_chain("--targets tok_clip-tok_rgb", model)
    assert bool(advise_bfloat16(model, pictures)) == is_advised
    assert not advise_bfloat16(model, parse_chain("--cond tok_rgb --targets caption", model))
    assert not advise_bfloat16(find_model("demo"), parse_chain("--targets tok_rgb", find_model("demo")))
