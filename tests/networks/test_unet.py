"""The UNet decoder: sizes, recorded intermediate results, patches, latents, half precision."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from fourm.errors import CheckpointError
from fourm.networks.tokenizers.config import DiVAEConfig
from fourm.networks.tokenizers.diffusion import DiVAE
from fourm.networks.tokenizers.unet import UNETS, GroupNorm, PatchedUNet, UNetShape

SMALL = UNetShape(
    patch_size=2, model_channels=16, num_res_blocks=1, attention_resolutions=(2,), channel_mult=(2, 4)
)
SIZE = (8, 16)


def small(shape: UNetShape = SMALL, channels: int = 3, latent_dim: int = 6) -> PatchedUNet:
    network = PatchedUNet(shape, channels, latent_dim).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        scale = 1.0 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        parameter.normal_(0, scale, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.add_(1)
    return network


def inputs(batch: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and latents."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, *SIZE, generator=generator, dtype=dtype)
    quant = torch.randn(batch, 6, 2, 4, generator=generator, dtype=dtype)
    return x, torch.tensor([0, 417, 999][:batch]), quant


@pytest.mark.parametrize(("channels", "count"), [(3, 196_350_256), (1, 196_202_768)])
def test_the_named_type_has_the_published_size(channels: int, count: int) -> None:
    with torch.device("meta"):
        network = PatchedUNet(UNETS["unet_patched"], channels, 32)
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert network.multiple == 32


def test_every_recorded_intermediate_result_is_reproduced(golden: Path) -> None:
    folder = golden / "divae" / "unet_concat"
    record = json.loads((folder / "config.json").read_text())["decoder"]
    structure = {k: tuple(v) if isinstance(v, list) else v for k, v in record["structural"].items()}
    passed = record["passed_by_divae"]
    network = PatchedUNet(UNetShape(**structure), passed["in_channels"], passed["cond_channels"])
    weights = load_file(folder / "model.safetensors")
    prefix = "decoder."
    network.load_state_dict(
        {k.removeprefix(prefix): v.float() for k, v in weights.items() if k.startswith(prefix)}
    )
    cases, taken = load_file(folder / "decoder_cases.safetensors"), dict[str, Tensor]()
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: taken.update({name: out}))
    x = cases["scalar_t.sample"]
    with torch.no_grad():
        condition = network.condition(cases["scalar_t.condition"], (x.shape[-2], x.shape[-1]))
        taken["final_output"] = network(x, network.embed_time(cases["scalar_t.timestep"]), condition)
    # The first convolution is split between the two methods, and what leaves it is its module's no more.
    taps = [key for key in cases if key.startswith("tap.") and key != "tap.input_blocks.0"]
    for key in taps:
        wanted, got = cases[key], taken[key.removeprefix("tap.")][0]
        got = got.reshape(wanted.shape)
        assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.std()), key
    assert len(taps) == 14


def test_the_first_convolution_sees_pixels_then_latents() -> None:
    network, (x, t, quant) = small(), inputs()
    first = network.input_blocks[0][0]
    seen = dict[str, Tensor]()
    network.input_blocks[1].register_forward_pre_hook(lambda _, args: seen.update(h=args[0]))
    network(x, network.embed_time(t), network.condition(quant, SIZE))
    joined = torch.cat([F.pixel_unshuffle(x, 2), F.interpolate(quant, size=(4, 8), mode="nearest")], dim=1)
    torch.testing.assert_close(seen["h"], F.conv2d(joined, first.weight, first.bias, padding=1))


def test_latents_of_any_grid_are_repeated_to_the_patches() -> None:
    network = small()
    quant = torch.randn(1, 6, 3, 5, generator=torch.Generator().manual_seed(2))
    rows, columns = [i * 3 // 4 for i in range(4)], [i * 5 // 8 for i in range(8)]
    by_hand = quant[:, :, rows][:, :, :, columns]
    assert torch.equal(network.condition(quant, SIZE)[0], network.condition(by_hand, SIZE)[0])


def test_a_batch_is_its_rows_and_one_timestep_stands_for_all() -> None:
    network, (x, t, quant) = small(), inputs()
    together = network(x, network.embed_time(t), network.condition(quant, SIZE))
    for row in range(3):
        one = slice(row, row + 1)
        alone = network(x[one], network.embed_time(t[one]), network.condition(quant[one], SIZE))
        assert float((alone - together[one]).abs().max()) <= 1e-5 * float(together.std())
    condition = network.condition(quant, SIZE)
    shared = network(x, network.embed_time(torch.tensor(417)), condition)
    assert (
        float((shared - network(x, network.embed_time(torch.full((3,), 417)), condition)).abs().max()) <= 1e-5
    )
    assert float((shared - network(x, network.embed_time(torch.tensor(3)), condition)).abs().max()) > 1e-2


def test_every_parameter_has_a_share_in_the_output() -> None:
    network, (x, t, quant) = small().requires_grad_(True), inputs()
    network(x, network.embed_time(t), network.condition(quant, SIZE)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.any())] == []


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision_stays_close(dtype: torch.dtype, limit: float) -> None:
    x, t, quant = inputs()
    network = small()
    wanted = network(x, network.embed_time(t), network.condition(quant, SIZE))
    network = network.to(dtype)
    got = network(x, network.embed_time(t), network.condition(quant, SIZE))
    assert got.dtype == torch.float32
    assert bool(got.isfinite().all())
    assert float((got - wanted).square().mean().sqrt() / wanted.std()) < limit


def test_groups_are_normalised_in_float32() -> None:
    x = 1000 + torch.arange(32 * 64.0).view(1, 32, 8, 8).remainder(7)
    half = GroupNorm(32).to(torch.bfloat16)(x.to(torch.bfloat16))
    wanted = F.group_norm(x.to(torch.bfloat16).float(), 32)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, wanted.to(torch.bfloat16))


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_layout_of_memory_changes_no_more_than_rounding(channels_last: bool) -> None:
    x, t, quant = inputs()
    network = small()
    wanted = network(x, network.embed_time(t), network.condition(quant, SIZE))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    network, x = network.to(memory_format=layout), x.contiguous(memory_format=layout)
    got = network(x, network.embed_time(t), network.condition(quant, SIZE))
    assert float((got - wanted).abs().max()) <= 1e-5 * float(wanted.std())


def test_levels_without_blocks_and_without_attention_are_networks_too() -> None:
    shape = UNetShape(patch_size=2, model_channels=16, num_res_blocks=0, attention_resolutions=(),
                      channel_mult=(2, 2, 2))  # fmt: skip
    network = small(shape)
    assert network.multiple == 8
    x, t, quant = inputs()
    assert network(x, network.embed_time(t), network.condition(quant, SIZE)).shape == x.shape


@pytest.mark.parametrize("changes", [{"model_channels": 48}, {"channel_mult": []}, {"patch_size": 0}])
def test_sizes_that_make_no_network_are_refused(changes: dict[str, int]) -> None:
    config = DiVAEConfig(dec_type="unet_patched", dec_structure={"channel_mult": [1], **changes})
    with pytest.raises(CheckpointError, match="dec_structure"), torch.device("meta"):
        DiVAE(config)
