"""Weights of measures outside the Hub: fetched from their address, checked by what is known of them."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from fourm.errors import MissingError, VerificationError
from fourm.hub import cache, catalogue
from fourm.hub.about import describe
from fourm.hub.cache import fetched_paths, find_pin, fourm_home
from fourm.hub.catalogue import CATALOGUE, Entry, Source
from fourm.hub.download import fetch, plan_downloads, verify_cached
from fourm.hub.remote import UnreachableError
from tests.fetching import Watch
from tests.hub_server import Hub

CONTENT = b"pickled weights " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "inception-fid"


def entry_of(hub: Hub, checksum: str) -> Entry:
    """A row of the catalogue, with a file of the server that is taken for GitHub."""
    hub.github["weights/x.pth"] = CONTENT
    return replace(CATALOGUE[NAME], sources=(Source(f"{hub.url}/github/weights/x.pth", checksum),))


def download(entry: Entry, watch: Watch) -> None:
    (job,) = plan_downloads([entry], watch.client)
    assert (job.num_bytes, job.path) == (len(CONTENT), fourm_home() / cache.MEASURES)
    fetch(job, watch.client)


@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_is_compared_with_the_digits_that_are_known_and_all_are_recorded(
    hub: Hub, watch: Watch, digits: int
) -> None:
    entry = entry_of(hub, SHA256[:digits])
    download(entry, watch)
    assert fetched_paths(entry)[0].read_bytes() == CONTENT
    assert not hub.leaks  # of the token
    pin = find_pin(NAME)
    assert pin is not None
    assert [(file.checksum, file.size) for file in pin.files] == [(SHA256, len(CONTENT))]
    assert [(one.name, one.problem) for one in verify_cached(None, watch.client)] == [(NAME, "")]
    asked, sent = len(hub.asked), hub.sent["x.pth"]
    download(entry, watch)
    assert (len(hub.asked), hub.sent["x.pth"]) == (asked, sent)


@pytest.mark.parametrize("digits", [8, 64])
def test_other_contents_are_removed(hub: Hub, watch: Watch, digits: int) -> None:
    entry = entry_of(hub, hashlib.sha256(b"other").hexdigest()[:digits])
    with pytest.raises(VerificationError, match=r"x.pth: what arrived does not have the checksum"):
        download(entry, watch)
    assert not any((fourm_home() / cache.MEASURES).glob("x.pth*"))
    assert find_pin(NAME) is None


def test_once_recorded_other_contents_are_damage(hub: Hub, watch: Watch) -> None:
    """Of a file of which 8 digits are known, too: the first download records all of them."""
    entry = entry_of(hub, SHA256[:8])
    download(entry, watch)
    (path,) = fetched_paths(entry)
    path.write_bytes(bytes(reversed(CONTENT)))
    (found,) = verify_cached(None, watch.client)
    assert (found.name, found.problem, found.removed) == (NAME, "damaged", True)
    assert not path.exists()
    assert verify_cached(None, watch.client) == ()  # nothing of it is here
    download(entry, watch)
    assert path.read_bytes() == CONTENT


def gone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.github.clear()


def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from huggingface_hub import close_session

    close_session()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [(gone, r"inception-fid has no file x.pth"), (offline, "HF_HUB_OFFLINE forbids to fetch it")],
)
def test_what_cannot_be_fetched_is_named(
    hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch, break_it: Callable[..., None], message: str
) -> None:
    entry = entry_of(hub, SHA256)
    break_it(hub, monkeypatch)
    with pytest.raises(MissingError, match=message) as caught:
        plan_downloads([entry], watch.client)
    if isinstance(caught.value, UnreachableError):  # an estimate is possible
        (job,) = plan_downloads([entry], watch.client, is_estimate=True)
        assert (job.num_bytes, bool(job.unconfirmed)) == (entry.num_bytes, True)


def test_no_checksum_of_the_catalogue_is_missing() -> None:
    outside = [one for one in catalogue.CATALOGUE.values() if one.sources]
    assert [one.name for one in outside] == ["inception-fid", "lpips-alex"]
    for source in (source for one in outside for source in one.sources):
        assert len(source.sha256) in (8, 64)
        assert int(source.sha256, 16)
        assert len(source.sha256) == 64 or f"-{source.sha256}." in source.name
    assert describe("lpips-alex").sources == {one.url: one.sha256 for one in outside[1].sources}
