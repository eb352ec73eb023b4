"""Measures of pictures that a network makes: LPIPS, FID, Inception score, CLIP score.

A network is loaded when the first pictures come, and never fetched. FID's sums are those of torchmetrics. Its
other classes cannot be used: that of the Inception score keeps the features of all pictures, and draws its
splits from the generator of the process; those of LPIPS and CLIP score load networks of other packages.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from weakref import WeakValueDictionary

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
)
from fourm.measures.networks.clip import TextReader, load_clip, prepare
from fourm.measures.networks.inception import CLASSES, FEATURES, load_inception
from fourm.measures.networks.lpips import SMALLEST, load_lpips
from fourm.networks.precision import arithmetic

SIDE = 256  # pixels to which pictures are resized before FID, Inception and CLIP score, as 4M's authors do
SPLITS = 10  # of the Inception score
CAPTION_TOKENS = 60  # of a caption that CLIP reads, as 4M's authors have it; without start and end
_GROUP = 16  # pictures that Inception takes at a time, except on CPUs
_RECENT = 64  # pictures whose features are kept: values and partners of the group that is measured
Picture = NDArray[np.uint8]  # (H, W, 3)
Floats = NDArray[np.float64]
Extractor = Callable[[Sequence[Picture]], Floats]  # n pictures -> (n, D)
_SHARED = WeakValueDictionary[tuple[Path, str], "InceptionOutputs"]()  # by file and device


def lpips(settings: Settings) -> Measure:
    """The distance in AlexNet's features, version 0.1; Zhang et al. 2018, arXiv:1801.03924."""
    path, device = _weights(settings), settings.device
    network = cache(lambda: load_lpips(path, device))

    def distance(pair: Pair) -> Row:
        check_sizes(pair)
        check_side(pair, SMALLEST, "LPIPS")
        both = (_tensor(one)[None] / 255 for one in (pair.value, pair.other))
        return {"lpips": float(_run(network(), device, *both)[0])}

    return MeanOf(distance, ["lpips"])


def clip_score(settings: Settings) -> Measure:
    """100 times the cosine of picture and caption, at least 0; Hessel et al. 2021, arXiv:2104.08718.

    CLIP ViT-L/14; pictures are resized to 256 pixels first, and captions are cut to 60 tokens.
    """
    path, device = _weights(settings), settings.device
    load = cache(lambda: (load_clip(path, device), TextReader(path.parent / "tokenizer.json")))

    def score(pair: Pair) -> Row:
        network, reader = load()
        if "caption" not in pair.texts:
            return {"clip_score": math.nan}
        ids = reader.read(pair.texts["caption"], min(CAPTION_TOKENS, network.sizes.text.length - 2))
        image = _run(network.embed_pictures, device, prepare(resized(pair.value), network.sizes.side)[None])
        text = _run(network.embed_texts, device, torch.tensor([ids]))
        return {"clip_score": 100 * max(float(image[0] @ text[0]), 0.0)}

    return MeanOf(score, ["clip_score"])


def fid(settings: Settings) -> Measure:
    """The Fréchet distance of two sets of pictures; Heusel et al. 2017, arXiv:1706.08500.

    Of 2048 features of the last pooling layer of TensorFlow's Inception-v3, with pictures of 256 pixels.
    """
    inception = shared_inception(_weights(settings), settings.device)
    return Frechet(lambda pictures: inception.of(pictures)[:, :FEATURES], FEATURES)


def inception_score(settings: Settings) -> Measure:
    """exp(KL) of the classes of each picture to those of all; Salimans et al. 2016, arXiv:1606.03498.

    The mean over 10 splits of the samples. Logits are those of TensorFlow's Inception-v3, of 256 pixels.
    """
    inception = shared_inception(_weights(settings), settings.device)
    return ClassEntropy(lambda pictures: inception.of(pictures)[:, FEATURES:], CLASSES)


