"""Text as models read it: ids of a text tokenizer, prompts, and what all grammars of texts share."""

import re
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count, takewhile
from pathlib import Path
from typing import Generic, Self, TypeVar

from tokenizers import Encoding, Tokenizer

from fourm.data.layout import Crop
from fourm.errors import CheckpointError, MissingError, UsageError, shown
from fourm.files.opening import is_encodable, read_bytes

T = TypeVar("T")

# The first ids of every 4M text tokenizer; [S_k] follows at FIRST_SENTINEL + k.
PAD_ID, UNK_ID, SOS_ID, EOS_ID, FIRST_SENTINEL = range(5)
RESERVED = ("[PAD]", "[UNK]", "[SOS]", "[EOS]")
MAX_NUMBER = 999  # words of numbers go from v0=0 to v3=999
MAX_BYTES = 1 << 26  # of the file
_MAX_PROMPT = 1 << 20  # characters
_STRANGE = "\U0002a6d6"  # an ideograph that hardly any vocabulary has; not one that is cleaned away


@dataclass(frozen=True, slots=True)
class WordPiece:
    """A trained text tokenizer."""

    tokenizer: Tokenizer
    sentinels: range  # ids of [S_0], [S_1], ..., each of which stands for a hidden run of tokens

    @classmethod
    def load(cls, path: Path) -> Self:
        """From a `tokenizers` JSON file whose first ids are those of 4M."""
        try:
            tokenizer = Tokenizer.from_buffer(read_bytes(path, MAX_BYTES))
            tokenizer.encode(_STRANGE, add_special_tokens=False)
        except FileNotFoundError as error:
            raise MissingError(f"{path}: the text tokenizer is not here") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
        except Exception as error:  # a bare one where there is no token for unknown words
            raise CheckpointError(f"{path}: not a text tokenizer ({error})") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        for wanted, token in enumerate((*RESERVED, "[S_0]", "[S_1]", "[S_2]")):
            if (found := tokenizer.token_to_id(token)) != wanted:
                raise CheckpointError(f"{path}: {token} must have id {wanted}, not {found}")
        # The sentinels end at the first that is missing or elsewhere.
        total = next(k for k in count() if tokenizer.token_to_id(f"[S_{k}]") != FIRST_SENTINEL + k)
        return cls(tokenizer, range(FIRST_SENTINEL, FIRST_SENTINEL + total))

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens in it are recognised, none are added."""
        return self._encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids. Special tokens are kept: class names and coordinates are among them."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def text_of(self, ids: Iterable[int]) -> str:
        """The text of a finished sequence: up to its first [EOS], without padding and sentinels."""
        words = (one for one in takewhile(EOS_ID.__ne__, ids) if one not in (PAD_ID, SOS_ID))
        return self.decode([one for one in words if one not in self.sentinels])

    def beginning(self, text: str, count: int) -> str:
        """The beginning of a text that its first `count` ids stand for."""
        encoding = self._encode(text)
        if len(encoding.ids) <= count:
            return text
        for kept in range(count, 0, -1):
            start = text[: encoding.offsets[kept - 1][1]]
            if self.encode(start) == encoding.ids[:kept]:  # `[S_1]` is not what `[S_1]2` begins with
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
    """Ids of a text as a condition: ended by [EOS], unless a sentinel marks a missing part."""
    ids = wordpiece.encode(text)
    return ids if any(token in wordpiece.sentinels for token in ids) else [*ids, EOS_ID]


def with_marks(text: str) -> str:
    """The text with a sentinel, [S_1], [S_2] and so on, in the place of each blank: three or more `_`."""
    taken = (int(number) for number in re.findall(r"\[S_([0-9]{1,4})\]", text))
    numbers = count(max(taken, default=0) + 1)
    return re.sub(r"_{3,}", lambda _: f"[S_{next(numbers)}]", text)


def check_prompt(text: str, wordpiece: WordPiece, max_tokens: int) -> None:
    """Raise a UsageError for a prompt that is empty, too long, or holds a reserved token."""
    if len(text) > _MAX_PROMPT:  # a hundred times as many bytes are needed to make tokens of it
        problem = f"{len(text):,} characters, but the model reads at most {max_tokens} tokens"
    elif mark := next((token for token in RESERVED if token in text), ""):
        problem = f"{mark} is reserved for the model; leave it out"
    elif "\0" in text or not is_encodable(text):
        problem = "holds a character that files of text cannot hold"
    elif not wordpiece.encode(text):
        problem = "holds no word that a model could read"
    elif (count := len(encode_full(text, wordpiece))) > max_tokens:
        problem = f"{count} tokens with its end mark, but the model reads at most {max_tokens}"
    else:
        return
    raise UsageError(f"prompt {shown(' '.join(text.split()))!r}: {problem}")


def merge_spans(visible: Sequence[int], predicted: Sequence[int], sentinels: Container[int]) -> list[int]:
    """The visible ids with every sentinel replaced by the tokens that follow it in `predicted`.

    The tokens up to the next sentinel belong to a sentinel, for one that comes twice in `predicted` both
    runs. Tokens before the first sentinel, and those of sentinels that `visible` lacks, are dropped.
    """
    owned, run = dict[int, list[int]](), list[int]()
    for token in predicted:
        if token in sentinels:
            run = owned.setdefault(token, [])
        else:
            run.append(token)
    parts = (owned.get(token, []) if token in sentinels else [token] for token in visible)
    return list(chain.from_iterable(parts))


@dataclass(frozen=True, slots=True)
class Structured(Generic[T]):
    """A value that was read from text, the text, and what is wrong with it: models can write any text."""

    value: T
    text: str = ""  # as the model wrote it; "" for a value that comes from a file
    problems: tuple[str, ...] = ()  # a short sentence for each part that is ignored


@dataclass(frozen=True, slots=True)
class Grammar(Generic[T]):
    """One sort of structured value, as text and as the plain data of a JSON file.

    parse never raises, but returns sentences about what it ignores; from_json raises a ValueError with one.
    """

    parse: Callable[[str], tuple[T, tuple[str, ...]]]  # text -> value, problems
    to_pieces: Callable[[T], list[str]]  # value -> what the model reads, joined by blanks
    from_json: Callable[[object, Crop | None], T]  # data of a file -> value as the crop shows it
    to_json: Callable[[T], object]  # value -> data of a file, readable by from_json without a crop
    is_divisible: bool = False  # pieces mean something alone, so a long text can end between two of them
    restore: Callable[[T, Crop], T] = lambda value, crop: value  # of a crop -> of the whole picture
    whole: Callable[[object], T] | None = None  # data of a file -> all of it; None: from_json without a crop
    cut: Callable[[T, Crop], T] | None = None  # of the whole picture -> as a crop shows it, where it is drawn

    def whole_from_json(self, data: object) -> T:
        """The value of a file's whole picture, of whatever size."""
        return self.from_json(data, None) if self.whole is None else self.whole(data)

    def to_text(self, value: T) -> str:
        """The value as the model reads it."""
        return " ".join(self.to_pieces(value))

    def understand(self, text: str) -> Structured[T]:
        """Parse a model's text."""
        value, problems = self.parse(text)
        return Structured(value, text, problems)


