"""What the Hub says of a repository: the commit, its files with size and checksum, or why it does not say."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import quote

from fourm.errors import FourMError, MissingError, near_match
from fourm.hub.catalogue import near_entry
from fourm.hub.header import PAGE_BYTES, is_web_page
from fourm.hub.hubclient import LOG_IN, token_headers
from fourm.hub.pins import text_tokenizer_path
from fourm.hub.transfer import (
    PAGE,
    Client,
    Refused,
    UnreachableError,
    brief,
    error_code,
    explain_failure,
    opened,
    persist,
    status_of,
)

GITHUB = "https://raw.githubusercontent.com"  # FOURM_GITHUB_ENDPOINT names another
TEXT_TOKENIZER_COMMIT = "cda590faa3b9f022c28537193d3e1650527646a3"
TEXT_TOKENIZER_PATH = f"apple/ml-4m/{TEXT_TOKENIZER_COMMIT}/fourm/utils/tokenizer/trained"
TEXT_TOKENIZER_SHA256 = "8e684e9a0673e39f70702a698869f909ba697f871a0c6b2a07b5f61e91b3526e"
TEXT_TOKENIZER_BYTES = 1_451_469
SPACE = "EPFL-VILAB/4M"  # the demo on the Hub, which brings a copy
MAX_ANSWER = 1 << 26  # bytes that the description of a repository may have
ANSWER_TIME = 60.0  # seconds that it may take
MAX_SIZE = 1 << 62  # bytes of a file
T = TypeVar("T")
_MALFORMED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BLOB, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository and its checksum on record."""

    name: str  # relative to the repository, parts separated by "/"
    size: int  # bytes
    sha256: str = ""  # of large files
    blob_id: str = ""  # of small files, Git's: SHA-1 of "blob SIZE", a zero byte and the content

    @property
    def blob(self) -> str:
        """The name of the content in the Hub's cache."""
        return self.sha256 or self.blob_id


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository at one commit."""

    revision: str  # 40 hexadecimal digits
    files: tuple[RemoteFile, ...]


def describe(hub_id: str, repo_type: str, revision: str, client: Client) -> Remote:
    """Ask the Hub for the commit that a branch, tag or commit is ("" = main), and for its files."""
    from huggingface_hub import constants

    at = f"/revision/{quote(revision, safe='')}" if revision else ""
    try:
        return persist(client, hub_id, lambda: _ask(f"{repo_type}s/{hub_id}{at}?blobs=true", _parse))
    except FourMError:
        raise
    except _MALFORMED as error:
        raise UnreachableError(
            f"{hub_id}: {constants.ENDPOINT} does not answer as a Hub does ({brief(error)}); "
            "HF_ENDPOINT may be wrong"
        ) from error
    except Exception as error:  # httpx's or requests' own, by the version of huggingface_hub
        raise _explain(error, hub_id, repo_type, revision) from error


def file_url(hub_id: str, name: str, revision: str, repo_type: str) -> str:
    """Where the content of a file is."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(hub_id, name, revision=revision, repo_type=repo_type)


def github_url() -> str:
    """The released text tokenizer in the reference's repository, at a fixed commit."""
    endpoint = os.environ.get("FOURM_GITHUB_ENDPOINT") or GITHUB
    return f"{endpoint.rstrip('/')}/{TEXT_TOKENIZER_PATH}/{text_tokenizer_path().name}"


def space_url(client: Client) -> str:
    """The same file in the reference's demo on the Hub, wherever it lies there."""
    space = describe(SPACE, "space", "", client)
    for file in space.files:
        if PurePosixPath(file.name).name == text_tokenizer_path().name:
            return file_url(SPACE, file.name, space.revision, "space")
    raise MissingError(f"the Space {SPACE} has no file {text_tokenizer_path().name}")


def explain_file(error: Exception, hub_id: str, name: str, url: str, has_begun: bool) -> FourMError:
    """Why a file of a repository could not be fetched."""
    if status_of(error) in (401, 403):
        return _refused(hub_id, error_code(error), status_of(error))
    if status_of(error) == 404:
        return MissingError(f"{hub_id} has no file {name} at this revision any more")
    return explain_failure(error, f"{hub_id}/{name}", url, has_begun)


