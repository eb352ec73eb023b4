"""Measures whose package is not installed are named with what installs it, and others are not concerned."""

import re

import pytest

from fourm.errors import MissingError
from fourm.measures.measure import Settings
from fourm.measures.tables import MEASURES, build_measure
from fourm.modalities.registry import RELEASED


@pytest.mark.parametrize("name", [row.name for row in MEASURES.values() if row.package])
def test_a_missing_package_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourm.measures.tables.find_spec", lambda package: None)
    said = f"{MEASURES[name].package} is not installed; `pip install 'fourm[eval]'` does it"
    with pytest.raises(MissingError, match=re.escape(said)):
        build_measure(MEASURES[name], Settings(RELEASED.get("caption")))
