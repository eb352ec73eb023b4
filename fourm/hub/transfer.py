"""Bytes of an address into a file: resumed where they stopped, tried again with patience.

The connection is that of the Hub's client, with its proxies, tokens, timeouts and offline switch; its own
downloads are not used because they begin anew in every process (since version 1), and a model is up to 18 GB.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import chain
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from fourm.errors import FourMError, MissingError, VerificationError, printable
from fourm.hub.header import is_web_page
from fourm.hub.hubclient import open_session

CHUNK = 1 << 16  # bytes between two reports; fewer are lost when a connection drops
TOO_BUSY = (408, 425, 429)  # worth another try, as is 500 and above
BEYOND = 416  # no such range: the file ends before it
# The client is requests, httpx or httpx2, by the version of huggingface_hub.
_CLIENTS = ("requests", "urllib3", "httpx", "httpcore", "httpx2", "httpcore2")
_HOPELESS = ("UnsupportedProtocol", "LocalProtocolError", "TooManyRedirects", "InvalidURL", "InvalidSchema",
             "MissingSchema", "InvalidHeader")  # fmt: skip
_PROSE = (".md", ".txt", ".rst", ".html")  # files that may begin as a web page does
PAGE = "a web page, perhaps the login page of this network"
T = TypeVar("T")


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
class Done:
    """A whole file, its checksum right, lies in its place."""

    name: str
    size: int
    is_new: bool  # False: it was there before


Event = Advanced | Waiting | Done


@dataclass(frozen=True, slots=True)
class Client:
    """How to download: how often to try, how long to wait, whom to tell."""

    tries: int = 5  # without a byte of progress
    first_wait: float = 1.0  # seconds, then twice as long each time
    longest_wait: float = 60.0  # also if the server asks for more
    sleep: Callable[[float], None] = time.sleep
    report: Callable[[Event], None] = field(default=lambda event: None)


class UnreachableError(MissingError):
    """Nothing that answers as it should: no network, a network that keeps us out, a server out of order."""


class Refused(Exception):
    """The server answered, but not with what was asked for."""

    def __init__(self, response: Any) -> None:
        self.response = response
        super().__init__(response.status_code)


class Dropped(Exception):
    """The connection ended before the file did."""


def persist(client: Client, name: str, action: Callable[[], T], progress: Callable[[], int] = lambda: 0) -> T:
    """The result of `action`, tried again while its failure may pass; any other error is raised as it is.

    The count of failures begins anew when `progress` has grown.
    """
    failures, before = 0, progress()
    while True:
        try:
            return action()
        except Exception as error:  # what may not pass is raised again
            failures = 1 if progress() > before else failures + 1
            before = progress()
            if failures >= client.tries or not _may_pass(error):
                raise
            wanted = max(_asked_wait(error), client.first_wait * 2 ** (failures - 1))
            seconds = min(client.longest_wait, wanted)
            client.report(Waiting(name, seconds, reason_of(error)))
            client.sleep(seconds)


def receive(
    client: Client, name: str, url: str, headers: Mapping[str, str], file: BinaryIO, size: int
) -> None:
    """Append what is missing of `size` bytes to a file that is open for appending.

    What has arrived stays in the file whatever happens; VerificationError if the server has another size.
    """

    def append() -> None:
        if file.tell() < size:
            _append(client, name, url, headers, file, size)

    persist(client, name, append, file.tell)


def restart(file: BinaryIO) -> None:
    """Empty a file that is open for appending."""
    file.seek(0)
    file.truncate()


def reason_of(error: BaseException) -> str:
    """Why a transfer failed, in a few words."""
    if status := status_of(error):
        return f"the server answers {status}"
    if isinstance(error, Dropped):
        return "the connection was dropped"
    text = brief(error)
    kind = type(error).__name__
    if "timeout" in kind.lower() or "timed out" in text.lower():
        return "no answer in time"
    return f"no connection ({text or kind})"


def brief(error: BaseException) -> str:
    """What an error says, as one short line that is safe to print."""
    return printable(" ".join(str(error)[:1000].split()))[:200]


def status_of(error: BaseException) -> int | None:
    """The status that a server answered with, if it did."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def error_code(error: BaseException) -> str:
    """The Hub's own word for what is wrong: "GatedRepo", "RepoNotFound", ...; "" where there is none."""
    headers = getattr(getattr(error, "response", None), "headers", {})
    return str(headers.get("X-Error-Code") or "")


