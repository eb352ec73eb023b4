"""The variables that torch reads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fourm

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("own", [{}, {"MKL_CBWR": "AUTO", "THP_MEM_ALLOC_ENABLE": "0"}])
def test_torch_s_variables_are_set_before_torch_is_imported_unless_they_are_there(
    own: dict[str, str],
) -> None:
    names = {fourm.MKL_VARIABLE: fourm.MKL_VALUE, fourm.PAGES_VARIABLE: "1"}
    code = f"import fourm, os; fourm.Schedule; print([os.environ[one] for one in {list(names)}])"
    environment = {name: text for name, text in os.environ.items() if name not in names} | own
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str([*(names | own).values()])
