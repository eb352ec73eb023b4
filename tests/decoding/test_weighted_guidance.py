"""Weights of contradicting conditions decide which of them the embedded model follows."""

from collections import Counter
from pathlib import Path

import pytest

from demo.contradict import (
    Pair,
    Verdict,
    contradictions,
    generate,
    pictures_of,
    shows_colour,
    unplaced,
    verdict_of,
    write_conditions,
)
from demo.readback import agrees, caption_of
from demo.world import describe
from fourm.data.layout import Key

COUNT = 12
CLEAR = 10  # of so many

Folder = tuple[Path, list[Key], list[Pair]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Captions of one scene beside features of another that differs in everything."""
    root, pairs = tmp_path_factory.mktemp("against"), contradictions(COUNT)
    captions = [describe(pair.first) for pair in pairs]
    return root, write_conditions(root, captions, [pair.second for pair in pairs], "tok_clip@64"), pairs


def verdicts(folder: Folder, cond: str, out: Path) -> Counter[Verdict]:
    root, keys, pairs = folder
    made = pictures_of(generate(root, f"--cond {cond} --targets tok_rgb", out), keys)
    return Counter(verdict_of(rgb, pair) for rgb, pair in zip(made, pairs, strict=True))


def test_the_condition_with_the_larger_weight_is_followed(folder: Folder, tmp_path: Path) -> None:
    caption = verdicts(folder, "caption:1,tok_clip:0.25", tmp_path / "caption")
    features = verdicts(folder, "caption:0.25,tok_clip:1", tmp_path / "features")
    assert caption[Verdict.FIRST] >= CLEAR
    assert caption[Verdict.SECOND] == 0
    assert features[Verdict.SECOND] >= CLEAR
    assert features[Verdict.FIRST] == 0


def test_a_weight_of_zero_is_as_if_the_condition_were_not_there(folder: Folder, tmp_path: Path) -> None:
    root, keys, _ = folder
    both = generate(root, "--cond caption:1,tok_clip:0 --targets tok_rgb", tmp_path / "both")
    alone = generate(root, "--cond caption:1 --targets tok_rgb", tmp_path / "alone")
    for one, other in zip(pictures_of(both, keys), pictures_of(alone, keys), strict=True):
        assert (one == other).all()


def test_conditions_that_complete_each_other_are_both_followed(tmp_path: Path) -> None:
    scenes = [pair.second for pair in contradictions(COUNT)]
    root = tmp_path / "data"
    keys = write_conditions(root, [unplaced(scene) for scene in scenes], scenes, "tok_depth@64")
    right = {}
    for name, cond in {"caption": "caption:1,tok_depth:0", "both": "caption:1,tok_depth:1"}.items():
        made = pictures_of(generate(root, f"--cond {cond} --targets tok_rgb", tmp_path / name), keys)
        right[name] = sum(agrees(describe(s), caption_of(rgb)) for s, rgb in zip(scenes, made, strict=True))
    assert right["both"] >= CLEAR
    assert right["caption"] <= COUNT - CLEAR


def test_a_negative_weight_keeps_a_colour_out_that_a_positive_one_brings(tmp_path: Path) -> None:
    scenes = [pair.second for pair in contradictions(COUNT)]
    captions = [unplaced(scene, "red", background=False) for scene in scenes]
    keys = write_conditions(tmp_path / "data", captions, scenes, "tok_depth@64")
    red = {}
    for weight in (1.0, -0.5):
        options = f"--cond caption:{weight},tok_depth:1 --targets tok_rgb"
        made = pictures_of(generate(tmp_path / "data", options, tmp_path / str(weight)), keys)
        red[weight] = sum(shows_colour(rgb, "red") for rgb in made)
    assert red[1.0] >= CLEAR
    assert red[-0.5] <= COUNT - CLEAR
