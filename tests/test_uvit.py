"""The UViT decoder: sizes of every named type, the two names of one convolution, hidden latents."""

from dataclasses import replace

import pytest
import torch

from fourm.errors import CheckpointError
from fourm.tokenizers.build import fit_state, read_config
from fourm.tokenizers.uvit import UVITS, UViT
from fourm.tokenizers.uvit_transformer import UViTShape
from fourm.tokenizers.vq import Part

# Parameters with C = 3 and D = 32: (concat, xattn).
PARAMETERS = {
    "uvit_b_p4_f16": (127_537_411, 156_496_387),
    "uvit_l_p4_f16": (392_472_579, 482_313_731),
    "uvit_h_p4_f16": (770_673_411, 941_394_179),
    "uvit_b_p4_f16_longskip": (144_071_683, 175_446_083),
    "uvit_l_p4_f16_longskip": (433_398_787, 526_984_771),
    "uvit_b_p4_f8": (126_357_251, 155_316_227),
    "uvit_l_p4_f8": (391_292_419, 481_133_571),
    "uvit_b_p4_f16_extraconv": (161_573_635, 190_532_611),
    "uvit_l_p4_f16_extraconv": (426_639_875, 516_481_027),
}
SMALL = UViTShape(
    block_out_channels=(16, 32), downsample_before_mid=True, mid_layers=3, mid_num_heads=2, mid_dim=16,
    mid_hw_posemb=4, norm_num_groups=4, mid_use_long_skip=True,
)  # fmt: skip


def small(conditioning: str, **changes: object) -> UViT:
    network = UViT(replace(SMALL, **changes), 3, 6, conditioning).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.normal_(0, 0.2, generator=generator)
    return network


@pytest.mark.parametrize("name", UVITS)
@pytest.mark.parametrize(("index", "conditioning"), [(0, "concat"), (1, "xattn")])
def test_named_types_have_the_published_sizes(name: str, index: int, conditioning: str) -> None:
    with torch.device("meta"):
        network = UViT(UVITS[name], 3, 32, conditioning)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name][index]
    assert network.multiple == (8 if "f8" in name else 16)


@pytest.mark.parametrize("kept", [("conv",), ("Conv2d_0",), ("conv", "Conv2d_0")])
def test_a_convolution_with_two_names_is_read_under_either(kept: tuple[str, ...]) -> None:
    structure = {"block_out_channels": [16, 32], "downsample_before_mid": True, "mid_layers": 1,
                 "mid_dim": 16, "mid_num_heads": 2, "mid_hw_posemb": 4, "norm_num_groups": 4}  # fmt: skip
    config = read_config(
        {"dec_type": "uvit_b_p4_f16", "dec_structure": structure, "latent_dim": 6, "codebook_size": 8,
         "has_encoder": False}
    )  # fmt: skip
    from fourm.tokenizers.divae import DiVAE

    whole = DiVAE(config)  # type: ignore[arg-type]
    name = "decoder.downsample_mid.conv.weight"
    state = whole.state_dict()
    stored = {k: v for k, v in state.items() if "downsample_mid" not in k}
    for kind in ("weight", "bias"):
        for one in kept:
            stored[f"decoder.downsample_mid.{one}.{kind}"] = state[f"decoder.downsample_mid.conv.{kind}"]
    fitted = fit_state(config, stored, Part.DECODER)
    assert fitted.keys() == state.keys()
    assert torch.equal(fitted[name], state[name])
    del stored[f"decoder.downsample_mid.{kept[0]}.weight"]
    if len(kept) == 1:
        with pytest.raises(CheckpointError, match="downsample_mid"):
            fit_state(config, stored, Part.DECODER)


@pytest.mark.parametrize("conditioning", ["concat", "xattn"])
def test_a_batch_is_its_rows_and_hidden_latents_have_no_say(conditioning: str) -> None:
    network, g = small(conditioning), torch.Generator().manual_seed(1)
    x, quant = torch.randn(3, 3, 32, 32, generator=g), torch.randn(3, 6, 2, 2, generator=g)
    t = torch.tensor([3, 500, 999])
    mask = torch.tensor([[[True, False], [False, True]], [[False] * 2] * 2, [[True] * 2] * 2])
    whole = network(x, t, network.condition(quant, (32, 32), mask))
    for row in range(3):
        one = slice(row, row + 1)
        alone = network(x[one], t[one], network.condition(quant[one], (32, 32), mask[one]))
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-4, atol=1e-5)
    other = quant.masked_fill(~mask.unsqueeze(1), 0) * 5 + quant.masked_fill(mask.unsqueeze(1), 0)
    changed = network(x, t, network.condition(other, (32, 32), mask))
    torch.testing.assert_close(changed[:2], whole[:2], rtol=1e-4, atol=1e-5)
    assert float((network(x, t, network.condition(quant, (32, 32))) - whole).abs().max()) > 1e-4


def test_half_precision_stays_close() -> None:
    network, g = small("concat"), torch.Generator().manual_seed(1)
    x, quant = torch.randn(1, 3, 32, 32, generator=g), torch.randn(1, 6, 2, 2, generator=g)
    wanted = network(x, torch.tensor(300), network.condition(quant, (32, 32)))
    network.to(torch.bfloat16)
    got = network(x, torch.tensor(300), network.condition(quant, (32, 32)))
    assert got.dtype == torch.float32
    assert float((got - wanted).std() / wanted.std()) < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mid_layers": 2}, "odd"),
        ({"layers_per_block": (1,)}, "one number per level"),
        ({"layers_per_block": 0}, "needs a layer"),
        ({"mid_num_heads": 3}, "multiple of mid_num_heads"),
        ({"mid_dim": 18}, "multiple of 4"),
        ({"block_out_channels": (18, 32)}, "groups"),
    ],
)
def test_sizes_that_cannot_be_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        replace(SMALL, **change)