def _ask(path: str, parse: Callable[[Any], T]) -> T:
    """What the Hub answers; one of the `_MALFORMED` errors where that makes no sense."""
    from huggingface_hub import constants

    began, body = time.monotonic(), bytearray()
    url, timeout = f"{constants.ENDPOINT}/api/{path}", constants.HF_HUB_ETAG_TIMEOUT
    with opened(url, token_headers(), timeout, piece=None) as (response, chunks):
        if response.status_code != 200:
            raise Refused(response)
        for chunk in chunks:
            body += chunk
            if len(body) > MAX_ANSWER:
                raise ValueError(f"more than {MAX_ANSWER:,} bytes")
            if time.monotonic() - began > ANSWER_TIME:
                raise TimeoutError("timed out")
    if is_web_page(bytes(body[:PAGE_BYTES])):
        raise ValueError(PAGE)
    return parse(json.loads(body))


def _parse(answer: Any) -> Remote:
    """The answer as types."""
    if not _COMMIT.fullmatch(answer["sha"]):
        raise ValueError("no commit")
    files = tuple(_parse_file(row) for row in answer.get("siblings") or ())
    if len({file.name for file in files}) != len(files):
        raise ValueError("a file is named twice")
    return Remote(answer["sha"], files)


def _parse_file(row: Any) -> RemoteFile:
    name, lfs = row["rfilename"], row.get("lfs")
    size = lfs["size"] if lfs else row["size"]
    sha256, blob_id = (lfs["sha256"], "") if lfs else ("", row["blobId"])
    is_path = all(part not in ("", ".", "..") for part in name.split("/")) and "\\" not in name
    name.encode()  # ValueError for half a character
    if not is_path or "\0" in name or type(size) is not int or not 0 <= size <= MAX_SIZE:
        raise ValueError(f"no file: {name!r}")
    if not (_SHA256.fullmatch(sha256) if lfs else _BLOB.fullmatch(blob_id)):
        raise ValueError(f"no checksum of {name}")
    return RemoteFile(name, size, sha256, blob_id)


def _explain(error: Exception, hub_id: str, repo_type: str, revision: str) -> FourMError:
    from huggingface_hub import constants

    status, code = status_of(error), error_code(error)
    if code == "RevisionNotFound":
        known = _known_revisions(hub_id, repo_type)
        advice = near_match(revision, known) or (f"; there is {', '.join(known[:5])}" if known else "")
        return MissingError(f"{hub_id} has no branch, tag or commit '{revision}'{advice}")
    if code != "GatedRepo" and (status == 404 or code == "RepoNotFound"):
        return MissingError(
            f"there is no {repo_type} '{hub_id}' on {constants.ENDPOINT}{near_entry(hub_id)}; "
            f"if it is private, {LOG_IN}"
        )
    if status in (401, 403):
        return _refused(hub_id, code, status)
    return explain_failure(error, hub_id, constants.ENDPOINT)


def _refused(hub_id: str, code: str, status: int | None) -> MissingError:
    from huggingface_hub import constants, get_token

    if code == "GatedRepo":
        return MissingError(
            f"{hub_id} is gated: accept its terms at {constants.ENDPOINT}/{hub_id}, then {LOG_IN}"
        )
    if get_token():
        return MissingError(f"{hub_id}: the Hub refuses this token ({status}); {LOG_IN} that may read it")
    return MissingError(f"{hub_id}: the Hub refuses access without a token ({status}); {LOG_IN}")


def _known_revisions(hub_id: str, repo_type: str) -> list[str]:
    """Branches and tags, for advice; none if the Hub does not say."""
    try:
        return _ask(f"{repo_type}s/{hub_id}/refs", _parse_names)
    except Exception:  # advice is not worth another error
        return []


def _parse_names(answer: Any) -> list[str]:
    names = [row["name"] for row in (*answer["branches"], *answer["tags"])]
    return [name for name in names if name.isprintable() and len(name) < 100]
