"""Contact sheets: one picture of each sample and variation, on as few sheets as it takes."""

from dataclasses import dataclass, field

from PIL import Image, ImageDraw

from fourm.runs.inputs import CAPTION
from fourm.views.album import Panel, View
from fourm.views.sheets import FAINT, INK, PAPER, RULE, empty_cell, fit, stack, text_block

CELL, GAP = 192, 14
COLUMNS, ROWS = 6, 10
PER_SHEET = COLUMNS * ROWS


@dataclass(slots=True)
class Contact:
    """Sheets that fill up one after the other."""

    total: int  # pictures, known from the start
    title: str
    _cells: list[Image.Image] = field(default_factory=list)
    _pages: int = 0

    @property
    def name(self) -> str:
        """The file of the last page that was drawn: contact.png, or contact-01.png where there are more."""
        sheets = -(-self.total // PER_SHEET)
        digits = max(2, len(str(sheets)))
        return "contact.png" if sheets <= 1 else f"contact-{self._pages:0{digits}d}.png"

    def add(self, view: View, variation: int | None) -> None:
        """One more picture."""
        self._cells.append(_cell(view, variation))

    def full_page(self) -> Image.Image | None:
        """A sheet, if enough pictures for one are waiting."""
        return self._page() if len(self._cells) >= PER_SHEET else None

    def last_page(self) -> Image.Image | None:
        """A sheet of the pictures that are left."""
        return self._page() if self._cells else None

    def _page(self) -> Image.Image:
        first = self._pages * PER_SHEET + 1
        self._pages += 1
        cells, self._cells = self._cells, []
        columns = min(COLUMNS, len(cells))
        rows = [cells[at : at + columns] for at in range(0, len(cells), columns)]
        blocks = list[Image.Image]()
        for row in rows:
            block = Image.new("RGB", (columns * (CELL + GAP) - GAP, max(c.height for c in row)), PAPER)
            for number, cell in enumerate(row):
                block.paste(cell, (number * (CELL + GAP), 0))
            blocks.append(block)
        what = f"{self.total} pictures" if self.total > 1 else "1 picture"
        if self.total > PER_SHEET:
            what = f"{first} to {first + len(cells) - 1} of {what}"
        head = text_block(f"{self.title}  ·  {what}", blocks[0].width, 15, FAINT, most=2)
        return stack([head, *blocks], gap=GAP)


def best_panel(view: View, variation: int | None) -> Panel | None:
    """The RGB picture at the finest resolution, else the last target; None where that cannot be seen."""
    made = [panel for panel in view.panels if panel.role != "condition" and _belongs(panel, variation)]
    rgb = [panel for panel in made if panel.codec in ("rgb", "tok_rgb")]
    seen = [panel for panel in rgb or made if panel.picture is not None]
    return max(seen, key=_resolution) if rgb and seen else seen[-1] if seen else None


def _belongs(panel: Panel, variation: int | None) -> bool:
    return panel.variation is None or variation is None or panel.variation == variation


def _resolution(panel: Panel) -> int:
    return max(panel.picture.size) if panel.picture is not None else 0


def _cell(view: View, variation: int | None) -> Image.Image:
    panel = best_panel(view, variation)
    notes = [p.note for p in view.panels if p.role != "condition" and p.note and _belongs(p, variation)]
    if panel is not None and panel.picture is not None:
        picture = fit(panel.picture, CELL)
    else:
        picture = empty_cell(notes[0] if notes else "nothing made", CELL)
    cell = Image.new("RGB", (CELL, CELL), PAPER)
    left, top = (CELL - picture.width) // 2, (CELL - picture.height) // 2
    cell.paste(picture, (left, top))
    ImageDraw.Draw(cell).rectangle(
        (left, top, left + picture.width - 1, top + picture.height - 1), outline=RULE
    )
    said = [p.text for p in view.panels if p.codec == CAPTION and p.text and _belongs(p, variation)]
    name = view.key.text if variation is None else f"{view.key.text}-v{variation}"
    text = view.prompt or next(iter(said), "")
    words = [text_block(text, CELL, 13, INK, most=3)] if text.strip() else []
    return stack([cell, *words, text_block(name, CELL, 11, FAINT, most=1)], gap=4, margin=0)
