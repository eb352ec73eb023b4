"""The transformer against the recorded reference: every state, guided pass, forward pass and manifest."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fourm.decoding.features import encode_features
from fourm.decoding.sampling import guide
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED, Kind
from fourm.networks.attention import Mask
from fourm.networks.checkpoint import load_model, unused_names
from fourm.networks.linears import pack
from fourm.networks.model import Context, FourM, FourMConfig
from fourm.networks.state import Batch, Slot

FIXTURES = ("swiglu_nobias", "gelu_bias", "swiglu_qknorm", "superres", "registers_geglu")
# Relative to the largest expected value; the recorded float32 numbers are 1e-6 from a float64 run.
RELATIVE = 1e-5

Arrays = dict[str, np.ndarray]


def cases(golden: Path, fixture: str, *kinds: str) -> list[dict]:
    found = json.loads((golden / "fm" / fixture / "cases.json").read_text())
    chosen = [case for case in found if case["kind"] in kinds]
    assert chosen, f"{fixture} records nothing of {kinds}"
    return chosen


@pytest.fixture(scope="module", params=["plain", "packed"])
def models(unpacked: Path, request: pytest.FixtureRequest) -> dict[str, FourM]:
    """Each also with all of its linear layers packed, though they are small."""

    def path(name: str) -> Path:
        in_header = not (unpacked / name / "config.json").exists()
        return unpacked / name / "model.safetensors" if in_header else unpacked / name

    found = {name: load_model(find_model(path(name))) for name in FIXTURES}
    for model in found.values() if request.param == "packed" else ():
        pack(model, min_features=1)
    return found


def read_batch(golden: Path, fixture: str, case: dict, arrays: Arrays, prefix: str = "in.") -> Batch:
    """The recorded state; recorded masks mean True = hidden, ours the opposite."""
    names = [n for n in RELEASED.rows if f"{prefix}{n}.input_mask" in arrays]
    order = case.get("input_order") or names
    slots = {}
    for name in order:
        if name not in names and not (name.startswith("rgb@") and prefix == "in."):
            continue
        kind = RELEASED.get(name).kind
        known = ~torch.from_numpy(arrays[f"{prefix}{name}.input_mask"])
        hidden = arrays.get(f"{prefix}{name}.target_mask", np.ones_like(known.numpy()))
        wanted = ~torch.from_numpy(hidden)
        if kind is Kind.PIXELS:
            file = golden / "fm" / fixture / case["rgb" if name == "rgb@224" else "rgb448"]
            image = torch.from_numpy(np.load(file)["image_u8"]).float() / 4 - 2
            values = image.expand(known.shape[0], -1, -1, -1)
        else:
            values = torch.from_numpy(arrays[f"{prefix}{name}.tensor"])
            values = values.float() if kind is Kind.EMBEDDING else values.long()
        slots[name] = Slot(kind, values, known, wanted)
    return Batch(tuple(str(i) for i in range(len(known))), slots)


def assert_close(got: Tensor, want: np.ndarray, scale: float | None = None) -> None:
    reference = torch.from_numpy(want)
    allowed = RELATIVE * (scale or float(reference.abs().max()))
    assert got.shape == reference.shape
    assert float((got - reference).abs().max()) <= allowed


def assert_visible_close(context: Tensor, visible: Tensor, want: np.ndarray) -> None:
    """Compare at visible places; what padding holds is of no meaning."""
    assert_close(context[visible], want[visible.numpy()])


def check_pass(model: FourM, target: str, batch: Batch, arrays: Arrays, prefix: str) -> Tensor:
    """Encoder mask, context and logits of one recorded pass; returns the logits."""
    context = model.encode(batch)
    assert torch.equal(~context.visible, torch.from_numpy(arrays[f"{prefix}enc.mask"]))
    if f"{prefix}ctx" in arrays:
        assert_visible_close(context.tokens, context.visible, arrays[f"{prefix}ctx"])
    positions = torch.from_numpy(arrays[f"{prefix}dec.pos"]).long()
    logits = model.decode(target, positions, None, context)
    check_digest(logits, arrays, f"{prefix}dec.")
    return logits


def check_digest(logits: Tensor, arrays: Arrays, prefix: str) -> None:
    columns = torch.from_numpy(arrays["logit_cols"])
    scale = float(np.abs(arrays[f"{prefix}top_vals"]).max())
    assert_close(logits[..., columns], arrays[f"{prefix}logits_at_cols"], scale)
    assert_close(logits.logsumexp(-1), arrays[f"{prefix}logsumexp"])
    top = arrays[f"{prefix}top_vals"]
    assert_close(logits.topk(top.shape[-1]).values, top)


@pytest.mark.parametrize("fixture", [name for name in FIXTURES if name != "registers_geglu"])
def test_logits_of_every_recorded_state(golden: Path, models: dict[str, FourM], fixture: str) -> None:
    for case in cases(golden, fixture, "state"):
        arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
        check_pass(models[fixture], case["target"], read_batch(golden, fixture, case, arrays), arrays, "")


@pytest.mark.parametrize("fixture", FIXTURES)
def test_guided_logits_at_every_scale(golden: Path, models: dict[str, FourM], fixture: str) -> None:
    for case in cases(golden, fixture, "guided"):
        arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
        batch = read_batch(golden, fixture, case, arrays)
        with_all = check_pass(models[fixture], case["target"], batch, arrays, "cond.")
        without = check_pass(
            models[fixture], case["target"], batch.hide(case["conditioning"]), arrays, "uncond."
        )
        for scale in case["scales"]:
            logits = guide(torch.stack([without, with_all]), torch.tensor([scale]))
            columns = torch.from_numpy(arrays["logit_cols"])
            largest = float(logits.abs().max())
            assert_close(logits[..., columns], arrays[f"guided.{scale}.logits_at_cols"], largest)
            clear = torch.from_numpy(arrays[f"guided.{scale}.top2_gap"]) > 1e-3
            best = torch.from_numpy(arrays[f"guided.{scale}.argmax"])
            assert torch.equal(logits.argmax(-1)[clear], best[clear].long())


@pytest.mark.parametrize("fixture", ["swiglu_nobias"])
def test_weighted_guidance_over_several_conditions(
    golden: Path, models: dict[str, FourM], fixture: str
) -> None:
    for case in cases(golden, fixture, "multi_guided"):
        arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
        prefixes = ["uncond", *(f"cond{i}" for i in range(len(case["weights"])))]
        orders = [case["input_order_uncond"], *case["input_order_cond"]]
        passes = []
        for prefix, order in zip(prefixes, orders, strict=True):
            batch = read_batch(golden, fixture, {"input_order": order}, arrays, f"in.{prefix}.")
            passes.append(check_pass(models[fixture], case["target"], batch, arrays, f"{prefix}."))
        check_digest(guide(torch.stack(passes), torch.tensor(case["weights"])), arrays, "guided.")


def test_a_row_without_any_token_reads_nothing_in_any_batch(golden: Path, models: dict[str, FourM]) -> None:
    case = cases(golden, "gelu_bias", "state_rows")[0]
    arrays = dict(np.load(golden / "fm" / "gelu_bias" / case["file"]))
    batch = read_batch(golden, "gelu_bias", case, arrays)
    context = models["gelu_bias"].encode(batch)
    positions = torch.from_numpy(np.concatenate([arrays["alone0.dec.pos"], arrays["alone1.dec.pos"]])).long()
    logits = models["gelu_bias"].decode(case["target"], positions, None, context)
    for row in (0, 1):
        check_digest(logits[row : row + 1], arrays, f"alone{row}.dec.")


@pytest.mark.parametrize("fixture", ["gelu_bias", "registers_geglu"])
def test_masked_modelling_forward(golden: Path, models: dict[str, FourM], fixture: str) -> None:
    for case in cases(golden, fixture, "forward"):
        arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
        model, batch = models[fixture], read_batch(golden, fixture, case, arrays)
        context = model.encode(batch, budget=case["num_encoder_tokens"])
        assert torch.equal(~context.visible, torch.from_numpy(arrays["enc.mask"]))
        y = decoder_inputs(model, case, batch, context)
        mask = Mask.of(~torch.from_numpy(arrays["dec.self_attention_mask"]), torch.float32)
        real = ~torch.from_numpy(arrays["dec.mask"])
        # Rows of padding see no key at all there and are of no meaning.
        for block in model.decoder:
            cross = block.read_context(context.tokens)
            y = block(y, cross, context.mask, mask)
        out = model.decoder_norm(y)
        assert_visible_close(out, real, arrays["dec.out"])
        for name in case["decoder_modality_order"]:
            logits = model.decoder_embeddings[name].to_logits(out)
            got = logits[..., torch.from_numpy(arrays[f"logit_cols.{name}"])]
            assert_visible_close(got, real, arrays[f"logits_at_cols.{name}"])


def decoder_inputs(model: FourM, case: dict, batch: Batch, context: Context) -> Tensor:
    """Content and address of the decoder's inputs as masked modelling lays them out."""
    parts, reals = [], []
    for name in case["decoder_modality_order"]:
        slot, head = batch.slots[name], model.decoder_embeddings[name]
        if slot.kind is Kind.GRID:
            places = torch.arange(slot.wanted.shape[1]).expand_as(slot.wanted)
            parts.append(model.mask_token + head.address(places))
            reals.append(slot.wanted)
        else:
            order = (slot.wanted.long().cumsum(1) - 1).clamp_min(0)
            address = torch.where(slot.wanted[..., None], head.address(order), head.mod_emb)
            parts.append((head.token_emb(slot.values) + address)[:, :-1])
            reals.append(slot.wanted[:, 1:] & slot.wanted[:, :-1])
    y, real = torch.cat(parts, 1), torch.cat(reals, 1)
    order = (~real).long().argsort(dim=1, stable=True)[:, : case["num_decoder_tokens"]]
    kept = y.gather(1, order[..., None].expand(-1, -1, y.shape[-1]))
    return torch.where(real.gather(1, order)[..., None], kept, torch.zeros_like(kept))


