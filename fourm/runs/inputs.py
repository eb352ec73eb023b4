"""From what a user names (prompts, a file, a stream, a folder, a prompt set, nothing) to samples."""

import hashlib
import json
import os
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fourm.data.dataset import (
    PICTURE_SUFFIXES,
    Dataset,
    Input,
    choose_samples,
    flat_advice,
    folders_in,
    list_dataset,
    list_folder,
    match_spellings,
)
from fourm.data.layout import (
    CROP_SETTINGS,
    KEPT_PIXELS,
    MAX_SAMPLES,
    PICTURES,
    VALID_PIXELS,
    Sample,
    number_keys,
)
from fourm.data.opening import local_name
from fourm.data.prompts import missing_file, parse_columns, parse_prompts, read_file, read_stream
from fourm.errors import MissingError, UsageError, near_match
from fourm.hub.cache import find_parti
from fourm.hub.catalogue import PARTI
from fourm.hub.files import ModelFiles, check_tokenizers, require_text_tokenizer, tokenizer_advice, weights_of
from fourm.hub.header import read_header
from fourm.modalities.registry import Kind, Modality
from fourm.modalities.text import WordPiece, check_prompt
from fourm.schedule.chain import Chain
from fourm.schedule.keeps import MASK, Keep

CAPTION = "caption"  # codec of the modality that prompts are
UNREAD_PICTURES = (".heic", ".heif", ".avif", ".exr", ".svg", ".jxl", ".psd", ".dng")
EMPTY, STREAM = "empty", "-"
SHOWN = 5  # unknown words that a note names
_OTHER_FOLDERS = {"tok_semseg": "semseg_coco"}  # as the reference's data has them


@dataclass(frozen=True, slots=True)
class Source:
    """Where samples come from, as a user says it."""

    prompts: tuple[str, ...] = ()
    data: str | None = None  # a file, a folder, STREAM, PARTI or EMPTY
    column: str | None = None  # of a table
    num_samples: int | None = None
    subset_seed: int | None = None  # None: the first num_samples
    num_variations: int = 1  # of each sample; they count where samples are limited


def read_samples(
    source: Source, conditions: Sequence[str], model: ModelFiles, stdin: BinaryIO,
    raw: Collection[str] = (), keeps: Sequence[Keep] = (),
) -> Dataset:  # fmt: skip
    """The samples that a run with these conditions (full names) works on, all of them checked.

    raw: grids of which a dataset holds values (`depth`), not tokens (`tok_depth@224`). keeps: targets of
    which a part is given; what is given of them is read like a condition.
    """
    conditions = tuple(dict.fromkeys((*conditions, *(keep.target for keep in keeps))))
    raw = {*raw, *(keep.target for keep in keeps if keep.raw)}
    if source.prompts and source.data is not None:
        raise UsageError("prompts are given both as arguments and with `data`; give one of them")
    for text in (source.data or "", *(prompt for prompt in source.prompts if " " not in prompt)):
        local_name(text)
    if source.data == "":
        raise UsageError("`data`: is empty; name a prompt file, a folder or - for standard input")
    # `isdir` is False, not an error, for a name that no file can have.
    root = Path(source.data) if source.data is not None and os.path.isdir(source.data) else None
    if source.data is not None and root is None:
        _check_file(source.data)
    if source.column is not None and (source.data in (None, EMPTY) or root is not None):
        raise UsageError(f"`column={source.column}`: only .tsv, .csv and .jsonl files of `data` have one")
    if source.subset_seed is not None and source.num_samples is None:
        raise UsageError("`subset_seed` draws from the samples; `num_samples` must say how many")
    if source.data == EMPTY or (not conditions and source.data is None and not source.prompts):
        return Dataset(tuple(_unconditional(source, conditions)), input=Input("none"))
    choose = partial(choose_samples, count=source.num_samples, seed=source.subset_seed)
    if root is None:
        if lacking := [keep for keep in keeps if not keep.is_text]:
            advice = f"name a dataset that holds {lacking[0].target} or its values with `data=DIR`"
            raise UsageError(f"`keep={lacking[0].to_text()}`: nothing is given of it; {advice}")
        samples = choose(_read_texts(source, conditions, model, stdin))
        # A digest that is the same whatever form the texts were typed in.
        texts = [[sample.key.text, sample.caption, dict(sample.typed)] for sample in samples]
        read = Input("texts", sha256=hashlib.sha256(json.dumps(texts).encode()).hexdigest())
        return Dataset(tuple(samples), notes=_note_likely_slips(source.prompts), input=read)
    if not conditions:
        raise UsageError(f"`data={source.data}`: without conditions nothing is read; use `data={EMPTY}`")
    rows = [model.registry.get(condition) for condition in conditions]
    folders = _folders(root, rows, raw)
    folders |= {keep.mask: KEPT_PIXELS for keep in keeps if keep.where == MASK and not keep.file}
    beside = (PICTURES, CROP_SETTINGS) if any(shows_part(row, raw) for row in rows) else ()
    dataset = list_dataset(root, folders, beside)
    read = Input("folder", tuple(folders.values()), source.num_samples, source.subset_seed)
    masks = {keep.mask: find_mask(keep.file) for keep in keeps if keep.file}
    samples = [replace(one, files={**one.files, **masks}) for one in choose(dataset.samples)]
    return replace(dataset, samples=tuple(samples), input=read)


