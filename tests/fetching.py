"""What the tests of downloads share: a model on a Hub on loopback, a client that never waits."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants

from fourm.hub import remote
from fourm.hub.cache import repository_folder
from fourm.hub.download import Download, fetch, plan_downloads, read_wanted
from fourm.hub.remote import Client, Transfer, Waiting
from fourm.schedule.settings import read_names
from tests.hub_server import Hub, running

NAME, ID = "4m-7-b", "EPFL-VILAB/4M-7_B_CC12M"
OTHER = "fedcba9876543210fedcba9876543210fedcba98"
FILE = "model.safetensors"
SLACK = 1 << 17  # bytes that a dropped connection may cost: sent, but not yet in the file
WEIGHTS = random.Random(0).randbytes(1_500_000)
FILES = {
    "config.json": b'{"dim": 8}',
    FILE: WEIGHTS,
    "README.md": b"about",
    "LICENSE_WEIGHTS": b"terms",
    "pytorch_model.bin": b"\x80\x04 a pickle" * 1000,
    "old.pt": b"\x80\x04.",
    "code.py": b"print()",
    ".gitattributes": b"x",
    "checkpoint-9/model.safetensors": b"another",
}
FETCHED = {"config.json", FILE, "README.md", "LICENSE_WEIGHTS"}


@contextmanager
def hub_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with one model, taken for the real one by this process."""
    hub = Hub()
    hub.put(ID, FILES)
    with running(hub):
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.setenv("FOURM_GITHUB_ENDPOINT", f"{hub.url}/github")
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 5)
        yield hub


class Watch:
    """A client that does not wait, and what it reported."""

    def __init__(self) -> None:
        self.events: list[Transfer] = []
        self.slept: list[float] = []
        self.client = Client(sleep=self.slept.append, report=self.events.append)

    def get(self, *names: str, revision: str | None = None, config: Path | None = None) -> list[Path]:
        jobs = self.plan(*names, revision=revision, config=config)
        return [fetch(job, self.client) for job in jobs]

    def plan(self, *names: str, revision: str | None = None, config: Path | None = None) -> list[Download]:
        named = read_names(config) if config else None
        return plan_downloads(read_wanted(names, named, str(config), revision), self.client)

    @property
    def reasons(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, Waiting)]


def whole_files() -> set[str]:
    """Names that the cache shows as whole, by snapshot links and by blobs with the right name."""
    repository = repository_folder(ID)
    for blob in (repository / "blobs").glob("*"):
        if not blob.name.endswith(remote.UNFINISHED):
            content = blob.read_bytes()
            names = {hashlib.sha256(content).hexdigest(),
                     hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}  # fmt: skip
            assert blob.name in names
    return {
        str(p.relative_to(d)) for d in repository.glob("snapshots/*") for p in d.rglob("*") if p.is_file()
    }


def partial() -> Path:
    return remote.unfinished(repository_folder(ID) / "blobs" / hashlib.sha256(WEIGHTS).hexdigest())
