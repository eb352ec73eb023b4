"""The codecs of sequences: captions, JSON values with a grammar, and the vectors of a T5 encoder."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fourm.codecs.drawing import draw_boxes, draw_metadata, draw_palette, text_card
from fourm.codecs.figures import POSE_NUMBERS, Decode, draw_figures, draw_instances
from fourm.codecs.files import file_ending, read_caption, read_json, read_members
from fourm.codecs.images import check_finite
from fourm.codecs.maps import finite_float32
from fourm.data.layout import Crop
from fourm.errors import SampleError, UsageError
from fourm.modalities.facts import METADATA, Boxes, BoxRules, box_grammar, palette_grammar
from fourm.modalities.figures import HUMAN_POSES, JOINED, NUM_CODES, SAM_INSTANCES
from fourm.modalities.registry import Modality
from fourm.modalities.text import EOS_ID, PAD_ID, Grammar, Structured, WordPiece, encode_full
from fourm.networks.state import Slot, full_embedding, full_sequence
from fourm.networks.tokenizers import AnyTokenizer
from fourm.networks.tokenizers.vq import VQTokenizer

_MARKS = ("[PAD]", "[SOS]", "[EOS]")  # refused in files; [UNK] is allowed, because models write it
_DECODED_TOGETHER = 512  # people or instances per call of the tokenizer, to bound its memory

Vectors = NDArray[np.float32]  # (n, E), n >= 1, all of them valid


@dataclass(frozen=True, slots=True)
class CaptionCodec:
    """Reads, writes and encodes free text; it ends with [EOS], and sentinels mark where text is missing."""

    row: Modality
    wordpiece: WordPiece

    def read(self, path: Path, crop: Crop | None = None) -> str:
        """The caption of a .txt file, or of a .json[.gz] file.

        JSON is a string, an object with `caption`, or a list of either with one for each crop; the first one
        is used for crops that the list lacks. A caption that is longer than the model reads is cut, unless
        sentinels mark parts to complete. SampleError: no caption can be read, or it has a reserved mark.
        """
        return self.fitting(_read_caption(path, crop))

    def fitting(self, text: str) -> str:
        """As much of a text as the model reads; all of it, if sentinels mark parts to complete."""
        ids = encode_full(text, self.wordpiece)
        if len(ids) <= self.row.max_tokens or ids[-1] != EOS_ID:
            return text
        return self.wordpiece.beginning(text, self.row.max_tokens - 1)

    def notes(self, path: Path, crop: Crop | None = None) -> tuple[str, ...]:
        """Notes about a file for the user: how many tokens are cut off, and which words are unknown."""
        notes = list[str]()
        text, value = _read_caption(path, crop), self.read(path, crop)
        if value != text:
            kept, total = (len(self.wordpiece.encode(each)) for each in (value, text))
            notes.append(f"the model reads the first {kept} of {total} tokens")
        if words := list(dict.fromkeys(self.wordpiece.unknown_words(value))):
            more = f" and {len(words) - 5} more" if len(words) > 5 else ""
            notes.append(f"the model does not know {', '.join(map(repr, words[:5]))}{more}")
        return tuple(notes)

    def pack(self, value: str, text: Mapping[str, str] | None = None) -> bytes:
        """A .txt file in UTF-8; `text` is not stored."""
        # Readers remove one byte order mark, so a text that begins with one gets a second one in front.
        mark = "\ufeff" if value.startswith("\ufeff") else ""
        return (mark + value).encode("utf-8", errors="surrogateescape")

    def restore(self, value: str, crop: Crop) -> str:
        """The same text: it has no places in the picture."""
        return value

    def encode(self, values: Sequence[str]) -> Slot:
        """Token ids (B, max_tokens); those of the text are known, the padding is not."""
        return encode_texts(self.row, self.wordpiece, values)

    def decode(self, slot: Slot) -> list[str]:
        """The text of the known tokens of each row."""
        return [self.wordpiece.text_of(known.tolist()) for known in _known_values(slot)]

    @staticmethod
    def picture(value: str) -> Image.Image:
        """The text on a white card, or "no caption" where it has no visible character."""
        has_visible = any(character.isprintable() and not character.isspace() for character in value)
        return text_card(value if has_visible else "no caption")


@dataclass(frozen=True, slots=True)
class StructuredCodec:
    """Reads, writes and encodes the values of one grammar; files contain JSON."""

    row: Modality
    grammar: Grammar[Any]
    wordpiece: WordPiece
    draw: Callable[[Any], Image.Image]

    def read(self, path: Path, crop: Crop | None = None) -> Structured[Any]:
        """As `read_structured`; the problems of the value say how much of it is too long for the model."""
        if file_ending(path) == ".npy":  # as the reference keeps instances
            raise SampleError(f"{path}: not JSON; `fourm convert sam-instances` converts pickled instances")
        return self.fitting(read_structured(path, self.grammar, crop))

    def read_whole(self, path: Path) -> Structured[Any]:
        """All that a file holds of its whole picture."""
        return self.fitting(read_whole(path, self.grammar))

    def fitting(self, value: Any) -> Structured[Any]:
        """A value of the grammar, whose problems say how much of it is too long for the model."""
        kept, total = self._fitting(value)
        if len(kept) == total:
            return Structured(value)
        cut = f"the model reads the first {len(kept)} of {total}, which fill its {self.row.max_tokens} tokens"
        return Structured(value, problems=(cut,))

    def typed(self, text: str) -> Structured[Any]:
        """Parse a value that a user typed: the data of a JSON file, or words as the model writes them.

        Sentinels among the words mark where something is missing. SampleError: the text is neither of them.
        """
        try:
            return Structured(self.grammar.from_json(json.loads(text), None))
        except (json.JSONDecodeError, RecursionError):
            value = self.grammar.understand(text)
        except ValueError as error:
            raise SampleError(f"{self.row.name}: {error}") from error
        if value.problems:
            is_path = text.lower().endswith((".json", ".json.gz"))
            advice = f"; text is read as such, and a file where Path({text!r}) is given" if is_path else ""
            raise SampleError(f"{self.row.name}: {value.problems[0]}{advice}")
        return value

    def marked(self, text: str) -> Structured[Any]:
        """A text as the model writes it, in which sentinels mark what is to be filled; see `typed`.

        With sentinels in it, parts may be missing anywhere, so problems are no errors.
        """
        is_marked = any(token in self.wordpiece.sentinels for token in self.wordpiece.encode(text))
        return self.grammar.understand(text) if is_marked else self.typed(text)

    def pack(self, value: Structured[Any], text: Mapping[str, str] | None = None) -> bytes:
        """A JSON file, the same bytes for equal values; `text` is not stored."""
        data = json.dumps(self.grammar.to_json(value.value), ensure_ascii=False, allow_nan=False)
        return data.encode() + b"\n"

    def restore(self, value: Structured[Any], crop: Crop) -> Structured[Any]:
        """The value with its places in the whole picture, where the grammar has places."""
        return replace(value, value=self.grammar.restore(value.value, crop))

    def encode(self, values: Sequence[Structured[Any]]) -> Slot:
        """As `encode_texts`; of a value that is too long, the first pieces. SampleError: an unknown word."""
        texts = [value.text or " ".join(self._fitting(value.value)[0]) for value in values]
        for text in texts:
            if unknown := self.wordpiece.unknown_words(text):
                # The message quotes the whole word, as `v0=999`; its unknown part may be `v0` only.
                words = (word for word in text.split() if self.wordpiece.unknown_words(word))
                raise SampleError(f"{self.row.name}: the model does not know '{next(words, unknown[0])}'")
        return encode_texts(self.row, self.wordpiece, texts)

    def decode(self, slot: Slot) -> list[Structured[Any]]:
        """The value and the problems of each row's text; several predictions for one row are joined."""
        if slot.lengths is None:
            return [self._understood(ids) for ids in _known_values(slot)]
        join = JOINED[self.row.codec]
        rows = zip(_known_values(slot), slot.lengths.tolist(), strict=True)
        return [join([self._understood(ids) for ids in torch.split(row, lengths)]) for row, lengths in rows]

    def picture(self, value: Structured[Any]) -> Image.Image:
        """Draw the value; problems are not drawn."""
        return self.draw(value.value)

    def _understood(self, ids: Tensor) -> Structured[Any]:
        return self.grammar.understand(self.wordpiece.text_of(ids.tolist()))

    def _fitting(self, value: Any) -> tuple[list[str], int]:
        """The pieces of the text that fit into the model's tokens, and the number of all pieces."""
        if not self.grammar.is_divisible:
            return [self.grammar.to_text(value)], 1
        pieces = self.grammar.to_pieces(value)
        ends = accumulate(len(self.wordpiece.encode(piece)) for piece in pieces)
        kept = sum(1 for _ in takewhile(lambda end: end < self.row.max_tokens, ends))  # [EOS] comes last
        return pieces[:kept], len(pieces)


