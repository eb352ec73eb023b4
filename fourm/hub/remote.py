"""Questions to the Hub, asked with the client of `huggingface_hub`: what a repository holds at which commit.

The client brings proxies, certificates, token, timeouts and the offline switch. `transfer` downloads with it,
but not with the library's functions for that: `hf_hub_download` begins anew in every process, and a model has
up to 18 GB; `http_get` can resume, but loses up to 10 MB at each interruption, and waits in silence for as
long as a server asks.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

from fourm import __version__
from fourm.data.opening import open_file, read_bytes
from fourm.errors import FourMError, MissingError, UsageError, near_match, printable
from fourm.hub.cache import Commit, HubFile, text_tokenizer_path
from fourm.hub.catalogue import TEXT_TOKENIZER, near_entry
from fourm.hub.header import PAGE_BYTES, is_web_page

GITHUB = "https://raw.githubusercontent.com"  # FOURM_GITHUB_ENDPOINT names another
GITHUB_FOLDER = "apple/ml-4m/cda590faa3b9f022c28537193d3e1650527646a3/fourm/utils/tokenizer/trained"
TEXT_TOKENIZER_SHA256 = "8e684e9a0673e39f70702a698869f909ba697f871a0c6b2a07b5f61e91b3526e"
TEXT_TOKENIZER_BYTES = 1_451_469
SPACE = "EPFL-VILAB/4M"  # the demo on the Hub, which brings a copy of the text tokenizer
LOG_IN = "give a token with HF_TOKEN or `hf auth login`"

MAX_ANSWER = 1 << 26  # bytes that the description of a repository may have
ANSWER_TIME = 60.0  # seconds that it may take
MAX_TOKEN_BYTES = 1 << 20
TOO_BUSY = (408, 425, 429)  # worth another try, as is 500 and above
PAGE = "a web page, perhaps the login page of this network"
# Errors of the client after which another try is of no use.
_HOPELESS = ("OfflineModeIsEnabled", "UnsupportedProtocol", "LocalProtocolError", "TooManyRedirects",
             "InvalidURL")  # fmt: skip
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)

_ADDRESSES = ("HF_ENDPOINT", "FOURM_GITHUB_ENDPOINT")
_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN_PATH")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY",
            "no_proxy")  # fmt: skip
# Files that the client reads without a limit, by the names of its constants.
_TOKEN_FILES = ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the content of a file is fetched from."""

    owner: str  # Hub id or name, for messages
    url: str
    sends_token: bool = True


@dataclass(frozen=True, slots=True)
class Advanced:
    """So much of a file is on disk, or was read again to check it."""

    name: str
    done: int  # bytes
    size: int
    is_check: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """Something went wrong that may pass; it is tried again in so many seconds."""

    name: str
    seconds: float
    reason: str


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole file with the right checksum is in the cache."""

    name: str
    size: int
    is_new: bool  # False: it was there before


Transfer = Advanced | Waiting | Fetched


@dataclass(frozen=True, slots=True)
class Client:
    """How to download: how often to try, how long to wait, whom to tell."""

    tries: int = 5  # without a byte of progress
    first_wait: float = 1.0  # seconds, then twice as long each time
    longest_wait: float = 60.0  # also if the server asks for more
    sleep: Callable[[float], None] = time.sleep
    report: Callable[[Transfer], None] = field(default=lambda event: None)


class UnreachableError(MissingError):
    """Nothing that answers as it should: no network, a network that keeps us out, a server out of order."""


class Refused(Exception):
    """The server answered, but not with what was asked for."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.code: str = response.headers.get("X-Error-Code", "")  # of the Hub: "GatedRepo", "RepoNotFound"
        self.retry_after: str = response.headers.get("Retry-After", "").strip()  # seconds or a date
        super().__init__(self.status)


class Dropped(Exception):
    """The connection ended before the file did."""


def check_variables() -> None:
    """Refuse variables with which the client cannot be imported or used; delete those that are empty."""
    for name in (*_ADDRESSES, *_SECONDS, *_FOLDERS, *_CERTIFICATES):
        if not os.environ.get(name, "set").strip():
            del os.environ[name]
    for name in _SECONDS:
        if not re.fullmatch(r"\s*[0-9]{1,6}\s*", text := os.environ.get(name, "0"), re.ASCII):
            raise UsageError(f"{name}: '{printable(text)}' is not a whole number of seconds")
    for name in _ADDRESSES:
        if not _is_address(text := os.environ.get(name, GITHUB)):
            raise UsageError(
                f"{name}: '{printable(text)}' is no address of a server, such as https://huggingface.co"
            )


