"""Results of a run as samples: conditions of another chain, listed or in shards."""

import os
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from fourm.data.dataset import Dataset, Input
from fourm.data.layout import Key, Sample
from fourm.data.mirrors import local_folder
from fourm.data.shards import SHARD_SIZE, Shard
from fourm.errors import UsageError, as_addresses
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Kind
from fourm.output.markers import marker_path, read_done, read_markers, settings_digest
from fourm.output.samples import RecordedSample, Run, samples_for
from fourm.schedule.chain import Chain
from fourm.schedule.keeps import Keep
from fourm.sources.datasets import kept_names
from fourm.sources.reading import read_samples
from fourm.sources.shards import Shards, list_shards
from fourm.sources.source import Source, checked_source


def conditions_from(
    run: Run, samples: Iterable[RecordedSample], chain: Chain, model: ModelFiles, keeps: Sequence[Keep] = ()
) -> list[Sample]:
    """Samples of a run as conditions of another chain, which reads the tokens of grids.

    keeps: what the run has kept of its targets, and the chain keeps again.
    """
    grids = {name: model.registry.get(name).kind is Kind.GRID for name in chain.conditions}
    forms = {name: (name, "ids" if is_grid else "value") for name, is_grid in grids.items()}
    for keep in keeps:
        forms |= forms_kept(keep)
    return samples_for(run, samples, forms)


def with_files(samples: Iterable[Sample], others: Iterable[Sample], names: Container[str]) -> list[Sample]:
    """Each sample with those files of the other one at its place that have one of the names."""
    found = list[Sample]()
    for sample, other in zip(samples, others, strict=True):
        files = {name: path for name, path in other.files.items() if name in names}
        varied = [{n: p for n, p in one.items() if n in names} for one in other.varied]
        if any(varied):
            own = sample.varied or [{} for _ in varied]
            varied = [{**one, **more} for one, more in zip(own, varied, strict=True)]
        else:
            varied = [dict(one) for one in sample.varied]
        upright = other.upright if files else sample.upright
        all_files, problem = {**sample.files, **files}, sample.problem or other.problem
        found.append(replace(sample, files=all_files, varied=varied, upright=upright, problem=problem))
    return found


def forms_kept(keep: Keep) -> dict[str, tuple[str, str]]:
    """What `samples_for` reads of a part that a run has kept: modality and form of each file, by name."""
    values = {keep.target: (keep.target, "kept" if keep.raw or keep.is_text else "kept_ids")}
    return values if keep.is_text else values | {keep.mask: (keep.target, "mask")}


def read_kept(
    run: Run, chain: Chain, model: ModelFiles, stdin: BinaryIO, data: Sequence[str]
) -> Mapping[Key, Sample]:
    """By the names of samples, the pictures of which a part is kept, turned as their run has turned its own.

    data: where they are. A single file serves all samples.
    """
    source = _source_of_kept(run, data, model)
    samples = read_samples(source, (), model, stdin, keeps=chain.keeps).samples
    if _is_one_file(source):
        return dict.fromkeys((one.key for one in run.samples()), samples[0])
    return {one.key: one for one in samples}


def add_kept(
    samples: Sequence[Sample], given: Mapping[Key, Sample], keeps: Sequence[Keep]
) -> tuple[list[Sample], list[str]]:
    """The samples that have a picture of which a part is kept, with it, and a sentence for each other one."""
    lacking = [f"{one.key.text} lacks a picture there" for one in samples if one.key not in given]
    samples = [one for one in samples if one.key in given]
    return with_files(samples, [given[one.key] for one in samples], kept_names(keeps)), lacking


def _source_of_kept(run: Run, data: Sequence[str], model: ModelFiles) -> Source:
    read = run.record.input
    upright = read.upright if read is not None and read.kind in ("folder", "pictures") else None
    one = data[0] if len(data) == 1 else None
    return checked_source(Source(data=one, paths=() if one else tuple(data), upright=upright), model)


