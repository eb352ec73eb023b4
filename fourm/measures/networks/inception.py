"""The Inception-v3 that FID and Inception score are defined with, as ported from TensorFlow.

Szegedy et al. 2015, arXiv:1512.00567. Parameters are named as in the public checkpoint
`pt_inception-2015-12-05-6726825d.pth`. The network of TensorFlow's graph differs from the paper's in what is
marked below as "of the graph": padding does not count in averages, and the last block pools by maxima.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.networks.checkpoint import load_strictly

SIDE = 299  # pixels of its input
FEATURES, CLASSES = 2048, 1008
UNUSED = ("num_batches_tracked",)  # ends of names: counters that some versions of PyTorch add


class Convolution(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int | tuple[int, int], stride: int = 1,
                 padding: int | tuple[int, int] = 0) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(dim_out, eps=1e-3)
        self.bn.num_batches_tracked = None  # as UNUSED

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim_in, H, W) -> (B, dim_out, H', W')."""
        return F.relu(self.bn(self.conv(x)))


_pool = partial(F.max_pool2d, kernel_size=3, stride=2)
# Of the graph: the border does not count.
_average = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class MixedA(nn.Module):
    """The blocks of 35 x 35 positions (figure 5 of the paper)."""

    def __init__(self, dim: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(dim, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Convolution(dim, 48, 1), Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(dim, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(dim, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, 224 + pooled, H, W)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], 1)


class MixedB(nn.Module):
    """From 35 x 35 to 17 x 17 positions (figure 10)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(dim, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(dim, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, 480 + dim, H / 2, W / 2)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, _pool(x)], 1)


class MixedC(nn.Module):
    """The blocks of 17 x 17 positions, with factorised convolutions (figure 6)."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(dim, 192, 1)
        self.branch7x7_1 = Convolution(dim, width, 1)
        self.branch7x7_2 = Convolution(width, width, (1, 7), padding=(0, 3))
        self.branch7x7_3 = Convolution(width, 192, (7, 1), padding=(3, 0))
        self.branch7x7dbl_1 = Convolution(dim, width, 1)
        self.branch7x7dbl_2 = Convolution(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_3 = Convolution(width, width, (1, 7), padding=(0, 3))
        self.branch7x7dbl_4 = Convolution(width, width, (7, 1), padding=(3, 0))
        self.branch7x7dbl_5 = Convolution(width, 192, (1, 7), padding=(0, 3))
        self.branch_pool = Convolution(dim, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, 768, H, W)."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], 1)


class MixedD(nn.Module):
    """From 17 x 17 to 8 x 8 positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Convolution(dim, 192, 1), Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(dim, 192, 1)
        self.branch7x7x3_2 = Convolution(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Convolution(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, 512 + dim, H / 2, W / 2)."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, _pool(x)], 1)


class MixedE(nn.Module):
    """The blocks of 8 x 8 positions (figure 7)."""

    def __init__(self, dim: int, by_maxima: bool) -> None:
        super().__init__()
        self.by_maxima = by_maxima
        self.branch1x1 = Convolution(dim, 320, 1)
        self.branch3x3_1 = Convolution(dim, 384, 1)
        self.branch3x3_2a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Convolution(dim, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = Convolution(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Convolution(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = Convolution(dim, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> (B, 2048, H, W)."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.by_maxima else _average(x)
        branches = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        branches += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(branches, 1)


class Inception(nn.Module):
    """Pictures to the 2048 features of the last pooling layer and the logits of 1008 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = MixedA(192, 32), MixedA(256, 64), MixedA(288, 64)
        self.Mixed_6a = MixedB(288)
        self.Mixed_6b, self.Mixed_6c = MixedC(768, 128), MixedC(768, 160)
        self.Mixed_6d, self.Mixed_6e = MixedC(768, 160), MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b = MixedE(1280, by_maxima=False)
        self.Mixed_7c = MixedE(2048, by_maxima=True)  # of the graph
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) uint8 -> features (B, 2048), and logits without the bias (B, 1008).

        The Inception score is defined with logits that lack the bias, as its first implementation had them.
        """
        x = (resize(pictures.float(), SIDE) - 128) / 128
        x = _pool(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = _pool(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        features = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return features, self.fc(features) - self.fc.bias


def resize(x: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> (B, C, side, side), bilinear as TensorFlow 1 has it: corners of pixels, no smoothing.

    PyTorch's `interpolate` places the sampled points half a pixel differently.
    """
    for axis in (2, 3):
        size = x.shape[axis]
        places = torch.arange(side, device=x.device, dtype=torch.float64) * (size / side)
        low = places.long().clamp(max=size - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = side
        share = (places - low).to(x.dtype).view(shape)
        first, second = x.index_select(axis, low), x.index_select(axis, (low + 1).clamp(max=size - 1))
        x = first + (second - first) * share
    return x


def load_inception(path: Path, device: str | torch.device = "cpu") -> Inception:
    """The network of a safetensors file with the names of the public checkpoint."""
    with torch.device("meta"):
        network = Inception()
    return load_strictly(network, path, device, lambda name: name.endswith(UNUSED))
