"""Contact sheets: the pictures that matter of many samples, those of a sample side by side."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from fourm.codecs.maps import FORMS
from fourm.errors import UsageError, near_match
from fourm.modalities.registry import TOKENS
from fourm.sources.datasets import CAPTION
from fourm.views.album import Album, Entry
from fourm.views.layout import COLUMNS, FAINT, PAPER, paste, slack, stack, starts, text_block
from fourm.views.panels import RGB, View

SIDE, LEAST, GAP = 192, 96, 14  # pixels per side of a picture, at most and at least, and between two
ROWS = 10  # of a sheet
_CLOSE, _APART = 6, 30  # pixels between the pictures of a sample, and between those of two samples
_DRAWN = ("det", "human_poses", "sam_instance")  # codecs whose values are drawn in the place of a picture


@dataclass(frozen=True, slots=True)
class Part:
    """What is shown of each sample in one place: the largest picture of some modalities."""

    title: str
    is_given: bool  # a condition
    modalities: tuple[str, ...]  # full names


@dataclass(frozen=True, slots=True)
class Layout:
    """How many samples stand side by side, and how large their pictures are."""

    parts: tuple[Part, ...]

    @property
    def per_row(self) -> int:
        """Samples side by side."""
        return max(1, COLUMNS // len(self.parts))

    @property
    def per_sheet(self) -> int:
        """Samples on a sheet."""
        return ROWS * self.per_row

    @property
    def side(self) -> int:
        """Pixels of each picture: many parts have less room."""
        room = COLUMNS * (SIDE + GAP) - GAP + _CLOSE
        return min(SIDE, max(LEAST, room // len(self.parts) - _CLOSE))

    @property
    def gap(self) -> int:
        """Pixels between two samples."""
        return GAP if len(self.parts) == 1 else _APART

    @property
    def lefts(self) -> list[int]:
        """Where the pictures of a sample begin."""
        return starts(len(self.parts), self.side + _CLOSE)

    @property
    def width(self) -> int:
        """Pixels of a sample."""
        return self.lefts[-1] + self.side


def choose_parts(album: Album, names: Sequence[str] = ()) -> tuple[Part, ...]:
    """What a contact sheet shows, in the order of `names`; without any, RGB and then all maps.

    A name is that of a modality, with or without `tok_` and its resolution. Where no picture or map was made,
    it is what was made last. UsageError: a name that nothing in the album has.
    """
    groups = dict[tuple[bool, str], list[Entry]]()
    for entry in album.entries:
        groups.setdefault((entry.role == "condition", _kind_of(entry)), []).append(entry)
    parts = {
        key: Part(_title_of(group), key[0], tuple(entry.place.modality for entry in group))
        for key, group in groups.items()
    }
    if not names:
        return tuple(parts[key] for key in _usual(groups))
    known = {name: key for key, group in reversed(groups.items()) for name in _names_of(group)}
    if unknown := [name for name in names if name not in known]:
        near = (
            near_match(unknown[0], known) or f"; there are {', '.join(dict.fromkeys(k[1] for k in groups))}"
        )
        raise UsageError(f"`show`: '{unknown[0]}' is not among what this folder holds{near}")
    wanted = {known[name][1] for name in names}
    order = [known[name][1] for name in names]
    chosen = [key for key in groups if key[1] in wanted]
    return tuple(parts[key] for key in sorted(chosen, key=lambda key: order.index(key[1])))


def _usual(groups: dict[tuple[bool, str], list[Entry]]) -> list[tuple[bool, str]]:
    """RGB, given and made, then all maps; if nothing of it was made, also what was made last."""
    chosen = [key for key, (entry, *_) in groups.items() if _is_map(entry) and entry.place.form != "ids"]
    chosen.sort(key=lambda key: key[1] != "rgb")
    made = [key for key in groups if not key[0]]
    if made and not any(key in chosen for key in made):
        others = [key for key in made if not (chosen and key[1] == CAPTION)]
        chosen += others[-1:]
    return chosen or [*groups][-1:]


def _is_map(entry: Entry) -> bool:
    codec = entry.reader.row.codec if entry.reader else ""
    return codec in (*RGB, *_DRAWN) or (codec in FORMS and FORMS[codec].resample is not None)


def _kind_of(entry: Entry) -> str:
    """What all resolutions have in common, as values and as tokens: `rgb` of `tok_rgb@128`."""
    return entry.place.modality.partition("@")[0].removeprefix(TOKENS)


def _title_of(group: Sequence[Entry]) -> str:
    """The title of what super-resolution started from."""
    return min(group, key=lambda entry: entry.role == "sr").title


def _names_of(group: Sequence[Entry]) -> Iterator[str]:
    yield _kind_of(group[0])
    for entry in group:
        yield from (entry.place.modality, entry.place.modality.partition("@")[0], entry.place.folder)


def draw_cell(view: View, variation: int | None, layout: Layout) -> Image.Image:
    """The pictures of a sample in one variation, the caption and the name below them."""
    own = [p for p in view.panels if None in (variation, p.variation) or p.variation == variation]
    cell = Image.new("RGB", (layout.width, layout.side), PAPER)
    shown = list[Image.Image | str]()
    for part in layout.parts:
        panels = [one for one in own if one.modality in part.modalities
                  and (one.role == "condition") is part.is_given]  # fmt: skip
        seen = [panel.picture for panel in panels if panel.picture is not None]
        note = next((panel.note for panel in panels if panel.note), "nothing made")
        shown.append(max(seen, key=lambda one: max(one.size), default=note))
    cut = slack(shown, layout.side)
    for picture, left in zip(shown, layout.lefts, strict=True):
        paste(cell, picture, (left, 0), layout.side, line=-1, fills=True)
    cell = cell.crop((0, cut, cell.width, layout.side - cut))
    text = view.prompt or next((p.text for p in own if p.codec == CAPTION and p.text), "")
    words = [text_block(text, layout.width, 13, most=3)] if text.strip() else []
    name = view.key.text if variation is None else f"{view.key.text}-v{variation}"
    return stack([cell, *words, text_block(name, layout.width, 11, FAINT, most=1)], gap=4, margin=0)


def draw_contact(
    cells: Sequence[Image.Image], layout: Layout, title: str, page: int, total: int
) -> Image.Image:
    """A page with cells side by side; `total` of them are on all pages."""
    count = len(layout.parts)
    lefts = starts(min(layout.per_row, len(cells)), layout.width + layout.gap)
    width = lefts[-1] + layout.width
    blocks = list[Image.Image]()
    for at in range(0, len(cells), layout.per_row):
        row = cells[at : at + layout.per_row]
        blocks.append(Image.new("RGB", (width, max(cell.height for cell in row)), PAPER))
        for left, cell in zip(lefts, row, strict=False):
            blocks[-1].paste(cell, (left, 0))
    thing = "picture" if count == 1 else "result"
    what, first = f"{total} {thing}{'s' * (total > 1)}", page * layout.per_sheet + 1
    if total > layout.per_sheet:
        what = f"{first} to {first + len(cells) - 1} of {what}"
    head = text_block(title + what, width, 15, FAINT, most=2)
    return stack([head, *([_heads(layout, lefts, width)] if count > 1 else []), *blocks], gap=GAP)


def _heads(layout: Layout, lefts: Sequence[int], width: int) -> Image.Image:
    """The titles of the parts above each column."""
    texts = [text_block(part.title, layout.side, 13, most=2, centred=True) for part in layout.parts]
    block = Image.new("RGB", (width, max(text.height for text in texts)), PAPER)
    for left in lefts:
        for text, at in zip(texts, layout.lefts, strict=True):
            block.paste(text, (left + at, block.height - text.height))
    return block


def sheet_name(page: int, total: int, layout: Layout) -> str:
    """`contact`, or `contact-01` where there are several sheets."""
    pages = math.ceil(total / layout.per_sheet)
    return f"contact-{page + 1:0{max(2, len(str(pages)))}d}" if pages > 1 else "contact"
