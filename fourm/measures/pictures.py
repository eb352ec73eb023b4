"""Measures of pictures that need no network: PSNR and SSIM."""

import math

import numpy as np
from numpy.typing import NDArray

from fourm.measures.measure import MeanOf, Measure, Pair, Row, Settings, check_side, check_sizes

WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels
_EDGE = WINDOW // 2  # pixels at each border, where no window has its centre
_C1, _C2 = 0.01**2, 0.03**2  # of SSIM, for pictures in [0, 1]


def psnr(settings: Settings) -> Measure:
    """The peak signal-to-noise ratio of pictures in dB, of a range of 1; infinite where they are identical.

    Horé and Ziou 2010, doi:10.1109/ICPR.2010.579. The error is the mean over known pixels and channels.
    """
    return MeanOf(_psnr, ["psnr"], infinite="identical")


def ssim(settings: Settings) -> Measure:
    """The structural similarity of pictures, 1 for identical ones.

    Wang et al. 2004, doi:10.1109/TIP.2003.819861. Gaussian window of 11 pixels and sigma 1.5, a range of 1,
    covariances of the population; the mean over windows that lie within the picture (and whose centre is
    known), and over channels.
    """
    return MeanOf(_ssim, ["ssim"])


def _psnr(pair: Pair) -> Row:
    check_sizes(pair)
    squares = np.square(pair.value.astype(np.float64) - pair.other.astype(np.float64))
    if pair.known is not None:
        squares = squares[pair.known]
    if not squares.size:
        return {"psnr": math.nan}
    error = squares.mean() / 255**2
    return {"psnr": -10 * math.log10(error) if error else math.inf}


def _ssim(pair: Pair) -> Row:
    check_sizes(pair)
    check_side(pair, WINDOW, "SSIM")
    similarity = _similarity(pair.value / 255, pair.other / 255)
    if pair.known is not None:
        similarity = similarity[pair.known[_EDGE:-_EDGE, _EDGE:-_EDGE]]
    return {"ssim": float(similarity.mean()) if similarity.size else math.nan}


def _similarity(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """SSIM of each window and channel of two pictures: (H, W, 3) in [0, 1] -> (H - 10, W - 10, 3)."""
    from scipy.ndimage import gaussian_filter

    def blur(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return gaussian_filter(x, SIGMA, axes=(0, 1), radius=_EDGE)[_EDGE:-_EDGE, _EDGE:-_EDGE]

    mean1, mean2 = blur(one), blur(other)
    both, squares = mean1 * mean2, mean1 * mean1 + mean2 * mean2
    likeness = (2 * both + _C1) * (2 * (blur(one * other) - both) + _C2)
    return likeness / ((squares + _C1) * (blur(one * one + other * other) - squares + _C2))
