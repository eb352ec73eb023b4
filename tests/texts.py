"""Random text as a model may write it, random data as a file may hold it; prompts that are read from one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from fourm.data.prompts import parse_prompts, read_file

numbers = st.integers(-3, 1003) | st.integers() | st.sampled_from(["", "x", "9" * 5000, "1.5", "٣", "-", "²"])
coordinates = st.builds("v{}={}".format, st.integers(0, 4), numbers)
words = st.sampled_from(
    [
        "cat",
        "dining",
        "table",
        "[PAD]",
        "[EOS]",
        "[S_1]",
        "[UNK]",
        "none",
        "[",
        "]",
        "x]",
        "=",
        "v0=",
        "v1",
        "a=b",
        "v0=1=2",
    ]
)

# Words of a grammar in any order, and text of no grammar at all.
model_texts = st.text() | st.lists(coordinates | words, max_size=40).map(" ".join)


def data_with(keys: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """JSON data of any shape, whose objects mostly have these keys."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    names = st.sampled_from(keys) | st.text(max_size=4)
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=7) | st.dictionaries(names, inner, max_size=4),
        max_leaves=30,
    )


def value_or_refusal(read: Callable[[], Any]) -> Any:
    """What reading gives; None where it is one line: at most three problems, of a hundred characters each."""
    try:
        return read()
    except ValueError as error:
        message = str(error)
    if not 0 < len(message) < 350 or "\n" in message:
        pytest.fail(f"no short sentence: {message}")
    return None


def prompts_in(path: Path, column: str | None = None) -> list[str]:
    """The prompts of a file, which its ending says the form of."""
    return parse_prompts(read_file(path), str(path), path.suffix.lower(), column)
