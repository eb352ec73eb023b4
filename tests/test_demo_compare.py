"""What a setting costs is measured by commands alone: `python -m demo.compare`."""

from pathlib import Path

import pytest

from demo.compare import COLUMNS, compare, line_of


@pytest.mark.more
def test_a_setting_is_compared_with_the_usual_one(tmp_path: Path) -> None:
    first, second = compare(tmp_path, ["weights"], 2)
    assert first["right"] == second["right"] == 1.0
    assert first["first"] == {}
    assert second["first"]["tok_rgb@64/token_share"]["value"] == 1.0
    assert second["first"]["rgb/psnr"]["identical"] == 2
    assert second["scene"]["rgb/psnr"]["value"] > 35
    assert len(line_of(second).strip("| ").split("|")) == len(COLUMNS)
