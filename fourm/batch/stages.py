"""Makes the results of one shard: the pipeline of a run, whose files go into a shard in place of a folder."""

import platform
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from fourm import __version__
from fourm.data.dataset import Dataset, Input
from fourm.data.layout import Key, Sample
from fourm.data.shards import Format, Shard
from fourm.errors import as_addresses
from fourm.hub.header import AUTO
from fourm.inputs.conditions import Work
from fourm.inputs.request import Request, TokenizeRequest
from fourm.networks.precision import arithmetic
from fourm.output.joining import check_joined
from fourm.output.markers import Counts, Marker, settings_digest
from fourm.output.record import RunRecord
from fourm.output.samples import Run
from fourm.output.shard_files import ShardFiles
from fourm.results.events import Event, Loading
from fourm.results.job import Job, TokenJob, make_record, make_token_record
from fourm.results.portions import as_fourm_errors
from fourm.results.saver import Saver
from fourm.results.sinks import ShardSink
from fourm.results.token_files import TokenShard
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import check, has_conditions, load_parts, loaded_for, make_results, stepwise
from fourm.runs.tokens import check_tokenizing, tokenize, untokenized
from fourm.sources.datasets import kept_names
from fourm.sources.results import conditions_from, with_files

AnyJob = Job | TokenJob
Events = Generator[Event, None, None]


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

    job: AnyJob  # of a request without samples
    run: Run

    @property
    def settings(self) -> str:
        """A digest of all that its results depend on."""
        return settings_digest(self.run.record)

    @property
    def keeps_parts(self) -> bool:
        """Whether it reads parts of the input that are kept, also after another run."""
        return isinstance(self.job, Job) and bool(self.job.request.chain.keeps)


def prepare(request: Request | TokenizeRequest, given: ShardedInput) -> Stage:
    """Check a request without samples. UsageError for settings, MissingError for missing files."""
    kind = KINDS[type(request)]
    job = kind.check(request)
    record = replace(
        kind.record(job), samples=given.samples, input=given.input, layout=given.format,
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


def samples_for_sr(base: Run, marker: Marker, following: Stage, read: Dataset | None) -> Dataset:
    """The samples of a shard that a run has made, as conditions of super-resolution.

    read: what the run has read, of which parts may be kept.
    """
    request = following.job.request
    assert isinstance(request, Request)
    samples = conditions_from(base, base.samples_of(marker), request.chain, request.model)
    if read is not None and request.chain.keeps:
        own = {sample.key: sample for sample in read.samples}
        others = [own.get(sample.key, Sample(sample.key)) for sample in samples]
        samples = with_files(samples, others, kept_names(request.chain.keeps))
    return Dataset(tuple(samples))


def make_shard(stage: Stage, loaded: LoadedModel, shard: Shard, dataset: Dataset) -> Iterator[Event | Marker]:
    """Make one shard, and yield events, and its marker at the end."""
    started, run, job = time.perf_counter(), stage.run, stage.job
    sink = ShardSink(run, ShardFiles(run.root, shard, run.record.layout, run.file))
    results = KINDS[type(job.request)].results
    try:
        with as_fourm_errors(job.device, job.dtype, run.root):
            with closing(results(job, loaded, dataset, sink)) as events:
                yield from events
            check_joined(run)
            counts = Counts(
                len(dataset.samples), len(sink.saved), len(sink.failures), len(dataset.incomplete)
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


def _generate(job: Job, loaded: LoadedModel, dataset: Dataset, sink: ShardSink) -> Events:
    """Make the results of samples: targets, or features."""
    job = replace(job, request=replace(job.request, samples=dataset.samples))
    works = [
        Work(sample, variation)
        for sample in sorted(dataset.samples, key=lambda sample: sample.key)
        for variation in job.request.variations
    ]
    if job.request.origin is not None:  # what the run before did not make, it has reported
        works = [work for work in works if has_conditions(job.request, work)]
    loaded = loaded_for(job, loaded)
    if not loaded.is_loaded:
        yield Loading(f"model {job.request.model.name}")
    with arithmetic(job.dtype):
        engine, codecs = load_parts(job, loaded)
    yield from stepwise(make_results(engine, Saver(job, codecs, sink), works), loaded)


def _tokenize(job: TokenJob, loaded: LoadedModel, dataset: Dataset, sink: ShardSink) -> Events:
    """Make tokens of the values of samples."""
    files = TokenShard(sink)
    samples = sorted(dataset.samples, key=lambda sample: sample.key)
    found = [untokenized(job.request, files, sample) for sample in samples]
    yield from stepwise(tokenize(job, loaded_for(job, loaded), found, files), loaded)


def _check_tokenizing(request: TokenizeRequest) -> TokenJob:
    """Check a request; `auto` is the dtype of the run that is joined or continued, if there is one."""
    before = request.joined_record() if request.dtype == AUTO else None
    return check_tokenizing(request if before is None else replace(request, dtype=before.dtype))


@dataclass(frozen=True, slots=True)
class _Kind:
    """How runs of one kind are made."""

    check: Callable[[Any], AnyJob]  # of a request
    record: Callable[[Any], RunRecord]  # of its job
    results: Callable[[Any, LoadedModel, Dataset, ShardSink], Events]  # into a shard


KINDS: Mapping[type[Request | TokenizeRequest], _Kind] = {
    Request: _Kind(check, make_record, _generate),
    TokenizeRequest: _Kind(_check_tokenizing, make_token_record, _tokenize),
}
