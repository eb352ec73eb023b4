"""The Hub: what a repository holds at which commit, and its files, fetched, checked, renamed into the cache.

The session is that of `huggingface_hub`: proxies, certificates, token, timeouts, offline switch. Its download
functions are not used: `hf_hub_download` begins anew in every process, and a model has up to 18 GB;
`http_get` loses up to 10 MB at each interruption, and waits in silence for as long as a server asks.
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
from fourm.data.opening import open_file, open_own, read_bytes
from fourm.data.writing import lock_file
from fourm.errors import FourMError, MissingError, UsageError, VerificationError, near_match, printable
from fourm.hub.cache import KEPT, Commit, HubFile, place_file, remove_file
from fourm.hub.catalogue import near_entry
from fourm.hub.header import is_web_page

LOG_IN = "give a token with HF_TOKEN or `hf auth login`"
UNFINISHED = ".fourm.incomplete"  # after the name of what it will be
CHUNK = 1 << 16  # bytes between two reports; fewer are lost when a connection drops
MAX_ANSWER = 1 << 26  # bytes that the description of a repository may have
ANSWER_TIME = 60.0  # seconds that it may take
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; they double, or are as long as the server asks
OTHER_PROCESS = 1.0  # seconds between two looks at what another process fetches
PAGE = "a web page, perhaps the login page of this network"
_PROSE = (".md", ".txt", ".rst", ".html")  # files that may begin as a web page does
# Of an answer: its first byte, and the size of the whole file.
_SPAN = re.compile(r"bytes\s*(\d+)-\d+/(\d+|\*)", re.ASCII | re.IGNORECASE)
# Errors of the client after which another try is of no use.
_HOPELESS = "OfflineModeIsEnabled UnsupportedProtocol LocalProtocolError TooManyRedirects InvalidURL".split()
_ADDRESSES = ("HF_ENDPOINT", "FOURM_GITHUB_ENDPOINT")
_SECONDS = ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT")
_FOLDERS = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_TOKEN_PATH")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
_PROXIES = ("https_proxy", "all_proxy", "http_proxy", "no_proxy")  # or in capitals
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the description of a repository, or a file, is fetched from."""

    owner: str  # Hub id or short name, for messages
    url: str
    file: str = ""  # its name in the repository
    sends_token: bool = True


@dataclass(frozen=True, slots=True)
class Advanced:
    """Progress of a file: how much is received or checked, then `fetched` or (if it was here) `present`."""

    name: str
    done: int  # bytes
    size: int
    state: Literal["fetching", "checking", "fetched", "present"] = "fetching"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request failed, and is repeated after a pause of so many seconds."""

    name: str
    seconds: float
    reason: str


Transfer = Advanced | Waiting


@dataclass(frozen=True, slots=True)
class Client:
    """How downloads try again and wait, and where they report their events."""

    tries: int = 5  # without a byte of progress
    sleep: Callable[[float], None] = time.sleep
    report: Callable[[Transfer], None] = field(default=lambda event: None)


class UnreachableError(MissingError):
    """There is no usable answer: no network, a network that wants a login, or a server that fails."""


class Refused(Exception):
    """The server answered, but not with what was asked for."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.code: str = response.headers.get("X-Error-Code", "")  # of the Hub: "GatedRepo", "RepoNotFound"
        wait = response.headers.get("Retry-After", "").strip()
        self.wait = float(wait) if re.fullmatch(r"\d+", wait, re.ASCII) else 0.0  # seconds


def check_variables() -> None:
    """Refuse variables with which the client cannot be imported or used; delete those that are empty."""
    for name in (*_ADDRESSES, *_SECONDS, *_FOLDERS, *_CERTIFICATES):
        if not os.environ.get(name, "set").strip():
            del os.environ[name]
    for name in _SECONDS:
        if not re.fullmatch(r"\s*[0-9]{1,6}\s*", text := os.environ.get(name, "0")):
            raise UsageError(f"{name}: '{printable(text)}' is not a whole number of seconds")
    for name in _ADDRESSES:
        text = os.environ.get(name, example := "https://huggingface.co")
        try:  # a ValueError for a port above 65535, an unmatched bracket, a label that is too long
            parts = urlsplit(text)
            host = (parts.hostname or "").encode("idna")
            if not host or parts.scheme not in ("http", "https") or parts.port == 0 or " " in text:
                raise ValueError
        except ValueError:
            told = f"{name}: '{printable(text)}' is no address of a server, such as {example}"
            raise UsageError(told) from None


