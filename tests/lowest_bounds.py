"""Prints every lower bound of pyproject.toml as an exact version, for `pip install -c`: `make test-lowest`.

Torch is left out, because its build (CPU or CUDA) is installed first and on its own; xFormers, because each
of its versions fits one version of torch; and tools whose version changes no test (linters, type stubs).
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

_BOUND = re.compile(r"([A-Za-z0-9_.-]+)>=([0-9.]+)[^;]*(;.*)?")
_LEFT_OUT = {"torch", "xformers", "mypy", "ruff", "types-PyYAML", "pre-commit"}


def lowest_versions(pyproject: Path) -> Iterator[str]:
    """`name==bound` for each dependency, extras included; ValueError for one without a bound."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    for requirement in (one for group in groups for one in group):
        if requirement.startswith(f"{project['name']}["):  # an extra of this package
            continue
        match = _BOUND.fullmatch(requirement)
        if match is None:
            raise ValueError(f"{requirement!r} has no lower bound")
        if match[1] not in _LEFT_OUT:
            yield f"{match[1]}=={match[2]}{match[3] or ''}"


if __name__ == "__main__":
    print("\n".join(sorted(lowest_versions(Path(__file__).parent.parent / "pyproject.toml"))))
