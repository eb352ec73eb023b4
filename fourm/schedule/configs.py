"""The configuration files that come with the package, by name."""

import os
from collections.abc import Mapping
from pathlib import Path

from fourm.errors import UsageError, near_match
from fourm.files.opening import local_path, read_bytes

_PACKAGE = Path(__file__).resolve().parents[1]
_FOLDERS = (_PACKAGE / "cfgs", _PACKAGE.parent / "cfgs")  # as installed from a wheel; in a checkout
_SUFFIX = ".yaml"
# The option that a file is meant for, by the name of its folder.
_OPTIONS = {"models": "-c", "data": "-dc", "settings_base": "-gc", "settings_sr": "-src", "demo": "-gc"}


def list_configs() -> Mapping[str, Path]:
    """All files by name, which is that of the file without its ending."""
    folder = next((one for one in _FOLDERS if one.is_dir()), _FOLDERS[0])
    return {path.name.removesuffix(_SUFFIX): path for path in sorted(folder.rglob(f"*{_SUFFIX}"))}


def find_config(text: str | os.PathLike[str]) -> Path:
    """The path that a text is, or that of the package's file with this name; what exists as a file wins."""
    path = local_path(text)
    if os.path.dirname(text) or (path.exists() and not path.is_dir()):
        return path
    known, name = list_configs(), path.name.removesuffix(_SUFFIX)
    if name not in known:
        near = near_match(name, known) or "; `fourm models --configs` lists those"
        raise UsageError(f"{path}: no such file, nor a configuration of the package{near}")
    return known[name]


def option_of(config: Path) -> str:
    """The option that a file of the package is meant for, such as `-gc`."""
    return _OPTIONS[config.parent.name]


def title_of(config: Path) -> str:
    """What a file of the package is, from the comment that it begins with."""
    return read_bytes(config, 1 << 16).decode().partition("\n")[0].removeprefix("#").strip()