def ask_commit(hub_id: str, repo_type: str, revision: str, client: Client) -> Commit:
    """Ask the Hub for the commit that a branch, tag or commit is ("" = main), and for its files."""
    from huggingface_hub import constants

    at = f"/revision/{quote(revision, safe='')}" if revision else ""

    def ask() -> bytes:
        try:
            return _ask(f"{repo_type}s/{hub_id}{at}?blobs=true")
        except Refused as error:
            if error.code == "RevisionNotFound":
                advice = ""
                with suppress(Exception):  # advice is not worth another error
                    refs = json.loads(_ask(f"{repo_type}s/{hub_id}/refs"))
                    names = [row["name"] for row in (*refs["branches"], *refs["tags"])]
                    known = [name for name in names if name.isprintable() and len(name) < 100]
                    advice = near_match(revision, known) or f"; there is {', '.join(known[:5]) or 'none'}"
                raise MissingError(f"{hub_id} has no branch, tag or commit '{revision}'{advice}") from error
            if error.code != "GatedRepo" and (error.status == 404 or error.code == "RepoNotFound"):
                told = f"there is no {repo_type} '{hub_id}' on {constants.ENDPOINT}{near_entry(hub_id)}"
                raise MissingError(f"{told}; if it is private, {LOG_IN}") from error
            raise

    text = persist(client, Address(hub_id, constants.ENDPOINT), ask)
    try:
        if len(text) > MAX_ANSWER:
            raise ValueError(f"more than {MAX_ANSWER:,} bytes")
        if is_web_page(text):
            raise ValueError(PAGE)
        answer, files = json.loads(text), list[HubFile]()
        for row in answer.get("siblings") or ():
            lfs = row.get("lfs")
            size, checksum = (lfs["size"], lfs["sha256"]) if lfs else (row["size"], row["blobId"])
            files.append(HubFile(row["rfilename"], size, checksum))
        return Commit(hub_id, answer["sha"], tuple(files), repo_type)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = f"{hub_id}: {constants.ENDPOINT} does not answer as a Hub does ({_brief(error)})"
        raise UnreachableError(f"{told}; HF_ENDPOINT may be wrong") from error


def unfinished(target: Path) -> Path:
    """Where the bytes of a file are collected until it is complete."""
    return target.with_name(target.name + UNFINISHED)


def ensure_file(path: Path, blob: Path, file: HubFile, address: Address, client: Client, home: Path) -> str:
    """Make `path` a complete file with the checksum on record, or a link to such a blob; returns its sha256.

    What is damaged is removed and fetched again, if it is one of `home` (`remove_file`); VerificationError if
    what comes is damaged too. On any other error what has arrived stays in `unfinished(blob)`.
    """
    part = unfinished(blob)
    while True:
        for there in (one for one in (path, blob) if one.is_file()):
            if sha256 := check_file(there, file, client):
                place_file(there, path, home)
                client.report(Advanced(file.name, file.size, file.size, "present"))
                return sha256
            if not remove_file(there, home):
                raise VerificationError(f"{there}: is damaged, but {KEPT}")
        growing = _claim(blob, file.name, client)
        if growing is None:
            continue
        with growing, suppress(FileNotFoundError):  # where there are no locks, another process has renamed it
            for _ in range(2 if growing.tell() else 1):  # what was left from before may be bad
                persist(client, address, partial(receive, client, file, address, growing), growing)
                growing.flush()
                if sha256 := check_file(part, file, client):
                    os.replace(part, blob)
                    place_file(blob, path, home)
                    client.report(Advanced(file.name, file.size, file.size, "fetched"))
                    return sha256
                _restart(growing)
            part.unlink()
            told = f"what arrived does not have the checksum on record ({file.checksum[:12]}...)"
            raise VerificationError(
                f"{address.owner}/{file.name}: {told}, so it was removed; run the command again"
            )


