"""Asks the Hub for the commit and the files of a repository, and downloads files into the cache.

Requests go through the session of `huggingface_hub`, so its settings apply: proxies, certificates, token,
timeouts and offline mode. Its download functions are not used: `hf_hub_download` starts from the first byte
in every process, and a model has up to 18 GB; `http_get` loses up to 10 MB at each interruption, and sleeps
without a message for as long as the server asks.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar
from urllib.parse import quote, urlsplit

from fourm import __version__
from fourm.errors import FourMError, MissingError, UsageError, VerificationError, near_match, printable
from fourm.files.opening import open_file, open_own, read_bytes
from fourm.files.writing import lock_file
from fourm.hub.cache import KEPT, Commit, HubFile, place_file, remove_file
from fourm.hub.catalogue import near_entry
from fourm.hub.header import is_web_page

LOG_IN = "give a token with HF_TOKEN or `hf auth login`"
UNFINISHED = ".fourm.incomplete"  # suffix of a file that is not complete yet
CHUNK = 1 << 16  # bytes between two progress events; at most so many are lost when a connection drops
MAX_ANSWER = 1 << 26  # largest description of a repository that is accepted, in bytes
ANSWER_TIME = 60.0  # longest time to receive it, in seconds
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; the pause doubles with each failure, or is `Retry-After`
LOCK_POLL = 1.0  # seconds between two tries to lock a file that another process downloads
WEB_PAGE = "a web page, perhaps the login page of this network"
_TEXT_SUFFIXES = (".md", ".txt", ".rst", ".html")  # of files that may begin as a web page does
# The header Content-Range: position of the first byte, and size of the whole file.
_SPAN = re.compile(r"bytes\s*(\d+)-\d+/(\d+|\*)", re.ASCII | re.IGNORECASE)
# Names of the client's errors that another try cannot mend. Classes would need an import of httpx or httpx2.
_NOT_RETRIED = (
    "OfflineModeIsEnabled", "UnsupportedProtocol", "LocalProtocolError", "TooManyRedirects", "InvalidURL",
)  # fmt: skip
# Environment variables that downloads depend on.
_ADDRESSES = ("HF_ENDPOINT", "FOURM_GITHUB_ENDPOINT")
_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN_PATH")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_PROXIES = ("https_proxy", "all_proxy", "http_proxy", "no_proxy")  # upper case works too
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a file, or the description of a repository, is fetched from."""

    owner: str  # Hub id or short name, for messages
    url: str
    file: str = ""  # its name in the repository
    sends_token: bool = True


@dataclass(frozen=True, slots=True)
class Advanced:
    """Progress of a file: bytes received or checked; at the end `fetched`, or `present` if it was here."""

    name: str
    done: int  # bytes
    size: int  # bytes
    state: Literal["fetching", "checking", "fetched", "present"] = "fetching"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request failed and is repeated after a pause, or another process holds the file."""

    name: str
    seconds: float  # length of the pause
    reason: str


Transfer = Advanced | Waiting


@dataclass(frozen=True, slots=True)
class Client:
    """How downloads try again and wait, and where they report their events."""

    tries: int = 5  # failures in a row without a new byte
    sleep: Callable[[float], None] = time.sleep
    report: Callable[[Transfer], None] = field(default=lambda event: None)


class UnreachableError(MissingError):
    """No usable answer arrived: no network, a network that asks for a login, or a failing server."""


class Refused(Exception):
    """The server answered with an error status."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.code: str = response.headers.get("X-Error-Code", "")  # of the Hub: "GatedRepo", "RepoNotFound"
        wait = response.headers.get("Retry-After", "").strip()
        self.wait = float(wait) if re.fullmatch(r"\d+", wait, re.ASCII) else 0.0  # seconds; dates are ignored