def ask_commit(hub_id: str, repo_type: str, revision: str, client: Client) -> Commit:
    """Ask the Hub for the commit that a branch, tag or commit is ("" = main), and for its files."""
    from huggingface_hub import constants

    def parse(answer: Any) -> Commit:
        files = list[HubFile]()
        for row in answer.get("siblings") or ():
            if lfs := row.get("lfs"):
                files.append(HubFile(row["rfilename"], lfs["size"], sha256=lfs["sha256"]))
            else:
                files.append(HubFile(row["rfilename"], row["size"], blob_id=row["blobId"]))
        return Commit(hub_id, answer["sha"], tuple(files), repo_type)

    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    try:
        return persist(client, hub_id, lambda: _ask(f"{repo_type}s/{hub_id}{at}?blobs=true", parse))
    except FourMError:
        raise
    except _MALFORMED as error:
        raise UnreachableError(
            f"{hub_id}: {constants.ENDPOINT} does not answer as a Hub does ({_brief(error)}); "
            "HF_ENDPOINT may be wrong"
        ) from error
    except Exception as error:
        raise _explain_repository(error, hub_id, repo_type, revision) from error


def file_address(hub_id: str, name: str, revision: str, repo_type: str) -> Address:
    """A file of a repository at a commit."""
    from huggingface_hub import hf_hub_url

    return Address(hub_id, hf_hub_url(hub_id, name, revision=revision, repo_type=repo_type))


def text_tokenizer_addresses(client: Client) -> Iterator[Address]:
    """The released text tokenizer: in the reference's repository, then in its demo on the Hub."""
    name, endpoint = text_tokenizer_path().name, os.environ.get("FOURM_GITHUB_ENDPOINT") or GITHUB
    yield Address(TEXT_TOKENIZER, f"{endpoint.rstrip('/')}/{GITHUB_FOLDER}/{name}", sends_token=False)
    space = ask_commit(SPACE, "space", "", client)
    for file in space.files:
        if PurePosixPath(file.name).name == name:
            yield replace(file_address(SPACE, file.name, space.revision, "space"), owner=TEXT_TOKENIZER)
            return
    raise MissingError(f"the Space {SPACE} has no file {name}")


def persist(client: Client, name: str, action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
    """The result of `action`, tried again while its failure may pass; any other error is raised as it is.

    The count of failures begins anew when `progress` has grown.
    """
    failures, before = 0, progress()
    while True:
        try:
            return action()
        except Exception as error:
            failures = 1 if progress() > before else failures + 1
            before = progress()
            if failures >= client.tries or not _may_pass(error):
                raise
            wanted = max(_asked_wait(error), client.first_wait * 2 ** (failures - 1))
            seconds = min(client.longest_wait, wanted)
            client.report(Waiting(name, seconds, reason_of(error)))
            client.sleep(seconds)


def explain_failure(
    error: Exception, hub_id: str, url: str, name: str = "", has_begun: bool = False
) -> FourMError:
    """A failed request as an error for people.

    name: of the file of the repository that was asked for, if it was one; has_begun: a part of it is here.
    """
    what, host = f"{hub_id}/{name}" if name else hub_id, urlsplit(url).netloc or url
    kept = "; what has arrived is kept, so" if has_begun else ""
    if type(error).__name__ == "OfflineModeIsEnabled":
        return UnreachableError(
            f"{what} is not here, and HF_HUB_OFFLINE forbids to fetch it; unset it to do so"
        )
    if isinstance(error, Refused):
        if error.status in (401, 403):
            return _explain_refusal(hub_id, error)
        if error.status == 404 and name:
            return MissingError(f"{hub_id} has no file {name} at this revision any more")
        told = f"{what} cannot be fetched: {host} answers {error.status}"
        later = f"{kept or ';'} try again later"
        return UnreachableError(told + later) if _may_pass(error) else MissingError(told)
    if _is_transport(error) or isinstance(error, ValueError | ArithmeticError | RecursionError):
        goes_on = f"{kept} the same command goes on" if kept else ""
        return UnreachableError(f"{what} cannot be fetched from {host}: {reason_of(error)}{goes_on}")
    raise error


def reason_of(error: BaseException) -> str:
    """Why a transfer failed, in a few words."""
    if isinstance(error, Refused):
        return f"the server answers {error.status}"
    if isinstance(error, Dropped):
        return "the connection was dropped"
    text, kind = _brief(error), type(error).__name__
    if "timeout" in kind.lower() or "timed out" in text.lower():
        return "no answer in time"
    return f"no connection ({text or kind})"


def get(url: str, headers: dict[str, str], timeout: float) -> AbstractContextManager[Any]:
    """A streamed answer."""
    session = open_session()
    return session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True)


def open_session() -> Any:
    """The client's session; MissingError names the variable that prevents opening it."""
    from huggingface_hub import get_session

    try:
        if (path := os.environ.get("SSL_CERT_FILE")) is not None:
            open_file(Path(path)).close()
        return get_session()
    except Exception as error:
        if isinstance(error, OSError):  # the client ignores SSL_CERT_DIR if a file is set
            unused = "SSL_CERT_DIR" if "SSL_CERT_FILE" in os.environ else ""
            names = tuple(name for name in _CERTIFICATES if name != unused)
            why = f"{error.strerror or error}; name a file of certificates, or unset it"
        elif isinstance(error, ImportError):
            names = _PROXIES
            why = "SOCKS proxies need another package, which `pip install httpx[socks]` installs"
        else:  # ValueError, or the client's own for a proxy that it cannot parse
            names = _PROXIES
            why = f"{printable(str(error))}; a proxy is written as http://HOST:PORT or socks5://HOST:PORT"
        values = {name: re.sub(r"//[^/@]*@", "//", os.environ.get(name, "")) for name in names}  # no password
        told = ", ".join(f"{name}={printable(text)}" for name, text in values.items() if text)
        raise MissingError(f"nothing can be fetched with {told or 'this installation'}: {why}") from error


