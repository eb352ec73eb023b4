"""The part of a modality that is given and stays (`--keep NAME:WHERE`), while the rest of it is generated."""

import math
import os
from dataclasses import dataclass, field

from fourm.data.pictures import is_path
from fourm.errors import UsageError
from fourm.modalities.registry import TOKENS, Kind, Modality

MASK = "mask"  # a mask picture for each sample, or one for all
MARKS = ""  # of a text, which needs no WHERE: its sentinels [S_1], [S_2], ... mark what is to be filled
BOX = "box:"  # prefix of left,top,right,bottom in fractions of the picture
INFILL_TOKENS = 50  # most tokens that fill the marks of a text, as in the notebooks of the reference
_FORMS = f"a mask picture, {BOX}x0,y0,x1,y1 in fractions, a share such as 0.5, or {MASK}"


@dataclass(frozen=True, slots=True)
class Keep:
    """The part of a target that is given."""

    target: str  # full name: "tok_rgb@224", "caption"
    where: str  # MASK, MARKS, "box:0.0,0.0,0.5,1.0" or "0.5"
    raw: bool = False  # True: values are given (a picture), which are tokenised; False: tokens
    file: str = field(default="", compare=False)  # of MASK: the picture that serves all samples; "": one each

    @property
    def is_text(self) -> bool:
        """True for a text with marks in it, False for tokens of a grid."""
        return self.where == MARKS

    @property
    def mask(self) -> str:
        """The name under which a sample has its mask among its files."""
        return f"{self.target}:{MASK}"

    @property
    def names(self) -> tuple[str, str]:
        """The names under which a sample has what is given, and its mask."""
        return self.target, self.mask

    def to_text(self) -> str:
        """As an option says it, without the file of a mask: `rgb@224:0.5`."""
        name = self.target.removeprefix(TOKENS) if self.raw else self.target
        return name if self.is_text else f"{name}:{self.where}"

    @property
    def share(self) -> float | None:
        """The share of tokens that stay, drawn at random; None for another form."""
        return None if self.where in (MASK, MARKS) or self.where.startswith(BOX) else float(self.where)

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """Left, top, right, bottom as fractions of the picture; None for another form."""
        if not self.where.startswith(BOX):
            return None
        left, top, right, bottom = map(float, self.where.removeprefix(BOX).split(","))
        return left, top, right, bottom

    def num_kept(self, num_tokens: int) -> int | None:
        """How many of all tokens of a target stay; None if that depends on the sample."""
        return None if self.share is None else kept_of_share(self.share, num_tokens)


def kept_of_share(share: float, num_tokens: int) -> int:
    """The number of tokens that a share, 0 to 1, keeps; halves are rounded up."""
    return math.floor(share * num_tokens + 0.5)


def split_keep(text: str) -> tuple[str, str]:
    """Name and WHERE of `NAME:WHERE`; WHERE may hold colons. UsageError without a name."""
    name, _, where = text.partition(":")
    if not name.strip():
        raise UsageError(f"'{text}' names no modality; NAME:WHERE was expected, WHERE being {_FORMS}")
    return name.strip(), where.strip()


def parse_where(where: str, row: Modality) -> tuple[str, str]:
    """WHERE as `Keep.where`, and the file of a mask or "". UsageError if it does not fit the target."""
    if row.kind is Kind.SEQUENCE:
        if where != MARKS:
            raise UsageError(
                f"{row.name} is a text: [S_1], [S_2] in it mark what is to be filled; leave out ':{where}'"
            )
        return MARKS, ""
    if row.kind is not Kind.GRID:
        raise UsageError(f"{row.name} cannot be generated, so no part of it can be kept")
    if not where:
        raise UsageError(f"'{row.name}' lacks what is kept of it; give {_FORMS}")
    if where == MASK:
        return _on_grid(MASK, row), ""
    if where.startswith(BOX):
        return _on_grid(BOX + ",".join(map(repr, _parse_box(where))), row), ""
    try:
        share = float(where)
    except ValueError:
        if not (is_path(where) or os.path.exists(where)):
            raise UsageError(f"'{where}' says nothing that stays; give {_FORMS}") from None
        return _on_grid(MASK, row), where
    if not 0 <= share <= 1:
        raise UsageError(f"'{where}': a share of tokens lies between 0 and 1")
    return repr(share), ""


def _parse_box(where: str) -> tuple[float, float, float, float]:
    parts = where.removeprefix(BOX).split(",")
    try:
        left, top, right, bottom = map(float, parts)
    except ValueError:
        raise UsageError(
            f"'{where}': four fractions were expected, as {BOX}0,0,0.5,1 for the left half"
        ) from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise UsageError(
            f"'{where}': must be left, top, right, bottom in 0..1, left < right and top < bottom"
        )
    if (left, top, right, bottom) == (0, 0, 1, 1):
        raise UsageError(f"'{where}': keeps all of the picture, so nothing is left to generate")
    return left, top, right, bottom


def _on_grid(where: str, row: Modality) -> str:
    """The same WHERE; UsageError if the tokens of the target have no places in a picture."""
    if row.grid is None or row.positions == "learned":  # tokens of a picture as a whole, such as a descriptor
        raise UsageError(f"{row.name} has no places in a picture; only a share of its tokens can be kept")
    return where
