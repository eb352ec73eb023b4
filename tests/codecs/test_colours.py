"""Colours of depth, labels and features: recorded ones, stable ones, and a legend that agrees with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourm.codecs.coco import COCO_NAMES, NUM_COCO_LABELS
from fourm.codecs.colours import (
    NO_CLASS,
    feature_colours,
    legend,
    paint_features,
    paint_labels,
    to_bytes,
    turbo,
)  # fmt: skip
from fourm.codecs.table import build_codec
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED
from fourm.networks.state import full_pixels

SHAPES = st.tuples(st.integers(3, 12), st.integers(2, 6), st.integers(2, 6))


def test_recorded_pixels_are_shown_as_recorded(golden: Path) -> None:
    import torch

    recorded = np.load(golden / "data" / "pictures.npz")
    slot = full_pixels(torch.from_numpy(recorded["rgb_input/tensor"]), 6)
    (value,) = build_codec(RELEASED.get("rgb@224")).decode(slot)
    assert np.abs(value / 255 - recorded["rgb_input/picture"].clip(0, 1)).max() <= 0.5 / 255 + 1e-6


def test_the_table_of_classes_is_the_public_one(golden: Path) -> None:
    labels = json.loads((golden / "data" / "semseg_palette.json").read_text())["labels"]
    assert [row["name"] for row in labels[1:]] == list(COCO_NAMES)
    everything = np.array([[(row["label"] - 1) % 256 for row in labels]], np.uint8)
    entries = {entry.name: entry.colour for entry in legend(everything, NUM_COCO_LABELS)}
    assert entries == {row["name"]: tuple(row["colour"]) for row in labels[1:]} | {"no class": (128,) * 3}


@settings(max_examples=60, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 255), min_size=1, max_size=40),
    num_labels=st.sampled_from([2, 4, 134, 300]),
)
def test_a_legend_has_every_class_of_the_picture_in_its_colour(numbers: list[int], num_labels: int) -> None:
    labels = np.array([numbers], np.uint8)
    entries = legend(labels, num_labels)
    assert len(entries) == len(set(numbers))
    assert sum(entry.share for entry in entries) == pytest.approx(1)
    painted = paint_labels(labels, num_labels)
    assert {entry.colour for entry in entries} == {tuple(colour) for colour in painted[0].tolist()}
    shares = [entry.share for entry in entries if entry.name != "no class"]
    assert shares == sorted(shares, reverse=True)
    assert [entry.name for entry in entries].count("no class") == (NO_CLASS in numbers)
    if NO_CLASS in numbers:
        assert entries[-1].name == "no class"


def test_classes_have_the_names_of_their_row() -> None:
    row = find_model("demo").registry.get("tok_semseg@64")
    value = np.array([[0, 1, 1, 2, 255, 255, 255, 255]], np.uint8)
    codec = build_codec(row)
    assert [(e.name, e.share) for e in codec.legend(value)] == [
        ("square", 0.25), ("circle", 0.125), ("triangle", 0.125), ("no class", 0.5)
    ]  # fmt: skip
    colours = np.asarray(codec.picture(value))[0, [1, 0, 3, 4]].tolist()
    assert [list(entry.colour) for entry in codec.legend(value)] == colours
    assert legend(value, 10)[0].name == "class 1"


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**32 - 1))
def test_a_mirrored_map_of_features_has_the_mirrored_picture(shape: tuple[int, int, int], seed: int) -> None:
    """Components are those of the set of places, so that colours do not depend on where things stand."""
    features = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    picture = paint_features(features).astype(int)
    for axis, there in ((2, 1), (1, 0)):
        turned = paint_features(np.flip(features, axis)).astype(int)
        assert np.abs(np.flip(turned, there) - picture).max() <= 1


def test_colours_of_features_stay_where_the_map_hardly_changes() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(64, 4)))[0]
    weights = rng.normal(size=(4, 14, 14)) * np.array([9.0, 6.0, 4.0, 0.3])[:, None, None]
    features = np.einsum("cn,nhw->chw", basis, weights) + 3
    before = paint_features(features.astype(np.float32)).astype(int)
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=features.shape) * 1e-3
        after = paint_features((features + noise).astype(np.float32)).astype(int)
        assert np.abs(after - before).max() <= 2


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_very_small_and_very_large_values_have_colours_too(scale: float) -> None:
    ramp = (np.arange(12.0).reshape(3, 4) * scale).astype(np.float32)
    assert np.array_equal(turbo(ramp), turbo(np.arange(12.0).reshape(3, 4)))
    features = (np.random.default_rng(0).normal(size=(5, 6, 6)) * scale).astype(np.float32)
    assert paint_features(features).shape == (6, 6, 3)


def test_in_shared_colours_equal_features_look_equal_in_different_maps() -> None:
    generator = np.random.default_rng(5)
    kinds = generator.normal(size=(4, 12)).astype(np.float32)
    labels = [generator.integers(0, 4, (6, 6)), np.full((3, 8), 2), generator.integers(0, 2, (5, 5))]
    maps = [np.ascontiguousarray(np.moveaxis(kinds[one], -1, 0)) for one in labels]
    colours = feature_colours(maps)
    looks = {}
    for one, shown in zip(labels, [paint_features(m, colours) for m in maps], strict=True):
        for label, colour in zip(one.ravel(), shown.reshape(-1, 3), strict=True):
            looks.setdefault(int(label), set()).add(tuple(colour.tolist()))
    assert all(len(seen) == 1 for seen in looks.values())
    assert len({next(iter(seen)) for seen in looks.values()}) == 4
    alone = paint_features(maps[0])
    assert np.array_equal(alone, paint_features(maps[0], feature_colours([maps[0]])))
    assert feature_colours([np.ones((4, 2, 2), np.float32)]) is None


@pytest.mark.parametrize("count", [1, 2, 7, 768, 1280])
def test_a_single_vector_is_shown_as_its_numbers(count: int) -> None:
    vector = np.random.default_rng(0).permutation(count).astype(np.float32).reshape(count, 1, 1)
    picture = paint_features(vector)
    assert picture.shape[0] * picture.shape[1] == count
    assert picture.shape[0] <= picture.shape[1]
    if count > 1:
        assert np.array_equal(picture.reshape(-1, 3), turbo(vector[:, 0]).reshape(-1, 3))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) == min(count, 256)


@pytest.mark.parametrize("shape", [(1, 3, 4), (2, 3, 4), (9, 1, 2), (5, 2, 1)])
def test_few_channels_or_places_have_colours_where_they_differ(shape: tuple[int, int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    colours = np.unique(paint_features(features).reshape(-1, 3), axis=0)
    assert len(colours) == shape[1] * shape[2]


def test_features_that_differ_by_little_have_colours_too() -> None:
    features = (np.random.default_rng(0).normal(size=(5, 6, 6)) * 1e-30).astype(np.float32)
    assert np.ptp(paint_features(features)) == 255


def test_recorded_pixels_are_rounded_where_the_reference_cuts_them_off(golden: Path) -> None:
    """Defect 27: `output_files.json` has what truncation stores; the nearest level is right."""
    cases = json.loads((golden / "data" / "output_files.json").read_text())["pixel_conversion"]
    values = np.array([case["value"] for case in cases])
    assert (values * 255).astype(np.uint8).tolist() == [case["stored"] for case in cases]
    assert to_bytes(values).tolist() == [0, 0, 128, 127, 255, 255]
