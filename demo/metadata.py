"""What the demo world states about a picture: counts from the scene, statistics from its pixels."""

from functools import lru_cache

import numpy as np

from demo.render import render
from demo.world import Scene

# id, upper end of the value range (0 = a plain count); the ids and ranges are those of 4M's metadata table.
FIELDS = {
    "n_coco_instances": (7, 0),
    "coco_instance_diversity": (8, 0),
    "colorfulness": (9, 150),
    "brightness": (10, 255),
    "contrast": (11, 127),
    "saturation": (12, 255),
}


def metadata_text(scene: Scene) -> str:
    """`v1=id v0=bin` for each field, in the order of the ids."""
    return _cached_text(scene)


def metadata_values(scene: Scene) -> dict[str, float]:
    """Each field's exact value.

    colorfulness: Hasler and Suesstrunk 2003; brightness and contrast: mean and deviation of the grey
    picture (ITU-R 601); saturation: mean of (max - min) / max times 255.
    """
    rgb = render(scene).rgb.astype(np.float64)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    grey = 0.299 * red + 0.587 * green + 0.114 * blue
    opponent = np.stack([red - green, (red + green) / 2 - blue])
    high, low = rgb.max(-1), rgb.min(-1)
    return {
        "n_coco_instances": len(scene.things),
        "coco_instance_diversity": len({thing.shape for thing in scene.things}),
        "colorfulness": float(np.hypot(*opponent.std((1, 2))) + 0.3 * np.hypot(*opponent.mean((1, 2)))),
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "saturation": float(((high - low) / np.maximum(high, 1)).mean() * 255),
    }


@lru_cache(maxsize=20_000)
def _cached_text(scene: Scene) -> str:
    words = []
    for name, value in metadata_values(scene).items():
        index, top = FIELDS[name]
        words.append(f"v1={index} v0={int(min(value, top) / top * 49) if top else int(value)}")
    return " ".join(words)
