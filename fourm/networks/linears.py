"""How linear layers keep their weights: as they are, in the order in which oneDNN reads them, or as int8.

PyTorch has oneDNN's operators for its compiler and does not publish them: they may change or be missing.
Then, and on other devices, in other dtypes and in small networks, float32 layers stay as they are, and int8
layers multiply with weights that are made floats again in each call.
"""

import platform
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourm.hub.header import is_int8

MIN_FEATURES = 768  # layers of fewer inputs stay as they are; no released transformer has one
# Numbers x, divided by max|x| / _LARGEST and added to _SHIFT, are rounded to whole numbers: floats from 2^23
# to 2^24 have steps of 1. The last three bytes of such a float are b0 + 256 b1 + 65536 b2, and the digits
# b - _ZERO make up the number without the shift.
_ZERO, _LARGEST = 64, 4.17e6
_SHIFT = float(2**23 + _ZERO * (1 + 256 + 65536))
# Products of fewer rows are filled up to so many: they are no faster, and one row alone has other last bits.
_MIN_ROWS = 4


class PackedLinear(nn.Module):
    """An `nn.Linear` in float32 on a CPU with its weights packed. A row's result depends on no other row."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _MIN_ROWS)
        self.weight = nn.Parameter(packed, requires_grad=False)  # (O, I), which `to_dense` unpacks
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        product = _opaque_product if torch.compiler.is_compiling() else _product
        return product(x, self.weight, self.bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.flatten(0, -2)
    filled = F.pad(rows, (0, 0, 0, _MIN_ROWS - len(rows))) if len(rows) < _MIN_ROWS else rows
    out = torch.ops.mkldnn._linear_pointwise(filled, weight, bias, "none", [], "")
    return out[: len(rows)].view(*x.shape[:-1], len(weight))


# torch's compiler has a kernel for oneDNN's operator that cannot take weights which are packed already.
_opaque_product = torch.library.custom_op("fourm::packed_linear", _product, mutates_args=())


@_opaque_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], len(weight)))


class Int8Linear(nn.Module):
    """A linear layer whose weights are whole numbers from -127 to 127, times one scale for each output.

    Its inputs are not rounded to int8.
    """

    values: Tensor  # (O, I) int8; packed for oneDNN where this CPU has exact products
    scale: Tensor  # (O, 1) float32
    is_packed: bool

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias  # the weights are on meta, until `fill`

    def fill(self, weight: Tensor) -> None:
        """Take the weights (O, I), of floats, of which only the rounded ones are kept."""
        values, self.scale = quantise(weight)
        self.is_packed = weight.device.type == "cpu" and has_exact_products()
        self.values = torch.ops.onednn.qlinear_prepack(values, None) if self.is_packed else values
        del self.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        if not self.is_packed:
            return F.linear(x, self.floats(x.dtype), self.bias)
        rows = x.reshape(-1, self.in_features).float()
        out = _int8_product(rows, self.values, self.scale.flatten()).to(x.dtype)
        out = out if self.bias is None else out + self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def floats(self, dtype: torch.dtype) -> Tensor:
        """The weights (O, I) as floats; only where they are not packed."""
        return (self.values * self.scale).to(dtype)


def set_int8(network: nn.Module) -> frozenset[str]:
    """Replace the linear layers of a transformer on meta that `is_int8` names by layers to be filled.

    Returns the names of their weights.
    """
    names = set[str]()
    for path, layer in tuple(network.named_modules()):
        if isinstance(layer, nn.Linear) and is_int8(f"{path}.weight", layer.weight.shape):
            parent, _, name = path.rpartition(".")
            network.get_submodule(parent).register_module(name, Int8Linear(layer))
            names.add(f"{path}.weight")
    return frozenset(names)


def floats_of(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """The weights (O, I) of a linear layer that is not packed, as floats."""
    return layer.floats(dtype) if isinstance(layer, Int8Linear) else cast("Tensor", layer.weight)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (O, I) as int8, and the scale (O, 1) float32 of each row; the error is half of it at most."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-37)
    return (weight / scale).round().to(torch.int8), scale


def _int8_product(x: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    """x (R, I) float32 times packed int8 weights (O, I) and their scale (O,): (R, O) float32.

    x is split into three digits of 8 bits, relative to the largest number of its row, which rounds it by
    2^-23 of that at most. Products of digits and weights are added as integers, so a row's result depends
    on no other row and on no number of threads.
    """
    unit = torch.linalg.vector_norm(x, float("inf"), -1, True).div_(_LARGEST).clamp_min_(1e-37)
    digits = torch.addcdiv(x.new_tensor(_SHIFT), x, unit).view(torch.uint8).view(*x.shape, 4)[..., :3]
    out = torch.ops.onednn.qlinear_pointwise(
        digits.permute(2, 0, 1).reshape(-1, x.shape[1]), 1.0, _ZERO, packed, scale,
        torch.zeros(len(scale), dtype=torch.int64), None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    low, middle, high = out.view(3, len(x), -1)
    return torch.add(low, middle, alpha=256).add_(high, alpha=65536).mul_(unit)


@cache
def has_exact_products() -> bool:
    """True if this CPU and this PyTorch multiply int8 without overflows, as CPUs with VNNI do.

    Others add pairs of products in 16 bits, which are too few, or lack oneDNN's operators.
    """
    x = torch.linspace(-1, 2, 128).view(2, 64)
    try:
        packed = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), None)
        found = _int8_product(x, packed, torch.full((16,), 1 / 127))
    except (AttributeError, RuntimeError):
        return False
    return bool(((found - x.sum(1, keepdim=True)).abs() < 1e-3).all())


def pack(network: nn.Module, min_features: int = MIN_FEATURES) -> None:
    """Pack the weights of all layers of a network that `packed_layer` can pack."""
    for parent in tuple(network.modules()):
        for name, layer in tuple(parent.named_children()):
            if (packed := packed_layer(layer, min_features)) is not layer:
                parent.register_module(name, packed)


def packed_layer(layer: nn.Module, min_features: int = MIN_FEATURES) -> nn.Module:
    """The layer to use instead: a packed one if this is a linear layer of so many inputs, float32 on a CPU.

    Otherwise, and where PyTorch lacks oneDNN's operators, it is the layer itself.
    """
    if not isinstance(layer, nn.Linear) or layer.in_features < min_features or not _has_operators():
        return layer
    weight = layer.weight
    return PackedLinear(layer) if weight.device.type == "cpu" and weight.dtype == torch.float32 else layer


def copied_weights(network: nn.Module) -> frozenset[str]:
    """The names of weights that may be packed, those of layers of `MIN_FEATURES` inputs, or will be int8."""
    kinds = {nn.Linear: MIN_FEATURES, Int8Linear: 0}
    layers = ((name, one) for name, one in network.named_modules() if type(one) in kinds)
    return frozenset(f"{name}.weight" for name, one in layers if one.in_features >= kinds[type(one)])


def _has_operators() -> bool:
    """True on x86, where they were measured, if this PyTorch comes with oneDNN."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and all(hasattr(torch.ops.mkldnn, name) for name in names)
