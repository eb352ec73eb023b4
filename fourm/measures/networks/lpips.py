"""LPIPS: the distance of two pictures in the features of AlexNet (Zhang et al. 2018, arXiv:1801.03924).

Parameters are named as in the public checkpoints: `features.0.weight` of AlexNet (Krizhevsky 2014,
arXiv:1404.5997; alexnet-owt-7be5be79.pth) and `lin0.model.1.weight` of the linear layers (version 0.1).
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.networks.checkpoint import load_strictly

SMALLEST = 31  # pixels of a side, so that the last pooling layer has an input
UNUSED = "classifier."  # beginnings of names: the layers of AlexNet behind its features
# From RGB in [-1, 1] to the statistics that AlexNet was trained with.
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_EPSILON = 1e-10  # of a division by a norm
_CONVOLUTIONS = {0: (3, 64, 11, 4, 2), 3: (64, 192, 5, 1, 2), 6: (192, 384, 3, 1, 1),
                 8: (384, 256, 3, 1, 1), 10: (256, 256, 3, 1, 1)}  # fmt: skip
_POOLED = (3, 6)  # convolutions whose input is pooled first


class LPIPS(nn.Module):
    """The distance of pictures, 0 for equal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict({str(n): nn.Conv2d(*shape) for n, shape in _CONVOLUTIONS.items()})
        for number, (_, width, *_) in enumerate(_CONVOLUTIONS.values()):
            layer = nn.ModuleDict({"1": nn.Conv2d(width, 1, 1, bias=False)})
            self.add_module(f"lin{number}", nn.ModuleDict({"model": layer}))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """(B, 3, H, W) of floats in [0, 1], both -> (B,)."""
        distance = first.new_zeros(len(first))
        pairs = zip(self.layers(first), self.layers(second), strict=True)
        for number, (one, other) in enumerate(pairs):
            weight = self.get_parameter(f"lin{number}.model.1.weight")
            squares = (_normalised(one) - _normalised(other)).square()
            distance = distance + F.conv2d(squares, weight).mean((1, 2, 3))
        return distance

    def layers(self, pictures: Tensor) -> list[Tensor]:
        """The features behind each of the five activations."""
        shift, scale = (pictures.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        x, found = (2 * pictures - 1 - shift) / scale, list[Tensor]()
        for number in _CONVOLUTIONS:
            x = F.max_pool2d(x, 3, stride=2) if number in _POOLED else x
            x = F.relu(self.features[str(number)](x))
            found.append(x)
        return found


def _normalised(x: Tensor) -> Tensor:
    """Each position's vector of features divided by its length."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + _EPSILON)


def load_lpips(path: Path, device: str | torch.device = "cpu") -> LPIPS:
    """The network of a safetensors file that holds the tensors of both public checkpoints."""
    with torch.device("meta"):
        network = LPIPS()
    return load_strictly(network, path, device, lambda name: name.startswith(UNUSED))
