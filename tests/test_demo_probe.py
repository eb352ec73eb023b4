"""Features of the embedded model name what a picture shows; those of a network with fresh weights do less."""

from pathlib import Path

import numpy as np
import pytest

import fourm
from demo.bundle import BUNDLE
from demo.probe import ASKED, measure, share_named, single_scenes, write_untrained
from demo.world import is_held_out


def test_scenes_of_one_thing_are_apart() -> None:
    seen, asked = single_scenes(50, 1, held_out=False), single_scenes(50, 2, held_out=True)
    assert [len({*scenes}) for scenes in (seen, asked)] == [50, 50]
    assert not any(map(is_held_out, seen))
    assert all(map(is_held_out, asked))
    assert {len(scene.things) for scene in (*seen, *asked)} == {1}


def test_a_linear_classifier_learns_what_is_linear_and_nothing_from_noise() -> None:
    rng = np.random.default_rng(0)
    x, noise = (rng.normal(size=(600, 8)).astype(np.float32) for _ in range(2))
    labels = [f"{a > 0}-{b > 0}" for a, b in x[:, :2]]
    assert share_named(x[:500], labels[:500], x[500:], labels[500:]) > 0.9
    assert share_named(noise[:500], labels[:500], noise[500:], labels[500:]) < 0.5


@pytest.mark.parametrize("name", ["rgb", "tok_rgb"])
def test_features_name_colour_shape_and_size_of_held_out_scenes(name: str, tmp_path: Path) -> None:
    shares = {}
    for where in (BUNDLE, write_untrained(tmp_path / "fresh")):
        with fourm.load(where, device="cpu") as model:
            shares[where == BUNDLE] = measure(model, name, "last", [250], 60)[250]
    assert all(shares[True][one] >= 0.95 for one in ASKED), shares
    assert shares[False]["shape"] < 0.95, shares
    assert shares[False]["colour"] < 0.95, shares
