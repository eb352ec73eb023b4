"""fourm: any-to-any generation with 4M multimodal masked transformers."""

import importlib
from collections.abc import Callable, Mapping

__version__ = "0.1.0"


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
