"""Draws the pictures of docs/modalities.md: `python -m demo.album`.

The commands of that page are run as they stand there, with the embedded model, in a temporary folder; what
they wrote is drawn with the package's own codecs. Of modalities that the embedded model does not have, values
made by hand are drawn with the same code, and the page says so.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from demo import handmade
from fourm.codecs.colours import LegendEntry
from fourm.codecs.drawing import draw_boxes, font_for
from fourm.codecs.files import read_array, read_crops, read_picture, read_size
from fourm.codecs.images import GridCodec
from fourm.codecs.table import build_codec
from fourm.data.layout import number_keys, path_of
from fourm.hub.files import find_model
from fourm.modalities.registry import RELEASED, Registry
from fourm.modalities.text import Structured, WordPiece

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "modalities.md"
FOLDER = ROOT / "docs" / "images" / "modalities"

_TILE = 192  # pixels per side of a shown picture
_GAP, _LINE = 12, 16  # pixels between pictures, of a line of text
# Paper of its own makes a sheet the same on light and dark pages; white pictures stand out from it.
_PAPER, _INK, _FRAME = (240, 240, 240), (30, 30, 30), (150, 150, 150)
_CROP_COLOURS = ((230, 25, 75), (0, 130, 200), (60, 140, 60), (145, 30, 180))

Tile = tuple[Image.Image, str]  # a picture and what is said below it


def commands(page: Path = PAGE) -> str:
    """The shell commands of the page, one after the other."""
    found = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return "".join(found)


def run_commands(work: Path) -> None:
    """Run the page's commands in a folder, with this `fourm`; the first that fails ends it."""
    programs = work / ".bin"
    programs.mkdir(parents=True)
    shim = programs / "fourm"
    shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m fourm_cli "$@"\n', encoding="utf-8")
    shim.chmod(0o755)
    paths = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e", "-c", commands()], cwd=work, env={**os.environ, **paths}, text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"a command of {PAGE.name} ended with {done.returncode}\n{done.stderr}")


class Album:
    """Values that the commands wrote, and their pictures."""

    def __init__(self, work: Path) -> None:
        """Of the folder in which the commands ran."""
        files = find_model("demo")
        assert files.text_tokenizer is not None
        self._work, self._wordpiece = work, WordPiece.load(files.text_tokenizer)
        self._registry = files.registry

    def codec(self, name: str, registry: Registry | None = None) -> Any:
        """The codec of a row, without its tokenizer; its type depends on the row."""
        return build_codec((registry or self._registry).get(name), None, self._wordpiece)

    def file(self, root: str, folder: str, suffix: str) -> Path:
        """A file of the one sample."""
        return path_of(self._work / root, folder, number_keys(1)[0], suffix)

    def value(self, root: str, name: str) -> Any:
        """What the commands wrote of a modality."""
        codec = self.codec(name)
        row = self._registry.get(name)
        return codec.read(self.file(root, row.folder, row.suffix))

    def tile(self, root: str, name: str, said: str) -> Tile:
        """The picture of a value that the commands wrote."""
        return self.codec(name).picture(self.value(root, name)), said


def rgb_sheet(album: Album) -> Image.Image:
    """A picture, its tokens, the picture of its tokens, and a larger one."""
    ids = read_array(album.file("drawn", "tok_rgb@64", ".npy"))[0].reshape(8, 8)
    return _sheet(
        [
            album.tile("drawn", "rgb@64", "rgb: 64 x 64 pixels"),
            (_numbers(ids), "tok_rgb@64: 8 x 8 tokens"),
            album.tile("large", "tok_rgb@128", "rgb@128, from 16 x 16"),
        ]
    )


def texts_sheet(album: Album) -> Image.Image:
    """A caption as a card, and what there is to see of T5 vectors."""
    vectors = np.zeros((12, 4096), dtype=np.float32)
    return _sheet(
        [
            album.tile("said", "caption", "caption"),
            (album.codec("t5_caption", RELEASED).picture(vectors), "t5_caption (made by hand)"),
        ]
    )