def check_file(path: Path, file: HubFile, client: Client) -> str:
    """The sha256 of a file that is as on record, an empty string of one that is not."""
    size = path.stat().st_size
    if size != file.size:
        return ""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    on_record = sha256 if len(file.checksum) == 64 else sha1
    with open_file(path) as content:
        while data := content.read(1 << 22):
            for digest in {sha256, on_record}:
                digest.update(data)
            client.report(Advanced(file.name, min(content.tell(), size), size, "checking"))
    return sha256.hexdigest() if file.checksum == on_record.hexdigest() else ""


def persist(client: Client, address: Address, action: Callable[[], T], file: BinaryIO | None = None) -> T:
    """The result of `action`, tried again while its failure may pass; then `explain_failure`.

    file: what `action` writes to; the tries are counted anew when it grows.
    """
    failures, before = 0, file.tell() if file else 0
    while True:
        try:
            return action()
        except Exception as error:  # `explain_failure` raises what is no failed request
            done = file.tell() if file else 0
            failures, before = 1 if done > before else failures + 1, done
            failure, reason, may_pass = explain_failure(error, address, has_begun=done > 0)
            if failures >= client.tries or not may_pass:
                raise failure from error
            asked = error.wait if isinstance(error, Refused) else 0.0
            seconds = min(LONGEST_WAIT, max(asked, FIRST_WAIT * 2 ** (failures - 1)))
            client.report(Waiting(address.file or address.owner, seconds, reason))
            client.sleep(seconds)


def receive(client: Client, wanted: HubFile, address: Address, file: BinaryIO) -> None:
    """Append the missing bytes to a file that is at its end; EOFError if the connection ends early."""
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
        if span := response.status_code == 206 and _SPAN.match(response.headers.get("Content-Range", "")):
            begin, total = int(span[1]), span[2]
        is_anew = not done or begin != done
        chunks = response.iter_bytes(CHUNK)
        first = next(chunks, b"")
        if is_anew and is_web_page(first) and not name.lower().endswith(_PROSE):
            raise VerificationError(f"{name}: {PAGE}, is sent in place of this file and is not kept")
        if total.isdigit() and int(total) != size:
            raise VerificationError(f"{name}: {int(total):,} bytes are offered, but {size:,} are on record")
        if is_anew and done:
            _restart(file)  # the whole file comes again
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
    """What to raise for a failed request, why it failed in a few words, and whether to try it again.

    has_begun: a part of the file was received. What is no failed request is raised as it is.
    """
    from huggingface_hub import constants, get_token

    owner, file, kind, text = address.owner, address.file, type(error).__name__, _brief(error)
    what, server = f"{owner}/{file}" if file else owner, urlsplit(address.url).netloc or address.url
    if isinstance(error, Refused):
        reason, may_pass = f"the server answers {error.status}", error.status >= 500
        may_pass |= error.status in (408, 425, 429)
        told = "" if may_pass else f"{what} cannot be fetched from {server}: {reason}"
        if error.code == "GatedRepo":
            told = f"{owner} is gated: accept its terms at {constants.ENDPOINT}/{owner}, then {LOG_IN}"
        elif error.status in (401, 403):
            given = "this token" if get_token() else "access without a token"
            told = f"{owner}: the Hub refuses {given} ({error.status}); {LOG_IN} with access"
        elif error.status == 404 and file:
            told = f"{owner} has no file {file} at this revision any more"
        if told:
            return MissingError(told), reason, may_pass
    elif isinstance(error, EOFError):
        reason, may_pass = "the connection was dropped", True
    else:  # the client is httpx or httpx2, by the version of huggingface_hub
        is_client = type(error).__module__.startswith(("httpx", "httpcore"))
        is_transport = is_client or isinstance(error, ConnectionError | TimeoutError)
        if not is_transport and not isinstance(error, ValueError | ArithmeticError | RecursionError):
            raise error
        is_late = "timeout" in kind.lower() or "timed out" in text.lower()
        reason = "no answer in time" if is_late else f"no connection ({text or kind})"
        may_pass = is_transport and kind not in _HOPELESS
    told = f"{what} cannot be fetched from {server}: {reason}"
    told += "; what has arrived is kept, so the same command goes on" if has_begun else ""
    if kind == "OfflineModeIsEnabled":
        told = f"{what} is not here, and HF_HUB_OFFLINE forbids to fetch it; unset it"
    return UnreachableError(told), reason, may_pass


