"""A sharded run as plain data: what is asked for, its shards, and which of them are still to be made."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fourm.batch.remote import Store
from fourm.batch.stages import ShardedInput, Stage, prepare, prepare_sr
from fourm.data.layout import check_apart
from fourm.data.shards import FILES, FORMATS, SHARD_SIZE, Format, Shard
from fourm.errors import UsageError, check_choice
from fourm.files.copies import temporary_copies
from fourm.files.opening import real
from fourm.files.writing import refuse_inside
from fourm.inputs.request import Request, TokenizeRequest
from fourm.inputs.world import World
from fourm.output.markers import Counts
from fourm.output.shard_files import check_format
from fourm.runs.tokens import count_crops
from fourm.sources.shards import Shards

AnyRequest = Request | TokenizeRequest


@dataclass(frozen=True, slots=True)
class Share:
    """The shards of one process."""

    shards: Sequence[Shard]  # all of them
    todo: Sequence[Shard]  # that are not whole
    done: Counts  # sums of those that are whole
    faults: tuple[str, ...]  # a sentence for each shard that is damaged


@dataclass(frozen=True, slots=True)
class Batch:
    """A sharded run. It can be pickled, so that any engine can send it to its workers."""

    requests: tuple[AnyRequest, ...]  # without samples: the run, and super-resolution of what it makes
    shards: Shards
    format: Format
    size: int = SHARD_SIZE  # samples of a shard, at most
    retry_failed: bool = False  # shards with failed results are made again

    @property
    def out(self) -> Path:
        """The folder of the results."""
        return self.requests[0].out

    @property
    def variations(self) -> int:
        """Results of each sample."""
        return len(self.requests[0].variations)

    @property
    def store(self) -> Store:
        """The folder of the results, wherever it is."""
        return Store(self.out, self.requests[0].store)

    def staged(self) -> "Batch":
        """The batch for this process: with results in an object store, `out` is its temporary folder."""
        return replace(self, requests=tuple(one.staged() for one in self.requests))

    def open_folder(self) -> None:
        """Create the folder, or join or continue its run, as the request says; UsageError if it may not.

        To be called once by the program that starts workers, or by each of several processes.
        """
        first, batch = self.requests[0], self.staged()
        for number, stage in enumerate(batch.stages()):
            overwrite, resume = first.overwrite and not number, first.resume or number > 0
            batch.store.begin(stage.run.record, first.world.joining, resume, overwrite, stage.run.file)

    def share(self, rank: int = 0, size: int = 1) -> Share:
        """Every size-th shard from `rank` on, and what is to be made of them."""
        World(rank, size)  # refuses a number that no process has
        shards, batch, faults = self.shards.shards[rank::size], self.staged(), list[str]()
        found = list[Mapping[int, Counts]]()  # of each stage, by number of the shard
        for stage in batch.stages():
            done, damaged = batch.store.find_done(shards, stage.settings, stage.run.file)
            found.append(done)
            faults += damaged
        todo, whole = list[Shard](), list[Counts]()
        for shard in shards:
            made = [one[shard.number] for one in found if shard.number in one]
            if len(made) == len(found) and all(self.is_whole(counts, made[0]) for counts in made):
                whole.append(sum_stages(made))
            else:
                todo.append(shard)
        return Share(shards, todo, sum_counts(whole), tuple(faults))

    def is_whole(self, counts: Counts, base: Counts) -> bool:
        """Whether what became of one stage of a shard needs not be made again.

        base: of the first stage; super-resolution is whole if it is of all that this one has saved, which are
        more results after some that had failed were made again.
        """
        is_of_all = counts is base or counts.saved + counts.failed == base.saved
        return is_of_all and not (self.retry_failed and counts.failed)

    def todo(self, rank: int = 0, size: int = 1) -> list[Shard]:
        """The shards of one of `size` processes that are not whole yet."""
        return list(self.share(rank, size).todo)

    def stages(self) -> list[Stage]:
        """The runs over each shard, checked. UsageError for settings, MissingError for missing files."""
        samples, shards = self.shards.counts
        given = ShardedInput(self.format, shards, self.size, samples, self.shards.input)
        base = prepare(self.requests[0], given)
        following = [one for one in self.requests[1:] if isinstance(one, Request)]
        return [base, *(prepare_sr(base, one, given) for one in following)]


def plan(
    requests: Sequence[AnyRequest], shards: Shards, form: str, size: int = SHARD_SIZE,
    retry_failed: bool = False,
) -> Batch:  # fmt: skip
    """A sharded run of requests without samples, of which the second is super-resolution of the first.

    A request for super-resolution alone has one of its samples: they all have the same kinds of files.
    """
    check_choice("format", form, FORMATS)
    first = requests[0]
    if form == FILES:
        raise UsageError("`format=files` is a run without shards")
    check_format(form)
    if first.only:
        raise UsageError(f"`only={first.only[0]}`: chooses samples, but shards are made whole")
    if first.overwrite and first.world.size > 1:
        what = "deletes what other processes make; start one process with it, and then all of them"
        raise UsageError(f"`overwrite=True` {what}")
    if first.overwrite and first.store:
        what = "is in an object store, where nothing is deleted; delete it yourself, or name another folder"
        raise UsageError(f"`overwrite=True`: {first.store} {what}")
    for path in shards.places if first.overwrite else ():
        if real(path).is_relative_to(real(first.out)):
            raise UsageError(f"`out={first.out}`: `overwrite=True` would delete {path}, which this run reads")
    for top in shards.tops:
        refuse_inside(first.out, top)
    if shards.input.kind == "folder":
        check_apart(first.out, shards.listed)
    if isinstance(first, TokenizeRequest) and first.num_crops is None:  # as many as the first samples have
        with temporary_copies():
            samples = shards.samples(shards.shards[0]).samples
        requests = [replace(first, num_crops=count_crops(first, samples))]
    return Batch(tuple(requests), shards, form, size, retry_failed)  # type: ignore[arg-type]


def sum_stages(stages: Sequence[Counts]) -> Counts:
    """What became of a shard in all its stages, which are of the same samples."""
    saved, failed = sum(one.saved for one in stages), sum(one.failed for one in stages)
    return replace(stages[0], saved=saved, failed=failed)


def sum_counts(shards: Iterable[Counts]) -> Counts:
    """What became of several shards together."""
    sums = Counter[str]()
    for counts in shards:
        sums.update(asdict(counts))
    return Counts(**sums)
