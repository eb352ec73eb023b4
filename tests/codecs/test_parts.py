"""Codes inside of values through real tokenizers, and the codecs of poses and instances as a whole."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fourm.codecs.table import build_codec
from fourm.codecs.texts import decoder_of
from fourm.errors import SampleError, UsageError
from fourm.hub.header import TokenizerPart
from fourm.modalities.figures import PICTURE_SIDE, Group, Instance, Person
from fourm.modalities.registry import RELEASED
from fourm.modalities.text import Structured, WordPiece
from fourm.networks.checkpoint import load_tokenizer
from fourm.networks.tokenizers import build_tokenizer
from fourm.networks.tokenizers.config import VQConfig, read_config
from fourm.networks.tokenizers.vq import VIT_PRESETS, ViTPreset, VQTokenizer
from tests.codecs.test_figures import SOMEBODY
from tests.modalities.test_instances import CAT, DOG

POSES, SAM = RELEASED.get("human_poses"), RELEASED.get("sam_instance")
# Narrow networks with the codes and outputs of the released tokenizers.
POSE_CONFIG = VQConfig(
    enc_type="BottleneckMLP/B_1-Wi_16", dec_type="BottleneckMLP/B_1-Wi_16", n_channels=207,
    quant_type="memcodes", codebook_size=1024, num_codebooks=8, latent_dim=16,
)  # fmt: skip
SAM_CONFIG = VQConfig(
    image_size=(64, 64), enc_type="vit_demo_enc", dec_type="vit_demo_dec", n_channels=1, post_mlp=True,
    out_conv=True, codebook_size=1024, latent_dim=8,
)  # fmt: skip


def random_tokenizer(config: VQConfig) -> VQTokenizer:
    """A tokenizer with random weights, the same ones every time."""
    tokenizer = build_tokenizer(config, TokenizerPart.DECODER)
    assert isinstance(tokenizer, VQTokenizer)
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator) * 0.5 for n, t in tokenizer.state_dict().items()}
    tokenizer.load_state_dict(state)
    return tokenizer.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def wordpiece(golden: Path) -> WordPiece:
    return WordPiece.load(golden / "text_tokenizer" / "text_tokenizer_4m_wordpiece_30k.json")


@pytest.mark.parametrize(
    ("name", "shape", "channels"), [("mlp_pose_memcodes", (8, 1, 1), 27), ("vit_sam_mask", (4, 4), 1)]
)
def test_recorded_tokenizers_decode_codes_of_parts(
    golden: Path, monkeypatch: pytest.MonkeyPatch, name: str, shape: tuple[int, ...], channels: int
) -> None:
    for preset, row in json.loads((golden / "vq" / "vit_presets.json").read_text()).items():
        sizes = ViTPreset(row["dim_tokens"], row["depth"], row["num_heads"], row["mlp_ratio"])
        monkeypatch.setitem(VIT_PRESETS, preset, sizes)
    # These have 64 and 32 codes, which the check of the released number would refuse.
    monkeypatch.setattr("fourm.codecs.texts.NUM_CODES", 32)
    tokenizer = load_tokenizer(golden / "vq" / name, part=TokenizerPart.DECODER)
    tensors = load_file(golden / "vq" / name / "tensors.safetensors")
    codes, wanted = tensors["random.tokens"], tensors["random.decoded"]
    decode = decoder_of(SAM, tokenizer, shape, channels)
    found = decode([tuple(one) for one in codes.flatten(1).tolist()])
    assert found.shape == tuple(wanted.shape)
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * float(wanted.std())


@pytest.mark.parametrize(
    ("row", "config"),
    [
        (POSES, replace(POSE_CONFIG, n_channels=27)),
        (POSES, replace(POSE_CONFIG, num_codebooks=4)),
        (POSES, replace(POSE_CONFIG, codebook_size=512)),
        (POSES, SAM_CONFIG),
        (SAM, replace(SAM_CONFIG, n_channels=3)),
        (SAM, replace(SAM_CONFIG, codebook_size=1000)),
        (SAM, POSE_CONFIG),
    ],
)
def test_a_tokenizer_of_other_things_is_refused(row: Any, config: VQConfig, wordpiece: WordPiece) -> None:
    with pytest.raises(
        UsageError, match=f"^{row.name}: the tokenizer '{row.tokenizer}' does not fit; it needs"
    ):
        build_codec(row, build_tokenizer(config, TokenizerPart.DECODER), wordpiece)


@pytest.mark.parametrize(("row", "name"), [(POSES, "human-poses_1k_8"), (SAM, "sam-instance_1k_64")])
def test_the_released_tokenizers_fit(golden: Path, row: Any, name: str, wordpiece: WordPiece) -> None:
    manifest = json.loads((golden / "vq" / "manifests" / f"{name}.json").read_text())
    with torch.device("meta"):
        tokenizer = build_tokenizer(read_config(manifest["config"]), TokenizerPart.DECODER)
    build_codec(row, tokenizer, wordpiece)


def test_a_tokenizer_that_diffuses_is_refused(wordpiece: WordPiece) -> None:
    config = read_config(json.loads(_diffusing().read_text()))
    with torch.device("meta"):
        tokenizer = build_tokenizer(config)
    with pytest.raises(UsageError, match="does not fit"):
        build_codec(SAM, tokenizer, wordpiece)


def _diffusing() -> Path:
    return Path(__file__).resolve().parents[2] / "fourm" / "demo" / "tokenizers" / "rgb_divae" / "config.json"


def test_instances_are_drawn_through_a_tokenizer(wordpiece: WordPiece) -> None:
    value = Structured((Group((1, 2), (CAT, DOG)), Group((5, 6)), Group((3, 4), (CAT,))))
    tokenizer = random_tokenizer(SAM_CONFIG)
    with_masks = build_codec(SAM, tokenizer, wordpiece).picture(value)
    without = build_codec(SAM, None, wordpiece).picture(value)
    assert with_masks.size == without.size == (PICTURE_SIDE, PICTURE_SIDE)
    assert with_masks.tobytes() != without.tobytes()
    other = Structured((Group((1, 2), (replace(CAT, codes=tuple(range(16))), DOG)),))
    assert build_codec(SAM, tokenizer, wordpiece).picture(other).tobytes() != with_masks.tobytes()


def test_many_instances_decode_as_each_alone() -> None:
    tokenizer = random_tokenizer(SAM_CONFIG)
    decode = decoder_of(SAM, tokenizer, (4, 4), 1)
    codes = np.random.default_rng(0).integers(0, 1024, (1030, 16))
    together = decode([tuple(one) for one in codes.tolist()])
    assert together.shape == (1030, 1, 64, 64)
    for index in (0, 511, 512, 1029):
        assert np.allclose(together[index], decode([tuple(codes[index].tolist())])[0], atol=1e-4)


def test_people_are_drawn_through_a_tokenizer(wordpiece: WordPiece) -> None:
    codec = build_codec(POSES, random_tokenizer(POSE_CONFIG), wordpiece)
    one = codec.picture(Structured((SOMEBODY,)))
    other = codec.picture(Structured((replace(SOMEBODY, pose_codes=(9,) * 8),)))
    without = build_codec(POSES, None, wordpiece).picture(Structured((SOMEBODY,)))
    assert len({picture.tobytes() for picture in (one, other, without)}) == 3


@pytest.mark.parametrize("row", [POSES, SAM])
def test_damaged_weights_are_told(row: Any, wordpiece: WordPiece) -> None:
    tokenizer = random_tokenizer(POSE_CONFIG if row is POSES else SAM_CONFIG)
    tokenizer.post_quant_proj.bias.data[0] = float("nan")
    value: Any = (SOMEBODY,) if row is POSES else (Group((1, 2), (CAT,)),)
    with pytest.raises(SampleError, match=f"^{row.name}: .* not finite"):
        build_codec(row, tokenizer, wordpiece).picture(Structured(value))


@pytest.mark.parametrize(
    ("row", "value"),
    [
        (POSES, ()),
        (POSES, (SOMEBODY, replace(SOMEBODY, pose_codes=(1023,) * 8))),
        (SAM, ()),
        (SAM, (Group((1, 2), (CAT, DOG)), Group((5, 6)))),
    ],
)
def test_values_go_through_files_and_tokens_of_the_released_vocabulary(
    row: Any, value: tuple[Person | Instance, ...], wordpiece: WordPiece, tmp_path: Path
) -> None:
    codec = build_codec(row, None, wordpiece)
    (tmp_path / "x.json").write_bytes(codec.pack(Structured(value)))
    read = codec.read(tmp_path / "x.json")
    assert read == Structured(value)
    slot = codec.encode([read, read])
    assert slot.values.shape == (2, row.max_tokens)
    first, second = codec.decode(slot)
    assert first == second
    assert first.problems == ()
    again = codec.decode(codec.encode([first]))[0]
    assert again == first  # once numbers are those of words, nothing changes
    if row is SAM:
        assert first.value == value


@pytest.mark.parametrize("row", [POSES, SAM])
@pytest.mark.parametrize("content", [b"", b"{", b'[{"bbox": 5}]', b"\xff\xfe", b"[" * 100_000, b"5"])
def test_files_that_nobody_can_read_are_named(
    row: Any, content: bytes, wordpiece: WordPiece, tmp_path: Path
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(SampleError, match=r"x\.json: "):
        build_codec(row, None, wordpiece).read(path)
