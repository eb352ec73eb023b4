"""What tests of decoding share."""

from pathlib import Path

import pytest

from fourm.hub.files import find_model
from fourm.networks.checkpoint import load_model
from fourm.networks.model import FourM


@pytest.fixture(scope="module")
def network(tiny: Path) -> FourM:
    """The transformer of `tiny`."""
    return load_model(find_model(tiny))
