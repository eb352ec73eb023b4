"""From what a user names (prompts, a file, a stream, a folder, a prompt set, nothing) to samples."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from fourm.data.containers import Container, containers_in, find_containers, is_container
from fourm.data.dataset import PICTURE_SUFFIXES, Dataset, Input, choose_samples, folders_in
from fourm.data.layout import (
    CROP_SETTINGS,
    MAX_SAMPLES,
    PICTURES,
    Key,
    Sample,
    number_keys,
    samples_of_prompts,
)
from fourm.data.pictures import (
    UNREAD_PICTURES,
    Pictures,
    find_pictures,
    has_wildcards,
    keys_below,
    names_in,
)
from fourm.data.prompts import (
    JSON_LINES,
    TABLES,
    PartOfTable,
    missing_file,
    parse_columns,
    parse_prompts,
    read_file,
    read_stream,
)
from fourm.data.storage import check_address, find_remote_containers, is_remote, local_file
from fourm.errors import UsageError, near_match
from fourm.files.opening import local_name
from fourm.hub.cache import find_parti
from fourm.hub.catalogue import PARTI
from fourm.hub.datasets import find_hub_containers, is_hub_data
from fourm.hub.files import ModelFiles, require_text_tokenizer
from fourm.modalities.registry import Kind, Modality
from fourm.modalities.text import WordPiece, check_prompt
from fourm.output.record import RUN, SR_RUN
from fourm.schedule.keeps import MASK, Keep
from fourm.sources.containers import implied_by, read_containers
from fourm.sources.datasets import CAPTION, Wanted, find_mask, read_folder
from fourm.sources.notes import note_likely_slips, note_of_world
from fourm.sources.raw_folders import folders_of

_TEXTS = (".txt", *JSON_LINES, *TABLES)
EMPTY, STREAM = "empty", "-"  # values of `data`: no input; standard input


@dataclass(frozen=True, slots=True)
class Source:
    """Where samples come from, as a user names it."""

    prompts: tuple[str, ...] = ()  # captions, one per sample
    data: str | None = None  # a file, a folder, a pattern, STREAM, PARTI or EMPTY
    column: str | None = None  # of a table: where its prompts are
    num_samples: int | None = None
    subset_seed: int | None = None  # None: the first num_samples
    num_variations: int = 1  # of each sample; for the limit of results of a run
    paths: tuple[str, ...] = ()  # pictures, folders of pictures, patterns with wildcards
    files: Mapping[str, str] = field(default_factory=dict)  # one for all samples, by condition (full name)
    upright: bool | None = None  # rotate pictures by their EXIF tag; None: all but those of datasets
    endings: Mapping[str, str] = field(default_factory=dict)  # ending or column of a container -> modality
    containers: tuple[Container, ...] = ()  # that `data` names; see `classify_source`

    @property
    def reads_texts(self) -> bool:
        """True if there are texts, typed or in a file."""
        return bool(self.prompts) or self.is_file

    @property
    def is_file(self) -> bool:
        """True if `data` is a file or stream of texts."""
        is_other = self.data in (None, EMPTY) or bool(self.containers)
        return not is_other and not os.path.isdir(self.data or "")


def classify_source(source: Source, model: ModelFiles) -> Source:
    """The source with all pictures in `paths`, and with a dataset or a file of texts in `data`.

    A user may name pictures by `data` and a dataset as an argument. UsageError: both are given.
    """
    data, paths = source.data, source.paths
    if source.containers:
        return source
    if data is not None and (is_hub_data(data) or is_remote(data)):
        if paths:
            raise _mixed_error(data, paths[0])
        if is_remote(data) and data.lower().endswith(_TEXTS):
            return replace(source, data=check_address(data))
        return replace(
            source, containers=(find_hub_containers if is_hub_data(data) else find_remote_containers)(data)
        )
    if data is not None:
        local_name(data)
        is_folder = os.path.isdir(data)
        is_pictures = data.lower().endswith((*PICTURE_SUFFIXES, *UNREAD_PICTURES)) or has_wildcards(data)
        if is_folder and is_dataset(data, folders_in(Path(data)), model):
            if paths:
                raise _mixed_error(data, paths[0])
            return source
        if found := containers_in(Path(data)) if is_folder else is_container(data) and find_containers(data):
            if paths:
                raise _mixed_error(data, paths[0])
            return replace(source, containers=found)
        if is_folder or is_pictures:
            if paths:
                raise UsageError(
                    f"pictures are given both as {paths[0]} and as `data={data}`; give them one way"
                )
            return replace(source, data=None, paths=(data,))
    sets = [path for path in paths if os.path.isdir(path) and is_dataset(path, names_in(path), model)]
    if not sets:
        return source
    others = [*(path for path in paths if path != sets[0]), *([data] if data else [])]
    if others or len(paths) > 1:
        raise _mixed_error(sets[0], (others or paths)[0])
    return replace(source, data=paths[0], paths=())


def is_dataset(path: str, names: Sequence[str], model: ModelFiles) -> bool:
    """True if a folder, with these names in it, has a folder named as a modality, or the record of a run."""
    known = {name for row in model.registry.rows.values() for name in (row.key, *folders_of(row), row.name)}
    has_folder = any(os.path.isdir(os.path.join(path, name)) for name in known.intersection(names))
    return has_folder or RUN in names or SR_RUN in names


def implied_conditions(source: Source) -> tuple[str, ...]:
    """The conditions of a classified source for which none are named: captions of texts, RGB of pictures."""
    if source.containers:
        return (implied_by(source),)
    return (*(["caption"] if source.reads_texts else []), *(["rgb"] if source.paths else []))


def read_samples(
    source: Source, conditions: Sequence[str], model: ModelFiles, stdin: BinaryIO,
    raw: Collection[str] = (), keeps: Sequence[Keep] = (), later: Sequence[Keep] = (),
) -> Dataset:  # fmt: skip
    """The samples that a run with these conditions (full names) works on, all of them checked.

    raw: grids of which a dataset holds values (`depth`), not tokens (`tok_depth@224`). keeps: targets of
    which a part is given; what is given of them is read like a condition. later: those of super-resolution
    afterwards, which the run itself does not read. UsageError: the source contradicts
    itself or the conditions, or cannot be read.
    """
    keeps = (*keeps, *later)
    conditions = tuple(dict.fromkeys((*conditions, *(keep.target for keep in keeps))))
    raw = {*raw, *(keep.target for keep in keeps if keep.raw)}
    source = checked_source(source, model)
    # `isdir` is False, not an error, for a name that no file can have.
    is_folder = source.data is not None and os.path.isdir(source.data)
    root = Path(source.data or "") if is_folder or source.containers else None
    if source.paths or source.files:
        return read_pictures(source, conditions, model, stdin, raw, keeps)
    if source.data == EMPTY or (not conditions and source.data is None and not source.prompts):
        return Dataset(tuple(_unconditional(source, conditions)), input=Input("none"))
    if root is not None:
        if not conditions:
            raise UsageError(f"`data={source.data}`: without conditions nothing is read; use `data={EMPTY}`")
        wanted = Wanted(tuple(map(model.registry.get, conditions)), raw, keeps, later)
        if source.containers:
            return read_containers(source, wanted, model)
        return read_folder(source, root, wanted)
    check_text_keeps(keeps)
    samples = _chosen(source, _read_texts(source, conditions, model, stdin))
    read = Input("texts", sha256=digest_of(samples))
    return Dataset(tuple(samples), notes=note_likely_slips(source.prompts), input=read)


def checked_source(source: Source, model: ModelFiles) -> Source:
    """The classified source. UsageError: it contradicts itself, or its file is not there."""
    if source.prompts and source.data is not None:
        raise UsageError("prompts are given both as arguments and with `data`; give one of them")
    if source.data == "":
        raise UsageError("`data`: is empty; name a prompt file, a folder, a picture or - for standard input")
    source = classify_source(source, model)
    if source.containers and source.files:
        raise _mixed_error(source.data or "", next(iter(source.files.values())))
    is_folder = source.data is not None and os.path.isdir(source.data)
    if source.data is not None and not is_folder and not source.containers:
        _check_file(source.data)
    if source.column is not None and not source.is_file and not source.containers:
        what = ".tsv, .csv and .jsonl files, tars and Parquet files of `data`"
        raise UsageError(f"`column={source.column}`: only {what} have one")
    if source.endings and not source.containers:
        name = next(iter(source.endings))
        raise UsageError(
            f"`map={name}={source.endings[name]}`: only tars and Parquet files of `data` have one"
        )
    if source.subset_seed is not None and source.num_samples is None:
        raise UsageError("`subset_seed` draws from the samples; `num_samples` must say how many")
    return source


def check_text_keeps(keeps: Sequence[Keep]) -> None:
    """Refuse kept parts of what is no text, where texts are all that is given."""
    if lacking := [keep for keep in keeps if not keep.is_text]:
        advice = "give a picture, or a dataset that holds it or its values with `data=DIR`"
        raise UsageError(f"`keep={lacking[0].to_text()}`: nothing is given of {lacking[0].target}; {advice}")


def kept_names(keeps: Sequence[Keep]) -> set[str]:
    """The names of a sample's files from which parts of targets are read, and that say where in a picture."""
    return {name for keep in keeps for name in keep.names} | {PICTURES, CROP_SETTINGS}


