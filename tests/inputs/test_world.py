"""Shares of the work: every sample to exactly one process."""

import pytest

from fourm.errors import UsageError
from fourm.inputs.request import World, parse_world


def test_without_torchrun_one_process_has_all_samples() -> None:
    assert parse_world(None, {}).share([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize(("shards", "size"), [(1, 3), (4, 1), (3, 2), (8, 4)])
def test_shards_of_torchrun_jobs_divide_the_work_without_gap_or_overlap(shards: int, size: int) -> None:
    items = list(range(17))
    worlds = [
        parse_world(f"{i}/{shards}", {"RANK": str(r), "WORLD_SIZE": str(size), "LOCAL_RANK": str(r)})
        for i in range(shards)
        for r in range(size)
    ]
    assert sorted(item for world in worlds for item in world.share(items)) == items
    assert {world.rank for world in worlds} == set(range(shards * size))


def test_local_rank_picks_the_device() -> None:
    world = parse_world(None, {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"})
    assert world == World(rank=9, size=16, local_rank=1, group_rank=9, group_size=16)
    shard = parse_world("1/2", {"RANK": "0", "WORLD_SIZE": "4"})
    assert (shard.rank, shard.size, shard.group_rank, shard.group_size) == (4, 8, 0, 4)


@pytest.mark.parametrize("text", ["4/4", "5/4", "0/0", "1", "a/b", "-1/4", "1/4/2", "", "١/٤"])
def test_a_shard_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`shard`"):
        parse_world(text, {})


@pytest.mark.parametrize(("name", "other"), [("WORLD_SIZE", "RANK"), ("RANK", "WORLD_SIZE")])
def test_rank_without_world_size_or_the_reverse_is_refused(name: str, other: str) -> None:
    for value in ("0", "1", "8"):
        with pytest.raises(UsageError, match=f"{name} is {value}, but {other} is not set"):
            parse_world(None, {name: value})


def test_the_share_of_a_process_is_said_in_words() -> None:
    said = [World(rank, 8).describe_share(9) for rank in (0, 1)]
    assert said == ["process 0 of 8: 2 of 9 samples", "process 1 of 8: 1 of 9 samples"]
    assert World(1, 2).describe_share(3, 3) == "process 1 of 2: 4 of 9 results (3 samples x 3 variations)"


def test_an_empty_variable_of_torchrun_is_as_if_not_set() -> None:
    assert parse_world(None, {"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}) == World()
    with pytest.raises(UsageError, match="WORLD_SIZE is 2, but RANK is not set"):
        parse_world(None, {"RANK": "", "WORLD_SIZE": "2"})


def test_impossible_variables_of_torchrun_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="a job has at least one process"):
        parse_world(None, {"RANK": "0", "WORLD_SIZE": "0"})
    with pytest.raises(UsageError, match=r"'9{60}\.\.\.', not a whole number of at most 9 digits"):
        parse_world(None, {"RANK": "0", "WORLD_SIZE": "9" * 5000})
    with pytest.raises(UsageError, match="WORLD_SIZE"):
        parse_world(None, {"RANK": "0", "WORLD_SIZE": "many"})
    with pytest.raises(UsageError, match="process 3 of 2"):
        parse_world(None, {"RANK": "3", "WORLD_SIZE": "2"})
