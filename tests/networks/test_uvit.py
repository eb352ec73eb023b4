"""The UViT decoder: its sizes, the two names of one convolution, whole runs in float64."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from fourm.errors import CheckpointError
from fourm.hub.header import TokenizerPart
from fourm.networks.checkpoint import fit_tokenizer, load_tokenizer
from fourm.networks.tokenizers import build_tokenizer
from fourm.networks.tokenizers.config import read_config
from fourm.networks.tokenizers.diffusion import DiVAE
from fourm.networks.tokenizers.uvit import UVITS, UViT, UViTShape
from tests.networks.test_divae import RUNS, case_of, recorded

# Layers, heads and width of the transformer; parameters with C = 3 and D = 32 for concat and for xattn.
PUBLISHED = {
    "uvit_b_p4_f16": (12, 12, 768, 127_537_411, 156_496_387),
    "uvit_l_p4_f16": (24, 16, 1024, 392_472_579, 482_313_731),
    "uvit_h_p4_f16": (32, 16, 1280, 770_673_411, 941_394_179),
    "uvit_b_p4_f16_longskip": (13, 12, 768, 144_071_683, 175_446_083),
    "uvit_l_p4_f16_longskip": (25, 16, 1024, 433_398_787, 526_984_771),
    "uvit_b_p4_f8": (12, 12, 768, 126_357_251, 155_316_227),
    "uvit_l_p4_f8": (24, 16, 1024, 391_292_419, 481_133_571),
    "uvit_b_p4_f16_extraconv": (12, 12, 768, 161_573_635, 190_532_611),
    "uvit_l_p4_f16_extraconv": (24, 16, 1024, 426_639_875, 516_481_027),
}
SMALL = UViTShape(
    block_out_channels=(16, 32), layers_per_block=(2, 2), downsample_before_mid=True, mid_layers=3,
    mid_num_heads=2, mid_dim=16, mid_hw_posemb=4, norm_num_groups=4, mid_use_long_skip=True,
)  # fmt: skip
STRUCTURE: dict[str, object] = {
    "block_out_channels": [16, 32], "downsample_before_mid": True, "mid_layers": 1, "mid_dim": 16,
    "mid_num_heads": 2, "mid_hw_posemb": 4, "norm_num_groups": 4,
}  # fmt: skip
CONFIG: dict[str, object] = {
    "dec_type": "uvit_b_p4_f16", "dec_structure": STRUCTURE, "latent_dim": 6, "codebook_size": 8,
    "scheduler": "ddim", "has_encoder": False,
}  # fmt: skip


def small(conditioning: str, **changes: object) -> UViT:
    network = UViT(replace(SMALL, **changes), 3, 6, conditioning).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return network


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize(("index", "conditioning"), [(0, "concat"), (1, "xattn")])
def test_named_types_have_the_published_sizes(name: str, index: int, conditioning: str) -> None:
    layers, heads, dim, *parameters = PUBLISHED[name]
    shape = UVITS[name]
    assert (shape.mid_layers, shape.mid_num_heads, shape.mid_dim) == (layers, heads, dim)
    with torch.device("meta"):
        network = UViT(shape, 3, 32, conditioning)
    assert sum(p.numel() for p in network.parameters()) == parameters[index]
    assert network.multiple == (8 if "f8" in name else 16)


def test_every_named_type_is_published() -> None:
    assert UVITS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("kept", [("conv",), ("Conv2d_0",), ("conv", "Conv2d_0")])
def test_a_convolution_with_two_names_is_read_under_either(kept: tuple[str, ...], tmp_path: Path) -> None:
    config = read_config(CONFIG)
    state = build_tokenizer(config).state_dict()
    stored = {name: tensor for name, tensor in state.items() if "downsample_mid" not in name}
    for kind in ("weight", "bias"):
        for one in kept:
            tensor = state[f"decoder.downsample_mid.conv.{kind}"]
            stored[f"decoder.downsample_mid.{one}.{kind}"] = tensor.clone()
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(stored, tmp_path / "model.safetensors")
    loaded = load_tokenizer(tmp_path).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    del stored[f"decoder.downsample_mid.{kept[0]}.weight"]
    if len(kept) == 1:
        with pytest.raises(CheckpointError, match="downsample_mid"):
            fit_tokenizer(config, stored, TokenizerPart.DECODER)


@pytest.mark.parametrize("conditioning", ["concat", "xattn"])
def test_a_batch_is_its_rows(conditioning: str) -> None:
    network, g = small(conditioning), torch.Generator().manual_seed(1)
    x, quant = torch.randn(3, 3, 32, 32, generator=g), torch.randn(3, 6, 2, 2, generator=g)
    t = torch.tensor([3, 500, 999])
    whole = network(x, network.embed_time(t), network.condition(quant, (32, 32)))
    for row in range(3):
        one = slice(row, row + 1)
        alone = network(x[one], network.embed_time(t[one]), network.condition(quant[one], (32, 32)))
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("conditioning", "name"), [("concat", "mid_cond_proj"), ("xattn", "kv")])
def test_what_no_step_changes_is_computed_once(conditioning: str, name: str) -> None:
    tokenizer = build_tokenizer(read_config({**CONFIG, "conditioning": conditioning}))
    assert isinstance(tokenizer, DiVAE)
    calls = list[str]()
    for path, module in tokenizer.named_modules():
        if path.endswith(f".{name}"):
            module.register_forward_hook(lambda *_, at=path: calls.append(at))
    noise = torch.zeros(1, 3, 32, 32)
    assert len(list(tokenizer.sample(torch.zeros(1, 2, 2, dtype=torch.int64), lambda _: noise, 5))) == 5
    assert len(calls) == len(set(calls)) == 1


@pytest.mark.parametrize("conditioning", ["concat", "xattn"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_close(conditioning: str, dtype: torch.dtype, limit: float) -> None:
    network, g = small(conditioning), torch.Generator().manual_seed(1)
    x, quant = torch.randn(1, 3, 32, 32, generator=g), torch.randn(1, 6, 2, 2, generator=g)
    wanted = network(x, network.embed_time(torch.tensor(300)), network.condition(quant, (32, 32)))
    network.to(dtype)
    got = network(x, network.embed_time(torch.tensor(300)), network.condition(quant, (32, 32)))
    assert got.dtype == torch.float32
    assert float((got - wanted).std() / wanted.std()) < limit


@pytest.mark.parametrize(("folder", "name"), [run for run in RUNS if run[0].startswith("uvit")])
def test_runs_in_float64_are_the_recorded_ones_without_allowance_for_rounding(
    golden: Path, monkeypatch: pytest.MonkeyPatch, folder: str, name: str
) -> None:
    case = case_of(golden, folder, name)
    tensors = load_file(golden / "divae" / folder / case["file"])
    _, tokenizer = recorded(golden, folder, **case["scheduler"])
    noise = [tensors["initial_noise"], *tensors.get("step_noise", ())]
    side = case["image_size"]
    # Also what is in float32 in every precision; the noise schedule, built above, stays the recorded one.
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    states = list(
        tokenizer.double().sample(
            tensors["tokens"], noise.__getitem__, case["requested_steps"], (side, side)
        )
    )  # fmt: skip
    assert states[-1].dtype == torch.float64
    limit = 1e-4 * float(tensors["output"].std())
    for index, x in zip(tensors["x_index"].tolist(), tensors["x"], strict=True):
        before = noise[0] if index == 0 else states[index - 1]
        assert float((before - x).abs().max()) <= limit, index
    assert float((states[-1] - tensors["output"]).abs().max()) <= limit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mid_layers": 2}, "odd"),
        ({"layers_per_block": (1,)}, "one number per level"),
        ({"mid_layers": 9999}, "more than 1,024 layers"),
        ({"mid_num_heads": 3}, "multiple of mid_num_heads"),
        ({"mid_mlp_ratio": 0.01}, "MLPs"),
        ({"mid_dim": 18}, "multiple of 4"),
        ({"block_out_channels": (18, 32)}, "groups"),
        ({"block_out_channels": (15, 32), "norm_num_groups": 1}, "even"),
    ],
)
def test_sizes_that_cannot_be_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers_per_block": 0}, r"layers_per_block\[0\] is 0, expected a whole number, 1 to"),
        ({"block_out_channels": []}, "block_out_channels is .*, expected a list of length 1 to 16"),
    ],
)
def test_numbers_of_a_config_that_cannot_be_are_named(change: dict[str, object], message: str) -> None:
    config = read_config({**CONFIG, "dec_structure": {**STRUCTURE, **change}})
    with pytest.raises(CheckpointError, match=message), torch.device("meta"):
        build_tokenizer(config)


NUMBERS = st.one_of(st.integers(0, 40), st.booleans(), st.floats(0, 40))


@settings(max_examples=100, deadline=None)
@given(
    key=st.sampled_from([field.name for field in fields(UViTShape)]),
    value=st.one_of(NUMBERS, st.lists(NUMBERS, max_size=3), st.none(), st.text(max_size=2)),
    conditioning=st.sampled_from(["concat", "xattn"]),
)
@example(key="norm_num_groups", value=0, conditioning="concat")
@example(key="mid_hw_posemb", value=[3, 3], conditioning="xattn")
@example(key="layers_per_block", value=[1, 3], conditioning="xattn")
def test_whatever_a_config_says_is_refused_or_computes(key: str, value: object, conditioning: str) -> None:
    config = {**CONFIG, "conditioning": conditioning, "dec_structure": {**STRUCTURE, key: value}}
    with torch.device("meta"):
        try:
            network = build_tokenizer(read_config(config)).decoder
        except CheckpointError:
            return
        assert isinstance(network, UViT)
        size = (network.multiple, 2 * network.multiple)
        x = torch.zeros(2, 3, *size)
        assert (
            network(
                x, network.embed_time(torch.zeros(2)), network.condition(torch.zeros(2, 6, 1, 2), size)
            ).shape
            == x.shape
        )
