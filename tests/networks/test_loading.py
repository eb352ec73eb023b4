"""Weights on their way from a file to a network: whole, lean, of any dtype; and what is refused by name."""

import gzip
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fourm.errors import CheckpointError, FourMError, MissingError
from fourm.hub.files import find_model
from fourm.hub.header import TokenizerPart, read_header
from fourm.networks.checkpoint import load_model, load_tokenizer
from fourm.networks.model import FourMConfig
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.vq import VQTokenizer
from fourm.schedule.cost import Sizes
from tests.tiny import TOKENIZERS, build_tiny, save, write_config

Run = Callable[..., tuple[int, str, str]]
Spoil = Callable[[dict[str, torch.Tensor], str], None]
NAME = "encoder.1.mlp.fc1.weight"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A tiny model folder that may be spoilt."""
    return build_tiny(tmp_path / "model")


def change(path: Path, name: str, value: float | None = None, dtype: torch.dtype | None = None) -> None:
    state = load_file(path)
    if value is not None:
        state[name].view(-1)[3] = value
    if dtype is not None:
        state = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    save_file(state, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(own: Path, value: float) -> None:
    change(own / "model.safetensors", NAME, value)
    with pytest.raises(CheckpointError, match=f"not all numbers are finite in tensor '{NAME}'"):
        load_model(find_model(own))
    path = own / "tokenizers/rgb/model.safetensors"
    change(path, "quant_proj.weight", value)
    with pytest.raises(CheckpointError, match=r"'quant_proj\.weight'"):
        load_tokenizer(path.parent)
    load_tokenizer(path.parent, part=TokenizerPart.DECODER)  # what is not used may be anything


@pytest.mark.parametrize("shape", [None, (64,)])
def test_a_tokenizer_whose_codebook_is_none_is_a_sentence(
    own: Path, run: Run, shape: tuple[int, ...] | None
) -> None:
    path, name = own / "tokenizers/rgb/model.safetensors", "quantize._codebook.embed"
    state = {n: t for n, t in load_file(path).items() if n != name}
    save_file(state if shape is None else state | {name: torch.zeros(shape)}, path)
    code, out, err = run(
        "generate", "red", "--model", own, "--targets", "tok_rgb", "--out", "results", "--quiet"
    )
    assert (code, out, err.count("\n"), f"'{name}'" in err) == (2, "", 1, True), err


def test_a_config_that_describes_no_tokenizer_is_told_with_its_place(own: Path) -> None:
    folder = own / "tokenizers/depth"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"undo_std": True}))
    with pytest.raises(CheckpointError, match=f"^{folder}: undo_std: only for"):
        load_tokenizer(folder)


@pytest.mark.parametrize(("count", "rest"), [(3, ""), (5, " (and 2 more)")])
def test_three_problems_are_named_and_the_rest_is_counted(own: Path, count: int, rest: str) -> None:
    path = own / "model.safetensors"
    state = load_file(path)
    spoilt = sorted(name for name in state if name.endswith("mlp.fc1.weight") or "attn" in name)[:count]
    save_file({n: t * float("nan") if n in spoilt else t for n, t in state.items()}, path)
    with pytest.raises(CheckpointError, match=r"tensor '[^']+', '[^']+', '[^']+'" + re.escape(rest) + "$"):
        load_model(find_model(own))
    save_file({n: t for n, t in state.items() if n not in spoilt}, path)
    missing = "; tensor ".join(["'[^']+' is missing"] * 3)
    with pytest.raises(CheckpointError, match=f"{path}: tensor {missing}" + re.escape(rest) + "$"):
        load_model(find_model(own))


def test_large_numbers_are_numbers(own: Path) -> None:
    change(own / "model.safetensors", NAME, 3e38)
    assert float(load_model(find_model(own)).state_dict()[NAME].max()) == pytest.approx(3e38)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_any_float_on_disk_becomes_what_is_asked_for(
    own: Path, stored: torch.dtype, kept: torch.dtype
) -> None:
    change(own / "model.safetensors", NAME, dtype=stored)
    wanted = load_file(own / "model.safetensors")[NAME].to(kept)
    model = load_model(find_model(own), dtype=kept)
    assert {p.dtype for p in model.parameters()} == {kept}
    assert torch.equal(model.state_dict()[NAME], wanted)
    assert not any(p.is_meta for p in (*model.parameters(), *model.buffers()))


def test_a_tokenizer_in_half_precision_searches_in_full(own: Path) -> None:
    tokenizer = load_tokenizer(own / "tokenizers/rgb", dtype=torch.bfloat16)
    state = tokenizer.state_dict()
    assert state["decoder.out_proj.weight"].dtype == state["encoder.proj.weight"].dtype == torch.bfloat16
    assert state["quant_proj.weight"].dtype == state["quantize._codebook.embed"].dtype == torch.float32
    full = load_tokenizer(own / "tokenizers/rgb").state_dict()
    assert all(torch.equal(full[name].to(tensor.dtype), tensor) for name, tensor in state.items())


def test_a_post_mlp_is_precise_where_it_leads_to_the_search(tmp_path: Path) -> None:
    config = {**TOKENIZERS["rgb"], "post_mlp": True}
    save(VQTokenizer(read_config(config)), tmp_path, torch.Generator().manual_seed(0), ())
    write_config(tmp_path, config)
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    plain = load_tokenizer(tmp_path)
    half = load_tokenizer(tmp_path, dtype=torch.bfloat16)
    assert isinstance(half, VQTokenizer)
    kinds = {name: tensor.dtype for name, tensor in half.state_dict().items() if "_mlp." in name}
    of_encoder = {kinds[name] for name in kinds if name.startswith("encoder.")}
    of_decoder = {kinds[name] for name in kinds if name.startswith("decoder.")}
    assert (of_encoder, of_decoder) == ({torch.float32}, {torch.bfloat16})
    assert half.encode(picture).dtype == torch.float32
    assert half.decode_tokens(plain.tokenize(picture)).dtype == torch.float32


def spoil_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


def spoil_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}q\x00.")


def spoil_header_of_two_gigabytes(path: Path) -> None:
    with path.open("r+b") as file:
        file.write((2 << 30).to_bytes(8, "little"))
        file.truncate(3 << 30)  # a hole, which takes no room


def table_of(path: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    raw = path.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), raw[end:]


def write_table(path: Path, table: object, data: bytes) -> None:
    head = json.dumps(table).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)


def spoil_overlap(path: Path) -> None:
    table, data = table_of(path)
    first, second, *_ = (name for name, info in table.items() if info.get("shape") == [32])
    table[second]["data_offsets"] = table[first]["data_offsets"]
    write_table(path, table, data)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_zip, "pickled PyTorch file"),
        (spoil_gzip, "gzip archive"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00X\x05\x00\x00\x00" * 50), "pickled PyTorch file"),
        (lambda path: path.write_text("<!DOCTYPE html><html>401</html>" * 9), "web page"),
        (
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
            "Git LFS",
        ),
        (lambda path: path.write_text('{"error": "Repository not found"}'), "not a safetensors file"),
        (lambda path: path.write_bytes(b""), "truncated, or not a safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "damaged"),
        (spoil_header_of_two_gigabytes, "claims a header of 2,147,483,648 bytes"),
        (spoil_overlap, "begins at byte"),
    ],
)
def test_files_that_are_no_checkpoints_are_told_apart(
    own: Path, run: Callable[..., tuple[int, str, str]], spoil: Callable[[Path], object], message: str
) -> None:
    spoil(own / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_model(find_model(own))
    code, out, err = run("generate", "a red circle", "--model", own, "--out", "results")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{domains", "not a readable JSON file"),
        ("[1, 2]", "an object of settings was expected"),
        ("", "not a readable JSON file"),
        ("[" * 100_000, "not a readable JSON file"),
        ('{"domains_in": 3}', "'domains_in'"),
    ],
)
def test_a_config_that_is_none_is_told(
    own: Path, run: Callable[..., tuple[int, str, str]], text: str, message: str
) -> None:
    (own / "config.json").write_text(text)
    code, _, err = run("generate", "a red circle", "--model", own, "--out", "results")
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("results").exists()


def reshape(state: dict[str, torch.Tensor], name: str) -> None:
    state[name] = torch.zeros(3, 5)


def add(state: dict[str, torch.Tensor], name: str) -> None:
    state[name + "_more"] = torch.zeros(3)


def drop(state: dict[str, torch.Tensor], name: str) -> None:
    del state[name]


def to_integers(state: dict[str, torch.Tensor], name: str) -> None:
    state[name] = state[name].to(torch.int8)


def to_eight_bits(state: dict[str, torch.Tensor], name: str) -> None:
    state[name] = state[name].to(torch.float8_e4m3fn)


def to_other_eight_bits(state: dict[str, torch.Tensor], name: str) -> None:
    state |= {n: t.to(torch.float8_e5m2) for n, t in state.items() if t.is_floating_point()}


SPOILT = {
    reshape: "is (3, 5)", add: "has no place in the", drop: "is missing", to_integers: "holds whole numbers",
    to_eight_bits: "is stored as F8_E4M3; F64, F32, F16 and BF16 are read",
    to_other_eight_bits: "is stored as F8_E5M2; F64, F32, F16 and BF16 are read",
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize(
    ("file", "name"),
    [("model.safetensors", NAME), ("tokenizers/rgb/model.safetensors", "decoder.out_proj.weight")],
)
def test_tensors_that_do_not_fit_are_named_before_anything_is_loaded(
    own: Path, run: Run, monkeypatch: pytest.MonkeyPatch, file: str, name: str, spoil: Spoil
) -> None:
    state = load_file(own / file)
    spoil(state, name)
    save_file(state, own / file)
    monkeypatch.setattr("fourm.runs.pipeline.load_parts", lambda *_: pytest.fail("weights were loaded"))
    code, out, err = run("generate", "red", "--model", own, "--out", "results", "--targets", "tok_rgb", "-q")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{own / file}: tensor '" in err
    assert SPOILT[spoil] in err
    assert not Path("results").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizers/rgb/model.safetensors"])
def test_weights_of_eight_bits_are_named_by_all_who_read_headers(own: Path, run: Run, file: str) -> None:
    state = load_file(own / file)
    to_other_eight_bits(state, "")
    save_file(state, own / file)
    for words in (
        ("schedule", "validate", "--model", own, "--targets", "tok_rgb"),
        ("models", "show", (own / file).parent),
        ("tokenize", "in", "--model", own, "--out", "o", "--modalities", "rgb"),
    ):
        Path("in/rgb/a").mkdir(parents=True, exist_ok=True)
        Path("in/rgb/a/0.png").touch()
        if words[0] == "tokenize" and file == "model.safetensors":
            continue
        code, out, err = run(*words)
        assert (code, out) == (2, "")
        assert "is stored as F8_E5M2; F64, F32, F16 and BF16 are read" in err


def test_a_config_may_begin_with_a_byte_order_mark(own: Path, run: Run) -> None:
    for path in (own / "config.json", own / "tokenizers/rgb/config.json"):
        path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    words = ("generate", "red", "--model", own, "--targets", "tok_rgb", "--steps", "1", "--out", "o")
    assert run(*words)[0] == 0


@pytest.mark.parametrize("folder", [".", "tokenizers/rgb"])
def test_a_folder_without_a_config_is_told(own: Path, run: Run, folder: str) -> None:
    (own / folder / "config.json").unlink()
    code, out, err = run("generate", "red", "--model", own, "--targets", "tok_rgb", "--out", "results", "-q")
    assert (code, out) == (2, "")
    where = own if folder == "." else own / folder
    said = "no config.json in this folder, and the header of model.safetensors holds no configuration"
    assert err == f"fourm: {where}: {said}\n"
    assert not Path("results").exists()


@pytest.mark.parametrize(("count", "said"), [(20, "only 20 codes"), (65, "65 codes")])
def test_a_tokenizer_with_fewer_or_more_codes_than_the_model_has_tokens_is_refused_before_loading(
    own: Path, run: Run, monkeypatch: pytest.MonkeyPatch, count: int, said: str
) -> None:
    folder = own / "tokenizers/rgb"
    config = json.loads((folder / "config.json").read_text()) | {"codebook_size": count}
    state = load_file(folder / "model.safetensors")
    codes = state["quantize._codebook.embed"]
    state["quantize._codebook.embed"] = torch.cat([codes, codes])[:count].clone()
    state = {n: t for n, t in state.items() if "cluster_size" not in n}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("fourm.runs.pipeline.load_parts", lambda *_: pytest.fail("weights were loaded"))
    code, _, err = run("generate", "a red circle", "--model", own, "--out", "results", "--targets", "tok_rgb")
    assert code == 2
    assert f"64 tokens, but its tokenizer has {said}" in err
    assert not Path("results").exists()


def test_a_length_that_looks_like_another_format_is_a_length(tmp_path: Path) -> None:
    for size in (0x0280, 0x4B50, 0x8B1F):
        table = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
        path = tmp_path / f"{size}.safetensors"
        path.write_bytes(size.to_bytes(8, "little") + table.ljust(size) + bytes(4))
        assert list(read_header(path)[1]) == ["a"]


def test_a_file_that_vanishes_or_cannot_be_read_is_a_sentence(own: Path) -> None:
    files = find_model(own)
    (own / "model.safetensors").unlink()
    with pytest.raises(MissingError, match="no such file"):
        load_model(files)
    (own / "model.safetensors").mkdir()
    with pytest.raises(FourMError, match="cannot be read"):
        load_model(files)


MEASURE = """
import resource, sys
import torch
from fourm.networks.checkpoint import load_tokenizer
from pathlib import Path
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
with torch.device("meta"):  # which loads parts of torch that have nothing to do with weights
    torch.nn.init.trunc_normal_(torch.nn.Linear(64, 64)(torch.ones(1, 64)))
