"""Measures of pictures that a network makes: LPIPS, FID, Inception score, CLIP score.

A network is loaded when the first pictures come, and never fetched. FID's sums are those of torchmetrics. Its
other classes cannot be used: that of the Inception score keeps the features of all pictures, and draws its
splits from the generator of the process; those of LPIPS and CLIP score load networks of other packages.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from fourm.hub.files import weights_of
from fourm.measures.measure import (
    MeanOf,
    Measure,
    Pair,
    Row,
    Settings,
    State,
    Value,
    check_side,
    check_sizes,
    id_of,
    one_by_one,
)
from fourm.measures.networks.clip import TextReader, load_clip, prepare
from fourm.measures.networks.inception import CLASSES, FEATURES, load_inception
from fourm.measures.networks.lpips import SMALLEST, load_lpips
from fourm.networks.precision import arithmetic

SIDE = 256  # pixels to which pictures are resized before FID, Inception and CLIP score, as 4M's authors do
SPLITS = 10  # of the Inception score
CAPTION_TOKENS = 60  # of a caption that CLIP reads, as 4M's authors have it; without start and end
_GROUP = 16  # pictures that a network takes at a time, except on CPUs
_RECENT = 64  # pictures whose features are kept: values and partners of the group that is measured
Picture = NDArray[np.uint8]  # (H, W, 3)
Floats = NDArray[np.float64]
Extractor = Callable[[Sequence[Picture]], Floats]  # n pictures -> (n, D)


def lpips(settings: Settings) -> Measure:
    """The distance in AlexNet's features, version 0.1; Zhang et al. 2018, arXiv:1801.03924."""
    path, device = _weights(settings), settings.device
    network = cache(lambda: load_lpips(path, device))

    def distance(pair: Pair) -> Row:
        check_sizes(pair)
        check_side(pair, SMALLEST, "LPIPS")
        tensors = (_tensor(pair.value) / 255, _tensor(pair.other) / 255)
        return {"lpips": float(_through(network(), [tensors], device, 1)[0])}

    return MeanOf(one_by_one(distance), ["lpips"])


def clip_score(settings: Settings) -> Measure:
    """100 times the cosine of picture and caption, at least 0; Hessel et al. 2021, arXiv:2104.08718.

    CLIP ViT-L/14; pictures are resized to 256 pixels first, and captions are cut to 60 tokens.
    """
    path, device = _weights(settings), settings.device
    load = cache(lambda: (load_clip(path, device), TextReader(path.parent / "tokenizer.json")))

    def scores(pairs: Sequence[Pair]) -> list[Row]:
        (network, reader), rows = load(), list[Row]()
        limit = min(CAPTION_TOKENS, network.sizes.text.length - 2)
        pictures = [(prepare(resized(pair.value), network.sizes.side),) for pair in pairs]
        for pair, seen in zip(pairs, _through(network.embed_pictures, pictures, device), strict=True):
            score = math.nan
            if "caption" in pair.texts:
                with torch.inference_mode(), arithmetic("float32"):
                    told = network.embed_texts([reader.read(pair.texts["caption"], limit)])[0]
                score = 100 * max(float(seen @ told.double().cpu().numpy()), 0.0)
            rows.append({"clip_score": score})
        return rows

    return MeanOf(scores, ["clip_score"])


def fid(settings: Settings) -> Measure:
    """The Fréchet distance of two sets of pictures; Heusel et al. 2017, arXiv:1706.08500.

    Of 2048 features of the last pooling layer of TensorFlow's Inception-v3, with pictures of 256 pixels.
    """
    inception = _inception(_weights(settings), settings.device)
    return Frechet(lambda pictures: inception.of(pictures)[:, :FEATURES], FEATURES)


def inception_score(settings: Settings) -> Measure:
    """exp(KL) of the classes of each picture to those of all; Salimans et al. 2016, arXiv:1606.03498.

    The mean over 10 splits of the samples. Logits are those of TensorFlow's Inception-v3, of 256 pixels.
    """
    inception = _inception(_weights(settings), settings.device)
    return ClassEntropy(lambda pictures: inception.of(pictures)[:, FEATURES:], CLASSES)