def open_session() -> Any:
    """The client's session; MissingError names the variable that prevents opening it."""
    from huggingface_hub import get_session

    try:
        if (path := os.environ.get("SSL_CERT_FILE")) is not None:
            open_file(Path(path)).close()
        return get_session()
    except Exception as error:
        names = [name for name in os.environ if name.lower() in _PROXIES]
        why = f"{_brief(error)}; a proxy is written as http://HOST:PORT or socks5://HOST:PORT"
        if isinstance(error, OSError):  # the client ignores SSL_CERT_DIR if a file is set
            names = [n for n in _CERTIFICATES if n != "SSL_CERT_DIR" or "SSL_CERT_FILE" not in os.environ]
            why = f"{error.strerror or error}; name a file of certificates, or unset it"
        elif isinstance(error, ImportError):
            why = "SOCKS proxies need another package, which `pip install httpx[socks]` installs"
        values = {name: re.sub(r"//[^/@]*@", "//", os.environ.get(name, "")) for name in names}  # no password
        told = ", ".join(f"{name}={printable(text)}" for name, text in values.items() if text)
        raise MissingError(f"nothing can be fetched with {told or 'this installation'}: {why}") from error


def token_headers() -> dict[str, str]:
    """HTTP headers: the user's token, if there is one, and the user agent."""
    # The client's own function for headers makes a request, and reads the answer without a limit.
    from huggingface_hub import __version__ as client_version
    from huggingface_hub import constants, get_token

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # what goes wrong is told by our errors
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
    """What the Hub answers: all of it, or a bit more than MAX_ANSWER bytes."""
    from huggingface_hub import constants

    began, text = time.monotonic(), bytearray()
    url, timeout = f"{constants.ENDPOINT}/api/{path}", constants.HF_HUB_ETAG_TIMEOUT
    with open_session().stream("GET", url, headers=token_headers(), timeout=timeout) as response:
        if response.status_code != 200:
            raise Refused(response)
        for chunk in response.iter_bytes():  # as they arrive, so that slow ones are seen at once
            text += chunk
            if len(text) > MAX_ANSWER:
                break
            if time.monotonic() - began > ANSWER_TIME:
                raise TimeoutError("timed out")
    return bytes(text)


def _brief(error: BaseException) -> str:
    """What an error says, as one short line that is safe to print."""
    return printable(" ".join(str(error)[:1000].split()))[:200]


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _claim(blob: Path, name: str, client: Client) -> BinaryIO | None:
    """The file that collects the bytes, at its end, for this process; None if another has just renamed it."""
    part = unfinished(blob)
    for there in (blob, part):
        if (there.exists() and not there.is_file()) or (there == part and part.is_symlink()):
            raise FourMError(f"{there}: is no plain file, as a file of the cache must be; delete it")
    part.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError, FileNotFoundError):  # another process has just made, renamed or deleted it
        # Not "a": where there are no locks, two processes write the same bytes, each at its own position.
        growing = open_own(part, "r+" if part.exists() else "x")
        if lock_file(growing) is False:
            client.report(Waiting(name, OTHER_PROCESS, "another process fetches it"))
            while lock_file(growing) is False:
                client.sleep(OTHER_PROCESS)
        growing.seek(0, os.SEEK_END)
        if os.path.samefile(growing.fileno(), part):
            return growing
        growing.close()
    return None
