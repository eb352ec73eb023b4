"""Shards are given to workers, of which some die or hang: each shard is made once, or reported."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from fourm.batch.dispatch import DEATHS, TRIES, Died, Said, dispatch
from fourm.batch.worker import Report
from fourm.data.shards import Shard
from fourm.errors import FourMError
from fourm.output.markers import Counts
from fourm.results.events import Lost, Saved

SHARDS = [Shard(number, f"{number:05d}", None, 1, ()) for number in range(9)]
Dies = Callable[["Fake"], bool]


@dataclass(eq=False)
class Fake:
    """A worker that tells of one result of its shard, then reports it or dies."""

    place: int
    dies: Dies
    shard: Shard = SHARDS[0]
    told: bool = False
    ended: bool = False

    def give(self, shard: Shard) -> None:
        self.shard, self.told = shard, False

    def receive(self) -> list[Said]:
        if not self.told:
            self.told = True
            return [Saved(self.shard.name, 0)]
        if self.dies(self):
            raise Died("was killed")
        return [Report(self.shard, Counts(1, 1))]

    def end(self, is_busy: bool) -> None:
        self.ended = True


class Cluster:
    """Starts workers, and remembers them."""

    def __init__(self, dies: Dies, hangs: int = -1) -> None:
        self.dies, self.hangs, self.workers = dies, hangs, list[Fake]()

    def start(self, place: int) -> Fake:
        self.workers.append(Fake(place, self.dies))
        return self.workers[-1]

    def wait(self, workers: list[Fake]) -> list[Fake]:
        return [one for one in workers if one.place != self.hangs] or workers

    def run(self, places: int) -> Iterator[Said]:
        return dispatch(SHARDS, places, self.start, self.wait)


def made(said: list[Said]) -> list[int]:
    return sorted(one.shard.number for one in said if isinstance(one, Report) and not one.lost)


def lost(said: list[Said]) -> list[str]:
    return [one.shard for one in said if isinstance(one, Lost)]


@pytest.mark.parametrize("places", [1, 2, 4, 20])
def test_a_shard_that_kills_its_workers_is_reported_and_the_others_are_made_once(places: int) -> None:
    cluster = Cluster(lambda worker: worker.shard.number == 4)
    said = list(cluster.run(places))
    assert made(said) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert lost(said) == ["00004"] * (TRIES - 1)
    (report,) = [one for one in said if isinstance(one, Report) and one.lost]
    assert (report.shard.number, report.counts) == (4, Counts())
    assert report.lost == f"each of its {TRIES} workers died, the last one was killed"
    assert sum(isinstance(one, Saved) for one in said) - sum(
        one.saved for one in said if isinstance(one, Lost)
    ) == len(SHARDS)
    assert all(worker.ended for worker in cluster.workers)
    assert len(cluster.workers) <= places + TRIES


def test_a_place_whose_workers_always_die_gets_no_more_shards() -> None:
    cluster = Cluster(lambda worker: worker.place == 1)
    said = list(cluster.run(3))
    assert made(said) == [shard.number for shard in SHARDS]
    assert len(lost(said)) == DEATHS == sum(worker.place == 1 for worker in cluster.workers)


def test_the_run_ends_where_all_workers_die() -> None:
    cluster, said = Cluster(lambda worker: True), list[Said]()
    with pytest.raises(FourMError, match=r"died 3 times in a row; `resume=True` goes on with the \d shards"):
        said.extend(cluster.run(2))
    assert len(cluster.workers) == 2 * DEATHS
    assert all(worker.ended for worker in cluster.workers)


def test_a_worker_that_hangs_keeps_only_its_own_shard_until_it_is_ended() -> None:
    cluster = Cluster(lambda worker: worker is cluster.workers[0], hangs=0)
    said = list(cluster.run(2))
    assert made(said) == [shard.number for shard in SHARDS]
    assert lost(said) == ["00000"]
    reports = [one for one in said if isinstance(one, Report | Lost)]
    assert isinstance(reports[-2], Lost)  # the others were made before


def test_workers_end_where_the_run_is_left() -> None:
    cluster = Cluster(lambda worker: False)
    events = cluster.run(2)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert [worker.ended for worker in cluster.workers] == [True, True]


def test_work_is_shared() -> None:
    cluster = Cluster(lambda worker: False)
    assert made(list(cluster.run(2))) == [shard.number for shard in SHARDS]
    assert len(cluster.workers) == 2
    assert Counter(worker.place for worker in cluster.workers) == {0: 1, 1: 1}
