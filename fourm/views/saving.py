"""Writes drawings as PNG, PDF or SVG, which the ending of the name says."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fourm.files.writing import DRAWING, DRAWN_BY, write_alone

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS_PER_INCH = 96  # of sheets, unless their width is given
_DOTS = 120  # pixels per inch of charts as PNG
# Text that other programs can search and edit; equal drawings give equal files.
_STYLE = {"pdf.fonttype": 42, "svg.hashsalt": "fourm"}
_FACTS = {
    ".png": {"Software": None, **DRAWING},
    ".pdf": {"Creator": DRAWN_BY, "Producer": None, "CreationDate": None},
    ".svg": {"Creator": DRAWN_BY, "Date": None},
}


def save_drawing(drawing: "Image.Image | Figure", path: Path, width: float | None = None) -> None:
    """Write a sheet or a chart, whole or not at all; `width` is as in `fill_file`."""
    write_alone(path, partial(fill_file, drawing=drawing, width=width))


def fill_file(path: Path, drawing: "Image.Image | Figure", width: float | None = None) -> None:
    """Write a drawing to a file whose name ends in .png, .pdf or .svg.

    width: of a sheet on paper, in inches; its pixels stay as they are. A chart has its own width.
    """
    kind = path.suffix.lower()
    if not isinstance(drawing, Image.Image):
        from matplotlib import rc_context  # here: half a second, which sheets as PNG can save

        with rc_context(_STYLE):
            drawing.savefig(path, format=kind[1:], dpi=_DOTS, metadata=_FACTS[kind])
    elif kind == ".png":
        said = PngInfo()
        for name, value in DRAWING.items():
            said.add_text(name, value)
        dots = {} if width is None else {"dpi": (drawing.width / width,) * 2}
        drawing.save(path, format="PNG", pnginfo=said, **dots)
    else:
        fill_file(path, _on_page(drawing, width or drawing.width / PIXELS_PER_INCH))


def _on_page(sheet: Image.Image, width: float) -> "Figure":
    """A page that a sheet fills, pixel by pixel."""
    from matplotlib.figure import Figure

    page = Figure(figsize=(width, width * sheet.height / sheet.width), frameon=False)
    axes = page.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(sheet, interpolation="none", aspect="auto")
    return page
