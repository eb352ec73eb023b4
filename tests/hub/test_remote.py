"""What the Hub refuses, or cannot say, is one sentence with the right exit code."""

import json
import socket
import time

import pytest
from huggingface_hub import constants

from fourm.errors import FourMError, MissingError
from fourm.hub import remote
from fourm.hub.cache import cache_folder
from tests.fetching import FILE, FILES, ID, NAME, Watch, whole_files
from tests.hub_server import HEAD_OF_MAIN, Hub

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


def test_offline_only_what_is_in_the_cache_is_used(
    hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    with pytest.raises(MissingError, match=r"does not answer as a Hub does \(a web page.*HF_ENDPOINT may"):
        watch.get(NAME)


@pytest.mark.parametrize("name", ["../../../evil.safetensors", "/evil.safetensors", "a/../evil.safetensors"])
def test_names_that_lead_out_of_the_cache_are_refused(hub: Hub, watch: Watch, name: str) -> None:
    hub.put("evil/model", {"config.json": b"{}", name: b"x"})
    with pytest.raises(MissingError, match="does not answer as a Hub does"):
        watch.get("evil/model")
    assert not list(cache_folder().parent.rglob("*.safetensors"))


def answer(*files: object, **more: object) -> bytes:
    """A description of a repository with good weights and these files."""
    good = {"rfilename": FILE, "size": 4, "lfs": {"sha256": "0" * 64, "size": 4}}
    return json.dumps({"sha": HEAD_OF_MAIN, "siblings": [good, *files], **more}).encode()


def small(name: object, size: object = 1, blob_id: object = "0" * 40) -> dict[str, object]:
    return {"rfilename": name, "size": size, "blobId": blob_id}


HOSTILE = {
    "half a character": answer(small("\ud800.safetensors")),
    "nested deep": b"[" * 200_000,
    "a name nested deep": answer(small("x")).replace(b'"x"', b"[" * 200_000),
    "bytes": b"\xff\xfe\x00",
    "nothing": b"null",
    "a list": b"[]",
    "a number of many digits": answer(small("config.json")).replace(b'"size": 1', b'"size": ' + b"9" * 9_999),
    "infinite": answer(small("config.json", size=float("inf"))),
    "negative": answer(small("config.json", size=-1)),
    "huge": answer(small("config.json", size=10**30)),
    "true": answer(small("config.json", size=True)),
    "no commit": answer(sha="main"),
    "commit that is a path": answer(sha="../" * 13 + "a"),
    "commit that is a number": answer(sha=7),
    "files that are a number": answer(siblings=7),
    "files that are words": answer(siblings=["a", "b"]),
    "a name that is a list": answer(small(["config.json"])),
    "no name": answer({"size": 1, "blobId": "0" * 40}),
    "no size": answer({"rfilename": "config.json", "blobId": "0" * 40}),
    "a checksum that is a path": answer(small("config.json", blob_id="../../x")),
    "a checksum that is a number": answer(small("config.json", blob_id=1)),
    "large, without a checksum": answer({"rfilename": "sr/model.safetensors", "size": 1, "lfs": {"size": 1}}),
    "large, with a word": answer({"rfilename": "sr/model.safetensors", "size": 1, "lfs": "yes"}),
    "twice": answer(small(FILE)),
    "an empty name": answer(small("")),
    "a zero byte": answer(small("a\0b")),
    "another system's path": answer(small("..\\..\\x")),
    "a line of a megabyte": answer(small("../" + "x" * 1_000_000)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_answer_is_one_short_sentence(hub: Hub, watch: Watch, kind: str) -> None:
    hub.answer = HOSTILE[kind]
    with pytest.raises(MissingError, match="does not answer as a Hub does") as told:
        watch.get(NAME)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 500
    assert not cache_folder().exists()


@pytest.mark.parametrize("name", ["a\n.safetensors", "\x1b[31m.safetensors", "x" * 250 + ".safetensors",
                                  "sr/" + "\u00fc" * 125 + ".safetensors"])  # fmt: skip
def test_a_file_that_could_not_be_stored_is_named_before_anything_is_fetched(
    hub: Hub, watch: Watch, name: str
) -> None:
    hub.answer = answer(small(name))
    with pytest.raises(MissingError, match="has a name that no file can have here") as told:
        watch.get(NAME)
    assert str(told.value).isprintable()
    assert not cache_folder().exists()


def test_odd_names_of_files_that_are_not_fetched_do_not_matter(hub: Hub, watch: Watch) -> None:
    hub.put(ID, {**FILES, "samples/a\nb.png": b"x", "x" * 300 + ".png": b"x"})
    assert watch.get(NAME)


def test_an_answer_without_end_is_not_read_to_its_end(
    hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_ANSWER", 1 << 20)
    hub.answer = answer(more="x" * (2 << 20))
    with pytest.raises(MissingError, match="more than 1,048,576 bytes"):
        watch.get(NAME)
    hub.answer = answer()
    monkeypatch.setattr(remote, "ANSWER_TIME", -1.0)
    with pytest.raises(MissingError, match="no answer in time"):
        watch.get(NAME)


def test_an_answer_that_comes_byte_by_byte_is_given_up_in_time(
    hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put(ID, FILES)
    hub.pause = 0.05  # half a minute for all of it, and there are five tries
    monkeypatch.setattr(remote, "ANSWER_TIME", 0.2)
    began = time.monotonic()
    with pytest.raises(MissingError, match="no answer in time"):
        watch.get(NAME)
    assert time.monotonic() - began < 20


def test_branches_with_hostile_names_are_no_advice(hub: Hub, watch: Watch) -> None:
    hub.put(ID, FILES, ref="mian\x1b[31m")
    hub.put(ID, FILES, ref="mian" + "x" * 500)
    with pytest.raises(MissingError, match=r"no branch, tag or commit 'mian'; did you mean 'main'\?"):
        watch.get(f"{ID}@mian")