def find_mask(file: str) -> Path:
    """The file of a mask that serves all samples; UsageError if it is not there."""
    try:
        if os.path.isdir(local_name(file)):
            raise UsageError(f"`keep`: {file} is a folder, not a mask picture")
        os.stat(file)
    except FileNotFoundError as error:
        raise missing_file(Path(file)) from error
    except OSError as error:
        raise UsageError(f"`keep`: {file} cannot be read ({error.strerror})") from error
    return Path(file)


def find_raw_folders(root: Path, model: ModelFiles, names: Sequence[str] | None) -> dict[Modality, str]:
    """The folders that are to become tokens: those that are named, or all that the model's tokenizers read.

    A name is that of a folder (`depth`), of a modality (`tok_depth@224`), or of all its sizes (`tok_depth`).
    """
    if not root.is_dir():
        raise UsageError(f"{root}: {'is a file, not a' if root.exists() else 'no such'} folder")
    found, folders = dict[Modality, str](), _value_folders(root, model)
    for row in folders if names is None else _named_rows(names, model, folders):
        folder = folders[row]
        if names is not None and not folder:
            there = ", ".join(folders_in(root)) or "no folder at all"
            wanted = " or ".join(_folders_of(row))
            raise UsageError(f"{root}: no folder {wanted} for {row.name}; there is {there}")
        if folder and row.tokenizer in model.tokenizers:
            found[row] = folder
        elif names is not None:
            advice = tokenizer_advice(model, row.tokenizer)
            raise MissingError(f"{row.name}: its tokenizer '{row.tokenizer}' is not here; {advice}")
    if not found:
        if missing := missing_tokenizers(root, model):
            raise UsageError(f"{root}: nothing to do; {missing[0]}")
        present, readable = folders_in(root), dict.fromkeys(n for row in folders for n in _folders_of(row))
        deeper = [name for name in present if any((root / name / folder).is_dir() for folder in readable)]
        there = f"there is {', '.join(present) or 'none at all'}{flat_advice(root, PICTURES)}"
        advice = f"{root / deeper[0]} has some" if deeper else there
        reads = f"that a tokenizer of model '{model.name}' reads ({', '.join(readable)})"
        raise UsageError(f"{root}: no folder {reads}; {advice}")
    check_tokenizers(model, found)
    for row in found:
        path = model.tokenizers[row.tokenizer]
        if not any(name.startswith("encoder.") for name in read_header(weights_of(path))[1]):
            raise UsageError(f"{row.name}: its tokenizer {path} has no encoder, so it makes no tokens")
    return found


def missing_tokenizers(root: Path, model: ModelFiles) -> tuple[str, ...]:
    """Half a sentence for each folder that the model could read if its tokenizer were here."""
    return tuple(
        f"{folder} is left out: its tokenizer is not here; {tokenizer_advice(model, row.tokenizer)}"
        for row, folder in _value_folders(root, model).items()
        if folder and row.tokenizer not in model.tokenizers
    )