def test_manifests_of_the_released_models_match_key_by_key(golden: Path) -> None:
    files = sorted((golden / "fm" / "manifests").glob("*.json"))
    assert len(files) == 7
    for file in files:
        manifest = json.loads(file.read_text())
        with torch.device("meta"):
            model = FourM(FourMConfig.from_dict(manifest["config"], RELEASED))
        ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        listed = manifest["keys"]
        theirs = (
            {k["name"]: k["shape"] for k in listed}
            if isinstance(listed, list)
            else {name: entry["shape"] for name, entry in listed.items()}
        )
        assert unused_names(model) <= theirs.keys()
        assert ours == {n: s for n, s in theirs.items() if n not in unused_names(model)}


@pytest.mark.parametrize("fixture", FIXTURES)
def test_features_are_the_recorded_outputs_of_the_encoder(
    golden: Path, models: dict[str, FourM], fixture: str
) -> None:
    compared, registers = 0, models[fixture].config.num_register_tokens
    for case in cases(golden, fixture, "state", "guided"):
        arrays = dict(np.load(golden / "fm" / fixture / case["file"]))
        prefix = "cond." if case["kind"] == "guided" else ""
        if f"{prefix}enc.out" not in arrays:
            continue
        outputs = arrays[f"{prefix}enc.out"][:, registers:]
        seen = ~arrays[f"{prefix}enc.mask"][:, registers:]
        found = encode_features(models[fixture], read_batch(golden, fixture, case, arrays), [-1])
        for output, wanted, visible in zip(found, outputs, seen, strict=True):
            assert output.shape[1] == visible.sum()
            if visible.any():
                assert_close(output[0], wanted[visible])
                compared += 1
    assert compared
