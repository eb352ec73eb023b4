"""What the Hub refuses, or cannot say, is one sentence with the right exit code."""

import socket

import pytest
from huggingface_hub import constants

from fourm.cache import cache_folder
from fourm.errors import FourMError, MissingError
from tests.fetching import FILE, FILES, ID, NAME, Watch, whole_files
from tests.hub_server import Hub

REFUSALS = [
    (
        "gone/model",
        "there is no model 'gone/model' on .*; if it is private, give a token with HF_TOKEN or `hf",
    ),
    ("EPFL-VILAB/4M-7_B_CC12N", r"there is no model .*did you mean 'EPFL-VILAB/4M-7_B_CC12M'\?"),
    (f"{ID}@mian", r"has no branch, tag or commit 'mian'; did you mean 'main'\?"),
    (f"{ID}@zzzzz", "has no branch, tag or commit 'zzzzz'; there is main"),
    ("gated/model", r"gated/model is gated: accept its terms at http.*/gated/model, then give a token"),
    ("private/model", "there is no model 'private/model'.*if it is private"),
    (
        "pickles/model",
        r"has no \.safetensors file at 0123456, only pytorch_model\.bin, and pickles are never",
    ),
    ("empty/model", r"has no \.safetensors file at 0123456$"),
]


@pytest.mark.parametrize(("name", "sentence"), REFUSALS)
def test_what_cannot_be_fetched_is_one_sentence(hub: Hub, watch: Watch, name: str, sentence: str) -> None:
    hub.put("gated/model", FILES).gated = True
    hub.put("private/model", FILES).private = True
    hub.put("pickles/model", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    hub.put("empty/model", {})
    with pytest.raises(MissingError, match=sentence) as told:
        watch.get(name)
    assert told.value.exit_code == 4
    assert "\n" not in str(told.value)
    assert not watch.slept


def test_a_token_opens_and_goes_nowhere_else(hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("gated/model", FILES).gated = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.github["any"] = b""
    watch.get("gated/model")
    with pytest.raises(FourMError):
        watch.get("text-tokenizer")
    assert any(path.startswith("/cdn/") for _, path in hub.asked)
    assert not hub.leaks


def test_a_token_that_is_wrong_is_said(hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(MissingError, match=r"the Hub refuses this token \(401\)"):
        watch.get(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_\u00fc\u4e2d")
    with pytest.raises(FourMError, match="token"):
        watch.get(NAME)


def test_a_token_without_the_right_is_said(hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.put("gated/model", FILES).gated = True
    hub.token = "hf_not_on_the_list"
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(MissingError, match="gated/model is gated: accept its terms"):
        watch.get("gated/model")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [("401", "refuses access without a token"), ("403", "refuses access"), ("404", "has no file model"),
     ("410", "answers 410")],
)  # fmt: skip
def test_a_file_that_is_refused_is_said(hub: Hub, watch: Watch, status: str, sentence: str) -> None:
    hub.fail(FILE, status, times=99)
    with pytest.raises(MissingError, match=sentence):
        watch.get(NAME)
    assert FILE not in whole_files()


def test_offline_only_what_is_here(hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError, match="is not here, and HF_HUB_OFFLINE forbids to fetch it"):
        watch.get(NAME)
    with pytest.raises(MissingError, match="HF_HUB_OFFLINE"):
        watch.get("text-tokenizer")
    assert not hub.asked
    assert not watch.slept
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    watch.get(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert watch.get(NAME)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:{port}", "http://no-such-host.invalid", "ftp://x", "nonsense"]
)
def test_no_network_is_said(hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", address.format(port=port))
    with pytest.raises(MissingError, match=f"{ID} cannot be fetched from .*: no connection") as told:
        watch.get(NAME)
    assert told.value.exit_code == 4
    assert "\n" not in str(told.value)


def test_a_server_that_is_no_hub_is_said(hub: Hub, watch: Watch) -> None:
    hub.fail("api", "page", times=9)
    with pytest.raises(MissingError, match=r"does not answer as a Hub does .*HF_ENDPOINT may be wrong"):
        watch.get(NAME)


@pytest.mark.parametrize("name", ["../../../evil.safetensors", "/evil.safetensors", "a/../evil.safetensors"])
def test_names_that_lead_out_of_the_cache_are_refused(hub: Hub, watch: Watch, name: str) -> None:
    hub.put("evil/model", {"config.json": b"{}", name: b"x"})
    with pytest.raises(MissingError, match="does not answer as a Hub does"):
        watch.get("evil/model")
    assert not list(cache_folder().parent.rglob("*.safetensors"))