def check_variables() -> None:
    """Delete empty environment variables of the client. UsageError for values with which it fails.

    The client reads timeouts and addresses when it is imported, so this comes before its import.
    """
    for name in (*_ADDRESSES, *_SECONDS, *_FOLDERS, *_CERTIFICATES):
        if not os.environ.get(name, "set").strip():
            del os.environ[name]
    for name in _SECONDS:
        text = os.environ.get(name, "0")
        if not re.fullmatch(r"\s*[0-9]{1,6}\s*", text):
            raise UsageError(f"{name}: '{printable(text)}' is not a whole number of seconds")
    example = "https://huggingface.co"
    for name in _ADDRESSES:
        text = os.environ.get(name, example)
        try:  # a ValueError for a port above 65535, an unmatched bracket, a label that is too long
            parts = urlsplit(text)
            host = (parts.hostname or "").encode("idna")
            if not host or parts.scheme not in ("http", "https") or parts.port == 0 or " " in text:
                raise ValueError
        except ValueError:
            message = f"{name}: '{printable(text)}' is no address of a server, such as {example}"
            raise UsageError(message) from None


def ask_commit(hub_id: str, repo_type: str, revision: str, client: Client) -> Commit:
    """Ask the Hub for the commit of a branch, tag or commit id ("" is main), and for its files.

    MissingError if the repository or the revision does not exist, UnreachableError without a usable answer.
    """
    from huggingface_hub import constants

    repository = f"{repo_type}s/{hub_id}"
    at_revision = f"/revision/{quote(revision, safe='')}" if revision else ""

    def ask() -> bytes:
        try:
            return _ask(f"{repository}{at_revision}?blobs=true")
        except Refused as error:
            if error.code == "RevisionNotFound":
                advice = _known_revisions(repository, revision)
                raise MissingError(f"{hub_id} has no branch, tag or commit '{revision}'{advice}") from error
            if error.code != "GatedRepo" and (error.status == 404 or error.code == "RepoNotFound"):
                message = f"there is no {repo_type} '{hub_id}' on {constants.ENDPOINT}{near_entry(hub_id)}"
                raise MissingError(f"{message}; if it is private, {LOG_IN}") from error
            raise

    text = retry(client, Address(hub_id, constants.ENDPOINT), ask)
    try:
        if len(text) > MAX_ANSWER:
            raise ValueError(f"more than {MAX_ANSWER:,} bytes")
        if is_web_page(text):
            raise ValueError(WEB_PAGE)
        answer = json.loads(text)
        files = list[HubFile]()
        for row in answer.get("siblings") or ():
            lfs = row.get("lfs") or {"size": row["size"], "sha256": row["blobId"]}
            files.append(HubFile(row["rfilename"], lfs["size"], lfs["sha256"]))
        return Commit(hub_id, answer["sha"], tuple(files), repo_type)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{hub_id}: {constants.ENDPOINT} does not answer as a Hub does ({_brief(error)})"
        raise UnreachableError(f"{message}; HF_ENDPOINT may be wrong") from error


