"""From the prompts and conditions of a call to samples."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fourm.codecs.taking import turn_upright
from fourm.codecs.texts import STRUCTURED
from fourm.data.dataset import Input
from fourm.data.layout import Key, Sample, number_keys, parse_key
from fourm.data.opening import local_path
from fourm.data.pictures import keys_below
from fourm.errors import UsageError, near_match, shown
from fourm.inputs.sources import CAPTION, digest_of
from fourm.modalities.facts import Colour
from fourm.modalities.registry import TOKENS, Kind, Modality
from fourm.modalities.text import Structured, WordPiece, check_prompt, with_marks
from fourm.runs.loaded import LoadedModel

_TEXT_SUFFIXES = (".json", ".json.gz", ".txt")


@dataclass(frozen=True, slots=True)
class GivenCondition:
    """One condition of a call: a value for each sample, or one for all of them."""

    name: str  # as the caller says it
    row: Modality
    is_raw: bool  # a map that is tokenised: `depth`, not `tok_depth`
    values: Sequence[Any]
    is_list: bool  # False: one value for all samples


@dataclass(frozen=True, slots=True)
class Gathered:
    """The samples of a call."""

    samples: tuple[Sample, ...]
    names: Mapping[str, str]  # full name of each condition -> as a schedule says it
    is_list: bool  # False: one sample, which was given as itself and not in a list
    input: Input = field(default_factory=Input)


def gather(
    loaded: LoadedModel, prompts: Sequence[Any], conditions: Mapping[str, Any], keys: Sequence[str] | None,
    is_upright: bool,
) -> Gathered:  # fmt: skip
    """The samples of prompts and conditions; UsageError if they don't fit together or to the model."""
    given = [find_condition(loaded, name, value) for name, value in conditions.items() if value is not None]
    if prompts:
        given.insert(0, _of_prompts(loaded, prompts, conditions))
    full = [one.row.name for one in given]
    if twice := [one.name for one in given if full.count(one.row.name) > 1]:
        raise UsageError(f"{' and '.join(twice)} mean the same modality; give one of them")
    counts = {one.name: len(one.values) for one in given if one.is_list}
    if len({*counts.values()}) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UsageError(f"lists of conditions must be equally long: {said}")
    count = max(counts.values(), default=1)
    if not count:
        raise UsageError(f"{next(iter(counts))}: the list is empty")
    rows = [{one.row.name: one.values[n if one.is_list else 0] for one in given} for n in range(count)]
    by_name = {one.row.name: one for one in given}
    named = number_keys(count) if keys is None else _given_keys(keys, count)
    if keys is None and (paths := _paths(given, count)):
        named = [*keys_below([path.parent for path in paths], paths)]
    samples = [_sample(loaded, by_name, key, row, is_upright) for key, row in zip(named, rows, strict=True)]
    names = {one.row.name: _schedule_name(one) for one in given}
    is_text = all(not sample.files and not sample.values for sample in samples)
    read = Input("none") if not given else Input("texts", sha256=digest_of(samples))
    if not is_text:
        read = Input("pictures", sha256=digest_of(samples), upright=is_upright)
    return Gathered(tuple(samples), names, bool(counts), read)


def find_condition(loaded: LoadedModel, name: str, value: Any) -> GivenCondition:
    """The condition that an argument names; UsageError if the model cannot read it."""
    files = loaded.files
    registry, reads = files.registry, files.reads
    as_tokens = {*reads, *(registry.get(one).key for one in reads)}
    grid = None if name in as_tokens else registry.grid_of_values(name, reads)
    if grid is None and not any(name in (one, registry.get(one).key) for one in reads):
        known = dict.fromkeys(registry.get(one).key.removeprefix(TOKENS) for one in reads)
        advice = near_match(name, known) or f"; it reads {', '.join(known)}"
        raise UsageError(
            f"'{name}' is neither something that model '{files.name}' reads nor a setting{advice}"
        )
    row = registry.get(grid or registry.resolve(name, reads))
    is_list = is_list_of(row, grid is not None, value)
    return GivenCondition(name, row, grid is not None, value if is_list else [value], is_list)


def _of_prompts(loaded: LoadedModel, prompts: Sequence[Any], conditions: Mapping[str, Any]) -> GivenCondition:
    """Words beside the other arguments are captions."""
    if conditions.get(CAPTION) is not None:
        raise UsageError("captions are given both as prompts and as caption=...; give one of them")
    for prompt in prompts:
        if not isinstance(prompt, str):
            what = f"a {type(prompt).__name__}"
            raise UsageError(
                f"{what} is given without a name; say what it is: model(rgb=...), words need no name"
            )
    value = prompts[0] if len(prompts) == 1 else [*prompts]
    return find_condition(loaded, CAPTION, value)


