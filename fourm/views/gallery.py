"""The gallery: one HTML page with all samples of an output folder, made of the files in `gallery_page`."""

import base64
import hashlib
import html
import io
import itertools
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from fourm.errors import UsageError, as_addresses, printable
from fourm.files.opening import real
from fourm.files.writing import write_alone
from fourm.output.record import BASE, RUN, SR, TOKENS
from fourm.output.samples import chain_names
from fourm.sources.datasets import CAPTION
from fourm.views.album import Album
from fourm.views.layout import number_text
from fourm.views.panels import RGB, SAID, Label, Panel, View

PAGE = "index.html"
SIDE = 512  # pixels of a photo's longest side on the page
EXACT_SIDE = 128  # pixels: pictures up to this size are kept as they are
MAX_COLOURS = 256  # so are those with so few colours: labels, edges, drawn text
_STAGES = {BASE: "Generation", SR: "Super-resolution", TOKENS: "Tokens of values"}
QUALITY = 86  # of WebP, for the others
_SCRIPTS = ("data.js", "grid.js", "viewer.js", "film.js", "detail.js", "page.js")  # one after the other


def write_gallery(album: Album, path: Path, seen: Callable[[View], None] = lambda view: None) -> None:
    """Write the page of an album to `path`, whole or not at all.

    Samples are read, written, shown to `seen` and forgotten, one by one. UsageError where there are none.
    """
    if not album.keys:
        raise UsageError(f"{printable(str(album.root))}: holds no samples yet, so there is nothing to show")
    script, style = "".join(["\n'use strict';\n", *map(_asset, _SCRIPTS)]), _asset("page.css")
    # The browser loads nothing from elsewhere and runs no other script, even if a text were not escaped.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
    about = _about(album)
    title = html.escape(about["name"].encode("utf-8", errors="backslashreplace").decode())
    page = Template(_asset("page.html")).substitute(
        policy=policy, title=title, style=style, script=script, album=_json(about)
    )
    head, tail = page.split("<!--samples-->")

    def write(unfinished: Path) -> None:
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            file.write(head)
            for key in album.keys:
                view = album.view(key)
                file.writelines(_blocks(album, view))
                seen(view)
            file.write(tail)

    write_alone(path, write)


