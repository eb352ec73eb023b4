"""Bytes that come in the end: waits, tries, ranges, whatever a connection does."""

import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fourm.errors import MissingError, VerificationError
from fourm.hub.cache import cache_folder, find_pin, pins_path
from fourm.hub.remote import Address, UnreachableError, explain_failure, retry
from tests.fetching import FETCHED, FILE, FILES, ID, NAME, SLACK, WEIGHTS, Watch, partial, whole_files
from tests.hub_server import Hub

PASSING = [
    ("429", {"retry_after": "3"}, "the server answers 429"),
    ("500", {}, "the server answers 500"),
    ("503", {"times": 3}, "the server answers 503"),
    ("drop", {"after": 600_000}, ""),
    ("reset", {"after": 600_000}, ""),
    ("truncate", {"after": 1_000_000, "times": 1}, ""),
    ("drop", {"after": 0, "times": 4}, ""),
]


@pytest.mark.parametrize(("kind", "more", "reason"), PASSING)
def test_what_may_pass_is_tried_again(
    hub: Hub, watch: Watch, kind: str, more: dict[str, object], reason: str
) -> None:
    hub.fail(FILE, kind, **more)
    watch.get(NAME)
    assert whole_files() == FETCHED
    assert watch.reasons
    assert all(reason in each for each in watch.reasons)
    if kind != "reset":  # which takes with it what was sent and not yet read
        assert hub.sent[FILE] <= len(WEIGHTS) + SLACK * len(watch.reasons)


@pytest.mark.parametrize("kind", ["429", "500", "502"])
def test_the_description_is_asked_for_again_too(hub: Hub, watch: Watch, kind: str) -> None:
    hub.fail("api", kind, times=2)
    watch.get(NAME)
    assert watch.reasons == [f"the server answers {kind}"] * 2
    assert watch.slept == [1.0, 2.0]


def test_the_server_says_how_long_to_wait(hub: Hub, watch: Watch) -> None:
    hub.fail(FILE, "429", retry_after="7")
    hub.fail(FILE, "429", retry_after="86400")
    hub.fail(FILE, "503", retry_after="Wed, 21 Oct 2015 07:28:00 GMT")
    hub.fail(FILE, "503", retry_after="soon")
    watch.get(NAME)
    assert watch.slept == [7.0, 60.0, 4.0, 8.0]


@pytest.mark.parametrize("wait", ["9" * 5000, "Wed, 21 Oct 99999999999 07:28:00 GMT", "-5", "1e5", "nan"])
def test_a_wait_that_makes_no_sense_is_our_own(hub: Hub, watch: Watch, wait: str) -> None:
    hub.fail(FILE, "503", retry_after=wait)
    watch.get(NAME)
    assert watch.slept == [60.0 if wait.isdigit() else 1.0]


@pytest.mark.parametrize(("kind", "times"), [("page", 1), ("page-in-pieces", 1), ("size", 1)])
def test_what_was_collected_survives_a_network_that_sends_something_else(
    hub: Hub, watch: Watch, kind: str, times: int
) -> None:
    hub.fail(FILE, "drop", after=1_000_000)
    hub.fail(FILE, kind, times=times)
    with pytest.raises(VerificationError):
        watch.get(NAME)
    kept = partial().stat().st_size
    assert kept > 900_000
    assert watch.get(NAME)
    assert hub.ranges[-1] == f"bytes={kept}-"
    assert whole_files() == FETCHED


def test_a_card_that_begins_as_a_web_page_does_is_a_card(hub: Hub, watch: Watch) -> None:
    hub.put(ID, {**FILES, "README.md": b"<!DOCTYPE html>\n# A model"})
    watch.get(NAME)
    assert whole_files() == FETCHED


@pytest.mark.parametrize("error", [OverflowError("port must be 0-65535."), UnicodeError("label too long"),
                                   RecursionError("too deep"), ConnectionResetError("reset")])  # fmt: skip
def test_whatever_a_connection_raises_is_a_sentence(error: Exception) -> None:
    told, _, _ = explain_failure(error, Address("a/b", "http://h:1/x"), has_begun=False)
    assert isinstance(told, UnreachableError)
    assert str(told) == f"a/b cannot be fetched from h:1: no connection ({error})"


def test_a_mistake_of_the_program_or_the_disk_is_not_blamed_on_the_network() -> None:
    for error in (KeyError("x"), OSError(28, "No space left on device"), PermissionError(13, "denied", "/x")):
        with pytest.raises(type(error)):
            explain_failure(error, Address("a/b", "http://h/x"), has_begun=False)


