"""Values that are written as text ids: captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fourm.codecs.drawing import text_card
from fourm.codecs.files import read_json, read_text
from fourm.codecs.images import Diffusion
from fourm.data.layout import Crop
from fourm.errors import SampleError
from fourm.modalities.registry import Modality
from fourm.modalities.text import EOS_ID, PAD_ID, WordPiece, encode_full
from fourm.networks.state import Slot, full_sequence

_MARKS = ("[PAD]", "[SOS]", "[EOS]")  # [UNK] may stand in a file: models write it
_SHOWN = 5  # unknown words that a note names


@dataclass(frozen=True, slots=True)
class CaptionCodec:
    """Free text, ended by [EOS]; sentinels in it say where something is missing."""

    row: Modality
    wordpiece: WordPiece

    def read(self, path: Path, crop: Crop | None = None) -> str:
        """A .txt file as it stands; a .json[.gz] of a string, an object with `caption`, or a list of them.

        A list has one for each crop; what it lacks, its first one stands for. A caption that is longer than
        the model reads is cut, unless sentinels in it say that it is to be completed.
        """
        text = _read_caption(path, crop)
        ids = encode_full(text, self.wordpiece)
        if len(ids) <= self.row.max_tokens or ids[-1] != EOS_ID:
            return text
        return self.wordpiece.beginning(text, self.row.max_tokens - 1)

    def notes(self, path: Path, crop: Crop | None = None) -> tuple[str, ...]:
        """What `read` does not tell of a file: how much of it is cut, and words that are unknown."""
        text, value = _read_caption(path, crop), self.read(path, crop)
        found = []
        if value != text:
            kept, total = (len(self.wordpiece.encode(x)) for x in (value, text))
            found.append(f"the model reads the first {kept} of {total} tokens")
        if words := list(dict.fromkeys(self.wordpiece.unknown_words(value))):
            more = f" and {len(words) - _SHOWN} more" if len(words) > _SHOWN else ""
            found.append(f"the model does not know {', '.join(map(repr, words[:_SHOWN]))}{more}")
        return tuple(found)

    def write(self, value: str, path: Path, text: Mapping[str, str] | None = None) -> None:
        """A .txt file in UTF-8; there is no room for `text` in it.

        Of two byte order marks readers take the first for one, so a text that begins with one stays as it is.
        """
        marked = f"\ufeff{value}" if value.startswith("\ufeff") else value
        path.write_bytes(marked.encode("utf-8", "surrogateescape"))

    def encode(self, values: Sequence[str]) -> Slot:
        """Ids padded to the row's max_tokens; every one of the text is known."""
        return encode_texts(self.row, self.wordpiece, values)

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[str]:
        """The text of what is known in each row."""
        rows = zip(slot.values.cpu(), slot.known.cpu(), strict=True)
        return [self.wordpiece.text_of(values[known].tolist()) for values, known in rows]

    def picture(self, value: str) -> Image.Image:
        """The text on a white card, which says so where nothing of it can be seen."""
        seen = any(character.isprintable() and not character.isspace() for character in value)
        return text_card(value if seen else "no caption")


def _read_caption(path: Path, crop: Crop | None) -> str:
    is_json = path.name.lower().endswith((".json", ".json.gz"))
    text = _caption_of_json(path, crop.number if crop is not None else 0) if is_json else read_text(path)
    if mark := next((mark for mark in _MARKS if mark in text), ""):  # what follows would be lost unseen
        raise SampleError(f"{path}: {mark} is reserved for the model; leave it out")
    return text


def _caption_of_json(path: Path, number: int) -> str:
    value = read_json(path)
    if isinstance(value, list) and value:
        value = value[number if number < len(value) else 0]
    if isinstance(value, dict):
        value = value.get("caption")
    if not isinstance(value, str):
        raise SampleError(f"{path}: neither a string, nor an object with 'caption', nor a list of either")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SampleError(f"{path}: holds half a character, which is no text") from error
    return value


def encode_texts(row: Modality, wordpiece: WordPiece, texts: Sequence[str]) -> Slot:
    """Ids of texts padded to the row's max_tokens; every one of a text is known."""
    ids = torch.full((len(texts), row.max_tokens), PAD_ID, dtype=torch.int64)
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