def is_list_of(row: Modality, is_raw: bool, value: Any) -> bool:
    """Whether a value is a list of values for several samples: lists of boxes or of ids are single values."""
    if not isinstance(value, list | tuple):
        return False
    if row.kind is Kind.GRID and not is_raw:  # ids, or rows of them
        return not all(isinstance(one, int | np.integer) for one in value)
    if row.codec not in STRUCTURED:
        return True
    whole = isinstance(value, list) and bool(value)
    if row.codec == "metadata":  # a tuple of facts is a value
        return whole and all(isinstance(one, Mapping | str | Path | tuple | Structured) for one in value)
    if row.codec == "color_palette" and whole and isinstance(value[0], Mapping):  # the data of a file
        return len(value) > 1
    return whole and all(_is_structured(one) for one in value)


def _is_structured(value: Any) -> bool:
    """Whether this is a whole value: several boxes or colours, not one of them."""
    if isinstance(value, str | Path | Structured) or (isinstance(value, Mapping) and "instances" in value):
        return True
    is_part = isinstance(value, Colour) or not isinstance(value, list | tuple)
    return not is_part and not any(isinstance(one, int | float | np.number) for one in value)


def _given_keys(keys: str | Sequence[str], count: int) -> list[Key]:
    """The names of samples that are given as `keys`."""
    names = [keys] if isinstance(keys, str) else [*keys]
    if len(names) != count:
        raise UsageError(f"`keys`: {len(names)} names for {count} samples")
    if len({*names}) < len(names):
        raise UsageError(f"`keys`: '{next(n for n in names if names.count(n) > 1)}' is given twice")
    return [parse_key(name) for name in names]


def _paths(given: Sequence[GivenCondition], count: int) -> list[Path]:
    """The files that name the samples: those of RGB, else of the first condition with one for each."""
    for one in sorted(given, key=lambda one: not one.row.is_rgb):
        if len(one.values) == count:
            paths = [path_of(one.row, value, one.name) for value in one.values]
            if found := [path for path in paths if path is not None]:
                return found if len(found) == count else []
    return []


def _sample(
    loaded: LoadedModel,
    given: Mapping[str, GivenCondition],
    key: Key,
    row: Mapping[str, Any],
    is_upright: bool,
) -> Sample:
    caption, files, typed, values = None, dict[str, Path](), dict[str, str](), dict[str, Any]()
    for name, value in row.items():
        modality, argument = given[name].row, given[name].name
        path = path_of(modality, value, argument)
        if path is not None:
            files[name] = path
        elif modality.codec == CAPTION:
            caption = _checked_prompt(loaded.wordpiece, modality, value)
        elif modality.codec in STRUCTURED and isinstance(value, str):
            typed[name] = with_marks(value)
        elif isinstance(value, Image.Image) and is_upright:
            values[name] = turn_upright(value, argument)
        else:
            values[name] = value
    upright: Literal["", "own"] = "own" if files and is_upright else ""
    return Sample(key, caption, files, typed=typed, values=values, upright=upright)


def path_of(row: Modality, value: Any, argument: str) -> Path | None:
    """The file that a value names; None for another value. Text of a sequence is a path only as a `Path`."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif not isinstance(value, str) or row.kind is Kind.SEQUENCE:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{argument}: a path of bytes, where a text belongs")
    path = local_path(value)
    if not path.is_file():
        raise UsageError(f"{argument}: {shown(value, 200)} is no file")
    return path


def _checked_prompt(wordpiece: WordPiece | None, row: Modality, value: Any) -> str:
    """A caption as the model reads it, on one line; UsageError for one that it cannot read."""
    if not isinstance(value, str):
        raise UsageError(f"caption: a {type(value).__name__}, where a text belongs")
    text = with_marks(" ".join(value.split()))
    if wordpiece is not None:
        check_prompt(text, wordpiece, row.max_tokens)
    return text


def _schedule_name(one: GivenCondition) -> str:
    """The name of a condition in a schedule: values by theirs, tokens by theirs."""
    return one.row.name.removeprefix(TOKENS) if one.is_raw else one.row.name


def resolve_targets(loaded: LoadedModel, targets: str | Iterable[str]) -> list[str]:
    """Names of targets as a schedule has them: `depth` is `tok_depth`; from one text or a list."""
    files = loaded.files
    words = targets.replace(",", " ").replace("-", " ").split() if isinstance(targets, str) else [*targets]
    if not words or not all(isinstance(word, str) for word in words):
        raise UsageError("`targets`: names of modalities were expected, such as 'depth normal'")
    return [files.registry.grid_of_values(word, files.writes) or word for word in words]
