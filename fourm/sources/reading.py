"""From what a user names to samples: of texts, pictures, datasets and containers, checked and chosen."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from fourm.data.dataset import Dataset, Input, choose_samples
from fourm.data.layout import MAX_SAMPLES, Key, Sample, number_keys
from fourm.data.pictures import UNREAD_PICTURES, Pictures, find_pictures, keys_below
from fourm.data.prompts import missing_file
from fourm.errors import UsageError, near_match
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Kind, Modality
from fourm.schedule.keeps import MASK, Keep
from fourm.sources.containers import implied_by, read_containers
from fourm.sources.datasets import CAPTION, WantedFiles, find_mask, read_folder
from fourm.sources.notes import note_likely_slips, note_of_world
from fourm.sources.source import EMPTY, Source, checked_source, is_dataset
from fourm.sources.texts import check_text_keeps, digest_of, read_texts


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
    afterwards, which the run itself does not read. UsageError: the source contradicts itself or the
    conditions, or cannot be read.
    """
    keeps = (*keeps, *later)
    conditions = tuple(dict.fromkeys((*conditions, *(keep.target for keep in keeps))))
    raw = {*raw, *(keep.target for keep in keeps if keep.raw)}
    source = checked_source(source, model)
    if source.paths or source.files:
        return read_pictures(source, conditions, model, stdin, raw, keeps)
    if source.data == EMPTY or (not conditions and source.data is None and not source.prompts):
        return Dataset(tuple(_unconditional(source, conditions)), input=Input("none"))
    if source.is_folder or source.containers:
        if not conditions:
            raise UsageError(f"`data={source.data}`: without conditions nothing is read; use `data={EMPTY}`")
        wanted = WantedFiles(tuple(map(model.registry.get, conditions)), raw, keeps, later)
        if source.containers:
            return read_containers(source, wanted, model)
        return read_folder(source, Path(source.data or ""), wanted)
    check_text_keeps(keeps)
    samples = _chosen(source, read_texts(source, conditions, model, stdin))
    read = Input("texts", sha256=digest_of(samples))
    return Dataset(tuple(samples), notes=note_likely_slips(source.prompts), input=read)


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


def read_pictures(
    source: Source, conditions: Sequence[str], model: ModelFiles, stdin: BinaryIO, raw: Collection[str],
    keeps: Sequence[Keep], found: Pictures | None = None,
) -> Dataset:  # fmt: skip
    """Samples of pictures, words for them, and files that serve all samples.

    found: some of the pictures; None: all that `paths` name.
    """
    if source.data == EMPTY or source.is_folder:
        other = next(iter((*source.paths, *source.files.values())))
        raise UsageError(f"`data={source.data}`: is not read together with {other}; give one of them")
    for condition, path in source.files.items():
        _check_single(condition, path)
    if found is None:
        found = Pictures((), (), ())
        if source.paths:
            found = find_pictures(source.paths, lambda path, names: is_dataset(path, names, model.registry))
    if lacking := [keep for keep in keeps if keep.where == MASK and not keep.file]:
        advice = "name the file of a mask; only a dataset holds one for each sample"
        raise UsageError(f"`keep={lacking[0].to_text()}`: {advice}")
    given = _with_kept_rgb(source.files, keeps, model)
    rows = [model.registry.get(name) for name in conditions if name not in given]
    shown = [row.name for row in rows if row.is_rgb and (row.kind is Kind.PIXELS or row.name in raw)]
    captions = [row.name for row in rows if row.codec == CAPTION]
    _check_read(source, rows, shown, captions, keeps)
    texts = [one.caption or "" for one in read_texts(source, captions, model, stdin)] if captions else []
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


def _chosen(source: Source, samples: Sequence[Sample]) -> list[Sample]:
    return choose_samples(samples, source.num_samples, source.subset_seed)


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
