"""One file from an address into the cache: continued where it stopped, checked, renamed into place."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from fourm.data.opening import open_file, open_own
from fourm.data.writing import lock_file
from fourm.errors import FourMError, VerificationError
from fourm.hub import remote
from fourm.hub.cache import HubFile
from fourm.hub.header import is_web_page
from fourm.hub.remote import Address, Advanced, Client, Dropped, Fetched, Refused, Waiting

UNFINISHED = ".fourm.incomplete"  # after the name of what it will be
CHUNK = 1 << 16  # bytes between two reports; fewer are lost when a connection drops
READ = 1 << 22  # bytes read at once to check a file
OTHER_PROCESS = 1.0  # seconds between two looks at what another process fetches
BEYOND = 416  # no such range: the file ends before it
KEPT = "a folder on the way to it is a link out of the cache, so it is not deleted; do that yourself"
_PROSE = (".md", ".txt", ".rst", ".html")  # files that may begin as a web page does


def unfinished(target: Path) -> Path:
    """Where the bytes of a file are collected until it is complete."""
    return target.with_name(target.name + UNFINISHED)


def ensure_file(target: Path, file: HubFile, address: Address, client: Client, home: Path) -> str:
    """Make `target` a complete file with the checksum on record; returns its sha256.

    What lies there but is damaged is removed and fetched again, if it is one of `home` (`remove_file`).
    VerificationError if what comes is damaged too; then nothing is left. On any other error what has arrived
    stays in `unfinished(target)`.
    """
    while True:
        if target.is_file():
            if sha256 := check_file(target, file, client):
                client.report(Fetched(file.name, file.size, is_new=False))
                return sha256
            remove_damaged(target, home)
        elif os.path.exists(target):
            raise _no_plain_file(target)
        with _claimed(target, file.name, client) as growing:
            if growing is not None:
                return _complete(growing, target, file, address, client)
        # Another process has just made it.


def place_file(content: Path, pointer: Path, home: Path) -> None:
    """Let `pointer`, a file of a snapshot, stand for the content: as a link, or else as the file itself."""
    if os.path.exists(pointer) and pointer.samefile(content):
        return
    make_folder_inside(pointer, home)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(content, pointer.parent))
    except FileExistsError:  # another process did the same
        return
    except OSError:
        os.replace(content, pointer)


def check_file(path: Path, file: HubFile, client: Client) -> str:
    """The sha256 of a file that is as on record, an empty string of one that is not."""
    size = path.stat().st_size
    if size != file.size:
        return ""
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    done = 0
    with open_file(path) as content:
        while data := content.read(READ):
            sha256.update(data)
            if not file.sha256:
                blob.update(data)
            done += len(data)
            client.report(Advanced(file.name, min(done, size), size, is_check=True))
    is_right = sha256.hexdigest() == file.sha256 if file.sha256 else blob.hexdigest() == file.blob_id
    return sha256.hexdigest() if is_right else ""


def make_folder_inside(path: Path, home: Path) -> None:
    """Make the folder that a file of the repository `home` is to be written into."""
    if not _folder_of(path).is_relative_to(os.path.realpath(home)):
        raise FourMError(f"{path}: a folder on the way to it is a link out of the cache; delete the link")
    path.parent.mkdir(parents=True, exist_ok=True)


def remove_file(path: Path, home: Path) -> bool:
    """Delete a file of the repository `home`, and of what it is a link to only a blob of that repository.

    False if nothing was deleted because a folder on the way to it is a link out of the cache.
    """
    root = Path(os.path.realpath(home.parent), home.name)  # `home` itself may be a link to a folder elsewhere
    is_own = removed = _folder_of(path).is_relative_to(root)
    while is_own:
        target = path.parent / os.readlink(path) if path.is_symlink() else None
        path.unlink(missing_ok=True)
        is_own = target is not None and _folder_of(target) == root / "blobs"
        path = target or path
    return removed


def remove_damaged(path: Path, home: Path) -> None:
    """Delete a damaged file of the repository `home`; an error if it is not the repository's own."""
    if not remove_file(path, home):
        raise VerificationError(f"{path}: is damaged, but {KEPT}")


def receive(client: Client, wanted: HubFile, address: Address, file: BinaryIO) -> None:
    """Append what is missing to an open file that is at its end; MissingError if it cannot be had.

    What has arrived stays in the file. VerificationError if something else than the file on record is sent.
    """
    try:
        remote.persist(client, wanted.name, lambda: _append(client, wanted, address, file), file.tell)
    except FourMError:
        raise
    except Exception as error:
        has_begun = file.tell() > 0
        raise remote.explain_failure(error, address.owner, address.url, wanted.name, has_begun) from error
    finally:
        file.flush()


