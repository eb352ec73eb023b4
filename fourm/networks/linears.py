"""Linear layers that CPUs multiply faster: their weights are kept in the order in which oneDNN reads them.

PyTorch has oneDNN's operators for its compiler and does not publish them: they may change or be missing.
Then, and on other devices, in other dtypes and in small networks, layers stay as they are.
"""

import platform

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_FEATURES = 768  # layers of fewer inputs stay as they are; no released transformer has one
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


def weights_of_large_layers(network: nn.Module, min_features: int = MIN_FEATURES) -> frozenset[str]:
    """The names of the weights of linear layers of so many inputs."""
    layers = ((name, one) for name, one in network.named_modules() if isinstance(one, nn.Linear))
    return frozenset(f"{name}.weight" for name, layer in layers if layer.in_features >= min_features)


def _has_operators() -> bool:
    """True on x86, where they were measured, if this PyTorch comes with oneDNN."""
    names = ("_reorder_linear_weight", "_linear_pointwise")
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return is_x86 and all(hasattr(torch.ops.mkldnn, name) for name in names)