def read_pictures(
    source: Source, conditions: Sequence[str], model: ModelFiles, stdin: BinaryIO, raw: Collection[str],
    keeps: Sequence[Keep], found: Pictures | None = None,
) -> Dataset:  # fmt: skip
    """Samples of pictures, words for them, and files that serve all samples.

    found: some of the pictures; None: all that `paths` name.
    """
    if source.data is not None and (source.data == EMPTY or os.path.isdir(source.data)):
        other = next(iter((*source.paths, *source.files.values())))
        raise UsageError(f"`data={source.data}`: is not read together with {other}; give one of them")
    for condition, path in source.files.items():
        _check_single(condition, path)
    if found is None:
        select = partial(is_dataset, model=model)
        found = find_pictures(source.paths, select) if source.paths else Pictures((), (), ())
    if lacking := [keep for keep in keeps if keep.where == MASK and not keep.file]:
        advice = "name the file of a mask; only a dataset holds one for each sample"
        raise UsageError(f"`keep={lacking[0].to_text()}`: {advice}")
    given = _with_kept_rgb(source.files, keeps, model)
    rows = [model.registry.get(name) for name in conditions if name not in given]
    shown = [row.name for row in rows if row.is_rgb and (row.kind is Kind.PIXELS or row.name in raw)]
    captions = [row.name for row in rows if row.codec == CAPTION]
    _check_read(source, rows, shown, captions, keeps)
    texts = _captions(source, captions, model, stdin) if captions else []
    keys, count = _keys_of(source, found, len(texts)), max(len(found.paths), len(texts), 1)
    files = {name: Path(path) for name, path in given.items()}
    files |= {keep.mask: find_mask(keep.file) for keep in keeps if keep.file}
    upright = source.upright is not False
    samples = _chosen(source, [
        Sample(
            keys[i], texts[i % len(texts)] if texts else None,
            {**files, **dict.fromkeys(shown, found.paths[i])} if shown else files,
            upright="own" if upright else "",
        )
        for i in range(count)
    ])  # fmt: skip
    read = Input("pictures", (), source.num_samples, source.subset_seed, digest_of(samples), upright)
    notes = (*found.notes, *note_likely_slips(source.prompts), *note_of_world(model, [*shown, *files]))
    return Dataset(tuple(samples), notes=notes, input=read)