def det_sheet(album: Album) -> Image.Image:
    """Boxes alone, and on the picture that they were read from."""
    boxes: Structured[Any] = album.value("said", "det")
    shown = album.codec("rgb@64").picture(album.value("drawn", "rgb@64"))
    large = _fitted(shown, 256)
    return _sheet(
        [
            album.tile("said", "det", "det"),
            (draw_boxes(boxes.value, large), "det on its picture"),
        ]
    )


def facts_sheet(album: Album) -> Image.Image:
    """Metadata as a table, a palette as stripes, and a picture drawn with that palette."""
    return _sheet(
        [
            album.tile("said", "metadata", "metadata"),
            album.tile("said", "color_palette", "color_palette"),
            album.tile("from-palette", "tok_rgb@64", "caption and color_palette"),
        ]
    )


def maps_sheet(album: Album) -> Image.Image:
    """Depth, normals, classes with their legend, edges; and a picture made of a map."""
    codec = album.codec("tok_semseg@64")
    assert isinstance(codec, GridCodec)
    entries = codec.legend(album.value("said", "tok_semseg@64"))
    sam_edges = album.codec("tok_sam_edge@224", RELEASED).picture(handmade.sam_edges())
    return _sheet(
        [
            album.tile("said", "tok_depth@64", "depth: blue near, red far"),
            album.tile("said", "tok_normal@64", "normal"),
            album.tile("said", "tok_semseg@64", "semseg"),
            (_legend(entries), "its legend"),
            album.tile("said", "tok_canny_edge@64", "canny_edge"),
            (sam_edges, "sam_edge (made by hand)"),
            album.tile("from-depth", "tok_rgb@64", "a picture from depth alone"),
        ],
        columns=4,
    )


def features_sheet(album: Album) -> Image.Image:
    """Maps of features in the colours of their components, and single vectors."""
    made = {
        "tok_dinov2@224": handmade.feature_map(768, 1),
        "tok_imagebind@224": handmade.feature_map(1280, 2),
        "tok_dinov2_global": handmade.feature_vector(768, 3),
        "tok_imagebind_global": handmade.feature_vector(1280, 4),
    }
    shown = [album.tile("said", "tok_clip@64", "clip")]
    for name, value in made.items():
        title = name.partition("@")[0].removeprefix("tok_")
        shown.append((album.codec(name, RELEASED).picture(value), f"{title}\n(made by hand)"))
    return _sheet(shown)


def people_sheet(album: Album) -> Image.Image:
    """Two people with their poses, and what is drawn of them without a tokenizer."""
    people = handmade.two_people()
    alone = album.codec("human_poses", RELEASED).picture(Structured(people))
    return _sheet(
        [
            (handmade.figures(people), "human_poses (made by hand)"),
            (alone, "without the pose tokenizer"),
        ],
        side=300,
    )


def instances_sheet(album: Album) -> Image.Image:
    """Painted instances, and what is drawn of them without a tokenizer."""
    groups = handmade.some_instances()
    alone = album.codec("sam_instance", RELEASED).picture(Structured(groups))
    return _sheet(
        [
            (handmade.painted(groups), "sam_instance (made by hand)"),
            (alone, "without the mask tokenizer"),
        ],
        side=224,
    )


