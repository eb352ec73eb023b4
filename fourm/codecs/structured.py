"""Values with a grammar: JSON files <-> values <-> text <-> ids of the text tokenizer."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fourm.codecs.drawing import draw_boxes, draw_metadata, draw_palette
from fourm.codecs.figures import POSE_CODES, POSE_NUMBERS, draw_boxes_of_people, draw_figures
from fourm.codecs.files import read_json
from fourm.codecs.images import Diffusion
from fourm.codecs.masks import MASK_CODES, draw_instances, outline_instances
from fourm.codecs.parts import CodedParts, decoder_of
from fourm.codecs.sequences import encode_texts
from fourm.data.layout import Crop
from fourm.errors import SampleError
from fourm.modalities.boxes import Boxes, BoxRules, box_grammar
from fourm.modalities.facts import METADATA, palette_grammar
from fourm.modalities.instances import JOINED, SAM_INSTANCES
from fourm.modalities.poses import HUMAN_POSES
from fourm.modalities.registry import Modality
from fourm.modalities.text import Grammar, Structured, WordPiece
from fourm.networks.state import Slot
from fourm.networks.tokenizers import AnyTokenizer


@dataclass(frozen=True, slots=True)
class StructuredCodec:
    """Values of one grammar; files hold JSON."""

    row: Modality
    grammar: Grammar[Any]
    wordpiece: WordPiece
    draw: Callable[[Any], Image.Image]

    def read(self, path: Path, crop: Crop | None = None) -> Structured[Any]:
        """The value of a JSON file, as the crop shows it; its problems say what is too long to be read."""
        if path.suffix.lower() == ".npy":  # as the reference keeps instances
            raise SampleError(
                f"{path}: not JSON; `fourm convert sam-instances` makes some of pickled instances"
            )
        try:
            value = self.grammar.from_json(read_json(path), crop)
        except ValueError as error:
            raise SampleError(f"{path}: {error}") from error
        kept, total = self._fitting(value)
        if len(kept) == total:
            return Structured(value)
        few = f"the model reads the first {len(kept)} of {total}, which fill its {self.row.max_tokens} tokens"
        return Structured(value, problems=(few,))

    def typed(self, text: str) -> Structured[Any]:
        """A value as somebody types it: the data of a JSON file, or words as the model writes them.

        Sentinels in words say where something is missing.
        """
        with suppress(ValueError, RecursionError):
            data = json.loads(text)
            try:
                return Structured(self.grammar.from_json(data, None))
            except ValueError as error:
                raise SampleError(f"{self.row.name}: {error}") from error
        value = self.grammar.understand(text)
        if value.problems:
            raise SampleError(f"{self.row.name}: {value.problems[0]}")
        return value

    def write(self, value: Structured[Any], path: Path, text: Mapping[str, str] | None = None) -> None:
        """A JSON file, the same for equal values; there is no room for `text` in it."""
        data = json.dumps(self.grammar.to_json(value.value), ensure_ascii=False, allow_nan=False)
        path.write_bytes(data.encode() + b"\n")

    def encode(self, values: Sequence[Structured[Any]]) -> Slot:
        """Ids padded to the row's max_tokens; every one of the text is known.

        Of a text that is too long, as many whole pieces are kept as fit.
        """
        texts = [value.text or " ".join(self._fitting(value.value)[0]) for value in values]
        for text in texts:
            if unknown := self.wordpiece.unknown_words(text):
                # `v0` alone would say little of `v0=999`.
                words = (word for word in text.split() if self.wordpiece.unknown_words(word))
                raise SampleError(f"{self.row.name}: the model does not know '{next(words, unknown[0])}'")
        return encode_texts(self.row, self.wordpiece, texts)

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[Structured[Any]]:
        """What could be understood of each row's text, and what could not; several predictions are joined."""
        rows = list(zip(slot.values.cpu(), slot.known.cpu(), strict=True))
        if slot.lengths is None:
            return [self._understood(values[known]) for values, known in rows]
        join, lengths = JOINED[self.row.codec], slot.lengths.tolist()
        texts = [values[known].split(of_row) for (values, known), of_row in zip(rows, lengths, strict=True)]
        return [join([self._understood(ids) for ids in of_row]) for of_row in texts]

    def _understood(self, ids: Tensor) -> Structured[Any]:
        """What the ids of one text (N,) say."""
        return self.grammar.understand(self.wordpiece.text_of(ids.tolist()))

    def picture(self, value: Structured[Any]) -> Image.Image:
        """What could be understood, drawn as far as it goes."""
        return self.draw(value.value)

    def _fitting(self, value: Any) -> tuple[list[str], int]:
        """The pieces of the text that the model can read, and the number of all."""
        if not self.grammar.is_divisible:
            return [self.grammar.to_text(value)], 1
        pieces, kept, room = self.grammar.to_pieces(value), list[str](), self.row.max_tokens - 1  # [EOS]
        for piece in pieces:
            room -= len(self.wordpiece.encode(piece))
            if room < 0:
                break
            kept.append(piece)
        return kept, len(pieces)


@dataclass(frozen=True, slots=True)
class StructuredForm:
    """What is special about one sort of structured value."""

    grammar: Grammar[Any]
    draw: Callable[[Any], Image.Image]  # without a tokenizer
    # The grammar for a vocabulary that is not the released one; None: it is the same for all.
    suited: Callable[[WordPiece], Grammar[Any]] | None = None
    parts: CodedParts | None = None  # what a tokenizer adds to the drawing

    def grammar_for(self, wordpiece: WordPiece) -> Grammar[Any]:
        """The grammar in the words that a text tokenizer has."""
        return self.grammar if self.suited is None else self.suited(wordpiece)

    def drawing(self, row: Modality, tokenizer: AnyTokenizer | None) -> Callable[[Any], Image.Image]:
        """How values are drawn with this tokenizer, or without one."""
        if tokenizer is None or self.parts is None:
            return self.draw
        draw, decode = self.parts.draw, decoder_of(row, self.parts, tokenizer)
        return lambda value: draw(value, decode)


def _boxes_suited(wordpiece: WordPiece) -> Grammar[Boxes]:
    """Boxes in as many bins as there are words for on every axis: 1000 in the released vocabulary."""
    bins = 0
    while all(wordpiece.tokenizer.token_to_id(f"v{axis}={bins}") is not None for axis in range(4)):
        bins += 1
    return box_grammar(BoxRules(bins)) if bins >= 2 else box_grammar()


# By the codec name of a row.
STRUCTURED: dict[str, StructuredForm] = {
    "det": StructuredForm(box_grammar(), draw_boxes, _boxes_suited),
    "metadata": StructuredForm(METADATA, draw_metadata),
    "color_palette": StructuredForm(palette_grammar(), draw_palette),
    "human_poses": StructuredForm(
        HUMAN_POSES, draw_boxes_of_people, parts=CodedParts(POSE_CODES, POSE_NUMBERS, draw_figures)
    ),
    "sam_instance": StructuredForm(
        SAM_INSTANCES, outline_instances, parts=CodedParts(MASK_CODES, 1, draw_instances)
    ),
}
