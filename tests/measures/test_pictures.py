"""Measures of pictures against torchmetrics, scikit-image, and computations of these tests."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio as torch_psnr
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from fourm.errors import SampleError
from fourm.measures.measure import Measure, Pair, Settings
from fourm.measures.pictures import ClassEntropy, Frechet, resized, split_of
from fourm.measures.tables import MEASURES, build_measure
from tests.measures.seeded import RGB, SMALL_CLIP, picture, write_clip, write_inception, write_lpips

WIDTH = 6


def pair(seed: int, other: int | None = None, **more: Any) -> Pair:
    return Pair(f"00000/{seed:06}", None, picture(seed), None if other is None else picture(other), **more)


def build(name: str, weights: Path | None = None) -> Measure:
    return build_measure(MEASURES[name], Settings(RGB, weights=weights))


def value_of(name: str, pairs: Sequence[Pair], weights: Path | None = None) -> float:
    measure = build(name, weights)
    measure.update(pairs)
    return measure.result()[name].value


def as_floats(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(values.transpose(2, 0, 1).copy())[None].double() / 255


CASES = {
    "unrelated": (picture(1), picture(2)),
    "near": (picture(1), np.clip(picture(1).astype(int) + 3, 0, 255).astype(np.uint8)),
    "not square": (picture(1, 40, 77), picture(2, 40, 77)),
    "the smallest": (picture(1, 11, 11), picture(2, 11, 11)),
    "constant": (np.full((20, 20, 3), 7, np.uint8), np.full((20, 20, 3), 9, np.uint8)),
    "black and white": (np.zeros((20, 20, 3), np.uint8), np.full((20, 20, 3), 255, np.uint8)),
}


@pytest.mark.parametrize("case", CASES)
def test_ssim_and_psnr_are_those_of_other_libraries(case: str) -> None:
    first, second = CASES[case]
    both = [Pair("0/0", None, first, second)]
    similarity = structural_similarity(
        first / 255, second / 255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=1.0, channel_axis=2,
    )  # fmt: skip
    assert value_of("ssim", both) == pytest.approx(similarity, abs=1e-9)
    tensors = as_floats(first), as_floats(second)
    index = structural_similarity_index_measure(*tensors, data_range=1.0)
    assert value_of("ssim", both) == pytest.approx(float(index), abs=1e-6)
    assert value_of("psnr", both) == pytest.approx(peak_signal_noise_ratio(first, second), abs=1e-9)
    assert value_of("psnr", both) == pytest.approx(float(torch_psnr(*tensors, data_range=1.0)), abs=1e-6)


def test_ssim_by_hand() -> None:
    black, white = CASES["black and white"]
    # Without variance, what is left is the term of the means: (2 * 0 * 1 + C1) / (0 + 1 + C1).
    assert value_of("ssim", [Pair("0/0", None, black, white)]) == pytest.approx(1e-4 / 1.0001, abs=1e-12)
    assert value_of("ssim", [pair(1, 1)]) == pytest.approx(1, abs=1e-12)


def test_ssim_counts_windows_whose_centre_is_known() -> None:
    known = np.zeros((64, 64), bool)
    known[5:30] = True
    changed = picture(1)
    changed[40:] = 0  # nothing within five pixels of what is known
    both = Pair("0/0", None, picture(1), changed, known=known)
    assert value_of("ssim", [both]) == pytest.approx(1, abs=1e-12)
    nothing = Pair("0/0", None, picture(1), changed, known=np.zeros((64, 64), bool))
    assert math.isnan(value_of("ssim", [nothing]))


@pytest.mark.parametrize(("name", "least"), [("ssim", 11), ("lpips", 31)])
def test_pictures_that_are_too_small_or_of_two_sizes_are_refused(
    name: str, least: int, tmp_path: Path
) -> None:
    measure = build(name, write_lpips(tmp_path))
    small = picture(1, least - 1, 70)
    with pytest.raises(SampleError, match=rf"70 x {least - 1} pixels, but {name.upper()} needs {least}"):
        measure.update([Pair("0/0", None, small, small)])
    with pytest.raises(SampleError, match="64 x 64 pixels, but its partner has 64 x 40"):
        measure.update([Pair("0/0", None, picture(1), picture(1, 40))])
    assert measure.result()[name].samples == 0
    enough = picture(1, least, least)
    measure.update([Pair("0/0", None, enough, enough)])
    assert measure.result()[name].samples == 1


def alexnet_distance(tensors: dict[str, Tensor], first: Tensor, second: Tensor) -> float:
    """LPIPS in float64, as its paper writes it: (B, 3, H, W) in [0, 1]."""
    shift, scale = torch.tensor([-0.03, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.45])
    both = (torch.cat([first, second]) * 2 - 1 - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1)
    total, layer = 0.0, 0
    for number, (stride, padding) in {0: (4, 2), 3: (1, 2), 6: (1, 1), 8: (1, 1), 10: (1, 1)}.items():
        if number in (3, 6):
            both = F.max_pool2d(both, 3, 2)
        weight, bias = (tensors[f"features.{number}.{one}"].double() for one in ("weight", "bias"))
        both = F.conv2d(both.double(), weight, bias, stride, padding).clamp(min=0)
        one, other = (x / (torch.linalg.vector_norm(x, dim=0) + 1e-10) for x in both)
        share = tensors[f"lin{layer}.model.1.weight"].double().flatten()
        total += float(torch.einsum("chw,c->hw", (one - other) ** 2, share).mean())
        layer += 1
    return total


def test_lpips_is_what_its_paper_says(tmp_path: Path) -> None:
    path = write_lpips(tmp_path)
    tensors = load_file(path)
    measure, pairs = build("lpips", path), [pair(1, 2), pair(3, 4), pair(5, 5)]
    rows = measure.update(pairs)
    wanted = [alexnet_distance(tensors, as_floats(one.value), as_floats(one.other)) for one in pairs]
    assert [row["lpips"] for row in rows] == pytest.approx(wanted, rel=1e-5)
    assert rows[2]["lpips"] == 0
    assert wanted[0] > 0.01


def clip_vectors(
    tensors: dict[str, Any], tower: str, x: np.ndarray[Any, Any], is_causal: bool
) -> np.ndarray[Any, Any]:
    """A tower of CLIP in NumPy: (N, D) tokens -> (N, D)."""

    def linear(name: str, x: Any) -> Any:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    for number in range(2):
        name = f"{tower}.encoder.layers.{number}"
        normed = layer_norm(tensors, f"{name}.layer_norm1", x)
        q, k, v = (linear(f"{name}.self_attn.{one}_proj", normed) for one in "qkv")
        heads = []
        for start in range(0, x.shape[1], 64):
            part = slice(start, start + 64)
            scores = q[:, part] @ k[:, part].T / 8
            if is_causal:
                scores = np.where(np.tri(len(x)) > 0, scores, -np.inf)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(shares / shares.sum(1, keepdims=True) @ v[:, part])
        x = x + linear(f"{name}.self_attn.out_proj", np.concatenate(heads, 1))
        hidden = linear(f"{name}.mlp.fc1", layer_norm(tensors, f"{name}.layer_norm2", x))
        x = x + linear(f"{name}.mlp.fc2", hidden / (1 + np.exp(-1.702 * hidden)))
    return x


def layer_norm(tensors: dict[str, Any], name: str, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normed * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def clip_cosine(tensors: dict[str, Any], values: np.ndarray[Any, Any], ids: Sequence[int]) -> float:
    """The cosine of a picture of 16 x 16 pixels and a text, in float64."""
    vision, text = "vision_model", "text_model"
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    pixels = (values / 255 - mean) / deviation
    patches = [pixels[y : y + 8, x : x + 8] for y in (0, 8) for x in (0, 8)]
    kernel = tensors[f"{vision}.embeddings.patch_embedding.weight"]
    seen = [np.einsum("yxc,dcyx->d", patch, kernel) for patch in patches]
    x = np.stack([tensors[f"{vision}.embeddings.class_embedding"], *seen])
    x = layer_norm(
        tensors, f"{vision}.pre_layrnorm", x + tensors[f"{vision}.embeddings.position_embedding.weight"]
    )
    x = layer_norm(tensors, f"{vision}.post_layernorm", clip_vectors(tensors, vision, x, False)[0])
    shown = tensors["visual_projection.weight"] @ x
    y = tensors[f"{text}.embeddings.token_embedding.weight"][list(ids)]
    y = y + tensors[f"{text}.embeddings.position_embedding.weight"][: len(ids)]
    y = layer_norm(tensors, f"{text}.final_layer_norm", clip_vectors(tensors, text, y, True)[-1])
    told = tensors["text_projection.weight"] @ y
    return float(shown @ told / np.linalg.norm(shown) / np.linalg.norm(told))


def test_the_clip_score_is_the_cosine_of_picture_and_caption(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    tensors = {name: one.double().numpy() for name, one in load_file(folder / "model.safetensors").items()}
    flat = [np.full((64, 64, 3), value, np.uint8) for value in (0, 90, 255)]  # resizing changes nothing
    # "Red ab" is <start> red</w> a b</w> <end>; the text tower has 12 positions.
    captions = {"Red ab": [54, 53, 0, 27, 55], "": [54, 55], "c" * 40: [54, *[2] * 10, 55]}
    pairs = [Pair("0/0", None, values, texts={"caption": caption}) for values in flat for caption in captions]
    rows = build("clip_score", folder).update(pairs)
    cosines = [clip_cosine(tensors, values[:16, :16], ids) for values in flat for ids in captions.values()]
    assert [row["clip_score"] for row in rows] == pytest.approx(
        [100 * max(0, one) for one in cosines], abs=2e-4
    )
    assert {one > 0 for one in cosines} == {True, False}
    assert SMALL_CLIP.side == 16


def test_a_picture_without_a_caption_has_no_clip_score(tmp_path: Path) -> None:
    measure = build("clip_score", write_clip(tmp_path / "clip"))
    (row,) = measure.update([pair(1)])
    assert math.isnan(row["clip_score"])
    assert measure.result()["clip_score"].samples == 0


class StandIn(nn.Module):
    """A network of two layers, in place of Inception: (B, 3, H, W) uint8 -> (B, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.RandomState(0)
        self.one = torch.from_numpy(random.standard_normal((8, 3, 5, 5)) / 20)
        self.two = torch.from_numpy(random.standard_normal((WIDTH, 8)))

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.conv2d(pictures.double() / 255, self.one, stride=4).relu()
        return x.mean((2, 3)) @ self.two.T * 10

    def extract(self, pictures: Sequence[Any]) -> Any:
        return np.concatenate([self(batch(one)).numpy() for one in pictures])


def batch(values: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(values.transpose(2, 0, 1).copy())[None]


NETWORK = StandIn()
PAIRS = [pair(seed, 1000 + seed) for seed in range(60)]
KINDS: dict[str, Callable[[], Any]] = {
    "fid": lambda: Frechet(NETWORK.extract, WIDTH),
    "inception_score": lambda: ClassEntropy(NETWORK.extract, WIDTH),
}


def test_fid_is_that_of_torchmetrics() -> None:
    measure = KINDS["fid"]()
    measure.update(PAIRS)
    theirs = FrechetInceptionDistance(feature=NETWORK).set_dtype(torch.float64)
    for one in PAIRS:
        theirs.update(batch(one.value), real=True)
        theirs.update(batch(one.other), real=False)
    value = measure.result()["fid"]
    assert (value.value, value.samples) == (pytest.approx(float(theirs.compute()), rel=1e-6), 60)
    assert value.value > 0.01


def test_fid_by_hand() -> None:
    def extract(values: Sequence[Any]) -> Any:
        return np.array([[float(one[0, 0, 0])] for one in values])

    def grey(level: int) -> Any:
        return np.full((4, 4, 3), level, np.uint8)

    measure = Frechet(extract, 1)
    # Means 10 and 30, variances 8 and 32: (30 - 10)^2 + (sqrt(32) - sqrt(8))^2 = 400 + 8.
    measure.update([Pair("0/0", None, grey(8), grey(26)), Pair("0/1", None, grey(12), grey(34))])
    assert measure.result()["fid"].value == pytest.approx(408)


def test_the_inception_score_is_the_mean_of_that_of_torchmetrics_over_splits() -> None:
    measure = KINDS["inception_score"]()
    measure.update(PAIRS)
    scores = []
    for split in range(10):
        mine = [one for one in PAIRS if split_of(one) == split]
        assert 1 <= len(mine) <= 12
        theirs = InceptionScore(feature=NETWORK, splits=1).set_dtype(torch.float64)
        for one in mine:
            theirs.update(batch(one.value))
        scores.append(float(theirs.compute()[0]))
    found = measure.result()
    assert found["inception_score"].value == pytest.approx(np.mean(scores), rel=1e-6)
    assert found["inception_score_std"].value == pytest.approx(np.std(scores, ddof=1), rel=1e-6)
    assert found["inception_score_splits"].value == 10
    assert found["inception_score"].value > 1.001


@pytest.mark.parametrize("name", KINDS)
def test_three_processes_give_what_one_gives(name: str) -> None:
    whole = KINDS[name]()
    whole.update(PAIRS)
    parts = [KINDS[name]() for _ in range(3)]
    for number, one in enumerate(PAIRS):
        parts[number % 3].update([one])
    merged = KINDS[name]()
    merged.merge([part.state() for part in parts[:2]])
    merged.merge([parts[2].state()])
    for number, value in whole.result().items():
        assert merged.result()[number].value == pytest.approx(value.value, abs=1e-9)
    assert {array.dtype.kind for array in merged.state().values()} <= {"f", "i"}


@pytest.mark.parametrize("name", KINDS)
def test_a_state_is_not_changed_by_later_samples_and_does_not_grow(name: str) -> None:
    measure = KINDS[name]()
    measure.update(PAIRS[:4])
    before = measure.state()
    copies = {key: array.copy() for key, array in before.items()}
    measure.update(PAIRS[4:])
    assert all(np.array_equal(before[key], copies[key]) for key in copies)
    assert {key: one.shape for key, one in measure.state().items()} == {
        key: one.shape for key, one in before.items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_no_sample_is_no_number(name: str) -> None:
    measure = KINDS[name]()
    assert measure.update([]) == []
    value = measure.result()[name]
    assert math.isnan(value.value)
    assert value.samples == 0


def test_degenerate_sets() -> None:
    one = KINDS["fid"]()
    one.update(PAIRS[:1])
    assert math.isnan(one.result()["fid"].value)  # no covariance
    same = KINDS["fid"]()
    same.update([pair(seed, seed) for seed in range(20)])
    assert same.result()["fid"].value == pytest.approx(0, abs=1e-9)
    constant = KINDS["fid"]()
    constant.update([pair(1, 2)] * 5)  # no variance at all
    means = [NETWORK.extract([picture(seed)])[0] for seed in (1, 2)]
    assert constant.result()["fid"].value == pytest.approx(np.square(means[0] - means[1]).sum(), rel=1e-9)
    spoilt = Frechet(lambda pictures: np.full((len(pictures), 2), np.nan), 2)
    spoilt.update(PAIRS[:3])
    assert math.isnan(spoilt.result()["fid"].value)
    alone = KINDS["inception_score"]()
    alone.update(PAIRS[:1])
    assert alone.result()["inception_score"].value == pytest.approx(1)
    assert math.isnan(alone.result()["inception_score_std"].value)
    assert alone.result()["inception_score_splits"].value == 1


def test_fid_of_the_real_architecture_is_that_of_torchmetrics(tmp_path: Path) -> None:
    path = write_inception(tmp_path)
    pairs = [pair(seed, 100 + seed) for seed in range(5)]
    measure = build("fid", path)
    measure.update(pairs)

    class Features(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return network(pictures)[0]

    from fourm.measures.networks.inception import load_inception

    network = load_inception(path)
    with torch.inference_mode():
        theirs = FrechetInceptionDistance(feature=Features())
        for one in pairs:
            theirs.update(batch(resized(one.value)), real=True)
            theirs.update(batch(resized(one.other)), real=False)
    # Of 2048 eigenvalues all but 4 are 0; the roots of what rounding makes of them are in theirs.
    assert measure.result()["fid"].value == pytest.approx(float(theirs.compute()), rel=1e-3)