def _is_one_file(source: Source) -> bool:
    return len(source.paths) == 1 and os.path.isfile(source.paths[0])


@dataclass(slots=True)
class _Kept:
    """The pictures of which a part is kept, in shards of the size that those of the run have."""

    shards: Shards
    is_one: bool  # a single file serves all samples
    _all: dict[Key, Sample] = field(default_factory=dict)

    def find(self, name: str, keys: Collection[Key]) -> Mapping[Key, Sample]:
        """Those of some samples, which are in the shard of the run with this name.

        The shard of this name has them, if the pictures are those that the run has read. Only if it has not,
        all are listed.
        """
        if self.is_one:
            return dict.fromkeys(keys, self._read(self.shards.shards[:1])[0])
        if not self._all:
            found = {
                one.key: one for one in self._read([one for one in self.shards.shards if one.name == name])
            }
            if found.keys() >= {*keys}:
                return found
            self._all.update((one.key, one) for one in self._read(self.shards.shards))
        return self._all

    def _read(self, shards: Sequence[Shard]) -> list[Sample]:
        return [sample for shard in shards for sample in self.shards.samples(shard).samples]


@dataclass(frozen=True, slots=True)
class _Made:
    """Results of the shards of a run, as conditions of another chain."""

    run: Run
    root: str  # where the folder of the run is: a path, or an address
    chain: Chain
    model: ModelFiles
    kept: _Kept | None  # where the chain keeps parts of pictures

    def read(self, shard: Shard) -> Dataset:
        run = replace(self.run, root=local_folder(self.root, again=False))
        path = marker_path(run.root, shard.name, run.file)
        marker = read_done(path, run.root, settings_digest(run.record))  # else results lack unseen
        samples = conditions_from(run, run.samples_of(marker), self.chain, self.model)
        if self.kept is None:
            return Dataset(tuple(samples))
        given = self.kept.find(shard.name, [one.key for one in samples])
        samples, lacking = add_kept(samples, given, self.chain.keeps)
        return Dataset(tuple(samples), tuple(lacking))


def shards_of_run(
    run: Run, chain: Chain, model: ModelFiles, stdin: BinaryIO, data: Sequence[str] = ()
) -> Shards:
    """The shards that a run has made, with their results as conditions of super-resolution.

    They keep their numbers, and all shards of the run are due: those to come are added by `resume=True`.
    data: where the pictures are of which the chain keeps a part.
    """
    shards, total = list[Shard](), 0
    for marker in read_markers(run.root, run.file):
        # Of a shard that has more results now, super-resolution is made again.
        shards.append(replace(marker.shard, parts=("results", marker.counts.saved)))
        total += marker.counts.samples
    if not shards:
        raise UsageError(f"{run.root}: no shard of its run is there; `resume=True` makes them")
    due = run.record.shards or len(shards)
    notes = () if len(shards) == due else (f"{due - len(shards):,} of {due:,} shards are not there yet",)
    kept = None
    if chain.keeps:
        source, size = _source_of_kept(run, data, model), run.record.shard_size or SHARD_SIZE
        pictures = list_shards(source, (), model, stdin, keeps=chain.keeps, size=size)
        kept = _Kept(pictures, _is_one_file(source))
    made = _Made(run, as_addresses(str(run.root)), chain, model, kept)
    return Shards(shards, made, Input("run"), notes, total=total, due=(run.record.samples, due))


def some_sample(found: Shards, run: Run, data: Sequence[str] = ()) -> Sample:
    """A sample of the shards of a run: all have the same kinds of files. UsageError if there is none."""
    lacking = ""
    for shard in found.shards:
        dataset = found.samples(shard)
        if dataset.samples:
            return dataset.samples[0]
        lacking = lacking or next(iter(dataset.incomplete), "")
    why = f"`data={data[0]}`: {lacking}, as all samples of {run.root} do" if lacking else ""
    raise UsageError(why or f"{run.root}: all samples of its run have failed")