def ask_size(address: Address, client: Client) -> int:
    """How many bytes a file outside the Hub has, as its server says; errors as `ask_commit`."""

    def ask() -> int:
        from huggingface_hub import constants

        headers, timeout = {"Accept-Encoding": "identity"}, constants.HF_HUB_ETAG_TIMEOUT
        # Not HEAD: addresses that a server signs are often for GET only. The body is not read.
        with open_session().stream("GET", address.url, headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                raise Refused(response)
            return int(response.headers.get("Content-Length", ""))

    return retry(client, address, ask)


def unfinished(target: Path) -> Path:
    """The path that a download is written to until the file is complete."""
    return target.with_name(target.name + UNFINISHED)


def ensure_file(path: Path, blob: Path, file: HubFile, address: Address, client: Client, home: Path) -> str:
    """Make `path` a complete file with the checksum on record, or a link to such a blob; returns its sha256.

    A damaged file is removed and downloaded again if it lies in `home`, the repository's folder in the cache.
    VerificationError if it lies elsewhere, or if the download is damaged too. After any other error the bytes
    that were received stay in `unfinished(blob)`.
    """
    part = unfinished(blob)
    while True:
        for existing in (path, blob):
            if not existing.is_file():
                continue
            if sha256 := check_file(existing, file, client):
                place_file(existing, path, home)
                client.report(Advanced(file.name, file.size, file.size, "present"))
                return sha256
            if not remove_file(existing, home):
                raise VerificationError(f"{existing}: is damaged, but {KEPT}")
        growing = _claim(blob, file.name, client)
        if growing is None:  # another process has completed the file
            continue
        with growing, suppress(FileNotFoundError):  # where there are no locks, another process has renamed it
            for _ in range(2 if growing.tell() else 1):  # the bytes of an earlier process may be damaged
                retry(client, address, partial(receive, client, file, address, growing), growing)
                growing.flush()
                if sha256 := check_file(part, file, client):
                    os.replace(part, blob)
                    place_file(blob, path, home)
                    client.report(Advanced(file.name, file.size, file.size, "fetched"))
                    return sha256
                _restart(growing)
            part.unlink()
            what = f"{address.owner}/{file.name}: what arrived does not have the checksum on record"
            digits = f"{file.checksum[:12]}..."
            raise VerificationError(f"{what} ({digits}), so it was removed; run the command again")


def check_file(path: Path, file: HubFile, client: Client) -> str:
    """The sha256 of the file at `path` if its size and checksum are those of `file`, else an empty string."""
    size = path.stat().st_size
    if size != file.size:
        return ""
    # The Hub has the sha256 of large files, and of others the sha1 that git gives to their blobs.
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    expected = sha1 if len(file.checksum) == 40 else sha256
    with open_file(path) as content:
        while data := content.read(1 << 22):
            for digest in {sha256, expected}:  # a set: of large files both are the same object
                digest.update(data)
            client.report(Advanced(file.name, min(content.tell(), size), size, "checking"))
    is_right = bool(file.checksum) and expected.hexdigest().startswith(file.checksum)
    return sha256.hexdigest() if is_right else ""


def retry(client: Client, address: Address, action: Callable[[], T], file: BinaryIO | None = None) -> T:
    """The result of `action`, repeated after failures that may be temporary, `client.tries` times at most.

    Raises what `explain_failure` returns for the last failure. file: where `action` writes; failures are
    counted anew each time it has grown.
    """
    failures = 0
    before = file.tell() if file else 0
    while True:
        try:
            return action()
        except Exception as error:  # `explain_failure` re-raises errors that are no failed request
            done = file.tell() if file else 0
            failures = 1 if done > before else failures + 1
            before = done
            failure, reason, may_pass = explain_failure(error, address, has_begun=done > 0)
            if failures >= client.tries or not may_pass:
                raise failure from error
            asked = error.wait if isinstance(error, Refused) else 0.0
            seconds = min(LONGEST_WAIT, max(asked, FIRST_WAIT * 2 ** (failures - 1)))
            client.report(Waiting(address.file or address.owner, seconds, reason))
            client.sleep(seconds)


def receive(client: Client, wanted: HubFile, address: Address, file: BinaryIO) -> None:
    """Append the missing bytes to `file`, which is positioned at its end.

    EOFError if the connection ends early, Refused for an error status, VerificationError for other contents.
    """
    from huggingface_hub import constants

    name, size, done = wanted.name, wanted.size, file.tell()
    if done >= size:
        return
    headers = token_headers() if address.sends_token else {}
    headers |= {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with open_session().stream("GET", address.url, headers=headers, timeout=timeout) as response:
        if response.status_code == 416:  # no such range: the file ends before it
            _restart(file)
            raise EOFError
        if response.status_code not in (200, 206):
            raise Refused(response)
        begin, total = 0, response.headers.get("Content-Length", "")
        span = _SPAN.match(response.headers.get("Content-Range", ""))
        if span and response.status_code == 206:
            begin, total = int(span[1]), span[2]
        is_from_start = not done or begin != done
        chunks = response.iter_bytes(CHUNK)
        first = next(chunks, b"")
        if is_from_start and is_web_page(first) and not name.lower().endswith(_TEXT_SUFFIXES):
            raise VerificationError(f"{name}: {WEB_PAGE}, is sent in place of this file and is not kept")
        if total.isdigit() and int(total) != size:
            raise VerificationError(f"{name}: {int(total):,} bytes are offered, but {size:,} are on record")
        if is_from_start and done:  # the server sends the whole file again
            _restart(file)
            done = 0
        for chunk in chain([first], chunks):
            done += len(chunk)
            if done > size:
                _restart(file)
                raise VerificationError(f"{name}: more than the {size:,} bytes on record are sent")
            file.write(chunk)
            client.report(Advanced(name, done, size))
    if done < size:
        raise EOFError


def explain_failure(error: Exception, address: Address, has_begun: bool) -> tuple[FourMError, str, bool]:
    """What to raise for a failed request, the reason in a few words, and whether another try may succeed.

    has_begun: a part of the file was received. An error that is not of a request is raised unchanged.
    """
    from huggingface_hub import constants, get_token

    owner, file = address.owner, address.file
    kind, text = type(error).__name__, _brief(error)
    what = f"{owner}/{file}" if file else owner
    server = urlsplit(address.url).netloc or address.url
    if isinstance(error, Refused):
        reason = f"the server answers {error.status}"
        may_pass = error.status >= 500 or error.status in (408, 425, 429)
        message = "" if may_pass else f"{what} cannot be fetched from {server}: {reason}"
        if error.code == "GatedRepo":
            message = f"{owner} is gated: accept its terms at {constants.ENDPOINT}/{owner}, then {LOG_IN}"
        elif error.status in (401, 403):
            given = "this token" if get_token() else "access without a token"
            message = f"{owner}: the Hub refuses {given} ({error.status}); {LOG_IN} with access"
        elif error.status == 404 and file:
            message = f"{owner} has no file {file} at this revision any more"
        if message:
            return MissingError(message), reason, may_pass
    elif isinstance(error, EOFError):
        reason, may_pass = "the connection was dropped", True
    else:  # the client is httpx or httpx2, by the version of huggingface_hub
        is_client = type(error).__module__.startswith(("httpx", "httpcore"))
        is_transport = is_client or isinstance(error, ConnectionError | TimeoutError)
        if not is_transport and not isinstance(error, ValueError | ArithmeticError | RecursionError):
            raise error
        is_late = "timeout" in kind.lower() or "timed out" in text.lower()
        reason = "no answer in time" if is_late else f"no connection ({text or kind})"
        may_pass = is_transport and kind not in _NOT_RETRIED
    message = f"{what} cannot be fetched from {server}: {reason}"
    message += "; what has arrived is kept, so the same command goes on" if has_begun else ""
    if kind == "OfflineModeIsEnabled":
        message = f"{what} is not here, and HF_HUB_OFFLINE forbids to fetch it; unset it"
    return UnreachableError(message), reason, may_pass


def open_session() -> Any:
    """The HTTP session of `huggingface_hub`; MissingError names the variables that prevent opening it."""
    from huggingface_hub import get_session

    try:
        if (path := os.environ.get("SSL_CERT_FILE")) is not None:
            open_file(Path(path)).close()
        return get_session()
    except Exception as error:  # of the client: ValueError, ImportError, ssl.SSLError and kinds of its own
        names = [name for name in os.environ if name.lower() in _PROXIES]
        why = f"{_brief(error)}; a proxy is written as http://HOST:PORT or socks5://HOST:PORT"
        if isinstance(error, OSError):  # the client ignores SSL_CERT_DIR if a file is set
            ignored = ("SSL_CERT_DIR",) if "SSL_CERT_FILE" in os.environ else ()
            names = [name for name in _CERTIFICATES if name not in ignored]
            why = f"{error.strerror or error}; name a file of certificates, or unset it"
        elif isinstance(error, ImportError):
            why = "SOCKS proxies need another package, which `pip install httpx[socks]` installs"
        # The user and password of a proxy are not shown.
        values = {name: re.sub(r"//[^/@]*@", "//", os.environ.get(name, "")) for name in names}
        settings = ", ".join(f"{name}={printable(text)}" for name, text in values.items() if text)
        raise MissingError(f"nothing can be fetched with {settings or 'this installation'}: {why}") from error


def token_headers() -> dict[str, str]:
    """HTTP headers: user agent and, if any, the user's token; UsageError if that cannot be read or sent."""
    # `build_hf_headers` of the client makes a request, and reads the answer without a limit.
    from huggingface_hub import __version__ as client_version
    from huggingface_hub import constants, get_token

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # our own errors say what failed
    try:
        for path in map(Path, (constants.HF_TOKEN_PATH, constants.HF_STORED_TOKENS_PATH)):
            with suppress(FileNotFoundError):
                read_bytes(path, 1 << 20)  # the client itself reads without a limit
        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        (token or "").encode("ascii")
    except OSError as error:
        raise UsageError(f"{path}: the Hub's client cannot read it ({error.strerror})") from None
    except UnicodeError:
        raise UsageError(f"the token of the Hub holds a character that no token has; {LOG_IN}") from None
    agent = {"user-agent": f"fourm/{__version__}; hf_hub/{client_version}"}
    return agent | ({"authorization": f"Bearer {token}"} if token else {})


def _ask(path: str) -> bytes:
    """The body of the Hub's answer; it is cut off soon after MAX_ANSWER bytes."""
    from huggingface_hub import constants

    began, text = time.monotonic(), bytearray()
    url, timeout = f"{constants.ENDPOINT}/api/{path}", constants.HF_HUB_ETAG_TIMEOUT
    with open_session().stream("GET", url, headers=token_headers(), timeout=timeout) as response:
        if response.status_code != 200:
            raise Refused(response)
        for chunk in response.iter_bytes():  # in pieces, because a timeout of the client is per piece
            text += chunk
            if len(text) > MAX_ANSWER:
                break
            if time.monotonic() - began > ANSWER_TIME:
                raise TimeoutError("timed out")
    return bytes(text)


def _known_revisions(repository: str, revision: str) -> str:
    """The end of a message: branches and tags that exist. Empty if they cannot be listed."""
    with suppress(Exception):  # the advice must not hide the error that it belongs to
        refs = json.loads(_ask(f"{repository}/refs"))
        names = [row["name"] for row in (*refs["branches"], *refs["tags"])]
        known = [name for name in names if name.isprintable() and len(name) < 100]
        return near_match(revision, known) or f"; there is {', '.join(known[:5]) or 'none'}"
    return ""


def _brief(error: BaseException) -> str:
    """The message of an error in one line of at most 200 printable characters."""
    return printable(" ".join(str(error)[:1000].split()))[:200]


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _claim(blob: Path, name: str, client: Client) -> BinaryIO | None:
    """The unfinished file of a download, locked by this process and positioned at its end.

    Waits while another process holds the lock. None if that process has renamed or deleted the file.
    """
    part = unfinished(blob)
    for existing in (blob, part):
        is_link = existing == part and part.is_symlink()  # a blob may be a link; a file we write may not
        if is_link or (existing.exists() and not existing.is_file()):
            raise FourMError(f"{existing}: is no plain file, as a file of the cache must be; delete it")
    part.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError, FileNotFoundError):  # another process has just made, renamed or deleted it
        # Not "a": where there are no locks, two processes write the same bytes, each at its own position.
        growing = open_own(part, "r+" if part.exists() else "x")
        if lock_file(growing) is False:
            client.report(Waiting(name, LOCK_POLL, "another process fetches it"))
            while lock_file(growing) is False:
                client.sleep(LOCK_POLL)
        growing.seek(0, os.SEEK_END)
        if os.path.samefile(growing.fileno(), part):
            return growing
        growing.close()
    return None