class InceptionOutputs:
    """Features and logits of pictures; one for FID and Inception score, so that each is computed once."""

    def __init__(self, path: Path, device: str) -> None:
        self._device, self._recent = device, dict[bytes, Floats]()
        self._network = cache(lambda: load_inception(path, device))

    def of(self, pictures: Sequence[Picture]) -> Floats:
        """(n, FEATURES + CLASSES) of n pictures."""
        found, new = dict[bytes, Floats](), dict[bytes, tuple[Tensor]]()
        names = [hashlib.blake2b(repr(one.shape).encode() + one.tobytes()).digest() for one in pictures]
        for name, picture in zip(names, pictures, strict=True):
            if name in self._recent:
                found[name] = self._recent[name]
            else:
                new[name] = (_tensor(resized(picture)),)
        if new:
            found |= zip(new, _through(self._both, list(new.values()), self._device), strict=True)
        self._recent = dict([*self._recent.items(), *found.items()][-_RECENT:])
        return np.array([found[name] for name in names]).reshape(len(names), FEATURES + CLASSES)

    def _both(self, batch: Tensor) -> Tensor:
        return torch.cat(self._network()(batch), 1)


class Frechet:
    """The Fréchet distance of normal distributions with the means and covariances of two sets of features."""

    def __init__(self, extract: Extractor, width: int) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance  # imports all of its package

        given = nn.Identity()  # features are what it gets
        given.num_features = width  # type: ignore[assignment]
        self._extract, self._sums = extract, FrechetInceptionDistance(feature=given)

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """Add the features of values and partners; a pair alone has no number."""
        if pairs:
            sides = [self._extract([one.value for one in pairs]), self._extract([one.other for one in pairs])]
            for features, is_real in zip(sides, (False, True), strict=True):
                self._sums.update(torch.from_numpy(features), real=is_real)
        return [{} for _ in pairs]

    def state(self) -> State:
        """Sums of features and of their outer products, float64."""
        return {name: torch.as_tensor(one).numpy().copy() for name, one in self._sums.metric_state.items()}

    def merge(self, states: Sequence[State]) -> None:
        """Add the sums of other processes."""
        for state in states:
            self._sums.merge_state({name: torch.tensor(array) for name, array in state.items()})

    def result(self) -> dict[str, Value]:
        """The distance; NaN of fewer than two samples."""
        state, means, covariances = self.state(), [], []
        count, value = int(state["fake_features_num_samples"]), math.nan
        if count >= 2:
            for side in ("fake", "real"):
                mean = state[f"{side}_features_sum"] / count
                means.append(mean)
                products = state[f"{side}_features_cov_sum"] - count * np.outer(mean, mean)
                covariances.append(products / (count - 1))
            value = frechet_distance(means, covariances)
        return {"fid": Value(value, count)}


