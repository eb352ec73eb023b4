"""Weights of measures whose home is not the Hub: fetched from their address, checked by what is known of them."""

import hashlib
from pathlib import Path

import pytest

from fourm.errors import MissingError, VerificationError
from fourm.hub import download
from fourm.hub.cache import MEASURES, HubFile, fetched_paths, fourm_home
from fourm.hub.catalogue import CATALOGUE, Entry, Source
from fourm.hub.download import OUTSIDE, Download, fetch, plan_downloads, read_wanted, verify_cached
from tests.fetching import Watch
from tests.hub_server import Hub

CONTENT = b"pickled weights " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def job_of(hub: Hub, checksum: str) -> Download:
    """The download of one file from the server that is taken for GitHub."""
    hub.github["weights/x.pth"] = CONTENT
    source = Source(f"{hub.url}/github/weights/x.pth", len(CONTENT), checksum)
    entry = Entry("x", "", "measure", "X", "MIT", len(CONTENT), sources=(source,))
    file = HubFile(f"{MEASURES}/x.pth", len(CONTENT), checksum)
    return Download(entry, "", fourm_home(), (file,), {file.name: 0})


@pytest.mark.parametrize("digits", [8, 64])
def test_a_file_is_fetched_and_compared_with_the_digits_that_are_known(
    hub: Hub, watch: Watch, digits: int
) -> None:
    job = job_of(hub, SHA256[:digits])
    assert fetch(job, watch.client) == fourm_home() / MEASURES
    assert fetched_paths(job.entry)[0].read_bytes() == CONTENT
    assert not hub.leaks  # of the token
    sent = hub.sent["x.pth"]
    fetch(job, watch.client)
    assert hub.sent["x.pth"] == sent


@pytest.mark.parametrize("digits", [8, 64])
def test_other_contents_are_removed(hub: Hub, watch: Watch, digits: int) -> None:
    job = job_of(hub, hashlib.sha256(b"other").hexdigest()[:digits])
    with pytest.raises(VerificationError, match="x.pth: what arrived does not have the checksum"):
        fetch(job, watch.client)
    assert not any((fourm_home() / MEASURES).glob("x.pth*"))


def test_what_is_gone_is_named(hub: Hub, watch: Watch) -> None:
    job = job_of(hub, SHA256)
    hub.github.clear()
    with pytest.raises(MissingError, match=r"^x has no file x.pth"):
        fetch(job, watch.client)


def test_the_catalogue_is_planned_without_a_network_and_verified(hub: Hub, watch: Watch) -> None:
    (entry,) = wanted = read_wanted(["lpips-alex"])
    (job,) = plan_downloads(wanted, watch.client)
    assert (job.num_bytes, job.to_fetch) == (sum(one.num_bytes for one in entry.sources),) * 2
    assert job.path == fourm_home() / MEASURES
    assert not hub.asked
    assert verify_cached(None, watch.client) == ()
    found = verify_cached([entry.record], watch.client)
    assert [(one.name, one.problem) for one in found] == [("lpips-alex", "missing")] * 2
    assert {*OUTSIDE} == {"", "inception-fid", "lpips-alex"}
    assert all(one.record in OUTSIDE for one in CATALOGUE.values() if not one.hub_id)


def test_a_damaged_file_is_removed_by_verify(hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetched_paths(CATALOGUE["lpips-alex"])[1]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * CATALOGUE["lpips-alex"].sources[1].num_bytes)
    alone = download.OUTSIDE["lpips-alex"]
    monkeypatch.setitem(download.OUTSIDE, "lpips-alex", type(alone)("", "", alone.files[1:]))
    (found,) = verify_cached(None, watch.client)
    assert (found.name, found.problem, found.removed) == ("lpips-alex", "damaged", True)
    assert not Path(path).exists()
