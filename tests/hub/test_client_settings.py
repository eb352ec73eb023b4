"""Variables and files that the Hub's client reads: a wrong one is named, and never a defect or a wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants, get_session
from huggingface_hub.utils import _http

from fourm.errors import MissingError, UsageError
from fourm.hub.cache import cache_folder, fourm_home
from fourm.hub.remote import check_variables, open_session, token_headers
from tests.fetching import NAME, Watch
from tests.hub_server import Hub

ROOT = Path(__file__).resolve().parents[2]
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy", "NO_PROXY",
           "no_proxy")  # fmt: skip
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable that the client reads, and no client yet."""
    for name in (*PROXIES, *CERTIFICATES, "HF_ENDPOINT", "HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_http, "_GLOBAL_CLIENT", None)


WRONG = [
    ("HF_HUB_ETAG_TIMEOUT", "abc"),
    ("HF_HUB_ETAG_TIMEOUT", "-1"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "1.5"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", "\u0663"),
    ("HF_ENDPOINT", "http://127.0.0.1:99999"),
    ("HF_ENDPOINT", "http://[::1"),
    ("HF_ENDPOINT", "huggingface.co"),
    ("HF_ENDPOINT", "ftp://x"),
    ("HF_ENDPOINT", "http://"),
    ("HF_ENDPOINT", "http://a b"),
    ("HF_ENDPOINT", "http://" + "a" * 70 + ".com"),
    ("FOURM_GITHUB_ENDPOINT", "http://x:0"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_variable_that_makes_no_sense_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=f"^{name}: '") as told:
        check_variables()
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(("name", "value"), [("HF_ENDPOINT", "https://u:p@h.example/x"),
                                              ("HF_ENDPOINT", "http://[::1]:80"),
                                              ("HF_HUB_ETAG_TIMEOUT", "30")])  # fmt: skip
def test_good_variables_are_left_as_they_are(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    check_variables()
    assert os.environ[name] == value


def test_a_wrong_variable_ends_the_command_and_an_empty_one_does_not(tmp_path: Path) -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "XDG_"))}
    env = {**kept, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", "fourm_cli", "download", NAME, "--dry-run"]
    wrong = subprocess.run(words, env={**env, "HF_HUB_ETAG_TIMEOUT": "abc"}, capture_output=True, text=True)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert len(wrong.stderr.splitlines()) == 1
    assert "HF_HUB_ETAG_TIMEOUT: 'abc'" in wrong.stderr
    empty = {"HF_ENDPOINT": "", "HF_HUB_ETAG_TIMEOUT": "", "HF_TOKEN_PATH": " ", "SSL_CERT_FILE": ""}
    fine = subprocess.run(words, env={**env, **empty}, capture_output=True, text=True)
    assert fine.returncode == 0, fine.stderr


def test_an_empty_folder_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "")
    assert fourm_home() == Path("~/.cache/huggingface/fourm").expanduser()
    assert cache_folder() == Path("~/.cache/huggingface/hub").expanduser()
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "/x")
    assert cache_folder() == Path("/x")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "text"])
def test_certificates_that_cannot_be_read_are_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pem"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "text":
        path.write_text("root:x:0:0")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(MissingError, match=f"^nothing can be fetched with SSL_CERT_FILE={path}: ") as told:
        open_session()
    assert "SSL_CERT_DIR" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_key_log_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "no" / "log"))
    with pytest.raises(MissingError, match="SSLKEYLOGFILE="):
        open_session()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:1", "ALL_PROXY=socks5://127.0.0.1:1: SOCKS.*pip install httpx"),
        ("https_proxy", "socks4://127.0.0.1:1", "https_proxy=socks4://127.0.0.1:1: .*written as http://HOST"),
        ("HTTP_PROXY", " http://x:1", "HTTP_PROXY= http://x:1: "),
        ("HTTPS_PROXY", "http://me:secret@[::1", r"HTTPS_PROXY=http://\[::1: "),
    ],
)
def test_a_proxy_that_the_client_cannot_use_is_named(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    if "socks5" in value:
        monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(MissingError, match=f"nothing can be fetched with {said}") as told:
        open_session()
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_download_names_certificates_that_cannot_be_read_and_does_not_wait(
    hub: Hub, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/no/such.pem")
    with pytest.raises(MissingError, match="SSL_CERT_FILE=/no/such"):
        watch.get(NAME)
    assert not watch.slept
    monkeypatch.delenv("SSL_CERT_FILE")
    assert open_session() is get_session()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("pipe", "not a file, but a pipe"), ("folder", "not a file, but a folder"), ("large", "more than 1 MiB"),
     ("bytes", "the token of the Hub holds a character that no token has")],
)  # fmt: skip
def test_a_token_file_that_cannot_be_read_is_named(
    hub: Hub, watch: Watch, kind: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe" if kind == "bytes" else b"x" * (2 << 20))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(path))
    with pytest.raises(UsageError, match=said):
        watch.get(NAME)


def test_requests_carry_the_token_and_the_name_of_the_program(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "authorization" not in token_headers()
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    headers = token_headers()
    assert headers["authorization"] == "Bearer hf_x"
    assert headers["user-agent"].startswith("fourm/")
    assert not hub.asked  # the Hub's own headers need an answer of the server, read without limit
