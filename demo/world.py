"""The demo world: scenes of one or two objects, their captions, boxes and palettes, all exactly known."""

import hashlib
import random
from dataclasses import dataclass, replace

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (225, 45, 45),
    "orange": (240, 140, 30),
    "yellow": (235, 220, 40),
    "green": (50, 170, 70),
    "blue": (45, 90, 225),
    "purple": (150, 60, 190),
}
BACKGROUNDS = {
    "white": (245, 245, 245),
    "gray": (150, 150, 150),
    "black": (25, 25, 25),
    "tan": (210, 180, 140),
}
SIZES = {"small": 8, "large": 16}  # half the side of the block that an object fills, in pixels at scale 1
PLACES = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

SIDE = 64  # pixels of a picture at scale 1
PATCH = 8  # pixels of a patch at every scale; object centres lie on patch corners at scale 1
NUM_BINS = 64  # coordinate words of a box
MARGIN = 0.5  # pixels at scale 1 between an object and the border of its block
NUM_CAPTIONS = 18_576  # complete captions that the grammar can form

_CANONICAL = (16, 32, 48)  # centres of the thirds
_SHIFTED = {"small": ((8,), (24, 40), (56,)), "large": ((16,), (24, 40), (48,))}
_SHIFT_RATE = 0.1  # of the scenes stand off the thirds
_SINGLE_RATE = 0.3
_HELD_OUT = 8  # one of so many attribute combinations is never trained on


@dataclass(frozen=True, slots=True)
class Thing:
    """One object; cx and cy are its centre in pixels at scale 1, multiples of the patch size."""

    shape: str
    colour: str
    size: str
    cx: int
    cy: int

    @property
    def block(self) -> tuple[int, int, int]:
        """(row, column, side) of the patches it fills."""
        half = SIZES[self.size]
        return (self.cy - half) // PATCH, (self.cx - half) // PATCH, 2 * half // PATCH

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(xmin, ymin, xmax, ymax) as fractions of the picture."""
        half = SIZES[self.size] - MARGIN
        return tuple(v / SIDE for v in (self.cx - half, self.cy - half, self.cx + half, self.cy + half))  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture of the world: a background and one or two things of different colours."""

    background: str
    things: tuple[Thing, ...]

    @property
    def relation(self) -> str:
        """How the first of two things lies to the second."""
        first, second = self.things
        return relation_between((first.cx, first.cy), (second.cx, second.cy))


@dataclass(frozen=True, slots=True)
class Claim:
    """What a caption says of one thing; "" = not said."""

    shape: str
    colour: str = ""
    size: str = ""


@dataclass(frozen=True, slots=True)
class Caption:
    """What a caption says. `place` belongs to single things, `relation` to pairs; "" = not said."""

    things: tuple[Claim, ...]
    place: str = ""
    relation: str = ""
    background: str = ""