def _blocks(album: Album, view: View) -> Iterator[str]:
    """What searching needs of a sample, then all of it."""
    variations = sorted({panel.variation for panel in view.panels if panel.variation is not None})
    first = album.runs[0].record
    again = shlex.join(first.command) if first.stage == TOKENS else ""
    row = {
        "key": view.key.text, "prompt": view.prompt or "", "texts": _texts_of(view),
        "variations": len(variations),
        "modalities": list(dict.fromkeys(panel.modality for panel in view.panels if _is_shown(panel))),
        "failed": len(view.problems),
    }  # fmt: skip
    panels = list[Mapping[str, Any]]()
    legends = dict[str, list[Label]]()  # by modality: the classes that its maps show
    for panel in view.panels:
        legend = legends.setdefault(panel.modality, [])
        legend += [label for label in panel.labels if label not in legend]
        picture = panel.picture if _is_shown(panel) else None
        width, height = picture.size if picture is not None else (0, 0)
        panels.append({
            "modality": panel.modality, "title": panel.title, "role": panel.role,
            "variation": panel.variation, "codec": panel.codec, "rgb": panel.codec in RGB,
            "words": panel.codec == CAPTION, "text": panel.text, "note": panel.note, "file": panel.file,
            "scale": [number_text(value) for value in panel.limits or ()],
            "size": {"width": width, "height": height},
            "picture": encode(picture, SIDE) if picture is not None else None,
            "labels": [index for index, label in enumerate(legend) if label in panel.labels],
        })  # fmt: skip
    contents = {
        "panels": panels,
        "films": [
            {"modality": film.modality, "title": film.title, "variation": film.variation, "grid": film.grid,
             "order": film.order, "frames": [
                 {"step": frame.step, "decided": frame.decided, "picture": encode(frame.picture, SIDE // 2)}
                 for frame in film.frames
             ]}
            for film in view.films
        ],
        "problems": view.problems,
        "legends": {
            name: [(label, "#{:02x}{:02x}{:02x}".format(*colour)) for label, colour in labels]
            for name, labels in legends.items() if labels
        },
        "repeat": [
            {"variation": v, "role": role, "command": again or repeat_command(album.root, view, role, v)}
            for v, role in itertools.product(variations or (None,), ("target", "sr"))
        ],
    }  # fmt: skip
    yield f'<script type="application/json" class="sample">{_json(row)}</script>\n'
    yield f'<script type="application/json">{_json(contents)}</script>\n'


def _texts_of(view: View) -> list[str]:
    """What is said of a sample beside its prompt, for searches: captions, boxes, metadata, colours."""
    panels = [panel for panel in view.panels if panel.codec == CAPTION or panel.codec in SAID]
    texts = (p.text for p in sorted(panels, key=lambda panel: panel.codec != CAPTION) if p.text.strip())
    return [text for text in dict.fromkeys(texts) if text != view.prompt]


def _is_shown(panel: Panel) -> bool:
    """Captions are text on the page."""
    return panel.picture is not None and panel.codec != CAPTION


def repeat_command(root: Path, view: View, role: str, variation: int | None) -> str:
    """The command that makes a variation again: from one of its PNG files, which say how, or from a record.

    role: "target", or "sr" for super-resolution and all that it goes on from.
    """
    made = [p for p in view.panels if p.variation == variation and not p.note and _says_how(p)]
    fit = [p for p in made if p.role == role] or [p for p in made if p.role == "target"]
    best = max(fit, key=lambda panel: panel.codec in RGB, default=None)  # the first RGB, else the first
    path = os.path.join(root, best.file if best is not None else RUN)
    return f"fourm generate --replay {shlex.quote(as_addresses(path))} --out again"


def _says_how(panel: Panel) -> bool:
    """Whether a file is a PNG, which says how it was made; cells of tables have no ending."""
    return panel.file.endswith(".png") or (".parquet/" in panel.file and panel.codec in RGB)


def encode(picture: Image.Image, side: int) -> Mapping[str, Any]:
    """A picture in base64; only a photo is reduced, to `side` pixels. `exact`: no pixel has changed."""
    picture = picture.convert("RGB")
    has_few_colours = picture.getcolors(MAX_COLOURS) is not None
    exact = has_few_colours or max(picture.size) <= EXACT_SIDE
    if has_few_colours:  # a palette takes fewer bytes; Pillow's own way there merges colours that are alike
        pixels = np.asarray(picture).astype(np.uint32) << np.array([16, 8, 0], np.uint32)
        colours, places = np.unique(pixels.sum(axis=-1), return_inverse=True)  # (H, W) -> (N,), (H, W)
        picture = Image.fromarray(places.reshape(pixels.shape[:2]).astype(np.uint8))
        picture.putpalette(b"".join(int(colour).to_bytes(3, "big") for colour in colours))
    elif not exact:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind, buffer = "png" if exact else "webp", io.BytesIO()
    picture.save(buffer, format=kind, **({"compress_level": 9} if exact else {"quality": QUALITY}))
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {"type": kind, "width": picture.width, "height": picture.height, "exact": exact, "data": data}


def _about(album: Album) -> Mapping[str, Any]:
    titles = {e.place.modality: e.title for e in album.entries if e.reader and e.reader.row.codec != CAPTION}
    stages = [
        {"name": _STAGES[record.stage], "model": record.model,
         "seed": record.seed, "variations": record.num_variations, "options": record.options,
         **dict(zip(("conditions", "targets"), chain_names(record.schedule), strict=True))}
        for record in (run.record for run in album.runs)
    ]  # fmt: skip
    return {
        "name": album.root.name or real(album.root).name or "/", "total": len(album.keys),
        "modalities": [
            {"name": name, "title": title, "twin": list(titles.values()).count(title) > 1}
            for name, title in titles.items()
        ],
        "variations": [v for v in album.variations if v is not None],
        "stages": stages, "problems": album.problems,
    }  # fmt: skip


def _json(value: object) -> str:
    """JSON that no HTML parser takes for markup: in it `<` can only stand in strings.

    What UTF-8 cannot encode, as in file names of other encodings, is spelled out: `\\udce9`.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return re.sub("[\ud800-\udfff]", lambda half: f"\\\\u{ord(half[0]):x}", text)


def _asset(name: str) -> str:
    return files("fourm.views").joinpath("gallery_page", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What a policy allows: one script or style with exactly this text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