class InceptionOutputs:
    """Features and logits of pictures; one for FID and Inception score, so that each is computed once."""

    def __init__(self, load: Callable[[], Callable[[Tensor], tuple[Tensor, Tensor]]], device: str) -> None:
        """load: what gives the network, when the first pictures come."""
        self._network, self._device, self._recent = cache(load), device, dict[bytes, Floats]()

    def of(self, pictures: Sequence[Picture]) -> Floats:
        """(n, FEATURES + CLASSES) of n pictures."""
        names = [hashlib.blake2b(repr(one.shape).encode() + one.tobytes()).digest() for one in pictures]
        both = zip(names, pictures, strict=True)
        new = {name: _tensor(resized(one)) for name, one in both if name not in self._recent}
        found = self._recent | dict(zip(new, self._compute([*new.values()]), strict=True))
        self._recent = dict([*found.items()][-_RECENT:])
        return np.array([found[name] for name in names]).reshape(len(names), FEATURES + CLASSES)

    def _compute(self, pictures: Sequence[Tensor]) -> Iterator[Floats]:
        """In groups of one size, the last one filled up, so that no output depends on the others."""
        size = 1 if torch.device(self._device).type == "cpu" else _GROUP
        for start in range(0, len(pictures), size):
            group = pictures[start : start + size]
            batch = torch.stack([*group, *[group[0]] * (size - len(group))])
            outputs = _run(lambda batch: torch.cat(self._network()(batch), 1), self._device, batch)
            yield from outputs[: len(group)]


def shared_inception(path: Path, device: str) -> InceptionOutputs:
    """The outputs of a file of weights, which measures share and which go with the last of them.

    A later evaluation reads the file again: it may be another one.
    """
    made = _SHARED.get((path, device)) or InceptionOutputs(partial(load_inception, path, device), device)
    return _SHARED.setdefault((path, device), made)


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
        state, means, covariances = self.state(), list[Floats](), list[Floats]()
        if (count := int(state["fake_features_num_samples"])) < 2:
            return {"fid": Value(math.nan, count)}
        for side in ("fake", "real"):
            means.append(state[f"{side}_features_sum"] / count)
            products = state[f"{side}_features_cov_sum"] - count * np.outer(means[-1], means[-1])
            covariances.append(products / (count - 1))
        return {"fid": Value(frechet_distance(means, covariances), count)}


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
        # Of each split: the sums of the probabilities p and of p log p, and the number of samples.
        self._extract, self._sums = extract, np.zeros((SPLITS, width + 2))

    def update(self, pairs: Sequence[Pair]) -> Sequence[Row]:
        """Add the probabilities of values; a pair alone has no number."""
        logits = torch.from_numpy(self._extract([pair.value for pair in pairs])) if pairs else ()
        for pair, one in zip(pairs, logits, strict=True):
            logs = one.log_softmax(0).numpy()
            self._sums[split_of(pair)] += [*np.exp(logs), np.exp(logs) @ logs, 1]
        return [{} for _ in pairs]

    def state(self) -> State:
        """Sums of each split."""
        return {"sums": self._sums.copy()}

    def merge(self, states: Sequence[State]) -> None:
        """Add the sums of other processes."""
        self._sums = sum((state["sums"] for state in states), self._sums)

    def result(self) -> dict[str, Value]:
        """Mean of the splits, their standard deviation (NaN of one), and how many there are."""
        counts = self._sums[:, -1]
        means = torch.from_numpy(self._sums[counts > 0, :-1] / counts[counts > 0, None])
        classes, negentropy = means[:, :-1], means[:, -1]
        scores = (negentropy - torch.xlogy(classes, classes).sum(1)).exp()
        samples, number = int(counts.sum()), len(scores)
        deviation = float(scores.std()) if number > 1 else math.nan
        return {
            "inception_score": Value(float(scores.mean()), samples),
            "inception_score_std": Value(deviation, samples, is_detail=True),
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


def _tensor(picture: Picture) -> Tensor:
    """(H, W, 3) -> (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))


def _run(network: Callable[..., Tensor], device: str, *inputs: Tensor) -> Floats:
    """What a network makes of inputs (n, ...): (n, ...) float64."""
    with torch.inference_mode(), arithmetic("float32"):
        return network(*(one.to(device) for one in inputs)).double().cpu().numpy()
