"""Makes shards one after the other, in one process that loads its models once."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from fourm.batch.batches import Batch, sum_stages
from fourm.batch.stages import Stage, make_shard, samples_for_sr
from fourm.data.dataset import UNKNOWN, Dataset
from fourm.data.layout import Key, Sample
from fourm.data.shards import Shard
from fourm.errors import UsageError
from fourm.files.copies import temporary_copies
from fourm.files.writing import remove_leftovers
from fourm.output.markers import Counts, Marker, ShardFailure
from fourm.results.events import Event
from fourm.runs.loaded import LoadedModel
from fourm.runs.pipeline import loaded_for


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one shard."""

    shard: Shard
    counts: Counts  # of all its runs together
    failures: tuple[ShardFailure, ...] = ()
    incomplete: tuple[str, ...] = ()  # a sentence for each sample that lacks a file
    seconds: float = 0.0
    was_done: bool = False  # it was whole before, and nothing was made
    lost: str = ""  # why it was not made: its workers died


@dataclass(slots=True)
class Worker:
    """Holds the models of a batch. Any number of workers, anywhere, can make shards of one batch.

    A process has one at a time: a worker that begins or is closed deletes what its process left unfinished.
    """

    batch: Batch
    device: str | None = None  # None: that of the batch
    stages: list[Stage] = field(init=False)
    _loaded: list[LoadedModel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batch = self.batch.staged()
        device = self.device or self.batch.requests[0].device
        requests = tuple(replace(one, device=device, overwrite=False) for one in self.batch.requests)
        self.stages = replace(self.batch, requests=requests).stages()
        for stage in self.stages:
            self.batch.store.begin(stage.run.record, 2, True, False, stage.run.file)
        for stage in self.stages:
            job = stage.job
            alike = [one for one in self._loaded if (one.device, one.dtype) == (job.device, job.dtype)]
            tokenizers = alike[0].tokenizers if alike else {}
            self._loaded.append(replace(loaded_for(job, None), tokenizers=tokenizers))

    def make(self, shard: Shard, watch: Callable[[Event], object] | None = None) -> Report:
        """Make one shard, unless it is whole already. watch: is called with the events of its results."""
        for event in self.events(shard):
            if isinstance(event, Report):
                return event
            if watch is not None:
                watch(event)
        raise AssertionError("a shard ends with its report")

    def events(self, shard: Shard) -> Iterator[Event | Report]:
        """The events of making a shard, then its report."""
        started, markers = time.perf_counter(), list[Marker]()
        store, records = self.batch.store, [stage.run.file for stage in self.stages]
        try:
            with temporary_copies():
                was_done = yield from self._make(shard, markers)
        finally:
            store.forget(markers, records)
        yield Report(
            shard, sum_stages([one.counts for one in markers]),
            tuple(failure for one in markers for failure in one.failures),
            markers[0].incomplete, round(time.perf_counter() - started, 3), was_done,
        )  # fmt: skip

    def _make(self, shard: Shard, markers: list[Marker]) -> Generator[Event, None, bool]:
        """The events of making a shard, and whether it was whole; `markers` get that of each stage."""
        was_done, read = True, None
        for number, stage in enumerate(self.stages):
            marker = self._done(stage, shard, markers) if was_done else None
            if marker is None:
                if read is None and (number == 0 or stage.keeps_parts):
                    read = self._read(shard)
                dataset = self._dataset(stage, markers, read)
                was_done = False
                for event in make_shard(stage, self._loaded[number], shard, dataset):
                    if isinstance(event, Marker):
                        marker = event
                    else:
                        yield event
                assert marker is not None
                markers.append(marker)
                self.batch.store.put(marker, stage.run.file)
            else:
                markers.append(marker)
        return was_done

    def _read(self, shard: Shard) -> Dataset:
        """The samples of a shard. One that is damaged is one sample, of an unknown name, which fails."""
        try:
            return self.batch.shards.samples(shard)
        except UsageError as error:
            # A file that is gone is no matter of one shard; of results of another run, nothing would be made.
            if isinstance(error.__cause__, OSError) or self.stages[0].run.record.origin:
                raise
            return Dataset((Sample(Key(shard.name, UNKNOWN), problem=str(error)),))

    def close(self) -> None:
        """Release the memory of the models; the next shard loads them again."""
        for loaded in self._loaded:
            loaded.close()
        remove_leftovers(self.batch.out)

    def _done(self, stage: Stage, shard: Shard, markers: Sequence[Marker]) -> Marker | None:
        """The marker of a stage of a shard that needs not be made. markers: of the stages before it."""
        with suppress(UsageError):  # whoever starts the workers says what is damaged
            marker = self.batch.store.read_done(shard, stage.settings, stage.run.file)
            if self.batch.is_whole(marker.counts, (*markers, marker)[0].counts):
                return marker
        return None

    def _dataset(self, stage: Stage, markers: list[Marker], read: Dataset | None) -> Dataset:
        if not markers:
            assert read is not None
            return read
        self.batch.store.get(markers[0])
        return samples_for_sr(self.stages[0].run, markers[0], stage, read)
