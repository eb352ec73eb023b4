"""Makes the results of one shard: the pipeline of a run, whose files go into a shard in place of a folder."""

import platform
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

from fourm import __version__
from fourm.data.dataset import Dataset, Input
from fourm.data.layout import Key, Sample
from fourm.data.shards import Format, Shard
from fourm.files.copies import as_addresses
from fourm.inputs.conditions import Work
from fourm.inputs.request import Request
from fourm.networks.precision import arithmetic
from fourm.output.markers import Counts, Marker, settings_digest
from fourm.output.samples import Run
from fourm.output.shard_files import ShardFiles
from fourm.results.events import Event, Loading
from fourm.results.job import Job, make_record
from fourm.results.portions import as_fourm_errors
from fourm.results.saver import Saver
from fourm.results.sinks import ShardSink
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import check, generate, has_conditions, load_parts, loaded_for, stepwise
from fourm.sources.datasets import kept_names
from fourm.sources.results import conditions_from, with_files


@dataclass(frozen=True, slots=True)
class ShardedInput:
    """What a sharded run reads, as its record says it."""

    format: Format  # but not FILES
    shards: int  # of all processes together
    shard_size: int
    samples: int  # 0: not known
    input: Input


@dataclass(frozen=True, slots=True)
class Stage:
    """One run over shards, checked once: the settings of its results, which are the same for each shard."""

    job: Job  # of a request without samples
    run: Run

    @property
    def settings(self) -> str:
        """A digest of all that its results depend on."""
        return settings_digest(self.run.record)


def prepare(request: Request, given: ShardedInput) -> Stage:
    """Check a request without samples. UsageError for settings, MissingError for missing files."""
    job = check(request)
    record = replace(
        make_record(job), samples=given.samples, input=given.input, layout=given.format,
        shard_size=given.shard_size, shards=given.shards,
    )  # fmt: skip
    return Stage(job, Run(request.out, request.record, record))


def prepare_sr(base: Stage, following: Request, given: ShardedInput) -> Stage:
    """The stage of super-resolution of what the stage `base` makes, in the same folder."""
    some = base.run.describe(Sample(Key("", "0")))  # any sample: they have the same kinds of files
    samples = conditions_from(base.run, [some], following.chain, following.model)
    request = replace(
        following, samples=samples, out=base.run.root, origin=base.run.record, stage="sr", is_beside=True,
        num_variations=base.run.record.num_variations, variation=base.run.record.variation,
    )  # fmt: skip
    return prepare(request, replace(given, input=Input("run")))


def samples_for_sr(base: Run, marker: Marker, following: Request, read: Dataset | None) -> Dataset:
    """The samples of a shard that a run has made, as conditions of super-resolution.

    read: what the run has read, of which parts may be kept.
    """
    samples = conditions_from(base, base.samples_of(marker), following.chain, following.model)
    if read is not None and following.chain.keeps:
        own = {sample.key: sample for sample in read.samples}
        others = [own.get(sample.key, Sample(sample.key)) for sample in samples]
        samples = with_files(samples, others, kept_names(following.chain.keeps))
    return Dataset(tuple(samples))


def make_shard(
    stage: Stage, loaded: LoadedModel | None, shard: Shard, dataset: Dataset
) -> Iterator[Event | Marker]:
    """Make one shard, and yield events, and its marker at the end."""
    started, request = time.perf_counter(), replace(stage.job.request, samples=dataset.samples)
    job, run = replace(stage.job, request=request), stage.run
    works = [
        Work(sample, variation)
        for sample in sorted(dataset.samples, key=lambda sample: sample.key)
        for variation in request.variations
    ]
    if request.origin is not None:  # what the run before did not make, it has reported
        works = [work for work in works if has_conditions(request, work)]
    loaded = loaded_for(job, loaded)
    if not loaded.is_loaded:
        yield Loading(f"model {request.model.name}")
    with as_fourm_errors(job.device, job.dtype, request.out), arithmetic(job.dtype):
        engine, codecs = load_parts(job, loaded)
    sink = ShardSink(job, run, ShardFiles(run.root, shard, run.record.layout, run.file))
    saver = Saver(job, codecs, sink)
    try:
        with as_fourm_errors(job.device, job.dtype, request.out):
            with closing(stepwise(generate(engine, saver, works), loaded)) as events:
                yield from events
            counts = Counts(
                len(dataset.samples), len(saver.saved), len(saver.failed), len(dataset.incomplete)
            )
            marker = Marker(
                shard, run.record.layout, "path", counts, stage.settings, {},
                tuple(sink.failures[result] for result in sorted(sink.failures)),
                tuple(map(as_addresses, dataset.incomplete)),
                round(time.perf_counter() - started, 3),
                {"fourm": __version__, "python": platform.python_version()},
            )  # fmt: skip
            yield sink.files.finish(marker)
    finally:
        sink.files.close()