before = peak()
tokenizer = load_tokenizer(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
kept = sum(p.numel() * p.element_size() for p in tokenizer.parameters())
print((peak() - before) / kept)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured as Linux does")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_network_is_in_memory_once(tmp_path: Path, dtype: str) -> None:
    """300 MB of random weights, float32 on disk, as a fraction of what is kept."""
    from fourm.networks.tokenizers import build_tokenizer

    config = {"image_size": 224, "enc_type": "vit_b_enc", "dec_type": "BottleneckMLP/B_1-Wi_64"}
    with torch.device("meta"):
        shapes = build_tokenizer(read_config(config)).state_dict()
    save_file({n: torch.ones(t.shape) for n, t in shapes.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), dtype], capture_output=True, text=True, check=True
    )
    # 32 MB of the file are mapped at a time; of a whole model that is nothing.
    assert float(done.stdout) < (1.15 if dtype == "float32" else 1.15 + 32 / 190)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("mlp_ratio", float("nan"), "mlp_ratio is nan"), ("mlp_ratio", 10**400, r"mlp_ratio is 10+\.\.\."),
     ("dim", 10**400, r"dim is 10+\.\.\."),
     ("qkv_bias", "a" * 100_000, r"qkv_bias is 'a+\.\.\., expected true or false"),
     ("act_layer", "a" * 100_000, r"act_layer is 'a+\.\.\., expected one of SiLU, GELU, ReLU$"),
     ("encoder_depth", 1000, "is 1000")],
)  # fmt: skip
def test_numbers_and_texts_of_any_size_in_a_configuration_are_refused_in_short(
    tiny: Path, key: str, value: object, said: str
) -> None:
    """Also by what counts memory, which is asked before."""
    files = find_model(tiny)
    config = {**files.config, key: value}
    assert Sizes.of(replace(files, config=config), 4).hidden > 0
    with pytest.raises(CheckpointError, match=said) as caught:
        FourMConfig.from_dict(config, files.registry)
    assert len(str(caught.value)) < 200