def _with_kept_rgb(files: Mapping[str, str], keeps: Sequence[Keep], model: ModelFiles) -> dict[str, str]:
    """`files` by condition and kept target: the file of the condition RGB is also that of kept RGB."""
    rgb = next((path for name, path in files.items() if model.registry.get(name).key == "rgb"), None)
    if rgb is None:
        return dict(files)
    targets = [keep.target for keep in keeps if keep.raw and model.registry.get(keep.target).is_rgb]
    return {**files, **{target: rgb for target in targets if target not in files}}


def _check_single(condition: str, path: str) -> None:
    """Refuse a file of `NAME=FILE` that does not exist, is a folder, or has a format that is not read."""
    if os.path.isdir(path):
        what = "is a folder; a condition takes one file, and folders of pictures are given without a name"
        raise UsageError(f"`cond={condition}={path}`: {what}")
    if not os.path.lexists(path):
        raise missing_file(Path(path))
    if path.lower().endswith(UNREAD_PICTURES):
        raise UsageError(f"{path}: is a picture in a format that is not read; convert it to PNG")


def _check_read(
    source: Source, rows: Sequence[Modality], shown: Sequence[str], captions: Sequence[str],
    keeps: Sequence[Keep],
) -> None:  # fmt: skip
    """Refuse pictures or texts that no condition reads, and conditions of which nothing is given."""
    if source.paths and not shown:
        taken = next((name for name in source.files if name.partition("@")[0] in ("rgb", "tok_rgb")), "")
        why = f"{taken}={source.files[taken]} takes their place" if taken else "no condition reads them"
        raise UsageError(f"{source.paths[0]}: pictures are given, but {why}; `cond=rgb` would")
    if source.reads_texts and not captions:
        raise UsageError("prompts are given, but no condition reads them; `cond=caption` would")
    if captions and not source.reads_texts:
        raise UsageError(
            f"`cond={captions[0]}`: there are no words; give some as arguments or by `data=FILE`"
        )
    for row in rows:
        if row.name not in (*captions, *(shown if source.paths else ())):
            name = row.key.removeprefix("tok_") if row.kind is Kind.GRID else row.key
            kept = next((keep.to_text() for keep in keeps if keep.target == row.name), "")
            asked = f"`keep={kept}`" if kept else f"`cond={row.name}`"
            raise UsageError(f"{asked}: no file is given for it; `cond={name}=FILE` gives one")