def list_raw_samples(root: Path, out: Path, folders: Mapping[Modality, str]) -> Dataset:
    """All samples that have a file in one of the folders at least, sorted by key.

    Crop settings in `out`, which belong to tokens that are there, come before those of the dataset.
    """
    listed = {row.name: list_folder(root, folder) for row, folder in folders.items()}
    names = (PICTURES, VALID_PIXELS, CROP_SETTINGS)
    beside = {name: list_folder(root, name) for name in names if os.path.lexists(root / name)}
    own = {name: list_folder(out, name) for name in (CROP_SETTINGS,) if os.path.lexists(out / name)}
    match_spellings([*listed.values(), *beside.values(), *own.values()])
    problems = {key: problem for one in listed.values() for key, problem in one.problems.items()}
    notes = tuple(dict.fromkeys(note for one in listed.values() for note in one.notes))
    keys = sorted({key for one in listed.values() for key in one.files} | problems.keys())
    if not keys:
        why = notes[0] if notes else "files lie in FOLDER/ANY/NAME.EXT"
        raise UsageError(f"{root}: no file in {', '.join(folders.values())}; {why}")
    if len(keys) > MAX_SAMPLES:
        raise UsageError(f"{root}: {len(keys):,} samples; one run takes at most {MAX_SAMPLES:,}")
    samples = list[Sample]()
    for key in keys:
        extra = beside | {name: one for name, one in own.items() if key in one.files}
        wrong = (one.problems[cause] for one in extra.values() if (cause := one.cause_of(key)))
        files = {name: one.files[key] for name, one in (listed | extra).items() if key in one.files}
        samples.append(Sample(key, files=files, problem=problems.get(key) or next(wrong, "")))
    return Dataset(tuple(samples), notes=notes)


def _check_file(data: str) -> None:
    """Refuse a `--data` that is not there, or a picture."""
    name = os.path.basename(data)
    if name.lower().endswith(UNREAD_PICTURES):
        raise UsageError(f"`data={data}`: is a picture in a format that is not read; convert it to PNG")
    if name.lower().endswith(PICTURE_SUFFIXES):
        advice = f"lay it into a dataset, as DATA/rgb/mine/{name}, and give `data=DATA` `cond=rgb`"
        raise UsageError(f"`data={data}`: is a picture; {advice}")
    try:
        if data not in (STREAM, PARTI, EMPTY):
            os.stat(data)
    except FileNotFoundError as error:
        raise missing_file(Path(data)) from error
    except OSError as error:
        raise UsageError(f"{data}: cannot be read ({error.strerror})") from error


def _note_likely_slips(prompts: Sequence[str]) -> tuple[str, ...]:
    """Notes where quotation marks may have been forgotten, or a file was perhaps meant, not its name."""
    notes = list[str]()
    if len(prompts) > 1 and all(len(prompt.split()) == 1 for prompt in prompts):
        joined = " ".join(prompts)
        notes.append(f'{len(prompts)} prompts of one word each; quotation marks make them one: "{joined}"')
    if named := next((prompt for prompt in prompts if " " not in prompt and os.path.exists(prompt)), ""):
        notes.append(f"'{named}' is read as words; `data={named}` reads what has this name")
    return tuple(notes)


def shows_part(row: Modality, raw: Container[str]) -> bool:
    """Whether a condition's values show a part of a picture: tokens and captions are of a crop already."""
    return row.codec != CAPTION and (row.kind is not Kind.GRID or row.name in raw)


def marked_texts(dataset: Dataset, chain: Chain, model: ModelFiles) -> list[str]:
    """Conditions that were typed with marks, [S_1] and so on, and that the model can fill."""
    if model.text_tokenizer is None or not any("[S_" in text for s in dataset.samples for text in _typed(s)):
        return []
    wordpiece, found = WordPiece.load(model.text_tokenizer), list[str]()
    for name in chain.conditions:
        row = model.registry.get(name)
        if row.kind is Kind.SEQUENCE and name in model.writes:
            texts = (s.caption if row.codec == CAPTION else s.typed.get(name) for s in dataset.samples)
            ids = (wordpiece.encode(text) for text in texts if text and "[S_" in text)
            if any(one in wordpiece.sentinels for tokens in ids for one in tokens):
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


def _unconditional(source: Source, conditions: Sequence[str]) -> list[Sample]:
    if conditions:
        raise UsageError(f"`data={EMPTY}`: leaves nothing for the condition {conditions[0]}; use `cond=none`")
    if source.num_samples is None:
        raise UsageError("without conditions, `num_samples` must say how many samples to make")
    if source.num_samples * source.num_variations > MAX_SAMPLES:
        times = f", {source.num_variations} times" if source.num_variations > 1 else ""
        raise UsageError(f"`num_samples={source.num_samples}`{times}: one run makes at most {MAX_SAMPLES:,}")
    return [Sample(key) for key in number_keys(source.num_samples)]


