"""Measures of pictures that need torch: SSIM, LPIPS, FID, Inception score, CLIP score.

Sums are ours, in float64 and as plain arrays: the classes of torchmetrics keep lists of features (Inception
score) and states that only a process group can merge, while processes here share nothing but files. Tests
hold each measure against torchmetrics, scikit-image or a computation of their own.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fourm.errors import SampleError
from fourm.hub.files import weights_of
from fourm.measures.measure import MeanOf, Measure, Pair, Row, Settings, State, Value, check_sizes, one_by_one
from fourm.measures.networks.clip import TextReader, load_clip, prepare
from fourm.measures.networks.inception import CLASSES, FEATURES, load_inception
from fourm.measures.networks.lpips import SMALLEST, load_lpips
from fourm.networks.precision import arithmetic

SIDE = 256  # pixels to which pictures are resized before FID, Inception and CLIP score, as 4M's authors do
SPLITS = 10  # of the Inception score
CAPTION_TOKENS = 60  # of a caption that CLIP reads, as 4M's authors have it; without start and end
WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM, for pictures in [0, 1]
_GROUP = 16  # pictures that a network takes at a time, except on CPUs
Picture = NDArray[np.uint8]  # (H, W, 3)
Extractor = Callable[[Sequence[Picture]], NDArray[np.float64]]  # n pictures -> (n, D)


def ssim(settings: Settings) -> Measure:
    """The structural similarity of pictures, 1 for identical ones; Wang et al. 2004, doi:10.1109/TIP.2003.819861.

    Gaussian window of 11 pixels and sigma 1.5, a range of 1, covariances of the population; the mean over
    windows that lie within the picture (and whose centre is known), and over channels.
    """
    return MeanOf(one_by_one(_ssim), ["ssim"])


def lpips(settings: Settings) -> Measure:
    """The distance in AlexNet's features, version 0.1; Zhang et al. 2018, arXiv:1801.03924."""
    network = load_lpips(_weights(settings), settings.device)

    def distances(pairs: Sequence[Pair]) -> list[Row]:
        for pair in pairs:
            check_sizes(pair)
            _check_side(pair, SMALLEST, "LPIPS")
        found = dict[int, float]()
        for numbers in _of_one_size(pairs):
            tensors = [(_tensor(pairs[n].value) / 255, _tensor(pairs[n].other) / 255) for n in numbers]
            found |= zip(numbers, _through(network, tensors, settings.device).tolist(), strict=True)
        return [{"lpips": found[number]} for number in range(len(pairs))]

    return MeanOf(distances, ["lpips"])


def clip_score(settings: Settings) -> Measure:
    """100 times the cosine of picture and caption, at least 0; Hessel et al. 2021, arXiv:2104.08718.

    CLIP ViT-L/14; pictures are resized to 256 pixels first, and captions are cut to 60 tokens.
    """
    weights = _weights(settings)
    network, reader = load_clip(weights, settings.device), TextReader(weights.parent / "tokenizer.json")

    def scores(pairs: Sequence[Pair]) -> list[Row]:
        captions = [pair.texts.get("caption") for pair in pairs]
        pictures = [(prepare(resized(pair.value), network.sizes.side),) for pair in pairs]
        seen = _through(network.embed_pictures, pictures, settings.device)
        rows = list[Row]()
        for vector, caption in zip(seen, captions, strict=True):
            cosine = math.nan
            if caption is not None:
                limit = min(CAPTION_TOKENS, network.sizes.text.length - 2)
                with torch.inference_mode(), arithmetic("float32"):
                    told = network.embed_texts([reader.read(caption, limit)])[0]
                cosine = float(vector @ told.double().cpu().numpy())
            rows.append({"clip_score": 100 * max(cosine, 0.0) if math.isfinite(cosine) else math.nan})
        return rows

    return MeanOf(scores, ["clip_score"])


def fid(settings: Settings) -> Measure:
    """The Fréchet distance of two sets of pictures; Heusel et al. 2017, arXiv:1706.08500.

    Of 2048 features of the last pooling layer of TensorFlow's Inception-v3, with pictures of 256 pixels.
    """
    network = load_inception(_weights(settings), settings.device)
    return Frechet(partial(_inception, network, settings.device, 0), FEATURES)


def inception_score(settings: Settings) -> Measure:
    """exp(KL) of the classes of each picture to those of all; Salimans et al. 2016, arXiv:1606.03498.

    The mean over 10 splits of the samples, with logits of TensorFlow's Inception-v3 and pictures of 256 pixels.
    """
    network = load_inception(_weights(settings), settings.device)
    return ClassEntropy(partial(_inception, network, settings.device, 1), CLASSES)