def test_what_an_error_says_is_short_and_printable() -> None:
    def judge(error: Exception) -> tuple[str, bool]:
        return explain_failure(error, Address("a/b", "http://h/x"), has_begun=False)[1:]

    said, _ = judge(ConnectionError("a\n b\x1b[31m" + "c" * 5000))
    assert said.startswith("no connection (a b\\x1b[31mccc")
    assert len(said) < 300
    assert said.isprintable()
    assert judge(ConnectionError()) == ("no connection (ConnectionError)", True)
    assert judge(TimeoutError()) == judge(ConnectionError("timed out")) == ("no answer in time", True)


@pytest.mark.parametrize(("after", "kept"), [(0, False), (1_000_000, True)])
def test_what_has_arrived_is_told_only_if_something_has(
    hub: Hub, watch: Watch, after: int, kept: bool
) -> None:
    for fault in ("drop", "500"):
        shutil.rmtree(cache_folder(), ignore_errors=True)
        hub.faults.clear()
        hub.fail(FILE, "drop", after=after)
        hub.fail(FILE, fault, times=99)
        with pytest.raises(MissingError) as told:
            watch.get(NAME)
        assert ("what has arrived is kept" in str(told.value)) is kept


def test_waits_grow_and_end() -> None:
    watch, tried = Watch(), []

    def action() -> None:
        tried.append(1)
        raise ConnectionResetError("gone")

    with pytest.raises(UnreachableError, match=r"^a/b/x cannot be fetched from h: no connection \(gone\)$"):
        retry(watch.client, Address("a/b", "http://h/x", "x"), action)
    assert len(tried) == watch.client.tries
    assert watch.slept == [1.0, 2.0, 4.0, 8.0]


def test_progress_begins_the_count_anew(hub: Hub, watch: Watch) -> None:
    for _ in range(12):  # more drops than tries, but each brings something
        hub.fail(FILE, "drop", after=200_000)
    watch.get(NAME)
    assert whole_files() == FETCHED
    assert max(watch.slept) == 1.0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drops=st.lists(st.integers(0, 1_500_000), max_size=4))
def test_wherever_it_drops_the_file_comes_whole(hub: Hub, drops: list[int]) -> None:
    shutil.rmtree(cache_folder(), ignore_errors=True)
    pins_path().unlink(missing_ok=True)
    hub.sent.clear()
    hub.faults.clear()
    for after in drops:
        hub.fail(FILE, "drop", after=after)
    Watch().get(NAME)
    assert whole_files() == FETCHED
    assert hub.sent[FILE] <= len(WEIGHTS) + SLACK * len(drops)


def test_a_later_run_goes_on_where_the_first_stopped(hub: Hub, watch: Watch) -> None:
    hub.fail(FILE, "drop", after=1_000_000)
    hub.fail(FILE, "500", times=99)
    with pytest.raises(MissingError, match=r"4M-7_B_CC12M/model.safetensors cannot be fetched.* answers 500"):
        watch.get(NAME)
    assert FILE not in whole_files()
    assert find_pin(ID) is None
    kept = partial().stat().st_size
    assert kept > 900_000
    hub.faults.clear()
    (job,) = watch.plan(NAME)
    assert job.to_fetch == len(WEIGHTS) - kept
    hub.ranges.clear()
    watch.get(NAME)
    assert hub.ranges == [f"bytes={kept}-"]
    assert whole_files() == FETCHED
    assert hub.sent[FILE] <= len(WEIGHTS) + SLACK
    assert not partial().exists()


def test_a_server_without_ranges_sends_all_again(hub: Hub, watch: Watch) -> None:
    hub.fail(FILE, "drop", after=1_000_000)
    hub.fail(FILE, "ignore-range")
    watch.get(NAME)
    assert whole_files() == FETCHED
    assert hub.sent[FILE] > len(WEIGHTS) + 900_000


@pytest.mark.parametrize("junk", [b"", b"junk", b"x" * len(WEIGHTS), b"x" * (len(WEIGHTS) + 5)])
def test_what_was_left_from_before_is_not_trusted(hub: Hub, watch: Watch, junk: bytes) -> None:
    partial().parent.mkdir(parents=True)
    partial().write_bytes(junk)
    watch.get(NAME)
    assert whole_files() == FETCHED
