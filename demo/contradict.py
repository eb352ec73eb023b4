"""Conditions that contradict or complete each other, and which of them a picture follows."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.patches import tokens_of
from demo.readback import agrees, caption_of, read_picture
from demo.tasks import GRIDS
from demo.world import (
    BACKGROUNDS,
    Caption,
    Claim,
    Scene,
    describe,
    place_of,
    print_caption,
    sample_scene,
    straighten,
)
from fourm.codecs.files import read_picture as open_picture
from fourm.data.layout import Key, number_keys, path_of
from fourm.hub.catalogue import DEMO
from fourm.hub.files import find_model
from fourm.inputs.request import Request
from fourm.results.events import Failed
from fourm.runs.pipeline import run
from fourm.schedule.plan import parse_chain
from fourm.sources.reading import read_samples
from fourm.sources.source import Source

ATTRIBUTES = ("colour", "shape", "size", "place", "background")
FLOOR, GROUND = 0.87, 60  # of a range of 1; 8-bit levels: what is nearer or differs more is no background

Picture = NDArray[np.uint8]


class Verdict(Enum):
    """Which of two scenes a picture shows."""

    FIRST = "first"
    SECOND = "second"
    MIXED = "mixed"  # a clean picture, every attribute or thing from one of the two, and something of both
    NEITHER = "neither"  # all else, mostly pictures without a clean object


@dataclass(frozen=True, slots=True)
class Pair:
    """What the first and the second condition say."""

    first: Scene
    second: Scene


def contradictions(count: int, seed: int = 5, only: str = "") -> list[Pair]:
    """Scenes of one thing that differ in every attribute, or in `only` this one; held-out combinations."""
    rng, found = random.Random(seed), list[Pair]()
    while len(found) < count:
        first, second = _single(rng), _single(rng)
        if all(traits(first)[name] != traits(second)[name] for name in ATTRIBUTES):
            found.append(Pair(first, _with(first, only, second) if only else second))
    return found


def traits(scene: Scene) -> dict[str, str]:
    """The five attributes of a scene of one thing, by name."""
    thing = scene.things[0]
    place = place_of(thing.cx, thing.cy)
    return dict(
        zip(ATTRIBUTES, (thing.colour, thing.shape, thing.size, place, scene.background), strict=True)
    )


def write_conditions(root: Path, captions: Sequence[Caption], grids: Sequence[Scene], name: str) -> list[Key]:
    """A dataset folder: a caption and the tokens of another scene under the same name."""
    keys = number_keys(len(captions))
    for key, caption, scene in zip(keys, captions, grids, strict=True):
        text = path_of(root, "caption", key, ".txt")
        tokens = path_of(root, name, key, ".npy")
        for path in (text, tokens):
            path.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(print_caption(caption))
        np.save(tokens, tokens_of(scene, GRIDS[name][0]).reshape(1, -1), allow_pickle=False)
    return keys


def generate(data: Path, options: str, out: Path) -> Path:
    """The folder of what `fourm generate --data DATA OPTIONS` makes of a folder of conditions: `out`."""
    model = find_model(DEMO)
    chain = parse_chain(options, model)
    samples = read_samples(Source((), str(data)), chain.conditions, model, BytesIO(), chain.raw).samples
    for event in run(Request(model, chain, samples, out)):
        if isinstance(event, Failed):
            raise SystemExit(f"{data}: {event}")
    return out


def pictures_of(out: Path, keys: Sequence[Key]) -> list[Picture]:
    """The pictures of a run, (H, W, 3) each."""
    return [np.asarray(open_picture(path_of(out, "rgb", key, ".png"))) for key in keys]


def verdict_of(rgb: Picture, pair: Pair) -> Verdict:
    """Which scene a picture of (H, W, 3) pixels shows."""
    shown = caption_of(rgb)
    first, second = describe(pair.first), describe(pair.second)
    if agrees(first, shown):
        return Verdict.FIRST
    if agrees(second, shown):
        return Verdict.SECOND
    if shown is None or shown.background not in (first.background, second.background):
        return Verdict.NEITHER
    if len(shown.things) == 2:
        both = set(shown.things) == {first.things[0], second.things[0]}
        return Verdict.MIXED if both else Verdict.NEITHER
    is_mixed = all(_trait(shown, name) in (_trait(first, name), _trait(second, name)) for name in ATTRIBUTES)
    return Verdict.MIXED if is_mixed else Verdict.NEITHER


def shows_colour(rgb: Picture, colour: str) -> bool:
    """Whether a blob of this colour can be seen, clean object or not."""
    return any(seen.claim.colour == colour for seen in read_picture(rgb)[1])


def overlap(rgb: Picture, depth: NDArray[np.floating]) -> float:
    """Intersection over union of what stands out in a picture and what is near in a depth map."""
    ground = np.array(BACKGROUNDS[read_picture(rgb)[0] or "white"])
    things = np.abs(rgb.astype(int) - ground).max(-1) > GROUND
    near = depth < FLOOR
    union = (things | near).sum()
    return float((things & near).sum() / union) if union else 0.0


def unplaced(scene: Scene, colour: str = "", background: bool = True) -> Caption:
    """A caption of a single thing that leaves its size and place unsaid; `colour` in place of its own."""
    thing = scene.things[0]
    claim = Claim(thing.shape, colour or thing.colour)
    return Caption((claim,), background=scene.background if background else "")


def unsized(scene: Scene) -> Caption:
    """A caption of a single thing that leaves its size unsaid."""
    caption = describe(scene)
    return replace(caption, things=(replace(caption.things[0], size=""),))


def _single(rng: random.Random) -> Scene:
    while True:
        scene = sample_scene(rng, held_out=True)
        if len(scene.things) == 1:
            return straighten(scene)


def _with(scene: Scene, name: str, other: Scene) -> Scene:
    """A scene with one attribute of another."""
    if name == "background":
        return replace(scene, background=other.background)
    thing, source = scene.things[0], other.things[0]
    if name == "place":
        return replace(scene, things=(replace(thing, cx=source.cx, cy=source.cy),))
    return replace(scene, things=(replace(thing, **{name: getattr(source, name)}),))


def _trait(caption: Caption, name: str) -> str:
    if name in ("place", "background"):
        return str(getattr(caption, name))
    return str(getattr(caption.things[0], name))