@dataclass(frozen=True, slots=True)
class StructuredForm:
    """A row of the table of structured values: how one sort of them is parsed and drawn."""

    grammar: Grammar[Any]
    draw: Callable[..., Image.Image]  # takes the value, and `decode` if a tokenizer decodes its codes
    codes: tuple[int, ...] = ()  # shape of the codes of one part: (h, w), or (codebooks, h, w)
    channels: int = 0  # of a decoded part
    # Makes the grammar for the vocabulary of a model; None: `grammar` is used for all vocabularies.
    suited: Callable[[WordPiece], Grammar[Any]] | None = None
    has_places: bool = True  # coordinates in a picture


@dataclass(frozen=True, slots=True)
class EmbeddingCodec:
    """Reads, writes and encodes the vectors of one caption.

    A .npz file has `emb` (captions, length, width) and `mask_valid` (captions, length), zeros and ones.
    """

    row: Modality

    def read(self, path: Path, crop: Crop | None = None) -> Vectors:
        """The valid vectors (n, E) float32, n >= 1, of the crop's caption, or of the first if it has none.

        SampleError: the file cannot be read or lacks an array, shapes are not as above, `mask_valid` holds
        other numbers than 0 and 1, no vector of the caption is valid, or vectors have another width or dtype
        than the modality's, or numbers that are not finite.
        """
        embeddings, valid = read_members(path, "emb", "mask_valid")
        shape = embeddings.shape
        if embeddings.ndim != 3 or shape[0] == 0 or shape[:2] != valid.shape:
            found = f"'emb' of shape {shape} and 'mask_valid' of shape {valid.shape}"
            raise SampleError(f"{path}: {found} are not captions x length x width and captions x length")
        number = crop.number if crop is not None and crop.number < len(embeddings) else 0
        if not np.isin(valid[number], (0, 1)).all():
            raise SampleError(f"{path}: 'mask_valid' must hold zeros and ones")
        vectors = embeddings[number][valid[number].astype(np.bool_)]
        if len(vectors) == 0:
            raise SampleError(f"{path}: no vector of caption {number} is valid")
        return self.check(vectors, str(path))

    def check(self, vectors: NDArray[Any], where: str) -> Vectors:
        """Vectors (n, E) of floats as a value. SampleError: another shape or dtype, or numbers not finite."""
        width = self.row.embedding_width
        if vectors.ndim != 2 or len(vectors) == 0 or vectors.dtype.kind != "f":
            found = f"{vectors.dtype} of shape {vectors.shape}"
            raise SampleError(f"{where}: {found}, where vectors of {width} floats belong")
        if vectors.shape[1] != width:
            raise SampleError(
                f"{where}: vectors of {vectors.shape[1]} numbers, where the modality has {width}"
            )
        return finite_float32(vectors, where)

    def pack(self, value: Vectors, text: Mapping[str, str] | None = None) -> bytes:
        """A .npz file of one caption; `text` is not stored."""
        file = io.BytesIO()
        np.savez(file, emb=value[None], mask_valid=np.ones((1, len(value)), dtype=np.int64))
        return file.getvalue()

    def restore(self, value: Vectors, crop: Crop) -> Vectors:
        """The same vectors: they have no places in the picture."""
        return value

    def encode(self, values: Sequence[Vectors]) -> Slot:
        """The first L = max_tokens vectors of each value, (B, L, E), padded with zeros that are not known."""
        count = self.row.max_tokens
        vectors = torch.zeros(len(values), count, self.row.embedding_width)  # (B, L, E)
        valid = torch.zeros(len(values), count, dtype=torch.bool)  # (B, L)
        for i, value in enumerate(values):
            vectors[i, : len(value)] = torch.from_numpy(np.ascontiguousarray(value[:count]))
            valid[i, : len(value)] = True
        return full_embedding(vectors, valid)

    def decode(self, slot: Slot) -> list[Vectors]:
        """The known vectors of each row, (n, E) float32 each."""
        return [vectors.float().numpy() for vectors in _known_values(slot)]

    def picture(self, value: Vectors) -> Image.Image:
        """A card that shows the number and the width of the vectors."""
        return text_card(f"{self.row.title} embedding: {len(value)} vectors of {value.shape[1]} numbers")


