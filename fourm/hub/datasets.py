"""Data sets on the Hub: files of `hf://datasets/OWNER/NAME[@REVISION][/PATH]`, each fetched when it is used.

Files lie in the Hub's cache, as its own client puts them there.
"""

import fnmatch
import os
import re
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

from fourm.data.containers import CONTAINER_SUFFIXES, Container, expand_braces, name_containers
from fourm.errors import MissingError, UsageError, near_match, printable
from fourm.files.writing import make_all, make_below, write_alone
from fourm.hub import cache, remote
from fourm.hub.cache import HUB_ID, Commit, HubFile
from fourm.hub.remote import Address, Client, UnreachableError

SCHEME = "hf://datasets/"
_NAME = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?")
_ORIGIN = re.compile(r"hf://datasets/([^/@]+/[^/@]+)@([0-9a-f]{40})/(.+)#([0-9]+)-([0-9a-f]+)")
_TYPE = "dataset"


def is_hub_data(text: str) -> bool:
    """Whether a text names a data set on the Hub."""
    return text.startswith(SCHEME)


def find_hub_containers(text: str, client: Client | None = None) -> tuple[Container, ...]:
    """The tars, Parquet and Arrow files that a name means: a file, a folder, braces, a pattern, all of it.

    None of them is fetched yet. Where the Hub cannot be asked, those that are in the cache. UsageError: it is
    no such name, or means no file; MissingError: there is no such data set, or it is not here.
    """
    match = _NAME.fullmatch(text)
    if match is None or not HUB_ID.fullmatch(match[1]):
        raise UsageError(f"{printable(text)}: is not {SCHEME}OWNER/NAME[@REVISION][/PATH]")
    hub_id, revision, below = match[1], unquote(match[2] or ""), (match[3] or "").strip("/")
    remote.check_variables()
    try:
        commit = remote.ask_commit(hub_id, _TYPE, revision, client or Client())
    except UnreachableError as error:
        return _cached(hub_id, revision, below, error)
    _note_ref(commit, revision)
    files = {file.name: file for file in commit.files if file.name.lower().endswith(CONTAINER_SUFFIXES)}
    chosen, root = _choose(text, [*files], below)
    start, origins = f"{SCHEME}{hub_id}@{commit.revision}", dict[Path, str]()
    for name in chosen:
        origins[commit.folder / name] = f"{start}/{quote(name)}#{files[name].size}-{files[name].checksum}"
    return name_containers([commit.folder / name for name in chosen], commit.folder / root, origins)


def hub_container(origin: str, name: str) -> Container:
    """The container that a process elsewhere has found."""
    commit, file = _parse(origin)
    return Container(commit.folder / file.name, name, origin)


def fetch_container(container: Container, client: Client | None = None) -> None:
    """Make the file of a container complete, if it is one of the Hub's.

    MissingError: it cannot be fetched; VerificationError: what arrived is not what the Hub has on record.
    """
    if not container.origin:
        return
    commit, file = _parse(container.origin)
    path = commit.folder / file.name
    if os.path.isfile(path) and path.stat().st_size == file.size:
        return
    blob, address = commit.home / "blobs" / file.checksum, _address(commit, file)
    try:
        remote.ensure_file(path, blob, file, address, client or Client(), commit.home)
    except OSError as error:
        raise MissingError(
            f"{error.filename or path}: cannot be written ({error.strerror or error})"
        ) from error


def read_hub_end(origin: str, count: int, client: Client | None = None) -> bytes:
    """The last bytes of a file, which is not fetched. MissingError: they cannot be fetched."""
    commit, file = _parse(origin)
    address, client, start = _address(commit, file), client or Client(), max(0, file.size - count)
    with tempfile.TemporaryFile() as stream:  # what is missing at the end of a file is fetched
        stream.truncate(start)
        stream.seek(start)
        remote.retry(client, address, partial(remote.receive, client, file, address, stream), stream)
        stream.seek(start)
        return stream.read()


def _address(commit: Commit, file: HubFile) -> Address:
    from huggingface_hub import hf_hub_url

    remote.check_variables()
    url = hf_hub_url(commit.hub_id, file.name, revision=commit.revision, repo_type=_TYPE)
    return Address(commit.hub_id, url, file.name)


def _choose(text: str, names: Sequence[str], below: str) -> tuple[list[str], str]:
    """The names that a path in a repository means, sorted, and the folder below which they lie."""
    if not names:
        raise UsageError(f"{text}: has no tar, Parquet or Arrow file")
    if below in names:
        return [below], os.path.dirname(below)
    inside = sorted(name for name in names if not below or name.startswith(f"{below}/"))
    if inside:
        return inside, below
    patterns = expand_braces(below)
    found = [name for pattern in patterns for name in sorted(fnmatch.filter(names, pattern))]
    if not found:
        raise UsageError(f"{text}: there is no file '{below}'{near_match(below, names)}")
    fixed = os.path.dirname(re.split(r"[*?\[{]", below, maxsplit=1)[0])
    return [*dict.fromkeys(found)], fixed


def _cached(hub_id: str, revision: str, below: str, error: UnreachableError) -> tuple[Container, ...]:
    folder = cache.find_snapshot(hub_id, revision, _TYPE)
    if folder is None:
        raise error
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*") if path.name.lower().endswith(CONTAINER_SUFFIXES) and path.is_file()
    }  # fmt: skip
    if not found:
        raise error
    chosen, root = _choose(f"{SCHEME}{hub_id}", sorted(found), below)
    return name_containers([folder / name for name in chosen], folder / root)


def _note_ref(commit: Commit, revision: str) -> None:
    """Note in the cache which commit a branch or tag was, as the Hub's client does."""
    path = commit.home / "refs" / (revision or cache.MAIN)
    if commit.revision != revision and cache.read_ref(path) != commit.revision:
        try:
            make_all(commit.home)
            make_below(commit.home, path.parent)
            write_alone(path, partial(Path.write_text, data=commit.revision))
        except OSError:  # a cache that is complete may be one that cannot be written
            return


def _parse(origin: str) -> tuple[Commit, HubFile]:
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise UsageError(f"{printable(origin)}: is no file of a data set on the Hub")
    file = HubFile(unquote(match[3]), int(match[4]), match[5])
    try:
        return Commit(match[1], match[2], (file,), _TYPE), file
    except ValueError as error:
        raise UsageError(f"{printable(origin)}: is no file of a data set on the Hub ({error})") from error
