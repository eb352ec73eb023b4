"""Best of N: scores all variations of a sample, and hands the best ones to the writer of results."""

import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import torch

from fourm.codecs.table import Codec
from fourm.decoding.scoring import log_likelihood
from fourm.decoding.steps import Progress
from fourm.inputs.conditions import PreparedSample, Work
from fourm.networks.model import FourM
from fourm.networks.state import Batch
from fourm.results.events import Event, Failed
from fourm.results.job import Job
from fourm.results.saver import Saver
from fourm.results.values import Collector
from fourm.schedule.best import Best, Scores

NO_SCORE = "the likelihood of its conditions is not a finite number"


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """A decoded variation, and how likely it makes each condition; or why it could not be decoded."""

    work: Work
    row: PreparedSample | None = None
    batch: Batch | None = None  # one row, on the CPU
    scores: tuple[float, ...] | None = None  # one for each of `Best.by`
    problem: str = ""


@dataclass(slots=True)
class Chooser:
    """Takes the place of the writer while variations are decoded; keeps them until a sample has all."""

    writer: Saver | Collector
    network: FourM
    best: Best
    wanted: frozenset[tuple[str, int]]  # results that are to be written: keys, and ranks as variations
    job: Job = field(init=False)  # that of the writer
    codecs: Mapping[str, Codec] = field(init=False)  # likewise
    _taken: set[tuple[str, int]] = field(default_factory=set)  # keys and variations
    _waiting: dict[str, dict[int, _Made]] = field(default_factory=dict)  # by key and variation
    _ready: deque[dict[int, _Made]] = field(default_factory=deque)
    _lock: Lock = field(default_factory=Lock)  # on a GPU, `save` is called in a thread of its own

    def __post_init__(self) -> None:
        self.job, self.codecs = self.writer.job, self.writer.codecs

    def begin(self, works: Sequence[Work]) -> None:
        """Called with variations before they are decoded together."""
        self.writer.begin(works)

    def watch(self, progress: Progress, works: Sequence[Work], is_last: bool) -> None:
        """Show a variation while it is decoded, although it may be dropped."""
        self.writer.watch(progress, works, is_last)

    def fail(self, work: Work, reason: str) -> Failed:
        """Note a variation that cannot be decoded; it is no failure if enough others can."""
        self._take(_Made(work, problem=reason))
        return Failed(*work.result, reason)

    def save(
        self, given: Sequence[PreparedSample], batch: Batch, chosen: Sequence[int]
    ) -> Generator[Event, None, None]:
        """Score the chosen variations, and keep them. Can be repeated after an error."""
        chosen = [index for index in chosen if given[index].work.result not in self._taken]
        if chosen:
            batch, targets = batch.select(torch.tensor(chosen)), self.job.request.chain.targets
            columns = [log_likelihood(self.network, batch, name, targets) for name in self.best.by]
            rows = batch.to("cpu")
            for place, (index, *scores) in enumerate(zip(chosen, *columns, strict=True)):
                one, problem = rows.select(torch.tensor([place])), ""
                if not all(map(math.isfinite, scores)):
                    problem = NO_SCORE
                self._take(_Made(given[index].work, given[index], one, tuple(scores), problem))
        yield from ()

    def finish(self) -> Iterator[Event]:
        """Write the best of the samples of which all variations are there."""
        while self._ready:
            yield from self._write(self._ready.popleft())

    def _take(self, one: _Made) -> None:
        (key, number), of = one.work.result, self.best.of
        with self._lock:
            self._taken.add(one.work.result)
            found = self._waiting.setdefault(key, {})
            found[number] = one
            if len(found) == of:
                self._ready.append(self._waiting.pop(key))

    def _write(self, found: Mapping[int, _Made]) -> Iterator[Event]:
        made = [found[number] for number in range(self.best.of)]
        count, sample = self.job.request.num_variations, made[0].work.sample
        scores = Scores.of(self.best.by, [None if one.problem else one.scores for one in made], count)
        for rank in range(count):
            if (sample.key.text, rank) not in self.wanted:
                continue
            if rank >= len(scores.kept):
                yield self.writer.fail(Work(sample, rank), next(one.problem for one in made if one.problem))
                continue
            one = made[scores.kept[rank]]
            assert one.row is not None
            assert one.batch is not None
            row = replace(one.row, work=Work(sample, rank, scores.kept[rank]), scores=scores)
            yield from self.writer.save([row], one.batch, [0])


def keep_best(events: Iterator[Event], chooser: Chooser) -> Iterator[Event]:
    """The events of decoding variations, but for failures of single ones; and those of the results."""
    for event in events:
        if not isinstance(event, Failed):
            yield event
        yield from chooser.finish()
    yield from chooser.finish()