def encode_texts(row: Modality, wordpiece: WordPiece, texts: Sequence[str]) -> Slot:
    """Token ids (B, max_tokens) of B texts; those of a text are known, the padding is not.

    SampleError: a text has more tokens than max_tokens, or a token that the model's vocabulary lacks.
    """
    ids = torch.full((len(texts), row.max_tokens), PAD_ID, dtype=torch.int64)
    known = torch.zeros_like(ids, dtype=torch.bool)
    for i, text in enumerate(texts):
        tokens = encode_full(text, wordpiece)
        if len(tokens) > row.max_tokens:
            count = len(tokens)
            raise SampleError(f"{row.name}: {count} tokens, but the model reads at most {row.max_tokens}")
        if unreadable := [token for token in tokens if token >= row.vocab_size]:
            raise SampleError(f"{row.name}: the model cannot read '{wordpiece.decode(unreadable[:1])}' in it")
        ids[i, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        known[i, : len(tokens)] = True
    return full_sequence(ids, known)


def read_structured(path: Path, grammar: Grammar[Any], crop: Crop | None = None) -> Any:
    """The value of a JSON file in a crop, of any length; SampleError if it is not a value of the grammar."""
    return _parsed(path, lambda data: grammar.from_json(data, crop))


def read_whole(path: Path, grammar: Grammar[Any]) -> Any:
    """The value of a JSON file for its whole picture, as `read_structured`."""
    return _parsed(path, grammar.whole_from_json)


def in_square(row: Modality, crop: Crop, value: Any) -> Any:
    """A value of a whole picture as it is drawn: that of people is cut to the square that the model sees."""
    cut = STRUCTURED[row.codec].grammar.cut if row.codec in STRUCTURED else None
    if cut is None:
        return value
    if isinstance(value, Structured):
        return replace(value, value=cut(value.value, crop))
    return cut(value, crop)


def _parsed(path: Path, parse: Callable[[object], Any]) -> Any:
    try:
        return parse(read_json(path))
    except ValueError as error:
        raise SampleError(f"{path}: {error}") from error


def decoder_of(row: Modality, tokenizer: AnyTokenizer, shape: tuple[int, ...], channels: int) -> Decode:
    """A function that decodes n parts, given as codes of 0..1023, to (n, channels, H, W) float32.

    shape: of the codes of one part, (h, w) or (codebooks, h, w); a part is given as a flat tuple of them.
    The function raises a SampleError if what it decodes is not finite. UsageError: the tokenizer has another
    number of codebooks, rank of tokens or number of output channels, or fewer codes.
    """
    config = tokenizer.config
    books = shape[0] if len(shape) == 3 else 1
    found = (config.num_codebooks, config.token_rank, config.out_channels)
    is_fit = found == (books, len(shape) + 1, channels) and config.codebook_size >= NUM_CODES
    if not isinstance(tokenizer, VQTokenizer) or not is_fit:
        needed = f"{books} x {NUM_CODES} codes and {channels} channels of output"
        raise UsageError(f"{row.name}: the tokenizer '{row.tokenizer}' does not fit; it needs {needed}")

    @torch.no_grad()
    def decode(codes: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
        device = next(tokenizer.parameters()).device
        ids = torch.tensor(codes, dtype=torch.int64, device=device).view(-1, *shape)  # (n, ...)
        groups = torch.split(ids, _DECODED_TOGETHER)
        decoded = torch.cat([tokenizer.decode_tokens(group).cpu() for group in groups])
        check_finite([decoded], row)
        return decoded.numpy()

    return decode


def _known_values(slot: Slot) -> list[Tensor]:
    """The known token ids (n,) or vectors (n, E) of each row, on the CPU."""
    return [values[known] for values, known in zip(slot.values.cpu(), slot.known.cpu(), strict=True)]


def _read_caption(path: Path, crop: Crop | None) -> str:
    text = read_caption(path, crop.number if crop is not None else 0)
    # The text behind an end mark would be dropped without a message.
    if mark := next((mark for mark in _MARKS if mark in text), ""):
        raise SampleError(f"{path}: {mark} is reserved for the model; leave it out")
    return text


def _boxes_suited(wordpiece: WordPiece) -> Grammar[Boxes]:
    """A grammar with as many bins as a vocabulary has words for on all axes; the released one has 1000."""
    id_of = wordpiece.tokenizer.token_to_id
    bins = next(n for n in count() if any(id_of(f"v{axis}={n}") is None for axis in range(4)))
    return box_grammar(BoxRules(bins)) if bins >= 2 else box_grammar()


# By the codec name of a row; the table follows the functions that it names.
STRUCTURED: dict[str, StructuredForm] = {
    "det": StructuredForm(box_grammar(), draw_boxes, suited=_boxes_suited),
    "metadata": StructuredForm(METADATA, draw_metadata, has_places=False),
    "color_palette": StructuredForm(palette_grammar(), draw_palette, has_places=False),
    "human_poses": StructuredForm(HUMAN_POSES, draw_figures, (8, 1, 1), POSE_NUMBERS),
    "sam_instance": StructuredForm(SAM_INSTANCES, draw_instances, (4, 4), 1),
}