class Frechet:
    """The Fréchet distance of normal distributions with the means and covariances of two sets of features."""

    def __init__(self, extract: Extractor, width: int) -> None:
        self._extract = extract
        self._count = np.zeros(2, np.int64)  # of values, of partners
        self._sum, self._products = np.zeros((2, width)), np.zeros((2, width, width))

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """Add the features of values and partners; a pair alone has no number."""
        sides = [self._extract([pair.value for pair in pairs]), self._extract([pair.other for pair in pairs])]
        for side, features in enumerate(sides):
            self._count[side] += len(features)
            self._sum[side] += features.sum(0)
            self._products[side] += features.T @ features
        return [{} for _ in pairs]

    def state(self) -> State:
        """Sums of features and of their outer products."""
        found = {"count": self._count, "sum": self._sum, "products": self._products}
        return {name: array.copy() for name, array in found.items()}

    def merge(self, states: Sequence[State]) -> None:
        """Add the sums of other processes."""
        for state in states:
            self._count = self._count + state["count"]
            self._sum = self._sum + state["sum"]
            self._products = self._products + state["products"]

    def result(self) -> dict[str, Value]:
        """The distance; NaN of fewer than two samples."""
        count = int(self._count.min())
        value = math.nan
        if count >= 2:
            means = self._sum / self._count[:, None]
            outer = means[:, :, None] * means[:, None, :] * self._count[:, None, None]
            covariances = (self._products - outer) / (self._count - 1)[:, None, None]
            value = frechet_distance(means, covariances)
        return {"fid": Value(value, count)}


def frechet_distance(means: NDArray[np.float64], covariances: NDArray[np.float64]) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). means: (2, D), covariances: (2, D, D).

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2). Those of the eigenvalues of
    C1 C2 would be the same, but of fewer samples than features most are 0, and the root makes 1e-8 of a
    rounding error of 1e-16. Here eigenvalues of C1 and C2 within the error of rounding are left out.
    """
    if not (np.isfinite(means).all() and np.isfinite(covariances).all()):
        return math.nan
    roots = [_root(covariance) for covariance in covariances]
    nuclear = (
        np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum() if all(map(np.size, roots)) else 0.0
    )
    traces = sum(np.trace(covariance) for covariance in covariances)
    return max(0.0, float(np.square(means[0] - means[1]).sum() + traces - 2 * nuclear))


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
    name = f"{pair.key}\0{pair.variation}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") % SPLITS


def resized(picture: Picture) -> Picture:
    """A picture of 256 x 256 pixels (bilinear, smoothed where it becomes smaller)."""
    if picture.shape[:2] == (SIDE, SIDE):
        return picture
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _ssim(pair: Pair) -> Row:
    check_sizes(pair)
    _check_side(pair, WINDOW, "SSIM")
    first, second = (_tensor(value).double() / 255 for value in (pair.value, pair.other))
    window = torch.exp(-(torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2).square() / (2 * SIGMA**2))
    window = (window / window.sum()).view(1, 1, WINDOW, 1)
    maps = torch.stack([first, second, first * first, second * second, first * second]).flatten(0, 1)[:, None]
    smooth = F.conv2d(F.conv2d(maps, window), window.transpose(2, 3)).view(5, 3, *_inner(first.shape[1:]))
    mean1, mean2, square1, square2, product = smooth
    both = mean1 * mean2
    squares = mean1.square() + mean2.square()
    similarity = (2 * both + _C1) * (2 * (product - both) + _C2)
    similarity = similarity / ((squares + _C1) * (square1 + square2 - squares + _C2))
    if pair.known is not None:
        edge = WINDOW // 2
        similarity = similarity[:, torch.from_numpy(pair.known[edge:-edge, edge:-edge].copy())]
    return {"ssim": float(similarity.mean()) if similarity.numel() else math.nan}


def _of_one_size(pairs: Sequence[Pair]) -> list[list[int]]:
    """The numbers of pairs, together where values are of one size."""
    found = dict[tuple[int, ...], list[int]]()
    for number, pair in enumerate(pairs):
        found.setdefault(pair.value.shape, []).append(number)
    return list(found.values())


def _inner(size: Sequence[int]) -> list[int]:
    """The size of what a window can be centred at."""
    return [side - WINDOW + 1 for side in size]


def _check_side(pair: Pair, smallest: int, what: str) -> None:
    height, width = pair.value.shape[:2]
    if min(height, width) < smallest:
        raise SampleError(f"{width} x {height} pixels, but {what} needs {smallest} on each side")


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, r) A with A A^T = covariance, of rank r."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _weights(settings: Settings) -> Path:
    if settings.weights is None:
        raise ValueError("a measure with a network needs the path of its weights")
    return weights_of(settings.weights)


def _inception(
    network: Callable[..., Any], device: str, output: int, pictures: Sequence[Picture]
) -> NDArray[np.float64]:
    """(n, D) features or logits of pictures. output: 0 features, 1 logits."""
    tensors = [(_tensor(resized(picture)),) for picture in pictures]
    return _through(lambda batch: network(batch)[output], tensors, device)


def _tensor(picture: Picture) -> Tensor:
    """(H, W, 3) -> (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def _through(
    network: Callable[..., Tensor], inputs: Sequence[tuple[Tensor, ...]], device: str
) -> NDArray[np.float64]:
    """What a network makes of inputs, each a tensor for each of its arguments; (n, ...) float64.

    Groups are of one size, on CPUs of one input, so that no result depends on what else is in its group.
    """
    size = 1 if torch.device(device).type == "cpu" else _GROUP
    results = list[NDArray[np.float64]]()
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