def is_transport(error: BaseException) -> bool:
    """True if no whole answer came."""
    return (
        isinstance(error, Dropped | ConnectionError | TimeoutError)
        or type(error).__module__.partition(".")[0] in _CLIENTS
    )


def explain_failure(error: Exception, what: str, url: str, has_begun: bool = False) -> FourMError:
    """A failed transfer as a sentence; `what` was to be fetched from `url`, and a part of it may be here."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    host = urlsplit(url).netloc or url
    if isinstance(error, OfflineModeIsEnabled):
        return UnreachableError(
            f"{what} is not here, and HF_HUB_OFFLINE forbids to fetch it; unset it to do so"
        )
    if (status := status_of(error)) is not None and status < 500 and status not in TOO_BUSY:
        return MissingError(f"{what} cannot be fetched: {host} answers {status}")
    kept = "; what has arrived is kept" if has_begun else ""
    if status is not None:
        later = f"{kept}, so try again later" if kept else "; try again later"
        return UnreachableError(f"{what} cannot be fetched: {host} answers {status}{later}")
    if is_transport(error) or isinstance(error, ValueError | ArithmeticError | RecursionError):
        goes_on = f"{kept}, so the same command goes on" if kept else ""
        return UnreachableError(f"{what} cannot be fetched from {host}: {reason_of(error)}{goes_on}")
    raise error


def _append(
    client: Client, name: str, url: str, headers: Mapping[str, str], file: BinaryIO, size: int
) -> None:
    done = file.tell()
    wanted = {**headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with opened(url, wanted) as (response, chunks):
        if response.status_code == BEYOND:
            restart(file)
            raise Dropped
        if response.status_code not in (200, 206):
            raise Refused(response)
        first, total = next(chunks, b""), _total(response)
        is_anew = not (done and _continues(response, done))
        if is_anew and is_web_page(first) and not name.lower().endswith(_PROSE):
            raise VerificationError(f"{name}: {PAGE}, is sent in place of this file; nothing of it is kept")
        if total is not None and total != size:
            raise VerificationError(f"{name}: {total:,} bytes are offered, but {size:,} are on record")
        if is_anew and done:
            restart(file)  # the whole file comes again
            done = 0
        for chunk in chain([first], chunks):
            done += len(chunk)
            if done > size:
                restart(file)
                raise VerificationError(f"{name}: more than the {size:,} bytes on record are sent")
            file.write(chunk)
            client.report(Advanced(name, done, size))
    if done < size:
        raise Dropped


@contextmanager
def opened(
    url: str, headers: Mapping[str, str], timeout: float | None = None, piece: int | None = CHUNK
) -> Iterator[tuple[Any, Iterator[bytes]]]:
    """An answer, and its body in pieces; `timeout` in seconds, that of downloads if it is not given.

    piece: bytes of each but the last one; None: as they arrive, so that slow ones are seen at once.
    """
    from huggingface_hub import constants

    session = open_session()
    timeout = timeout or constants.HF_HUB_DOWNLOAD_TIMEOUT
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
            yield response, response.iter_bytes(piece)
    else:  # huggingface_hub before version 1
        with session.get(url, headers=headers, timeout=timeout, stream=True) as response:
            yield response, response.iter_content(piece)


def _continues(response: Any, done: int) -> bool:
    span = str(response.headers.get("Content-Range", ""))
    return response.status_code == 206 and span.replace(" ", "").lower().startswith(f"bytes{done}-")


def _total(response: Any) -> int | None:
    """The size of the whole file as the answer says it, if it does."""
    text = response.headers.get("Content-Range", "").rpartition("/")[2] or (
        response.headers.get("Content-Length", "") if response.status_code == 200 else ""
    )
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _may_pass(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled) or type(error).__name__ in _HOPELESS:
        return False
    if (status := status_of(error)) is not None:
        return status >= 500 or status in TOO_BUSY
    return is_transport(error)


def _asked_wait(error: BaseException) -> float:
    """Seconds that the server asks for with Retry-After, a number or a date."""
    text = str(getattr(getattr(error, "response", None), "headers", {}).get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
