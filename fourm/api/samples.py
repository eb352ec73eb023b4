"""From the prompts and conditions of a call to samples."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from fourm.codecs.maps import FORMS
from fourm.codecs.taking import turn_upright
from fourm.codecs.texts import STRUCTURED
from fourm.data.dataset import Input
from fourm.data.layout import Key, Sample, number_keys, parse_key
from fourm.data.pictures import is_path, keys_below
from fourm.errors import SampleError, UsageError, near_match, printable, shown
from fourm.files.opening import local_path
from fourm.modalities.facts import Colour
from fourm.modalities.registry import TOKENS, Kind, Modality
from fourm.modalities.text import Structured, WordPiece, check_prompt, with_marks
from fourm.runs.loaded import LoadedModel
from fourm.sources.datasets import CAPTION
from fourm.sources.texts import digest_of


@dataclass(frozen=True, slots=True)
class GivenCondition:
    """The values of one condition of a call: one for each sample, or one for all of them."""

    name: str  # the argument, as the caller writes it
    row: Modality
    is_raw: bool  # True: values that are tokenised (`depth`); False: tokens (`tok_depth`), or no grid at all
    values: Sequence[Any]  # a single one if not `is_list`
    is_list: bool

    @property
    def schedule_name(self) -> str:
        """As a schedule calls it: `depth@64` for values that are tokenised, `tok_depth@64` for tokens."""
        return self.row.name.removeprefix(TOKENS) if self.is_raw else self.row.name


@dataclass(frozen=True, slots=True)
class CallSamples:
    """The samples of a call."""

    samples: tuple[Sample, ...]
    names: Mapping[str, str]  # full name of each condition -> the name that a schedule uses
    is_list: bool  # False: one sample, which was not given as a list
    input: Input = field(default_factory=Input)  # what the record of a run says of the samples


def gather_samples(
    loaded: LoadedModel, prompts: Sequence[Any], conditions: Mapping[str, Any], keys: Sequence[str] | None,
    is_upright: bool,
) -> CallSamples:  # fmt: skip
    """The samples of prompts and conditions; UsageError if they don't fit together or to the model.

    keys: their names; None: from the files that are given as paths, else their positions. is_upright: whether
    pictures are turned as their EXIF tag says.
    """
    given = [find_condition(loaded, name, value) for name, value in conditions.items() if value is not None]
    if prompts:
        given.insert(0, _prompt_values(loaded, prompts, conditions))
    full = [one.row.name for one in given]
    if twice := [one.name for one in given if full.count(one.row.name) > 1]:
        raise UsageError(f"{' and '.join(twice)} mean the same modality; give one of them")
    count, is_list = _num_samples(given)
    if keys is not None:
        names = _given_keys(keys, count)
    elif paths := _naming_files(given, count):
        names = [*keys_below([path.parent for path in paths], paths)]
    else:
        names = number_keys(count)
    samples = [_sample(loaded, given, key, index, is_upright) for index, key in enumerate(names)]
    if not given:
        read = Input("none")
    elif any(sample.files or sample.values for sample in samples):
        read = Input("pictures", sha256=digest_of(samples), upright=is_upright)
    else:
        read = Input("texts", sha256=digest_of(samples))
    return CallSamples(tuple(samples), {one.row.name: one.schedule_name for one in given}, is_list, read)


def _num_samples(given: Sequence[GivenCondition]) -> tuple[int, bool]:
    """How many samples conditions have, and whether one is a list; UsageError if lists differ in length."""
    counts = {one.name: len(one.values) for one in given if one.is_list}
    if len({*counts.values()}) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise UsageError(f"lists of conditions must be equally long: {said}")
    count = max(counts.values(), default=1)
    if not count:
        raise UsageError(f"{next(iter(counts))}: the list is empty")
    return count, bool(counts)


def find_condition(loaded: LoadedModel, name: str, value: Any) -> GivenCondition:
    """The condition that an argument names; UsageError if the model cannot read it."""
    files = loaded.files
    registry, reads = files.registry, files.reads
    names = {*reads, *(registry.get(one).key for one in reads)}  # of tokens, and of what is no grid
    tokens = None if name in names else registry.grid_of_values(name, reads)  # that the given values become
    if tokens is None and name not in names:
        known = dict.fromkeys(registry.get(one).key.removeprefix(TOKENS) for one in reads)
        advice = near_match(name, known) or f"; it reads {', '.join(known)}"
        raise UsageError(
            f"'{name}' is neither something that model '{files.name}' reads nor a setting{advice}"
        )
    row, is_raw = registry.get(tokens or registry.resolve(name, reads)), tokens is not None
    is_list = is_list_of(row, is_raw, value)
    return GivenCondition(name, row, is_raw, value if is_list else [value], is_list)


def _prompt_values(
    loaded: LoadedModel, prompts: Sequence[Any], conditions: Mapping[str, Any]
) -> GivenCondition:
    """Arguments without a name, which are captions."""
    if conditions.get(CAPTION) is not None:
        raise UsageError("captions are given both as prompts and as caption=...; give one of them")
    for prompt in prompts:
        if isinstance(prompt, str) and not (is_path(prompt) and os.path.exists(prompt)):
            continue
        what, name = f"a {type(prompt).__name__} is given without a name", "rgb=..."
        if isinstance(prompt, str):
            what, name = "a path is given without a name", f"rgb={prompt!r}"
        elif isinstance(prompt, list | tuple) and all(isinstance(one, str) for one in prompt):
            raise UsageError("a list of texts is given as one prompt; model(*prompts) takes each of them")
        raise UsageError(f"{what}; say what it is: model({name}), words need no name")
    value = prompts[0] if len(prompts) == 1 else [*prompts]
    return find_condition(loaded, CAPTION, value)


def is_list_of(row: Modality, is_raw: bool, value: Any) -> bool:
    """Whether a value is a list with a value for each sample.

    Some single values are lists themselves: token ids, boxes, colours, facts. So of these a list of lists is
    meant. is_raw: as of `GivenCondition`.
    """
    if not isinstance(value, list | tuple):
        return False
    if row.kind is Kind.GRID and not is_raw:  # ids, or rows of them
        return not all(isinstance(one, int | np.integer) for one in value)
    if row.codec not in STRUCTURED:
        return True
    if isinstance(value, tuple) or not value:  # the form of such values in results
        return False
    if row.codec == "metadata":
        return all(isinstance(one, Mapping | str | Path | tuple | Structured) for one in value)
    if row.codec == "color_palette" and isinstance(value[0], Mapping):  # as a file has it, `[{"2": ...}]`
        return len(value) > 1
    return all(_is_whole_value(one) for one in value)


def _is_whole_value(value: Any) -> bool:
    """Whether this is the value of a sample, such as several boxes or colours; False for a single one."""
    if isinstance(value, str | Path | Structured) or (isinstance(value, Mapping) and "instances" in value):
        return True
    if isinstance(value, Colour) or not isinstance(value, list | tuple):
        return False
    return not any(isinstance(one, int | float | np.number) for one in value)  # as in a box or a colour


def _given_keys(keys: str | Sequence[str], count: int) -> list[Key]:
    """The names of samples that are given as `keys`."""
    names = [keys] if isinstance(keys, str) else [*keys] if isinstance(keys, Iterable) else [keys]
    if not all(isinstance(name, str) for name in names):
        raise UsageError("`keys`: names of samples were expected, as texts")
    if len(names) != count:
        raise UsageError(f"`keys`: {len(names)} names for {count} samples")
    if len({*names}) < len(names):
        raise UsageError(f"`keys`: '{next(n for n in names if names.count(n) > 1)}' is given twice")
    return [parse_key(name) for name in names]


def _naming_files(given: Sequence[GivenCondition], count: int) -> list[Path]:
    """The files that samples are named after: those of RGB, else of the first condition with one for each."""
    for one in sorted(given, key=lambda one: not one.row.is_rgb):
        if len(one.values) == count:
            paths = [named_file(one.row, value, one.name) for value in one.values]
            if found := [path for path in paths if path is not None]:
                return found if len(found) == count else []
    return []


def _sample(
    loaded: LoadedModel, given: Sequence[GivenCondition], key: Key, index: int, is_upright: bool
) -> Sample:
    """The sample at a position of the call, whose texts and paths are checked."""
    caption, files, typed, values = None, dict[str, Path](), dict[str, str](), dict[str, Any]()
    problem = ""
    for one in given:
        name, value = one.row.name, one.values[index if one.is_list else 0]
        path = named_file(one.row, value, one.name)
        if path is not None:
            files[name] = path
        elif one.row.codec == CAPTION:
            caption = _checked_prompt(loaded.wordpiece, one.row, value)
        elif one.row.codec in STRUCTURED and isinstance(value, str):
            typed[name] = with_marks(value)
        elif isinstance(value, Image.Image) and is_upright:
            try:
                values[name] = upright_of(one.row, value, one.name)
            except SampleError as error:
                problem = str(error)
        else:
            values[name] = value
    upright: Literal["", "own"] = "own" if files and is_upright else ""
    return Sample(key, caption, files, typed=typed, values=values, upright=upright, problem=problem)


def upright_of(row: Modality, picture: Image.Image, argument: str) -> Image.Image:
    """A picture turned by its EXIF tag. SampleError: it cannot be read, or holds directions."""
    turned = turn_upright(picture, argument)
    if turned is not picture and row.codec in FORMS and FORMS[row.codec].is_normal:
        what = "its normals point another way in the turned picture; `upright=False` leaves it unturned"
        raise SampleError(f"{argument}: {what}")
    return turned


def named_file(row: Modality, value: Any, argument: str) -> Path | None:
    """The file that a value names; None for another value. UsageError if there is no such file.

    For sequences (captions, boxes) only a `Path` names a file, as their values may be text.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif not isinstance(value, str) or row.kind is Kind.SEQUENCE:
        return None
    if not isinstance(value, str):
        raise UsageError(f"{argument}: a path of bytes, where a text belongs")
    path = local_path(value)
    if not path.is_file():
        raise UsageError(f"{argument}: {shown(printable(value), 200)} is no file")
    return path


def _checked_prompt(wordpiece: WordPiece | None, row: Modality, value: Any) -> str:
    """A caption as the model reads it, on one line; UsageError for one that it cannot read."""
    if not isinstance(value, str):
        raise UsageError(f"caption: a {type(value).__name__}, where a text belongs")
    text = with_marks(" ".join(value.split()))
    if wordpiece is not None:
        check_prompt(text, wordpiece, row.max_tokens)
    return text


def resolve_targets(loaded: LoadedModel, targets: str | Iterable[str]) -> list[str]:
    """Names of targets as a schedule has them (`depth` becomes `tok_depth@64`), from one text or a list."""
    files = loaded.files
    words = targets.replace(",", " ").replace("-", " ").split() if isinstance(targets, str) else targets
    words = [*words] if isinstance(words, Iterable) else []
    if not words or not all(isinstance(word, str) for word in words):
        raise UsageError("`targets`: names of modalities were expected, such as 'depth normal'")
    return [files.registry.grid_of_values(word, files.writes) or word for word in words]
