"""fourm: any-to-any generation with 4M multimodal masked transformers."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fourm.api.model import Model, load, run
    from fourm.api.reading import read
    from fourm.api.results import Result
    from fourm.api.schedule import Schedule
    from fourm.errors import FourMError
    from fourm.evaluation.folder import evaluate
    from fourm.inputs.request import Request

__version__ = "0.1.0"
# Intel's matrix kernels read this variable when torch is imported: with this value they choose the same order
# of sums for every batch shape.
MKL_VARIABLE, MKL_VALUE = "MKL_CBWR", "AUTO,STRICT"
# Torch reads this one when it makes its first tensor: large tensors are then in large pages, where the kernel
# of the machine gives them to who asks, and are read up to half as fast again. Results stay the same.
PAGES_VARIABLE = "THP_MEM_ALLOC_ENABLE"


def set_variables() -> None:
    """Set the variables that torch reads when it is imported, unless they are set."""
    os.environ.setdefault(MKL_VARIABLE, MKL_VALUE)
    os.environ.setdefault(PAGES_VARIABLE, "1")


def import_when_used(room: str, public: Mapping[str, str]) -> tuple[list[str], Callable[[str], object]]:
    """`__all__` and `__getattr__` of a room (`fourm.data`): its public names are imported when first used.

    So `fourm --help` loads neither torch nor Pillow. public: names by file, separated by spaces.
    """
    homes = {name: f"{room}.{file}" for file, names in public.items() for name in names.split()}

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return sorted(homes), get


_PUBLIC = {
    "api.model": "Model load run",
    "api.reading": "read",
    "api.results": "Result",
    "api.schedule": "Schedule",
    "errors": "FourMError",
    "inputs.request": "Request",
    "evaluation.folder": "evaluate",
}
_names, _get = import_when_used(__name__, _PUBLIC)
__all__ = [
    "FourMError", "Model", "Request", "Result", "Schedule", "__version__", "evaluate", "load", "read", "run",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _names and "torch" not in sys.modules:
        set_variables()  # most of these names import torch
    return _get(name)


def __dir__() -> list[str]:
    return [*globals(), *_names]