def _append(client: Client, wanted: HubFile, address: Address, file: BinaryIO) -> None:
    """One request for the bytes that are missing; an error that may pass if they did not all come."""
    from huggingface_hub import constants

    done, size = file.tell(), wanted.size
    if done >= size:
        return
    headers = remote.token_headers() if address.sends_token else {}
    headers |= {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with remote.get(address.url, headers, constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code == BEYOND:
            _restart(file)
            raise Dropped
        if response.status_code not in (200, 206):
            raise Refused(response)
        chunks = response.iter_bytes(CHUNK)
        first, total = next(chunks, b""), _total(response)
        span = response.headers.get("Content-Range", "").replace(" ", "").lower()
        is_anew = not (done and response.status_code == 206 and span.startswith(f"bytes{done}-"))
        if is_anew and is_web_page(first) and not wanted.name.lower().endswith(_PROSE):
            raise VerificationError(
                f"{wanted.name}: {remote.PAGE}, is sent in place of this file; nothing of it is kept"
            )
        if total is not None and total != size:
            raise VerificationError(f"{wanted.name}: {total:,} bytes are offered, but {size:,} are on record")
        if is_anew and done:
            _restart(file)  # the whole file comes again
            done = 0
        for chunk in chain([first], chunks):
            done += len(chunk)
            if done > size:
                _restart(file)
                raise VerificationError(f"{wanted.name}: more than the {size:,} bytes on record are sent")
            file.write(chunk)
            client.report(Advanced(wanted.name, done, size))
    if done < size:
        raise Dropped


def _total(response: Any) -> int | None:
    """The size of the whole file as the answer says it, if it does."""
    text = response.headers.get("Content-Range", "").rpartition("/")[2] or (
        response.headers.get("Content-Length", "") if response.status_code == 200 else ""
    )
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _complete(growing: BinaryIO, target: Path, file: HubFile, address: Address, client: Client) -> str:
    """Fetch what is missing, check it, and rename it to `target`; returns its sha256."""
    for _ in range(2 if growing.tell() else 1):  # what was left from before may be bad: once more, anew
        receive(client, file, address, growing)
        if sha256 := check_file(unfinished(target), file, client):
            os.replace(unfinished(target), target)
            client.report(Fetched(file.name, file.size, is_new=True))
            return sha256
        _restart(growing)
    unfinished(target).unlink()
    raise VerificationError(
        f"{address.owner}/{file.name}: what arrived does not have the checksum on record "
        f"({file.blob[:12]}...), so it was removed; run the command again"
    )


@contextmanager
def _claimed(target: Path, name: str, client: Client) -> Iterator[BinaryIO | None]:
    """The file that collects the bytes, for this process alone; None if another has finished it meanwhile.

    Each process writes at its own position, so two of them, where there are no locks, write the same bytes.
    """
    path, has_waited = unfinished(target), False
    path.parent.mkdir(parents=True, exist_ok=True)
    while not target.exists():
        with _open_growing(path) as growing:
            while lock_file(growing) is False:
                if not has_waited:
                    client.report(Waiting(name, OTHER_PROCESS, "another process fetches it"))
                has_waited = True
                client.sleep(OTHER_PROCESS)
            if not _is_at(growing, path):  # its last holder has renamed or deleted it
                continue
            growing.seek(0, os.SEEK_END)
            try:
                yield growing
            except FileNotFoundError:  # another process has renamed it, where there are no locks
                if not target.is_file():
                    raise
            return
    yield None


def _is_at(file: BinaryIO, path: Path) -> bool:
    """True if the open file is the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _open_growing(path: Path) -> BinaryIO:
    """Open a plain file or make a new one, never through a link, without waiting for the reader of a pipe."""
    while True:
        if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
            raise _no_plain_file(path)
        with suppress(FileExistsError):
            return open_own(path, "x")
        with suppress(FileNotFoundError):  # another process may have renamed it meanwhile
            return open_own(path, "r+")


def _no_plain_file(path: Path) -> FourMError:
    return FourMError(f"{path}: is no plain file, as a file of the cache must be; delete it")


def _folder_of(path: Path) -> Path:
    """The folder of a file, without links."""
    return Path(os.path.realpath(path.parent))