def _captions(source: Source, names: Sequence[str], model: ModelFiles, stdin: BinaryIO) -> list[str]:
    return [sample.caption or "" for sample in _read_texts(source, names, model, stdin)]


def _keys_of(source: Source, found: Pictures, num_texts: int) -> Sequence[Key]:
    """Keys of samples: of their pictures; else numbers, for several prompts; else of the first single file.

    UsageError: several pictures and several prompts, but not equally many.
    """
    if found.keys:
        if num_texts > 1 and num_texts != len(found.keys):
            pictures = f"{len(found.keys)} picture{'s' * (len(found.keys) > 1)}"
            ways = "give as many of both, or one prompt for all"
            if len(found.keys) == 1:
                ways = f"`cond=rgb={found.paths[0]}` gives it to each of them"
            raise UsageError(f"{pictures} for {num_texts} prompts; {ways}")
        return found.keys
    if num_texts > 1:
        return number_keys(num_texts)
    first = Path(next(iter(source.files.values())))
    return keys_below([first.parent], [first])


def choose_keys(samples: Sequence[Sample], text: str | None) -> tuple[str, ...]:
    """The keys in a comma-separated text, or () if it is None. UsageError: an unknown key, or none."""
    if text is None:
        return ()
    known = {sample.key.text for sample in samples}
    keys = [text] if text in known else [part.strip() for part in text.split(",") if part.strip()]
    for key in keys:
        if key not in known:
            near = near_match(key, known) or f"; the first one is '{samples[0].key.text}'"
            raise UsageError(f"`only`: there is no sample '{key}'{near}")
    if not keys:
        raise UsageError("`only`: names no sample")
    return tuple(dict.fromkeys(keys))


def _chosen(source: Source, samples: Sequence[Sample]) -> list[Sample]:
    return choose_samples(samples, source.num_samples, source.subset_seed)


def digest_of(samples: Sequence[Sample]) -> str:
    """A digest of names and texts that is the same whatever form the texts were typed in."""
    texts = [[sample.key.text, sample.caption, dict(sample.typed)] for sample in samples]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _mixed_error(dataset: str, other: str) -> UsageError:
    return UsageError(f"{dataset}: is a dataset, which is not read together with {other}; give one of them")


def _check_file(data: str) -> None:
    """Refuse a file of `data` that does not exist or cannot be read."""
    try:
        if data not in (STREAM, PARTI, EMPTY) and not is_remote(data):
            os.stat(data)
    except FileNotFoundError as error:
        raise missing_file(Path(data)) from error
    except OSError as error:
        raise UsageError(f"{data}: cannot be read ({error.strerror})") from error


def _unconditional(source: Source, conditions: Sequence[str]) -> list[Sample]:
    """Samples without any input; UsageError if something is to be read, or their number is not given."""
    if conditions:
        raise UsageError(f"`data={EMPTY}`: leaves nothing for the condition {conditions[0]}; use `cond=none`")
    if source.num_samples is None:
        raise UsageError("without conditions, `num_samples` must say how many samples to make")
    if source.num_samples * source.num_variations > MAX_SAMPLES:
        times = f", {source.num_variations} times" if source.num_variations > 1 else ""
        raise UsageError(f"`num_samples={source.num_samples}`{times}: one run makes at most {MAX_SAMPLES:,}")
    return [Sample(key) for key in number_keys(source.num_samples)]


def _read_texts(source: Source, names: Sequence[str], model: ModelFiles, stdin: BinaryIO) -> list[Sample]:
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


def parse_texts(
    data: bytes, where: str, suffix: str, rows: Sequence[Modality], column: str | None, first: int = 0,
    part: PartOfTable | None = None,
) -> list[Sample]:  # fmt: skip
    """A sample for each prompt of a text, or for each row of a table with a column for each of `rows`.

    suffix: of the file; "" for prompts and streams. first: the position that names the first sample. part: of
    lines that are not the first ones of their file.
    """
    typed = [row.name for row in rows if row.codec != CAPTION]
    if not typed:
        return samples_of_prompts(parse_prompts(data, where, suffix or ".txt", column, part), first)
    names = [row.name for row in rows]
    table = parse_columns(data, where, suffix or ".jsonl", names, column, part)
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


def text_file(source: Source, model: ModelFiles) -> Path:
    """The file of texts that a source names; without `data`, that of the model."""
    if source.data == PARTI and not os.path.exists(PARTI):
        return find_parti()
    path = model.prompts if source.data is None else local_file(source.data)
    if path is None:
        why = "has no prompts of its own; give some, or a file with `data=FILE`"
        raise UsageError(f"model '{model.name}' {why}")
    return path


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
