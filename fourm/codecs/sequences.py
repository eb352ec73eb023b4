"""Values that are written as text ids: captions."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from fourm.codecs.files import read_json, read_text
from fourm.codecs.images import Diffusion
from fourm.crops import Crop
from fourm.errors import SampleError
from fourm.modalities import Modality
from fourm.state import Slot, full_sequence
from fourm.wordpiece import WordPiece, encode_full

_CARD = 224  # pixels per side of a text picture
_COLUMNS, _LINES = 32, 14  # that fit on one


@dataclass(frozen=True, slots=True)
class CaptionCodec:
    """Free text, ended by [EOS]; sentinels in it say where something is missing."""

    row: Modality
    wordpiece: WordPiece

    def read(self, path: Path, crop: Crop | None = None) -> str:
        """A .txt file as it stands; a .json[.gz] of a string, an object with `caption`, or a list of them."""
        if not path.name.lower().endswith((".json", ".json.gz")):
            return read_text(path)
        value = read_json(path)
        if isinstance(value, list) and value:
            value = value[0]  # one per crop; the first is the centre crop
        if isinstance(value, dict):
            value = value.get("caption")
        if not isinstance(value, str):
            raise SampleError(f"{path}: neither a string, nor an object with 'caption', nor a list of either")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SampleError(f"{path}: holds half a character, which is no text") from error
        return value

    def write(self, value: str, path: Path, text: Mapping[str, str] | None = None) -> None:
        """A .txt file in UTF-8; there is no room for `text` in it."""
        path.write_bytes(value.encode("utf-8", "surrogateescape"))

    def encode(self, values: Sequence[str]) -> Slot:
        """Ids padded to the row's max_tokens; every one of the text is known."""
        return encode_texts(self.row, self.wordpiece, values)

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[str]:
        """The text of what is known in each row."""
        rows = zip(slot.values.cpu(), slot.known.cpu(), strict=True)
        return [self.wordpiece.text_of(values[known].tolist()) for values, known in rows]

    def picture(self, value: str) -> Image.Image:
        """The text on a white card."""
        image = Image.new("RGB", (_CARD, _CARD), "white")
        lines = textwrap.wrap(value, _COLUMNS, max_lines=_LINES, placeholder=" ...")
        printable = "\n".join(lines).encode("latin-1", "replace").decode("latin-1")
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, 0, _CARD - 1, _CARD - 1), outline="grey")
        draw.multiline_text((_CARD / 2, _CARD / 2), printable, fill="black", anchor="mm", align="center")
        return image


def encode_texts(row: Modality, wordpiece: WordPiece, texts: Sequence[str]) -> Slot:
    """Ids of texts padded to the row's max_tokens; every one of a text is known."""
    ids = torch.full((len(texts), row.max_tokens), wordpiece.pad_id, dtype=torch.int64)
    known = torch.zeros_like(ids, dtype=torch.bool)
    for i, text in enumerate(texts):
        found = encode_full(text, wordpiece)
        if len(found) > row.max_tokens:
            raise SampleError(
                f"{row.name}: {len(found)} tokens, but the model reads at most {row.max_tokens}"
            )
        if strange := [token for token in found if token >= row.vocab_size]:
            raise SampleError(f"{row.name}: the model cannot read '{wordpiece.decode(strange[:1])}' in it")
        ids[i, : len(found)] = torch.tensor(found, dtype=torch.int64)
        known[i, : len(found)] = True
    return full_sequence(ids, known)
