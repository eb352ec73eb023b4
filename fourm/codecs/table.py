"""The table of codecs: file <-> value <-> tokens, value -> picture.

All codecs have these methods: `read` a value from a file, of the whole picture or of the part in a crop, at
the row's size; `pack` a value into the bytes of a file, with `text` (prompt, seed, ...) if the format has
room; `restore` a value of a crop to one of the whole picture; `encode` values to the input of the model, one
row each, all known; `decode` the values of rows; draw a `picture` of a value. Errors of one value are
SampleErrors.
"""

from functools import partial

from fourm.codecs.images import GridCodec
from fourm.codecs.maps import FORMS
from fourm.codecs.texts import STRUCTURED, CaptionCodec, EmbeddingCodec, StructuredCodec, decoder_of
from fourm.errors import UsageError, near_match
from fourm.modalities.registry import Modality
from fourm.modalities.text import WordPiece
from fourm.networks.tokenizers import AnyTokenizer

Codec = GridCodec | CaptionCodec | StructuredCodec | EmbeddingCodec


def build_codec(
    row: Modality, tokenizer: AnyTokenizer | None = None, wordpiece: WordPiece | None = None
) -> Codec:
    """The codec of a row. A grid can be read, written and shown without its tokenizer."""
    check_codec(row)
    if row.codec in FORMS:
        if tokenizer is not None and (size := tokenizer.config.codebook_size) < row.vocab_size:
            raise UsageError(f"{row.name}: {row.vocab_size} tokens, but its tokenizer has only {size} codes")
        return GridCodec(row, FORMS[row.codec], tokenizer)
    if row.codec == "rgb":
        return GridCodec(row, FORMS["tok_rgb"], None)
    if row.codec == "t5_caption":
        return EmbeddingCodec(row)
    if wordpiece is None:
        raise UsageError(f"{row.name}: this model comes without a text tokenizer")
    if row.codec == "caption":
        return CaptionCodec(row, wordpiece)
    form = STRUCTURED[row.codec]
    grammar, draw = form.suited(wordpiece) if form.suited else form.grammar, form.draw
    if tokenizer is not None and form.codes:
        draw = partial(draw, decode=decoder_of(row, tokenizer, form.codes, form.channels))
    return StructuredCodec(row, grammar, wordpiece, draw)


def check_codec(row: Modality) -> None:
    """Refuse a row whose codec is unknown."""
    known = ("rgb", "caption", "t5_caption", *FORMS, *STRUCTURED)
    if row.codec not in known:
        raise UsageError(f"{row.name}: unknown codec '{row.codec}'{near_match(row.codec, known)}")
