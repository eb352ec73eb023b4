"""Text and ids: the tokenizer JSON of a model, sentinel spans, and what a prompt may hold. No torch."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tokenizers import Encoding, Tokenizer

from fourm.data.opening import read_bytes
from fourm.errors import CheckpointError, MissingError, UsageError

# The first ids of every 4M text tokenizer; [S_k] follows at FIRST_SENTINEL + k.
PAD_ID, UNK_ID, SOS_ID, EOS_ID, FIRST_SENTINEL = range(5)
RESERVED = ("[PAD]", "[UNK]", "[SOS]", "[EOS]")
MAX_BYTES = 1 << 26  # of the file
_MAX_PROMPT = 1 << 20  # characters
_SHOWN = 60  # characters of a prompt that an error repeats


_STRANGE = "\U0002a6d6"  # an ideograph that hardly any vocabulary has; not one that is cleaned away


@dataclass(frozen=True, slots=True)
class WordPiece:
    """A trained text tokenizer: normaliser, words and special tokens are what its file says."""

    tokenizer: Tokenizer
    num_sentinels: int

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a `tokenizers` JSON file whose first ids are those of 4M."""
        try:
            data = read_bytes(path, MAX_BYTES)
        except FileNotFoundError as error:
            raise MissingError(f"{path}: the text tokenizer is not here") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        try:
            # from_file raises a bare Exception, from_buffer a ValueError.
            tokenizer = Tokenizer.from_buffer(data)
        except ValueError as error:
            raise CheckpointError(f"{path}: not a text tokenizer ({error})") from error
        try:
            tokenizer.encode(_STRANGE, add_special_tokens=False)
        except Exception as error:  # bare, whatever is wrong
            raise CheckpointError(f"{path}: cannot read a word that it does not know ({error})") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for wanted, token in enumerate((*RESERVED, "[S_0]", "[S_1]", "[S_2]")):
            if tokenizer.token_to_id(token) != wanted:
                found = tokenizer.token_to_id(token)
                raise CheckpointError(f"{path}: {token} must have id {wanted}, not {found}")
        count = 3
        while tokenizer.token_to_id(f"[S_{count}]") == FIRST_SENTINEL + count:
            count += 1
        return cls(tokenizer, count)

    @property
    def pad_id(self) -> int:
        """Id of [PAD]."""
        return PAD_ID

    @property
    def eos_id(self) -> int:
        """Id of [EOS], which ends a full text."""
        return EOS_ID

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def sentinels(self) -> range:
        """Ids of [S_0], [S_1], ..., each of which stands for a hidden run of tokens."""
        return range(FIRST_SENTINEL, FIRST_SENTINEL + self.num_sentinels)

    def sentinel_id(self, number: int) -> int:
        """Id of [S_number]."""
        return self.sentinels[number]

    def encode(self, text: str) -> list[int]:
        """Ids of the text as it stands: nothing is added at its ends, special tokens in it are recognised."""
        return self._encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids. Special tokens are kept: class names and coordinates are among them."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def text_of(self, ids: Iterable[int]) -> str:
        """What a finished sequence says: up to its first [EOS], without padding and sentinels."""
        kept = []
        for token in ids:
            if token == EOS_ID:
                break
            if token not in (PAD_ID, SOS_ID) and token not in self.sentinels:
                kept.append(token)
        return self.decode(kept)

    def beginning(self, text: str, count: int) -> str:
        """As much of a text as its first `count` ids stand for."""
        encoding = self._encode(text)
        ids, offsets = encoding.ids, encoding.offsets
        if len(ids) <= count:
            return text
        for kept in range(count, 0, -1):
            start = text[: offsets[kept - 1][1]]
            if self.encode(start) == ids[:kept]:  # `[S_1]` is not what `[S_1]2` begins with
                return start
        return ""

    def unknown_words(self, text: str) -> list[str]:
        """The parts of a text that the vocabulary lacks; the model reads each of them as [UNK]."""
        encoding = self._encode(text)
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return [text[start:end] for token, (start, end) in spans if token == UNK_ID]

    def _encode(self, text: str) -> Encoding:
        # Bytes that were not UTF-8 arrive as lone surrogates, which the tokenizer cannot take.
        return self.tokenizer.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)


def encode_full(text: str, wordpiece: WordPiece) -> list[int]:
    """Ids of a text as a condition: ended by [EOS], unless a sentinel says that something is missing."""
    ids = wordpiece.encode(text)
    is_partial = any(token in wordpiece.sentinels for token in ids)
    return ids if is_partial else [*ids, EOS_ID]


def check_prompt(text: str, wordpiece: WordPiece, max_tokens: int) -> None:
    """Raise a UsageError for a prompt that the model cannot read whole, or that holds a reserved token."""
    if len(text) > _MAX_PROMPT:  # a hundred times as many bytes are needed to make tokens of it
        raise UsageError(
            f"prompt {_shortened(text)}: {len(text):,} characters, "
            f"but the model reads at most {max_tokens} tokens"
        )
    for token in RESERVED:
        if token in text:
            raise UsageError(f"prompt {_shortened(text)}: {token} is reserved for the model; leave it out")
    if not wordpiece.encode(text):
        raise UsageError(f"prompt {_shortened(text)}: holds no word that a model could read")
    count = len(encode_full(text, wordpiece))
    if count > max_tokens:
        raise UsageError(
            f"prompt {_shortened(text)}: {count} tokens with its end mark, "
            f"but the model reads at most {max_tokens}"
        )


def merge_spans(visible: Sequence[int], predicted: Sequence[int], sentinels: Container[int]) -> list[int]:
    """The visible ids with every sentinel replaced by the tokens that follow it in `predicted`.

    A sentinel owns the tokens up to the next one; tokens before any belong to nobody, a sentinel that
    comes twice in `predicted` owns both stretches, and one that `visible` lacks is dropped with its tokens.
    """
    owned: dict[int, list[int]] = {}
    run: list[int] = []
    for token in predicted:
        if token in sentinels:
            run = owned.setdefault(token, [])
        else:
            run.append(token)
    merged: list[int] = []
    for token in visible:
        merged += owned.get(token, []) if token in sentinels else [token]
    return merged


def _shortened(text: str) -> str:
    one_line = " ".join(text.split())
    return repr(one_line if len(one_line) <= _SHOWN else one_line[: _SHOWN - 3] + "...")