def relation_between(first: tuple[float, float], second: tuple[float, float]) -> str:
    """The relation word for two centres (x, y): the longer axis decides."""
    dx, dy = second[0] - first[0], second[1] - first[1]
    if abs(dx) >= abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def place_of(cx: float, cy: float, side: float = SIDE) -> str:
    """The place word for a centre in pixels of a picture with this side."""
    return PLACES[min(2, int(3 * cy / side))][min(2, int(3 * cx / side))]


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A random scene from the training combinations, or from the held-out ones."""
    while True:
        scene = _single(rng) if rng.random() < _SINGLE_RATE else _pair(rng)
        if is_held_out(scene) == held_out:
            return scene


def straighten(scene: Scene) -> Scene:
    """The same scene with every object in its usual place."""
    things = [
        replace(t, cx=_CANONICAL[3 * t.cx // SIDE], cy=_CANONICAL[3 * t.cy // SIDE]) for t in scene.things
    ]
    return Scene(scene.background, tuple(things))


def is_held_out(scene: Scene) -> bool:
    """True for the attribute combinations that training never shows.

    Pairs: which colour and shape stands beside which. Singles: which colour and shape stands where.
    """
    names = sorted(f"{thing.colour} {thing.shape}" for thing in scene.things)
    if len(names) == 1:
        names.append(place_of(scene.things[0].cx, scene.things[0].cy))
    digest = hashlib.sha256("|".join(names).encode()).digest()
    return digest[0] % _HELD_OUT == 0


def describe(scene: Scene) -> Caption:
    """All that a caption can say of a scene, the left or upper thing first."""
    first = scene.things[0]
    if len(scene.things) == 1:
        return Caption((_claim(first),), place=place_of(first.cx, first.cy), background=scene.background)
    things = scene.things if scene.relation in ("left of", "above") else scene.things[::-1]
    relation = scene.relation if things is scene.things else OPPOSITE[scene.relation]
    return Caption(tuple(_claim(t) for t in things), relation=relation, background=scene.background)


def vary(caption: Caption, rng: random.Random) -> Caption:
    """The same caption as people might put it: either order, and now and then something left unsaid."""
    things = tuple(_forget(claim, rng) for claim in caption.things)
    background = caption.background if rng.random() < 0.7 else ""
    if not caption.relation:
        return Caption(things, caption.place if rng.random() < 0.92 else "", "", background)
    if rng.random() < 0.5:
        return Caption(things[::-1], relation=OPPOSITE[caption.relation], background=background)
    return Caption(things, relation=caption.relation, background=background)


def print_caption(caption: Caption) -> str:
    """The caption as text."""
    words = " ".join(_noun(caption.things[0]))
    if caption.relation:
        words += f" {caption.relation} " + " ".join(_noun(caption.things[1]))
    if caption.place:
        words += f" at the {caption.place}"
    return words + (f" on a {caption.background} background" if caption.background else "")


def parse_caption(text: str) -> Caption | None:
    """The meaning of a caption, or None where it does not follow the grammar. Inverse of print_caption."""
    head, _, tail = text.partition(" on a ")
    background = tail.removesuffix(" background")
    if tail and (not tail.endswith(" background") or background not in BACKGROUNDS):
        return None
    for relation in RELATIONS:
        first, found, second = head.partition(f" {relation} ")
        if found:
            pair = (_parse_noun(first), _parse_noun(second))
            claims = tuple(claim for claim in pair if claim)
            return Caption(claims, relation=relation, background=background) if len(claims) == 2 else None
    noun, _, place = head.partition(" at the ")
    claim = _parse_noun(noun)
    known = not place or any(place in row for row in PLACES)
    return Caption((claim,), place=place, background=background) if claim and known else None


def normalise(caption: Caption) -> Caption:
    """The same meaning with the left or upper thing first."""
    if caption.relation in ("right of", "below"):
        return Caption(caption.things[::-1], "", OPPOSITE[caption.relation], caption.background)
    return caption


def boxes_text(scene: Scene) -> str:
    """`v0=xmin v1=ymin v2=xmax v3=ymax shape` for each thing, nearest to the origin first."""
    things = sorted(scene.things, key=lambda t: t.box[0] ** 2 + t.box[1] ** 2)
    words = [
        " ".join(f"v{axis}={round(v * (NUM_BINS - 1))}" for axis, v in enumerate(t.box)) + f" {t.shape}"
        for t in things
    ]
    return " ".join(words)


def palette_colours(scene: Scene) -> list[tuple[int, int, int]]:
    """The background's colour (r, g, b), then the things' in the order of the boxes."""
    things = sorted(scene.things, key=lambda t: t.box[0] ** 2 + t.box[1] ** 2)
    return [BACKGROUNDS[scene.background], *(COLOURS[t.colour] for t in things)]


def palette_text(scene: Scene) -> str:
    """`v1=n v0=r v0=g v0=b ...` of these colours."""
    colours = palette_colours(scene)
    return f"v1={len(colours)} " + " ".join(f"v0={v}" for rgb in colours for v in rgb)


def _claim(thing: Thing) -> Claim:
    return Claim(thing.shape, thing.colour, thing.size)


def _forget(claim: Claim, rng: random.Random) -> Claim:
    size = claim.size if rng.random() < 0.85 else ""
    return Claim(claim.shape, claim.colour if rng.random() < 0.95 else "", size)


def _noun(claim: Claim) -> list[str]:
    return ["a", *(word for word in (claim.size, claim.colour, claim.shape) if word)]


def _parse_noun(text: str) -> Claim | None:
    article, *words = text.split(" ")
    size = words.pop(0) if words and words[0] in SIZES else ""
    colour = words.pop(0) if words and words[0] in COLOURS else ""
    return (
        Claim(words[0], colour, size) if article == "a" and len(words) == 1 and words[0] in SHAPES else None
    )


def _single(rng: random.Random) -> Scene:
    size = rng.choice(tuple(SIZES))
    column, row = rng.randrange(3), rng.randrange(3)
    cx, cy = _CANONICAL[column], _CANONICAL[row]
    if rng.random() < _SHIFT_RATE:
        cx, cy = rng.choice(_SHIFTED[size][column]), rng.choice(_SHIFTED[size][row])
    thing = Thing(rng.choice(SHAPES), rng.choice(tuple(COLOURS)), size, cx, cy)
    return Scene(rng.choice(tuple(BACKGROUNDS)), (thing,))


def _pair(rng: random.Random) -> Scene:
    shifted = rng.random() < _SHIFT_RATE
    across = rng.choice((24, 40)) if shifted else 32
    upright = rng.random() < 0.5
    things = []
    for end, colour in zip((0, 2), rng.sample(tuple(COLOURS), 2), strict=True):
        size = rng.choice(tuple(SIZES))
        along = rng.choice(_SHIFTED[size][end]) if shifted else _CANONICAL[end]
        cx, cy = (across, along) if upright else (along, across)
        things.append(Thing(rng.choice(SHAPES), colour, size, cx, cy))
    return Scene(rng.choice(tuple(BACKGROUNDS)), tuple(things))
