"""Shares of the work: every sample to exactly one process."""

import pytest

from fourm.errors import UsageError
from fourm.inputs.world import World, other_launcher, parse_world


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


def array(own: int, first: int, last: int, step: int, count: int) -> dict[str, str]:
    names = {"ID": own, "MIN": first, "MAX": last, "STEP": step, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


@pytest.mark.parametrize(("first", "step", "count"), [(0, 1, 4), (1, 1, 3), (7, 5, 4), (3, 2, 1)])
def test_tasks_of_a_slurm_array_divide_the_work_whatever_its_start_and_step(
    first: int, step: int, count: int
) -> None:
    last = first + step * (count - 1)
    own = range(first, last + 1, step)
    worlds = [parse_world("array", array(number, first, last, step, count)) for number in own]
    assert [(world.rank, world.size, world.is_told) for world in worlds] == [
        (rank, count, True) for rank in range(count)
    ]


@pytest.mark.parametrize("task", [array(7, 1, 7, 1, 3), array(2, 1, 7, 3, 3), array(9, 0, 3, 1, 4)])
def test_an_array_with_gaps_is_refused(task: dict[str, str]) -> None:
    with pytest.raises(
        UsageError, match=r"^`shard=array`: task . of ., from . to . in steps of ., is a list"
    ):
        parse_world("array", task)


def test_srun_and_kubernetes_say_which_process_this_is() -> None:
    srun = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}
    assert parse_world("slurm", srun) == World(5, 8, local_rank=1)
    assert parse_world("k8s/12", {"JOB_COMPLETION_INDEX": "11"}) == World(11, 12)
    with pytest.raises(UsageError, match="`shard`: k8s/11 process 11 of 11 is out of range"):
        parse_world("k8s/11", {"JOB_COMPLETION_INDEX": "11"})
    group = parse_world("array", {**array(2, 1, 2, 1, 2), "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"})
    assert group == World(7, 8, local_rank=3, group_rank=3, group_size=4)


@pytest.mark.parametrize(
    ("shard", "given"),
    [
        ("array", array(2, 1, 4, 1, 4)),
        ("slurm", {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}),
        ("k8s/4", {"JOB_COMPLETION_INDEX": "1"}),
    ],
)
def test_each_variable_of_a_launcher_that_is_missing_or_no_number_is_named(
    shard: str, given: dict[str, str]
) -> None:
    for name in given:
        for text, what in (("", "is not set"), ("x", "is 'x', not a whole number")):
            with pytest.raises(UsageError, match=f"^environment variable {name} {what}"):
                parse_world(shard, given | {name: text})


def test_variables_of_a_launcher_do_nothing_unasked_but_are_said() -> None:
    srun = {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
    assert parse_world(None, srun) == World()
    assert not parse_world(None, srun).is_told
    assert "SLURM_PROCID is set, but `shard` is not" in other_launcher(srun)
    assert "`shard=array`" in other_launcher(srun | array(2, 1, 4, 1, 4))
    assert "`shard=k8s/N`" in other_launcher({"JOB_COMPLETION_INDEX": "0"})
    assert other_launcher(srun | {"SLURM_NTASKS": "1"}) == other_launcher({}) == ""
    assert parse_world(None, {"RANK": "0", "WORLD_SIZE": "1"}).is_told
