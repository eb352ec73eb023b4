"""Best of N: scores all variations of a sample, and hands the best ones to the writer of results."""

import json
import math
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

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
from fourm.schedule.best import Best

NO_SCORE = "the likelihood of its conditions is not a finite number"


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A decoded variation, and how likely it makes each condition; or why it could not be decoded."""

    work: Work
    row: PreparedSample | None = None
    batch: Batch | None = None  # one row, on the CPU
    scores: tuple[float, ...] = ()  # mean log-likelihood per token, one for each of `Best.by`
    problem: str = ""

    @property
    def total(self) -> float:
        return math.fsum(self.scores)


@dataclass(slots=True)
class Chooser:
    """Takes the place of the writer while variations are decoded; keeps them until a sample has all."""

    writer: Saver | Collector
    network: FourM
    best: Best
    wanted: frozenset[tuple[str, int]]  # results that are to be written: keys, and ranks as variations
    job: Job = field(init=False)  # that of the writer
    codecs: Mapping[str, Codec] = field(init=False)  # likewise
    _waiting: dict[str, dict[int, _Candidate]] = field(default_factory=dict)  # by key and variation
    _ready: deque[dict[int, _Candidate]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.job, self.codecs = self.writer.job, self.writer.codecs

    def begin(self, works: Sequence[Work]) -> None:
        """Called with variations before they are decoded together."""
        self.writer.begin(works)

    def watch(self, progress: Progress, works: Sequence[Work], is_last: bool) -> None:
        """Nothing is shown of variations that may be dropped."""

    def fail(self, work: Work, reason: str) -> Failed:
        """Note a variation that cannot be decoded; it is no failure if enough others can."""
        self._take(_Candidate(work, problem=reason))
        return Failed(*work.result, reason)

    def save(
        self, given: Sequence[PreparedSample], batch: Batch, chosen: Sequence[int]
    ) -> Generator[Event, None, None]:
        """Score the chosen variations, and keep them. Can be repeated after an error."""
        if chosen:
            batch, targets = batch.select(torch.tensor(chosen)), self.job.request.chain.targets
            scores = [log_likelihood(self.network, batch, name, targets).tolist() for name in self.best.by]
            rows = batch.to("cpu")
            for place, index in enumerate(chosen):
                own = tuple(column[place] for column in scores)
                one = rows.select(torch.tensor([place]))
                problem = "" if all(map(math.isfinite, own)) else NO_SCORE
                self._take(_Candidate(given[index].work, given[index], one, own, problem))
        yield from ()

    def finish(self) -> Iterator[Event]:
        """Write the best of the samples of which all variations are there."""
        while self._ready:
            yield from self._write(self._ready.popleft())

    def _take(self, one: _Candidate) -> None:
        key, number = one.work.result
        self._waiting.setdefault(key, {})[number] = one
        if len(self._waiting[key]) == self.best.of:
            self._ready.append(self._waiting.pop(key))

    def _write(self, found: Mapping[int, _Candidate]) -> Iterator[Event]:
        sound = [number for number, one in found.items() if not one.problem]
        ranked = sorted(sound, key=lambda number: (-found[number].total, number))
        sample, count = found[0].work.sample, self.job.request.num_variations
        scores = [list(found[number].scores) or None for number in range(self.best.of)]
        said = {"by": self.best.by, "scores": scores, "kept": ranked[:count]}
        self.writer.save_scores(Work(sample, 0), json.dumps(said) + "\n")
        for rank in range(count):
            work = Work(sample, rank)
            if work.result not in self.wanted:
                continue
            if rank >= len(ranked):
                problem = next(one.problem for one in found.values() if one.problem)
                yield self.writer.fail(work, problem)
                continue
            one = found[ranked[rank]]
            assert one.row is not None
            assert one.batch is not None
            yield from self.writer.save([replace(one.row, work=work)], one.batch, [0])


def keep_best(events: Iterator[Event], chooser: Chooser) -> Iterator[Event]:
    """The events of decoding, and those of the results that are kept; a variation alone has no failure."""
    for event in events:
        if not isinstance(event, Failed):
            yield event
        yield from chooser.finish()
    yield from chooser.finish()
