"""Results of a run as samples: conditions of another chain, listed or in shards."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace

from fourm.data.dataset import Dataset, Input
from fourm.data.layout import Sample
from fourm.data.shards import Shard
from fourm.errors import UsageError
from fourm.hub.files import ModelFiles
from fourm.modalities.registry import Kind
from fourm.output.markers import marker_path, read_marker, read_markers
from fourm.output.samples import RecordedSample, Run, samples_for
from fourm.schedule.chain import Chain
from fourm.schedule.keeps import Keep
from fourm.sources.shards import Shards


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


@dataclass(frozen=True, slots=True)
class _Made:
    """Results of the shards of a run, as conditions of another chain."""

    run: Run
    chain: Chain
    model: ModelFiles

    def read(self, shard: Shard) -> Dataset:
        marker = read_marker(marker_path(self.run.root, shard.name, self.run.file))
        return Dataset(tuple(conditions_from(self.run, self.run.samples_of(marker), self.chain, self.model)))


def shards_of_run(run: Run, chain: Chain, model: ModelFiles) -> Shards:
    """The shards that a run has made, with their results as conditions of super-resolution."""
    shards, total = list[Shard](), 0
    for number, marker in enumerate(read_markers(run.root, run.file)):
        # Of a shard that has more results now, super-resolution is made again.
        shards.append(replace(marker.shard, number=number, parts=("results", marker.counts.saved)))
        total += marker.counts.samples
    if not shards:
        raise UsageError(f"{run.root}: no shard of its run is there; `resume=True` makes them")
    due = run.record.shards or len(shards)
    notes = () if len(shards) == due else (f"{due - len(shards):,} of {due:,} shards are not there yet",)
    return Shards(shards, _Made(run, chain, model), Input("run"), notes, total=total)
