"""PSNR and SSIM against torchmetrics, scikit-image, and by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio as torch_psnr
from torchmetrics.functional.image import structural_similarity_index_measure

from tests.measures.measuring import row_of
from tests.measures.seeded import picture


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
    psnr, ssim = (row_of(name, "rgb@224", first, second)[name] for name in ("psnr", "ssim"))
    similarity = structural_similarity(
        first / 255, second / 255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=1.0, channel_axis=2,
    )  # fmt: skip
    assert ssim == pytest.approx(similarity, abs=1e-9)
    tensors = as_floats(first), as_floats(second)
    # Its number has the border of 5 pixels in it, where windows hold pixels that were mirrored.
    _, places = structural_similarity_index_measure(*tensors, data_range=1.0, return_full_image=True)
    assert ssim == pytest.approx(float(places[..., 5:-5, 5:-5].mean()), abs=1e-9)
    assert psnr == pytest.approx(peak_signal_noise_ratio(first, second), abs=1e-9)
    assert psnr == pytest.approx(float(torch_psnr(*tensors, data_range=1.0)), rel=1e-6)


def test_ssim_counts_windows_whose_centre_is_known() -> None:
    known = np.zeros((64, 64), bool)
    known[5:30] = True
    changed = picture(1)
    changed[40:] = 0  # nothing within five pixels of what is known
    assert row_of("ssim", "rgb@224", picture(1), changed, known)["ssim"] == pytest.approx(1, abs=1e-12)
    assert math.isnan(row_of("ssim", "rgb@224", picture(1), changed, known & False)["ssim"])
