"""Values with a grammar: JSON files <-> values <-> text <-> ids of the text tokenizer."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fourm.codecs.figures import POSE_CODES, POSE_NUMBERS, draw_boxes_of_people, draw_figures
from fourm.codecs.files import read_json
from fourm.codecs.images import Diffusion
from fourm.codecs.masks import MASK_CODES, draw_instances, outline_instances
from fourm.codecs.parts import CodedParts, decoder_of
from fourm.codecs.sequences import encode_texts
from fourm.crops import Crop
from fourm.errors import SampleError
from fourm.grammars.instances import SAM_INSTANCES
from fourm.grammars.poses import HUMAN_POSES
from fourm.grammars.structured import Grammar, Structured
from fourm.modalities import Modality
from fourm.state import Slot
from fourm.tokenizers.build import AnyTokenizer
from fourm.wordpiece import WordPiece


@dataclass(frozen=True, slots=True)
class StructuredCodec:
    """Values of one grammar; files hold JSON."""

    row: Modality
    grammar: Grammar[Any]
    wordpiece: WordPiece
    draw: Callable[[Any], Image.Image]

    def read(self, path: Path, crop: Crop | None = None) -> Structured[Any]:
        """The value of a JSON file, as the crop shows it."""
        try:
            return Structured(self.grammar.from_json(read_json(path), crop))
        except ValueError as error:
            raise SampleError(f"{path}: {error}") from error

    def write(self, value: Structured[Any], path: Path, text: Mapping[str, str] | None = None) -> None:
        """A JSON file, the same for equal values; there is no room for `text` in it."""
        data = json.dumps(self.grammar.to_json(value.value), ensure_ascii=False, allow_nan=False)
        path.write_bytes(data.encode() + b"\n")

    def encode(self, values: Sequence[Structured[Any]]) -> Slot:
        """Ids padded to the row's max_tokens; every one of the text is known."""
        return encode_texts(self.row, self.wordpiece, [self.grammar.to_text(v.value) for v in values])

    def decode(self, slot: Slot, diffusion: Diffusion | None = None) -> list[Structured[Any]]:
        """What could be understood of each row's text, and what could not."""
        rows = zip(slot.values.cpu(), slot.known.cpu(), strict=True)
        texts = [self.wordpiece.text_of(values[known].tolist()) for values, known in rows]
        return [Structured(*_parsed(self.grammar, text)) for text in texts]

    def picture(self, value: Structured[Any]) -> Image.Image:
        """What could be understood, drawn as far as it goes."""
        return self.draw(value.value)


def _parsed(grammar: Grammar[Any], text: str) -> tuple[Any, str, tuple[str, ...]]:
    value, problems = grammar.parse(text)
    return value, text, problems


@dataclass(frozen=True, slots=True)
class StructuredForm:
    """What is special about one sort of structured value."""

    grammar: Grammar[Any]
    draw: Callable[[Any], Image.Image]  # without a tokenizer
    parts: CodedParts | None = None  # what a tokenizer adds to it

    def drawing(self, row: Modality, tokenizer: AnyTokenizer | None) -> Callable[[Any], Image.Image]:
        """How values are drawn with this tokenizer, or without one."""
        if tokenizer is None or self.parts is None:
            return self.draw
        draw, decode = self.parts.draw, decoder_of(row, self.parts, tokenizer)
        return lambda value: draw(value, decode)


# By the codec name of a row.
STRUCTURED: dict[str, StructuredForm] = {
    "human_poses": StructuredForm(
        HUMAN_POSES, draw_boxes_of_people, CodedParts(POSE_CODES, POSE_NUMBERS, draw_figures)
    ),
    "sam_instance": StructuredForm(
        SAM_INSTANCES, outline_instances, CodedParts(MASK_CODES, 1, draw_instances)
    ),
}