def token_headers() -> dict[str, str]:
    """HTTP headers: the user's token, if there is one, and the user agent."""
    from huggingface_hub import __version__ as client_version
    from huggingface_hub import constants, get_token

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what goes wrong is told by our errors
    for path in (Path(getattr(constants, name)) for name in _TOKEN_FILES if hasattr(constants, name)):
        try:
            read_bytes(path, MAX_TOKEN_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise UsageError(f"{path}: the Hub's client cannot read it ({error.strerror})") from None
    # Not the client's own function for headers: it makes a request and reads the answer without a limit.
    headers = {"user-agent": f"fourm/{__version__}; hf_hub/{client_version}"}
    try:
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        (token or "").encode("ascii")
    except UnicodeError:
        raise UsageError(f"the token of the Hub holds a character that no token has; {LOG_IN}") from None
    return {**headers, **({"authorization": f"Bearer {token}"} if token else {})}


def _ask(path: str, parse: Callable[[Any], T]) -> T:
    """What the Hub answers; one of the `_MALFORMED` errors where that makes no sense."""
    from huggingface_hub import constants

    began, body = time.monotonic(), bytearray()
    url = f"{constants.ENDPOINT}/api/{path}"
    with get(url, token_headers(), constants.HF_HUB_ETAG_TIMEOUT) as response:
        if response.status_code != 200:
            raise Refused(response)
        for chunk in response.iter_bytes():  # as they arrive, so that slow ones are seen at once
            body += chunk
            if len(body) > MAX_ANSWER:
                raise ValueError(f"more than {MAX_ANSWER:,} bytes")
            if time.monotonic() - began > ANSWER_TIME:
                raise TimeoutError("timed out")
    if is_web_page(bytes(body[:PAGE_BYTES])):
        raise ValueError(PAGE)
    return parse(json.loads(body))


def _explain_repository(error: Exception, hub_id: str, repo_type: str, revision: str) -> FourMError:
    from huggingface_hub import constants

    status, code = (error.status, error.code) if isinstance(error, Refused) else (0, "")
    if code == "RevisionNotFound":
        known = _known_revisions(hub_id, repo_type)
        advice = near_match(revision, known) or (f"; there is {', '.join(known[:5])}" if known else "")
        return MissingError(f"{hub_id} has no branch, tag or commit '{revision}'{advice}")
    if code != "GatedRepo" and (status == 404 or code == "RepoNotFound"):
        return MissingError(
            f"there is no {repo_type} '{hub_id}' on {constants.ENDPOINT}{near_entry(hub_id)}; "
            f"if it is private, {LOG_IN}"
        )
    return explain_failure(error, hub_id, constants.ENDPOINT)


def _explain_refusal(hub_id: str, error: Refused) -> MissingError:
    """Why the Hub gives no access: a gate, a token, or none."""
    from huggingface_hub import constants, get_token

    if error.code == "GatedRepo":
        return MissingError(
            f"{hub_id} is gated: accept its terms at {constants.ENDPOINT}/{hub_id}, then {LOG_IN}"
        )
    what, more = ("this token", " that may read it") if get_token() else ("access without a token", "")
    return MissingError(f"{hub_id}: the Hub refuses {what} ({error.status}); {LOG_IN}{more}")


def _known_revisions(hub_id: str, repo_type: str) -> list[str]:
    """Branches and tags, for advice; none if the Hub does not say."""

    def parse(answer: Any) -> list[str]:
        names = [row["name"] for row in (*answer["branches"], *answer["tags"])]
        return [name for name in names if name.isprintable() and len(name) < 100]

    try:
        return _ask(f"{repo_type}s/{hub_id}/refs", parse)
    except Exception:  # advice is not worth another error
        return []


def _is_transport(error: BaseException) -> bool:
    """True if no whole answer came. The client is httpx or httpx2, by the version of huggingface_hub."""
    is_client = type(error).__module__.startswith(("httpx", "httpcore"))
    return is_client or isinstance(error, Dropped | ConnectionError | TimeoutError)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, Refused):
        return error.status >= 500 or error.status in TOO_BUSY
    return _is_transport(error) and type(error).__name__ not in _HOPELESS


def _asked_wait(error: BaseException) -> float:
    """Seconds that the server asks for with Retry-After, a number or a date."""
    from email.utils import parsedate_to_datetime

    text = error.retry_after if isinstance(error, Refused) else ""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _brief(error: BaseException) -> str:
    """What an error says, as one short line that is safe to print."""
    return printable(" ".join(str(error)[:1000].split()))[:200]


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        host = (parts.hostname or "").encode("idna")
        return bool(host) and parts.scheme in ("http", "https") and parts.port != 0 and " " not in text
    except ValueError:  # a port above 65535, an unmatched bracket, a label that is too long
        return False
