"""What `--keep` does with pictures of the demo world: measures and draws what docs/keep.md shows.

    python -m demo.keep [--count 200] [--out docs/images] [--work FOLDER]

Each scene has two objects, in different halves. The half with one of them is kept, and a caption asks for
another object in the place of the other one. Every number comes from a `fourm generate` of its own, and from
the pixels of the pictures that it wrote. Needs matplotlib.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from demo.dataset import scenes_of, write_dataset
from demo.readback import Seen, agrees, caption_of, read_picture
from demo.world import (
    COLOURS,
    PATCH,
    SHAPES,
    SIDE,
    Scene,
    Thing,
    describe,
    print_caption,
    sample_scene,
    straighten,
)
from fourm.codecs.colours import turbo
from fourm.data.layout import Key, number_keys, path_of

LEAST_FIT = 0.75  # of an object that counts as seen, as `demo.readback` has it
SEAM = PATCH // 2  # pixels inside the kept part that may be blended
MEASURED = (  # what is asked for -> options beside --cond caption
    ("kept picture", "--keep rgb:mask"),
    ("... guidance 1", "--keep rgb:mask --cfg 1"),
    ("... guidance strengthens what is kept, too", "--keep rgb:mask --keep-guided"),
    (
        "... by MaskGIT, 8 steps",
        "--keep rgb:mask --target tok_rgb:scheme=maskgit,steps=8,token-schedule=cosine",
    ),
    ("... as the decoder left it", "--keep rgb:mask --no-blend"),
    ("kept depth and picture, depth first", "--keep depth:mask --keep rgb:mask --targets tok_depth-tok_rgb"),
)


@dataclass(frozen=True, slots=True)
class Edit:
    """A picture of which a half is kept, and what the whole is to be."""

    before: Scene
    after: Scene  # the same object in the kept half, another one in the other half
    kept: int  # index of the object that stays
    is_left: bool  # its half

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(64, 64), True for the half that stays."""
        return np.tile((np.arange(SIDE) < SIDE // 2) == self.is_left, (SIDE, 1))


def edits_of(count: int, seed: int = 11) -> list[Edit]:
    """Edits of held-out scenes with an object in each half."""
    rng, found = random.Random(seed), list[Edit]()
    while len(found) < count:
        scene = straighten(sample_scene(rng, held_out=True))
        halves = [_half_of(thing) for thing in scene.things]
        if len(halves) != 2 or set(halves) != {"left", "right"}:
            continue
        kept = rng.randrange(2)
        stays, goes = scene.things[kept], scene.things[1 - kept]
        colours = [name for name in COLOURS if name not in (stays.colour, goes.colour)]
        shape = rng.choice([name for name in SHAPES if name != goes.shape])
        things = list(scene.things)
        things[1 - kept] = replace(goes, colour=rng.choice(colours), shape=shape)
        found.append(Edit(scene, Scene(scene.background, tuple(things)), kept, halves[kept] == "left"))
    return found


def write_edits(root: Path, edits: Sequence[Edit]) -> list[Key]:
    """A dataset: the scenes as they are, captions of what they are to be, and a mask for each."""
    keys = write_dataset(root, [edit.before for edit in edits])
    for key, edit in zip(keys, edits, strict=True):
        path_of(root, "caption", key, ".txt").write_text(print_caption(describe(edit.after)))
        path = path_of(root, "mask_keep", key, ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(edit.mask, np.uint8(255), np.uint8(0))).save(path)
    return keys


def generate(data: Path, options: str, out: Path) -> Path:
    """The output folder of `fourm generate --data DATA OPTIONS`."""
    command = [sys.executable, "-m", "fourm_cli", "generate", "--data", str(data), *options.split()]
    subprocess.run([*command, "--out", str(out), "--quiet"], check=True, stdout=subprocess.DEVNULL)
    return out


def measure(edits: Sequence[Edit], out: Path) -> dict[str, float]:
    """Shares of pictures: the kept object is there, its pixels are the same, the new object is right."""
    counts = dict.fromkeys(("kept object", "same pixels", "new object"), 0)
    for key, edit in zip(number_keys(len(edits)), edits, strict=True):
        made = np.asarray(Image.open(path_of(out, "rgb", key, ".png")))
        source = np.asarray(Image.open(path_of(out, "rgb_kept", key, ".png")))
        inside = np.roll(edit.mask, -SEAM if edit.is_left else SEAM, axis=1) & edit.mask
        seen = read_picture(made)[1]
        counts["kept object"] += _is_seen(edit.before.things[edit.kept], seen)
        counts["same pixels"] += bool((made == source)[inside].all())
        new = edit.after.things[1 - edit.kept]
        counts["new object"] += _is_seen(new, seen) and agrees(describe(edit.after), caption_of(made))
    return {name: count / len(edits) for name, count in counts.items()}


def draw_outpainting(work: Path, variations: int = 5) -> Figure:
    """The left half of pictures, and what may be right of it: nothing else is given."""
    scenes = scenes_of(60)
    cut = [scene for scene in scenes if not all(map(_half_of, scene.things))]
    alone = [scene for scene in scenes if [*map(_half_of, scene.things)] == ["left"]]
    data = work / "scenes"
    keys = write_dataset(data, [*cut[:3], *alone[:2]])
    options = f"--cond none --keep rgb:box:0,0,0.5,1 --num-variations {variations} --num-samples {len(keys)}"
    out = generate(data, options, work / "outpainting")
    rows = []
    for key in keys:
        given = _open(out, "rgb_kept", key)
        made = [np.asarray(Image.open(path_of(out, "rgb", key, ".png", v))) for v in range(variations)]
        rows.append([given, *made])
    return _draw(rows, ["kept", *(f"variation {v}" for v in range(variations))])


def draw_editing(out: Path, keys: Sequence[Key]) -> Figure:
    """Kept halves of depth and picture, the depth that was made of them, and the picture of that depth."""
    rows, captions = list[list[NDArray[np.uint8]]](), list[str]()
    for key in keys:
        depths = [np.load(path_of(out, name, key, ".npy")) for name in ("depth_kept", "depth")]
        kept, made = np.hsplit(turbo(np.hstack(depths)), 2)  # on one scale
        rows.append([_open(out, "rgb_kept", key), kept, made, _open(out, "rgb", key)])
        captions.append(path_of(out, "caption", key, ".txt").read_text())
    heads = ["kept picture", "kept depth", "new depth", "new picture"]
    return _draw(rows, heads, captions)


def _half_of(thing: Thing) -> str:
    """left or right; "" for an object in both halves."""
    _, column, count = thing.block
    middle = SIDE // PATCH // 2
    return "left" if column + count <= middle else "right" if column >= middle else ""


def _is_seen(thing: Thing, seen: Sequence[Seen]) -> bool:
    wanted = (thing.shape, thing.colour, thing.size)
    return any((s.claim.shape, s.claim.colour, s.claim.size) == wanted and s.fit >= LEAST_FIT for s in seen)


def _open(out: Path, folder: str, key: Key) -> NDArray[np.uint8]:
    """A picture of a sample; of one that differs between variations, the first."""
    path = path_of(out, folder, key, ".png")
    return np.asarray(Image.open(path if path.exists() else path_of(out, folder, key, ".png", 0)))


def _draw(
    rows: Sequence[Sequence[NDArray[np.uint8]]], heads: Sequence[str], captions: Sequence[str] = ()
) -> Figure:
    """A table of pictures, with words under each row."""
    height = 1.45 if captions else 1.2
    figure = Figure(figsize=(1.2 * len(heads), height * len(rows) + 0.2), dpi=150, layout="constrained")
    for number, (pictures, axes) in enumerate(
        zip(rows, figure.subplots(len(rows), len(heads), squeeze=False), strict=True)
    ):
        for place, (picture, axis) in enumerate(zip(pictures, axes, strict=True)):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
            if number == 0:
                axis.set_title(heads[place], fontsize=6)
        if captions:
            words = axes[0].text(0, SIDE + 3, captions[number], fontsize=6, va="top")
            words.set_in_layout(False)
    return figure


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    matplotlib.rcParams["font.family"] = "DejaVu Sans"
    work = args.work or Path(tempfile.mkdtemp())
    edits, data = edits_of(args.count), work / "edits"
    keys = write_edits(data, edits)
    out = work
    print("| what is asked for | kept object is there | its pixels are the same | new object is right |")
    print("| --- | ---: | ---: | ---: |")
    for number, (name, options) in enumerate(MEASURED):
        out = generate(data, f"--cond caption {options}", work / f"edits-{number}")
        shares = measure(edits, out)
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares.values())} |", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    draw_editing(out, keys[:4]).savefig(args.out / "keep-editing.png")
    draw_outpainting(work).savefig(args.out / "keep-outpainting.png")


if __name__ == "__main__":
    main()