def words_of(text: str) -> list[str]:
    """The words of a model's text, without padding, end marks and sentinels."""
    return [word for word in text.split() if not (word.startswith("[") and word.endswith("]"))]


def grouped(words: Iterable[str], begins: Callable[[str], bool]) -> tuple[list[str], list[list[str]]]:
    """The words before the first group, and the groups, each with the word that begins it."""
    before, groups = list[str](), list[list[str]]()
    for word in words:
        if begins(word):
            groups.append([word])
        else:
            (groups[-1] if groups else before).append(word)
    return before, groups


def parse_groups(
    words: Iterable[str], begins: Callable[[str], bool], name: str,
    parse: Callable[[list[str]], tuple[T | None, str]],
) -> tuple[list[str], list[T], list[str]]:  # fmt: skip
    """The words before the first group, the parsed groups, and problems, with name and number of a group."""
    before, groups = grouped(words, begins)
    parsed = [parse(group) for group in groups]
    found = enumerate((problem for _, problem in parsed), start=1)
    problems = [f"{name} {number}: {problem}" if name else problem for number, problem in found if problem]
    return before, [item for item, _ in parsed if item is not None], problems


def number_of(word: str) -> int | None:
    """The whole number behind the first `=` of a word such as `v0=12`; None where there is none."""
    match = re.fullmatch(r"[^=]*=(-?)0*([0-9]+)", word)
    # A billion, which is beyond every limit of a grammar, stands for all numbers that are larger.
    return int(match[1] + (match[2] if len(match[2]) <= 9 else "1000000000")) if match else None


def quoted(words: Sequence[str]) -> str:
    """The beginning of some words of a text in quotes, for a sentence."""
    return f"'{shown(' '.join(words[:40]), 40)}'"