def _folders(root: Path, rows: Sequence[Modality], raw: Container[str]) -> dict[str, str]:
    """Folder of a dataset for each condition: token ids lie under the modality's own name."""
    folders = dict[str, str]()
    for row in rows:
        values = [name for name in row.value_names if (root / name).is_dir()]
        if row.kind is not Kind.GRID:
            folders[row.name] = row.folder
        elif row.name in raw:
            folders[row.name] = values[0] if values else row.value_names[-1]
        elif values and not (root / row.name).exists():  # asking for tokens of maps is an easy mistake
            advice = f"`cond={values[0]}` reads the folder '{values[0]}' and tokenises it"
            raise UsageError(f"{root}: no folder '{row.name}' of tokens; {advice}")
        else:
            folders[row.name] = row.name
    return folders


def _read_texts(source: Source, names: Sequence[str], model: ModelFiles, stdin: BinaryIO) -> list[Sample]:
    """A sample for each prompt, or for each row of a table with a column for each condition."""
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
    data, where, suffix = _find_texts(source, model, stdin)
    if typed:
        table = parse_columns(data, where, suffix or ".jsonl", names, source.column)
        samples = list[Sample]()
        for key, cells in zip(number_keys(len(table)), table, strict=True):
            caption = next((text for name, text in cells.items() if name not in typed), None)
            samples.append(Sample(key, caption, typed={name: cells[name] for name in typed}))
    else:
        texts = parse_prompts(data, where, suffix or ".txt", source.column)
        samples = [Sample(key, text) for key, text in zip(number_keys(len(texts)), texts, strict=True)]
    wordpiece = WordPiece.load(require_text_tokenizer(model, "reading prompts"))
    max_tokens = max((row.max_tokens for row in rows if row.codec == CAPTION), default=0)
    for sample in samples:
        if sample.caption is not None:
            check_prompt(sample.caption, wordpiece, max_tokens)
    return samples


def _find_texts(source: Source, model: ModelFiles, stdin: BinaryIO) -> tuple[bytes, str, str]:
    """The texts, where they come from, and the suffix of their file; "" for prompts and streams."""
    for number, prompt in enumerate(source.prompts, start=1):
        if not prompt.isascii() and any("\udc80" <= character <= "\udcff" for character in prompt):
            raise UsageError(f"prompt {number} of {len(source.prompts)} is not UTF-8 text")
        # As of an unset variable; the prompts after it would have other names.
        if not prompt.strip() and len(source.prompts) > 1:
            raise UsageError(f"prompt {number} of {len(source.prompts)} is empty")
        if prompt.strip() == STREAM:
            raise UsageError(f"the prompt '{STREAM}' says nothing; `data={STREAM}` reads standard input")
    if source.prompts:
        lines = [" ".join(prompt.split()) for prompt in source.prompts]
        return "\n".join(lines).encode(), "the prompts given", ""
    if source.data == STREAM:
        return read_stream(stdin, "standard input"), "standard input", ""
    if source.data == PARTI and not os.path.exists(PARTI):
        path: Path | None = find_parti()
    else:
        path = model.prompts if source.data is None else Path(source.data)
    if path is None:
        why = "has no prompts of its own; give some, or a file with `data=FILE`"
        raise UsageError(f"model '{model.name}' {why}")
    return read_file(path), str(path), path.suffix.lower()


def _value_folders(root: Path, model: ModelFiles) -> dict[Modality, str]:
    """For each modality with a tokenizer, the folder of values that is there; "" for none."""
    rows, present = [row for row in model.rows if row.kind is Kind.GRID and row.tokenizer], folders_in(root)
    return {row: next((name for name in _folders_of(row) if name in present), "") for row in rows}


def _named_rows(names: Sequence[str], model: ModelFiles, rows: Collection[Modality]) -> list[Modality]:
    """The rows that names of folders and modalities mean, each once."""
    chosen = dict[str, Modality]()
    for name in names:
        found = [row for row in rows if name in (row.name, row.key, *_folders_of(row))]
        if not found:
            keys = dict.fromkeys(row.key.removeprefix("tok_") for row in rows)
            near = near_match(name, [*keys, *(row.name for row in rows)]) or f"; it has {', '.join(keys)}"
            what = f"is nothing that model '{model.name}' has a tokenizer for"
            raise UsageError(f"`modalities`: '{name}' {what}{near}")
        chosen |= {row.name: row for row in found}
    return list(chosen.values())


def _folders_of(row: Modality) -> tuple[str, ...]:
    """Where the values of a modality may lie: its decoded values, or pictures of any size."""
    names = (row.folder, row.key.removeprefix("tok_"), _OTHER_FOLDERS.get(row.key, ""))
    return tuple(dict.fromkeys(name for name in names if name))
