"""Draws the sample grids of docs/demo-model.md: `python -m demo.pictures`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo.bench import DIFFUSED, Bench, Value, held_out_scenes
from demo.bundle import PROMPTS
from demo.evaluate import USUAL
from demo.render import render
from demo.tasks import DENSE
from demo.world import describe, print_caption
from fourm.networks.state import Slot

_TILE = 128  # pixels per side of a shown picture
_LINE = 12  # pixels of a line of text
_PAPER, _INK = (255, 255, 255), (40, 40, 40)

Picture = NDArray[np.uint8]


def prompts_grid(bench: Bench) -> Image.Image:
    """The built-in prompts and their pictures."""
    slots = {"caption": bench.captions(PROMPTS)}
    pictures = _pictures(bench, bench.run(slots, USUAL).slots["tok_rgb@64"], "tok_rgb@64")
    return _grid(pictures, [_wrapped(prompt) for prompt in PROMPTS], columns=6)


def maps_grid(bench: Bench) -> Image.Image:
    """Held-out pictures and everything that the model reads from them."""
    scenes = held_out_scenes(4, seed=11)
    condition = {"rgb@64": bench.condition(scenes, "rgb@64")}
    shown = _pictures(bench, bench.condition(scenes, "tok_rgb@64"), "tok_rgb@64")
    columns = [shown]
    for name in DENSE:
        done = bench.run(condition, f"--cond rgb@64 --targets {name}")
        columns.append(_pictures(bench, done.slots[name], name))
    texts = bench.texts(bench.run(condition, "--cond rgb@64 --targets caption"), "caption")
    titles = ["given: rgb", *(name.partition("@")[0] for name in DENSE)]
    pictures = [column[row] for row in range(len(scenes)) for column in columns]
    labels = [
        _wrapped(texts[index // len(columns)]) if index % len(columns) == 0 else titles[index % len(columns)]
        for index in range(len(pictures))
    ]
    return _grid(pictures, labels, columns=len(columns))


def settings_grid(bench: Bench) -> Image.Image:
    """Held-out captions under some guidance scales and temperatures, each with the same noise."""
    scenes = held_out_scenes(6, seed=21)
    slots = {"caption": bench.captions([print_caption(describe(scene)) for scene in scenes])}
    hot = f"{USUAL} --temp-schedules constant --top-p 0"
    rows = {
        "usual": USUAL,
        "guidance 0": f"{USUAL} --cfg 0",
        "temps 1, top-p off": f"{hot} --temps 1.0-1.0 --cfg 1",
        "temps 6, top-p off": f"{hot} --temps 6.0-1.0 --cfg 1",
    }
    pictures, labels = list[Picture](), list[str]()
    for title, options in rows.items():
        pictures += _pictures(bench, bench.run(slots, options).slots["tok_rgb@64"], "tok_rgb@64")
        labels += [title] * len(scenes)
    return _grid(pictures, labels, columns=len(scenes))


def fine_grid(bench: Bench, fine: Bench) -> Image.Image:
    """Generated pictures at 64 pixels, and what super-resolution makes of them."""
    captions = bench.captions(PROMPTS[:6])
    done = bench.run({"caption": captions}, USUAL)
    slots = {"caption": captions, **done.slots}
    options = "--cond caption,tok_clip@64,tok_rgb@64 --targets tok_clip@128-tok_rgb@128 --top-p 0.8"
    sharp = fine.run(slots, options).slots["tok_rgb@128"]
    pictures = _pictures(bench, done.slots["tok_rgb@64"], "tok_rgb@64")
    pictures += _pictures(fine, sharp, "tok_rgb@128")
    return _grid(pictures, ["64 pixels"] * 6 + ["128 pixels"] * 6, columns=6)


def diffusion_grid(bench: Bench) -> Image.Image:
    """Held-out pictures as rendered, by the VQ decoder, and by diffusion in several numbers of steps."""
    scenes = held_out_scenes(6, seed=31)
    slot = bench.condition(scenes, DIFFUSED)
    rows: dict[str, list[Value]] = {
        "rendered": [render(scene).rgb for scene in scenes],
        "VQ decoder": bench.codecs[DIFFUSED].decode(slot),
        "diffusion, 1 step": bench.diffused(slot, 1),
        "diffusion, 10 steps": bench.diffused(slot, 10),
        "diffusion, 50 steps": bench.diffused(slot, 50),
    }
    labels = [title for title in rows for _ in scenes]
    return _grid([value for values in rows.values() for value in values], labels, columns=len(scenes))


def _pictures(bench: Bench, slot: Slot, name: str) -> list[Picture]:
    codec = bench.codecs[name]
    values: list[Value] = codec.decode(slot)
    return [np.asarray(codec.picture(value).convert("RGB")) for value in values]


def _wrapped(text: str, width: int = 22) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _grid(pictures: Sequence[Picture], labels: Sequence[str], columns: int) -> Image.Image:
    """Pictures in rows, each with its label below."""
    rows = -(-len(pictures) // columns)
    foot = _LINE * max(label.count("\n") + 1 for label in labels) + 8
    sheet = Image.new("RGB", (columns * (_TILE + 8) + 8, rows * (_TILE + foot) + 8), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = 8 + index % columns * (_TILE + 8), 8 + index // columns * (_TILE + foot)
        sheet.paste(Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.NEAREST), (x, y))
        pen.multiline_text((x, y + _TILE + 2), label, fill=_INK, spacing=1)
    return sheet


def main() -> None:
    """Write all grids."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo", help="folder of the bundle")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench.load(options.model)
    sheets = {"prompts": prompts_grid(bench), "maps": maps_grid(bench), "settings": settings_grid(bench)}
    sheets["diffusion"] = diffusion_grid(bench)
    if (bench.files.weights.parent / "sr").is_dir():
        sheets["sr"] = fine_grid(bench, Bench.load(options.model, fine=True))
    for name, sheet in sheets.items():
        sheet.save(options.out / f"demo-{name}.png", optimize=True)
        print(options.out / f"demo-{name}.png", flush=True)


if __name__ == "__main__":
    main()
