"""What is said of the words of prompts before a run: marks to be filled, and words that no model knows."""

from collections.abc import Iterable, Sequence

from fourm.data.layout import Sample
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Kind
from fourm.modalities.text import WordPiece
from fourm.sources.datasets import CAPTION

SHOWN = 5  # unknown words that a note names


def marked_texts(samples: Sequence[Sample], names: Iterable[str], model: ModelFiles) -> list[str]:
    """The conditions among `names` of which a typed text has sentinels ([S_1]) that the model can fill."""
    if model.text_tokenizer is None or not any("[S_" in text for s in samples for text in _typed(s)):
        return []
    wordpiece, found = WordPiece.load(model.text_tokenizer), list[str]()
    for name in names:
        row = model.registry.get(name)
        if row.kind is Kind.SEQUENCE and name in model.writes:
            texts = (s.caption if row.codec == CAPTION else s.typed.get(name) for s in samples)
            tokens = (wordpiece.encode(text) for text in texts if text and "[S_" in text)
            if any(token in wordpiece.sentinels for ids in tokens for token in ids):
                found.append(name)
    return found


def _typed(sample: Sample) -> tuple[str, ...]:
    """All texts of a sample that a user typed."""
    return (sample.caption or "", *sample.typed.values())


def note_unknown_words(samples: Sequence[Sample], model: ModelFiles) -> str | None:
    """A sentence about words that the model cannot know, or None."""
    if model.text_tokenizer is None:
        return None
    wordpiece = WordPiece.load(model.text_tokenizer)
    found = [wordpiece.unknown_words(s.caption) for s in samples if s.caption is not None]
    words = list(dict.fromkeys(word for words in found for word in words))
    if not words:
        return None
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    count = f"{sum(map(bool, found))} of {len(found)} prompts"
    return f"note: model '{model.name}' does not know {', '.join(map(repr, words[:SHOWN]))}{more} ({count})"
