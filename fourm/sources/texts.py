"""Samples of texts: prompts that were typed, a file, a stream, the prompts of a model."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from fourm.data.layout import Sample, number_keys, samples_of_prompts
from fourm.data.prompts import (
    JSON_LINES,
    PartOfTable,
    parse_columns,
    parse_prompts,
    read_file,
    read_stream,
)
from fourm.data.storage import local_file
from fourm.errors import UsageError
from fourm.hub.cache import find_parti
from fourm.hub.catalogue import PARTI
from fourm.hub.files import ModelFiles, require_text_tokenizer
from fourm.modalities.registry import Kind, Modality
from fourm.modalities.text import WordPiece, check_prompt
from fourm.schedule.keeps import Keep
from fourm.sources.datasets import CAPTION
from fourm.sources.source import STREAM, Source


def read_texts(source: Source, names: Sequence[str], model: ModelFiles, stdin: BinaryIO) -> list[Sample]:
    """A sample for each prompt, or for each row of a table with a column for each condition."""
    rows = check_text_conditions(source, names, model)
    data, where, suffix = _find_texts(source, model, stdin)
    samples = parse_texts(data, where, suffix, rows, source.column)
    if problem := next(filter(None, problems_of(samples, rows, model)), ""):
        raise UsageError(problem)
    return samples


def check_text_conditions(source: Source, names: Sequence[str], model: ModelFiles) -> list[Modality]:
    """The rows of conditions that texts are to give; UsageError for those that they cannot."""
    rows, listed = [model.registry.get(name) for name in names], ", ".join(names)
    if others := [row.name for row in rows if row.kind is not Kind.SEQUENCE]:
        advice = f"name a dataset that holds {listed} with `data=DIR`"
        raise UsageError(f"`cond={others[0]}`: prompts give texts only; {advice}")
    typed = [row.name for row in rows if row.codec != CAPTION]
    if typed and (source.data in (None, PARTI)):
        advice = f"`data=FILE.jsonl` gives {listed} under a key each, `data=DIR` in a folder each"
        raise UsageError(f"`cond={typed[0]}`: prompts give captions only; {advice}")
    if not names:
        raise UsageError("prompts are given, but no condition reads them; leave out `cond=none`")
    return rows


def check_text_keeps(keeps: Sequence[Keep]) -> None:
    """Refuse kept parts of what is no text, where texts are all that is given."""
    if lacking := [keep for keep in keeps if not keep.is_text]:
        advice = "give a picture, or a dataset that holds it or its values with `data=DIR`"
        raise UsageError(f"`keep={lacking[0].to_text()}`: nothing is given of {lacking[0].target}; {advice}")


def default_suffix(rows: Iterable[Modality]) -> str:
    """The ending that stands for none: of lines of captions, or of JSON lines for other conditions."""
    return ".txt" if all(row.codec == CAPTION for row in rows) else JSON_LINES[0]


def parse_texts(
    data: bytes, where: str, suffix: str, rows: Sequence[Modality], column: str | None, first: int = 0,
    part: PartOfTable | None = None,
) -> list[Sample]:  # fmt: skip
    """A sample for each prompt of a text, or for each row of a table with a column for each of `rows`.

    suffix: of the file; "" for prompts and streams. first: the position that names the first sample. part: of
    lines that are not the first ones of their file.
    """
    suffix = suffix or default_suffix(rows)
    typed = [row.name for row in rows if row.codec != CAPTION]
    if not typed:
        return samples_of_prompts(parse_prompts(data, where, suffix, column, part), first)
    table = parse_columns(data, where, suffix, [row.name for row in rows], column, part)
    samples = list[Sample]()
    for key, cells in zip(number_keys(len(table), first), table, strict=True):
        caption = next((text for name, text in cells.items() if name not in typed), None)
        samples.append(Sample(key, caption, typed={name: cells[name] for name in typed}))
    return samples


def problems_of(samples: Iterable[Sample], rows: Iterable[Modality], model: ModelFiles) -> Iterator[str]:
    """Of each sample, why its caption cannot be read; "" if it can."""
    wordpiece = WordPiece.load(require_text_tokenizer(model, "reading prompts"))
    max_tokens = max((row.max_tokens for row in rows if row.codec == CAPTION), default=0)
    for sample in samples:
        problem = ""
        if sample.caption is not None:
            try:
                check_prompt(sample.caption, wordpiece, max_tokens)
            except UsageError as error:
                problem = str(error)
        yield problem


def digest_of(samples: Sequence[Sample]) -> str:
    """A digest of names and texts that is the same whatever form the texts were typed in."""
    texts = [[sample.key.text, sample.caption, dict(sample.typed)] for sample in samples]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def text_file(source: Source, model: ModelFiles) -> Path:
    """The file of texts that a source names; without `data`, that of the model."""
    if source.data == PARTI and not os.path.exists(PARTI):
        return find_parti()
    path = model.prompts if source.data is None else local_file(source.data)
    if path is None:
        why = "has no prompts of its own; give some, or a file with `data=FILE`"
        raise UsageError(f"model '{model.name}' {why}")
    return path


def _find_texts(source: Source, model: ModelFiles, stdin: BinaryIO) -> tuple[bytes, str, str]:
    """The texts, where they come from, and the suffix of their file; "" for prompts and streams."""
    if source.prompts:
        _check_prompts(source.prompts)
        lines = [" ".join(prompt.split()) for prompt in source.prompts]
        return "\n".join(lines).encode(), "the prompts given", ""
    if source.data == STREAM:
        return read_stream(stdin, "standard input"), "standard input", ""
    path = text_file(source, model)
    return read_file(path), str(path), path.suffix.lower()


def _check_prompts(prompts: Sequence[str]) -> None:
    """Refuse prompts that are not UTF-8, that are empty, or that are `-`."""
    for number, prompt in enumerate(prompts, start=1):
        # Python decodes bytes of arguments that are not UTF-8 to these characters.
        if not prompt.isascii() and any("\udc80" <= character <= "\udcff" for character in prompt):
            raise UsageError(f"prompt {number} of {len(prompts)} is not UTF-8 text")
        # Perhaps an unset variable of a shell. If it were left out, later samples would get other names.
        if not prompt.strip():
            raise UsageError(f"prompt {number} of {len(prompts)} is empty")
        if prompt.strip() == STREAM:
            raise UsageError(f"the prompt '{STREAM}' says nothing; `data={STREAM}` reads standard input")