def crops_sheet(album: Album) -> Image.Image:
    """Where the crops of a picture lie, what each of them shows, and a mask of valid pixels."""
    path = album.file("photo", "rgb", ".png")
    crops = read_crops(album.file("photo", "crop_settings", ".npy"), read_size(path))
    codec = album.codec("rgb@64")
    picture = read_picture(path).convert("RGB")
    scale = _TILE // picture.width
    places = picture.resize((picture.width * scale,) * 2, Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(places)
    tiles = [(places, "crop_settings: rows 0 to 3")]
    for crop, colour in zip(crops, _CROP_COLOURS, strict=True):
        left, top = crop.left * scale, crop.top * scale
        right, bottom = left + crop.width * scale - 1, top + crop.height * scale - 1
        pen.rectangle((left, top, right, bottom), outline=colour, width=2)
        said = f"row {crop.number}" + (", mirrored" if crop.mirrored else "")
        shown = _fitted(codec.picture(codec.read(path, crop)), _TILE)
        ImageDraw.Draw(shown).rectangle((0, 0, _TILE - 1, _TILE - 1), outline=colour, width=3)
        tiles.append((shown, said))
    tiles.append((Image.fromarray(handmade.valid_pixels()), "mask_valid (made by hand)"))
    return _sheet(tiles, side=_TILE, columns=3)


# Every picture of the page, by the name of its file.
SHEETS: Mapping[str, Callable[[Album], Image.Image]] = {
    "rgb.png": rgb_sheet,
    "texts.png": texts_sheet,
    "det.png": det_sheet,
    "facts.png": facts_sheet,
    "maps.png": maps_sheet,
    "features.png": features_sheet,
    "people.png": people_sheet,
    "instances.png": instances_sheet,
    "crops.png": crops_sheet,
}


def _sheet(tiles: Sequence[Tile], side: int = _TILE, columns: int = 5) -> Image.Image:
    """Pictures in rows on paper, each fitted into a square, with a text below."""
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    foot = _LINE * max(said.count("\n") + 1 for _, said in tiles) + 6
    size = (columns * (side + _GAP) + _GAP, rows * (side + foot + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (picture, said) in enumerate(tiles):
        left = _GAP + index % columns * (side + _GAP)
        top = _GAP + index // columns * (side + foot + _GAP)
        shown = _fitted(picture.convert("RGB"), side)
        x, y = left + (side - shown.width) // 2, top + (side - shown.height) // 2
        pen.rectangle((x - 1, y - 1, x + shown.width, y + shown.height), outline=_FRAME)
        sheet.paste(shown, (x, y))
        pen.multiline_text((left, top + side + 4), said, _INK, font_for(said, 13), spacing=3)
    return sheet


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """As large as fits: small pictures in whole pixels, large ones smoothed."""
    share = side / max(picture.size)
    size = max(round(picture.width * share), 1), max(round(picture.height * share), 1)
    how = Image.Resampling.LANCZOS if share < 1 else Image.Resampling.NEAREST
    return picture.resize(size, how)


def _numbers(ids: Any) -> Image.Image:
    """A grid of token ids, as numbers."""
    rows, columns = ids.shape
    image = Image.new("RGB", (_TILE, _TILE), "white")
    pen, cell = ImageDraw.Draw(image), _TILE // max(rows, columns)
    for y in range(rows):
        for x in range(columns):
            pen.rectangle((x * cell, y * cell, (x + 1) * cell, (y + 1) * cell), outline=(210, 210, 210))
            middle = ((x + 0.5) * cell, (y + 0.5) * cell)
            pen.text(middle, str(ids[y, x]), _INK, font_for("", 10), anchor="mm")
    return image


def _legend(entries: Sequence[LegendEntry]) -> Image.Image:
    """Names of classes beside their colours and shares."""
    image = Image.new("RGB", (_TILE, _TILE), "white")
    pen = ImageDraw.Draw(image)
    for number, entry in enumerate(entries):
        top = 16 + number * 30
        pen.rectangle((14, top, 34, top + 20), fill=entry.colour, outline=_FRAME)
        pen.text((44, top + 10), f"{entry.name}  {entry.share:.0%}", _INK, font_for("", 13), anchor="lm")
    return image


def draw(work: Path) -> dict[str, Image.Image]:
    """All pictures of the page, of what its commands wrote into a folder."""
    album = Album(work)
    return {name: sheet(album) for name, sheet in SHEETS.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the pictures")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run_commands(Path(folder))
        for name, sheet in draw(Path(folder)).items():
            # 256 colours are enough for these, and a third of the bytes.
            sheet.quantize(256, dither=Image.Dither.NONE).save(options.out / name, optimize=True)
            print(options.out / name)


if __name__ == "__main__":
    main()
