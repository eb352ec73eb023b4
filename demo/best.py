"""Best of N: shares of right pictures of one, four and eight variations: `python -m demo.best`.

All eight variations of a scene are scored; the best of the first N is the one under which the model finds the
condition most likely. Pictures are judged by `demo.readback`, which looks at their pixels alone.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fourm
from demo.evaluate import told_by, usual_scenes
from demo.readback import agrees, caption_of
from demo.tasks import TEXTS, stack_tokens, text_of
from demo.world import Scene, describe

MOST = 8  # variations of each scene
_COUNTS = (1, 4, MOST)  # of which the best one is judged


@dataclass(frozen=True, slots=True)
class Way:
    """What a scene is given as, and how pictures are made of it."""

    condition: str  # full name; its likelihood chooses
    targets: str
    settings: Mapping[str, Any] = field(default_factory=dict)


_HOT = {"temps": [2.0, 1.0], "temp_schedules": ["constant"] * 2, "top_p": 0, "cfg": 1}
WAYS = (
    Way("caption", "tok_clip-tok_rgb", _HOT),
    Way("tok_semseg@64", "tok_rgb"),
    Way("det", "tok_clip-tok_rgb", {"temps": [3.0, 0.5]}),
)


def shares_right(model: fourm.Model, way: Way, scenes: Sequence[Scene]) -> list[float]:
    """The share of right pictures for each of `_COUNTS`."""
    name, right = way.condition, np.zeros(len(_COUNTS))
    is_text = name in TEXTS
    values = [text_of(scene, name) for scene in scenes] if is_text else [*stack_tokens(scenes, name).numpy()]
    given: dict[str, Any] = {name: values, "best": f"{MOST}/{MOST}", "by": name, **way.settings}
    made = model(targets=way.targets, **given)
    assert isinstance(made, list)
    for at, scene in enumerate(scenes):
        ranked, asked = made[at * MOST : (at + 1) * MOST], told_by(name, describe(scene))
        scores = ranked[0].scores
        assert scores is not None
        numbers = scores.kept
        shown = dict(zip(numbers, (caption_of(np.asarray(one.rgb)) for one in ranked), strict=True))
        right += [agrees(asked, shown[next(n for n in numbers if n < count)]) for count in _COUNTS]
    return [float(share) for share in right / len(scenes)]


def main() -> None:
    """Print the table of docs/demo-model.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50, help="held-out scenes")
    options = parser.parse_args()
    model, scenes = fourm.load("demo", device="cpu"), usual_scenes(options.samples)
    print("| given, and chosen by | made | one variation |", *(f"best of {n} |" for n in _COUNTS[1:]))
    print("| --- | --- |", *["---: |"] * len(_COUNTS))
    for way in WAYS:
        shares = shares_right(model, way, scenes)
        print(f"| {way.condition} | {way.targets} |", *(f"{share:.2f} |" for share in shares), flush=True)


if __name__ == "__main__":
    main()
