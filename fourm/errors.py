"""Errors that a person can act on, each kind with the exit code that it means."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# Of a word this long the middle is left out, so that the sentence around it can be read.
_LONG_WORD = re.compile(r"(\S{200})\S{300,}(\S{100})")
MAX_SENTENCE = 2000  # characters of a message: enough for a long path and what is wrong with it


class FourMError(Exception):
    """Something a user can understand and mend; the message is one sentence for a person."""

    exit_code = 1


class UsageError(FourMError):
    """A wrong option, schedule, config or input; found before any model is loaded."""

    exit_code = 2


class ScheduleError(UsageError):
    """One or more mistakes in a schedule, reported together."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class CheckpointError(UsageError):
    """A model or tokenizer file that is truncated, malformed or does not fit its configuration."""


class SampleError(FourMError):
    """One sample that cannot be read or decoded; the others go on.

    The message is one printable line, whatever names and decoders' complaints are part of it.
    """

    exit_code = 3

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class MissingError(FourMError):
    """A model or file that is not here and cannot be fetched; the message says what fetches it."""

    exit_code = 4


class VerificationError(FourMError):
    """A checksum or a folder that is not what its record says."""

    exit_code = 5


def printable(text: str) -> str:
    """The text without line ends and control characters, which could drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(message: str) -> str:
    """A message as it is shown: printable, without the middle of a very long word, and not endless."""
    return shown(_LONG_WORD.sub(r"\1...\2", printable(message)), MAX_SENTENCE)


def shown(value: object, most: int = 60) -> str:
    """A value as a message repeats it: its beginning, if it is long."""
    text = str(value)
    return text if len(text) <= most else f"{text[:most]}..."


def near_match(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest known name, or an empty string.

    A name that is part of longer ones stands for the shortest of them: `steps` for `decoding_steps`.
    """
    known = list(known)
    longer = sorted((k for k in known if len(name) >= 4 and name in k), key=len)
    close = longer or get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""