def frechet_distance(means: Sequence[Floats], covariances: Sequence[Floats]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). means: two of (D,), covariances: two of (D, D).

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2). torchmetrics takes the roots
    of the eigenvalues of C1 C2, most of which are 0 if there are fewer samples than features: the roots of
    rounding errors of 1e-16 are 1e-8 each, and it finds a distance of -0.001 of eight pictures to themselves.
    Here eigenvalues of C1 and C2 within the error of rounding are left out.
    """
    if not all(np.isfinite(one).all() for one in (*means, *covariances)):
        return math.nan
    first, second = map(_root, covariances)
    both = np.linalg.svd(first.T @ second, compute_uv=False).sum() if first.size and second.size else 0.0
    traces = sum(np.trace(covariance) for covariance in covariances)
    return max(0.0, float(np.square(means[0] - means[1]).sum() + traces - 2 * both))


class ClassEntropy:
    """The Inception score of logits.

    A sample's split is a hash of its name, so that processes agree on it: splits are about equally large, and
    empty ones, where there are few samples, are left out.
    """

    def __init__(self, extract: Extractor, width: int) -> None:
        self._extract = extract
        self._count = np.zeros(SPLITS, np.int64)
        self._sum = np.zeros((SPLITS, width))  # of probabilities p
        self._negentropy = np.zeros(SPLITS)  # of sums of p log p

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """Add the probabilities of values; a pair alone has no number."""
        if not pairs:
            return []
        logits = self._extract([pair.value for pair in pairs])
        shifted = logits - logits.max(1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
        for pair, log in zip(pairs, logs, strict=True):
            split = split_of(pair)
            self._count[split] += 1
            self._sum[split] += np.exp(log)
            self._negentropy[split] += (np.exp(log) * log).sum()
        return [{} for _ in pairs]

    def state(self) -> State:
        """Sums of each split."""
        found = {"count": self._count, "sum": self._sum, "negentropy": self._negentropy}
        return {name: array.copy() for name, array in found.items()}

    def merge(self, states: Sequence[State]) -> None:
        """Add the sums of other processes."""
        for state in states:
            self._count = self._count + state["count"]
            self._sum = self._sum + state["sum"]
            self._negentropy = self._negentropy + state["negentropy"]

    def result(self) -> dict[str, Value]:
        """Mean of the splits, their standard deviation (NaN of one), and how many there are."""
        filled = self._count > 0
        count, number = self._count[filled, None], int(filled.sum())
        means = self._sum[filled] / count
        logs = np.log(means, out=np.zeros_like(means), where=means > 0)
        scores = np.exp(self._negentropy[filled] / count[:, 0] - (means * logs).sum(1))
        samples = int(self._count.sum())
        return {
            "inception_score": Value(float(scores.mean()) if number else math.nan, samples),
            "inception_score_std": Value(
                float(scores.std(ddof=1)) if number > 1 else math.nan, samples, is_detail=True
            ),
            "inception_score_splits": Value(number, samples, is_detail=True),
        }


def split_of(pair: Pair) -> int:
    """The split of the Inception score that a sample belongs to."""
    return id_of(pair) % SPLITS


def resized(picture: Picture) -> Picture:
    """A picture of 256 x 256 pixels (bilinear, smoothed where it becomes smaller)."""
    if picture.shape[:2] == (SIDE, SIDE):
        return picture
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _root(covariance: Floats) -> Floats:
    """(D, r) A with A A^T = covariance, of rank r."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _weights(settings: Settings) -> Path:
    if settings.weights is None:
        raise ValueError("a measure with a network needs the path of its weights")
    return weights_of(settings.weights)


@lru_cache(maxsize=1)
def _inception(path: Path, device: str) -> InceptionOutputs:
    return InceptionOutputs(path, device)


def _tensor(picture: Picture) -> Tensor:
    """(H, W, 3) -> (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def _through(
    network: Callable[..., Tensor], inputs: Sequence[tuple[Tensor, ...]], device: str, size: int = _GROUP
) -> Floats:
    """What a network makes of inputs, each a tensor for each of its arguments; (n, ...) float64.

    Groups are of one size, on CPUs of one input, so that no result depends on what else is in its group.
    """
    size, results = 1 if torch.device(device).type == "cpu" else size, list[Floats]()
    with torch.inference_mode(), arithmetic("float32"):
        for group, count in _groups(inputs, size):
            batch = (torch.stack(one).to(device) for one in zip(*group, strict=True))
            results.append(network(*batch)[:count].double().cpu().numpy())
    return np.concatenate(results) if results else np.zeros(0)


def _groups(
    inputs: Sequence[tuple[Tensor, ...]], size: int
) -> Iterator[tuple[list[tuple[Tensor, ...]], int]]:
    """Groups of inputs of `size`, the last one filled up with its first input, and how many are meant."""
    for start in range(0, len(inputs), size):
        group = list(inputs[start : start + size])
        yield group + [group[0]] * (size - len(group)), len(group)
