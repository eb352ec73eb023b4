"""What a codec is, and the table of codecs: file <-> value <-> tokens, value -> picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from PIL import Image

from fourm.codecs.images import Diffusion, GridCodec, PixelsCodec
from fourm.codecs.maps import FORMS
from fourm.codecs.texts import STRUCTURED, CaptionCodec, EmbeddingCodec
from fourm.data.layout import Crop
from fourm.errors import UsageError, near_match
from fourm.modalities.registry import Modality
from fourm.modalities.text import WordPiece
from fourm.networks.state import Slot
from fourm.networks.tokenizers import AnyTokenizer

T = TypeVar("T")


class Codec(Protocol[T]):
    """Values of type T in all their forms. Errors of one value are SampleErrors."""

    def read(self, path: Path, crop: Crop | None = None) -> T:
        """Read a value from a file: of the whole picture, or of the part in a crop, at the row's size."""

    def write(self, value: T, path: Path, text: Mapping[str, str] | None = None) -> None:
        """Write a file at exactly this path, with `text` (prompt, seed, ...) if the format has room."""

    def encode(self, values: Sequence[T]) -> Slot:
        """The input of the model, one row per value; everything is known."""

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[T]:
        """The values of the rows; `diffusion` is for tokenizers that decode by diffusion."""

    def picture(self, value: T) -> Image.Image:
        """A picture of a value."""


def build_codec(
    row: Modality, tokenizer: AnyTokenizer | None = None, wordpiece: WordPiece | None = None
) -> Codec[Any]:
    """The codec of a row. A grid can be read, written and shown without its tokenizer."""
    check_codec(row)
    if row.codec in FORMS:
        if tokenizer is not None and (size := tokenizer.config.codebook_size) < row.vocab_size:
            raise UsageError(f"{row.name}: {row.vocab_size} tokens, but its tokenizer has only {size} codes")
        return GridCodec(row, FORMS[row.codec], tokenizer)
    if row.codec == "rgb":
        return PixelsCodec(row)
    if row.codec == "t5_caption":
        return EmbeddingCodec(row)
    if wordpiece is None:
        raise UsageError(f"{row.name}: this model comes without a text tokenizer")
    if row.codec == "caption":
        return CaptionCodec(row, wordpiece)
    return STRUCTURED[row.codec].codec(row, wordpiece, tokenizer)


def check_codec(row: Modality) -> None:
    """Refuse a row whose codec is unknown."""
    known = ("rgb", "caption", "t5_caption", *FORMS, *STRUCTURED)
    if row.codec not in known:
        raise UsageError(f"{row.name}: unknown codec '{row.codec}'{near_match(row.codec, known)}")
