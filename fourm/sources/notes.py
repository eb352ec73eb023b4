"""What is said of an input before a run: likely mistakes, unknown words, marks to be filled."""

import os
from collections.abc import Iterable, Sequence

from fourm.data.layout import Sample
from fourm.hub.catalogue import DEMO
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Kind
from fourm.modalities.text import WordPiece
from fourm.sources.datasets import CAPTION

SHOWN = 5  # unknown words that a note names


def note_of_world(model: ModelFiles, given: Sequence[str]) -> tuple[str, ...]:
    """A note on what the built-in model knows, if it is given a picture; else nothing."""
    if model.name != DEMO or not any(model.registry.get(name).is_rgb for name in given):
        return ()
    knows = "one or two circles, squares and triangles in six colours, on a plain background"
    return (f"model '{DEMO}' knows a synthetic world only, {knows}; what it says of photos means nothing",)


def note_likely_slips(prompts: Sequence[str]) -> tuple[str, ...]:
    """Notes on prompts that may be mistakes: single words without quotation marks, and names of files."""
    notes = list[str]()
    if len(prompts) > 1 and all(len(prompt.split()) == 1 for prompt in prompts):
        joined = " ".join(prompts)
        notes.append(f'{len(prompts)} prompts of one word each; quotation marks make them one: "{joined}"')
    if named := next((prompt for prompt in prompts if " " not in prompt and os.path.exists(prompt)), ""):
        notes.append(f"'{named}' is read as words; `data={named}` reads what has this name")
    return tuple(notes)


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
