"""Measures by networks against torchmetrics, recorded numbers of other libraries, and computations here."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from weakref import ref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from fourm.errors import FourMError, SampleError
from fourm.measures.learned import (
    ClassEntropy,
    Frechet,
    InceptionOutputs,
    resized,
    shared_inception,
    split_of,
)
from fourm.measures.measure import Measure, Pair, Settings
from fourm.measures.networks.clip import load_clip, prepare
from fourm.measures.networks.inception import CLASSES, FEATURES, Inception
from fourm.measures.tables import MEASURES, build_measure
from tests.emulated_gpu import emulated
from tests.measures.seeded import CLIP_TEXTS, RGB, SEEDS, picture, write_clip, write_inception, write_lpips

WIDTH = 6
# Of other libraries; `record.py` made it.
RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())


def pair(seed: int, other: int | None = None, **more: Any) -> Pair:
    return Pair(f"00000/{seed:06}", None, picture(seed), None if other is None else picture(other), **more)


def build(name: str, weights: Path | None = None) -> Measure:
    return build_measure(MEASURES[name], Settings(RGB, weights=weights))


def value_of(name: str, pairs: Sequence[Pair], weights: Path | None = None) -> float:
    measure = build(name, weights)
    measure.update(pairs)
    return measure.result()[name].value


def test_pictures_that_are_too_small_or_of_two_sizes_are_refused(tmp_path: Path) -> None:
    measure = build("lpips", write_lpips(tmp_path))
    small = picture(1, 30, 70)
    with pytest.raises(SampleError, match="70 x 30 pixels, but LPIPS needs 31"):
        measure.update([Pair("0/0", None, small, small)])
    with pytest.raises(SampleError, match="64 x 64 pixels, but its partner has 64 x 40"):
        measure.update([Pair("0/0", None, picture(1), picture(1, 40))])
    assert measure.result()["lpips"].samples == 0
    enough = picture(1, 31, 31)
    measure.update([Pair("0/0", None, enough, enough)])
    assert measure.result()["lpips"].samples == 1


def test_lpips_is_that_of_its_authors(tmp_path: Path) -> None:
    pairs = [pair(seed, 100 + seed) for seed in SEEDS]
    rows = build("lpips", write_lpips(tmp_path)).update(pairs)
    assert [row["lpips"] for row in rows] == pytest.approx(RECORDED["lpips"], rel=1e-5)


def test_the_clip_score_is_the_cosine_of_picture_and_caption(tmp_path: Path) -> None:
    folder = write_clip(tmp_path / "clip")
    # "Red ab" is <start> red</w> a b</w> <end>; the text tower has 12 positions.
    captions = dict(zip(("Red ab", "", "c" * 40), CLIP_TEXTS, strict=True))
    pairs = [Pair("0/0", None, picture(seed), texts={"caption": one}) for seed in SEEDS for one in captions]
    rows = build("clip_score", folder).update(pairs)
    network = load_clip(folder / "model.safetensors")
    pixels = torch.stack([prepare(resized(picture(seed)), 16) for seed in SEEDS])
    with torch.inference_mode():
        texts = torch.cat([network.embed_texts(torch.tensor([ids])) for ids in captions.values()])
        cosines = network.embed_pictures(pixels) @ texts.T
    wanted = 100 * cosines.clamp(min=0).flatten().double()
    assert [row["clip_score"] for row in rows] == pytest.approx(wanted.numpy(), abs=1e-4)
    assert {bool(one) for one in cosines.flatten() > 0} == {True, False}


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
        self.centre = torch.zeros(())
        self.centre = self(batch(picture(0)))  # so that pictures differ in the sign of their outputs

    def forward(self, pictures: Tensor) -> Tensor:
        x = F.conv2d(pictures.double() / 255, self.one, stride=4).relu()
        return x.mean((2, 3)) @ self.two.T * 100 - self.centre

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
    assert found["inception_score"].value > 1


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


def test_with_inception_fid_is_that_of_torch_fidelity_and_each_picture_is_read_once(tmp_path: Path) -> None:
    path = write_inception(tmp_path)
    pairs, runs = [pair(seed, 100 + seed) for seed in SEEDS], list[int]()

    def count(module: nn.Module, given: Any, found: Any) -> None:
        runs.extend([len(given[0])] * isinstance(module, Inception))

    handle = register_module_forward_hook(count)
    measures = {name: build(name, path) for name in ("fid", "inception_score")}
    for measure in measures.values():
        measure.update(pairs)
    handle.remove()
    assert sum(runs) == 2 * len(pairs)
    shares = [build("fid", path) for _ in range(3)]
    for number, one in enumerate(pairs):
        shares[number % 3].update([one])
    merged = build("fid", path)
    merged.merge([share.state() for share in shares])
    state = measures["fid"].state()
    for name, array in merged.state().items():
        np.testing.assert_allclose(array, state[name], rtol=1e-12)
    value = merged.result()["fid"].value
    assert value == pytest.approx(RECORDED["fid"], rel=1e-6)
    # Theirs has the roots of rounding errors in it, of the 2041 eigenvalues that are 0.
    assert value == pytest.approx(RECORDED["fid_of_torchmetrics"], rel=1e-3)
    assert measures["inception_score"].result()["inception_score"].value > 1


@pytest.mark.parametrize("name", ["lpips", "clip_score", "fid", "inception_score"])
def test_a_network_is_loaded_by_the_first_pictures_only(name: str, tmp_path: Path) -> None:
    measure, other = (build(name, tmp_path / "nothing.safetensors") for _ in range(2))
    measure.merge([other.state()])
    assert math.isnan(measure.result()[name].value)
    with pytest.raises(FourMError, match=r"nothing.safetensors"):
        measure.update([pair(1, 2)])


def test_a_network_is_shared_and_goes_with_its_measures() -> None:
    path = Path("changes.safetensors")
    fid, score = (build(name, path) for name in ("fid", "inception_score"))
    outputs = ref(shared_inception(path, "cpu"))
    assert outputs() is shared_inception(path, "cpu")
    del fid
    assert outputs() is not None
    del score
    assert outputs() is None


def test_on_a_gpu_numbers_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = pair(1, 2, texts={"caption": "red ab"})
    for name, path in (("lpips", write_lpips(tmp_path)), ("clip_score", write_clip(tmp_path / "clip"))):
        with emulated(monkeypatch):
            [row] = build_measure(MEASURES[name], Settings(RGB, "cuda", path)).update([both])
        assert row[name] == pytest.approx(value_of(name, [both], path), abs=1e-4)


def test_on_a_gpu_inception_takes_groups_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()

    def network(pictures: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(pictures))
        means = pictures.double().mean((1, 2, 3))[:, None]
        return means.expand(-1, FEATURES), -means.expand(-1, CLASSES)

    pictures = [picture(seed % 18) for seed in range(20)]
    with emulated(monkeypatch):
        found = InceptionOutputs(lambda: network, "cuda").of(pictures)
    assert sizes == [16, 16]  # of 18 pictures
    assert np.array_equal(found, InceptionOutputs(lambda: network, "cpu").of(pictures))
