"""The files of sharded runs are found for `retrieve`, with the names that they have among single files."""

from pathlib import Path

import pytest

from fourm.data.containers import is_there
from fourm.data.shards import FORMATS
from fourm.modalities.registry import RELEASED
from fourm.views import retrieval
from tests.sharded_folder import make_folder


@pytest.mark.parametrize("form", FORMATS[1:])
def test_samples_in_shards_have_the_names_of_files(form: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "out", form)  # type: ignore[arg-type]
    found = retrieval._files(tmp_path / "out", "rgb", RELEASED)
    assert [*found] == [f"00000/{number:06d}" for number in range(9) if number != 5]
    assert all(map(is_there, found.values()))
