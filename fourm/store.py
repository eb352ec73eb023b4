"""One file of the Hub's cache: it grows beside its place, is checked, then takes the place."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fourm.errors import FourMError, VerificationError
from fourm.remote import RemoteFile, explain_file
from fourm.transfer import Advanced, Client, Done, Waiting, receive, restart

UNFINISHED = ".fourm.incomplete"  # after the name of what it will be
READ = 1 << 22  # bytes read at once to check a file
OTHER_PROCESS = 1.0  # seconds between two looks at what another process fetches


def unfinished(target: Path) -> Path:
    """Where the bytes of a file are collected."""
    return target.with_name(target.name + UNFINISHED)


def ensure_file(
    target: Path, file: RemoteFile, hub_id: str, url: str, headers: Mapping[str, str], client: Client
) -> str:
    """Make `target` a whole file with the checksum on record; returns its sha256.

    What lies there but is damaged is removed and fetched again. VerificationError if what comes is damaged
    too; then nothing is left. On any other error what has arrived stays in `unfinished(target)`.
    """
    if target.is_file():
        if sha256 := check_file(target, file, client):
            client.report(Done(file.name, file.size, is_new=False))
            return sha256
        remove_file(target)
    with _claimed(target, file.name, client) as growing:
        if growing is not None:
            is_fresh = growing.tell() == 0
            _fill(growing, file, hub_id, url, headers, client)
            sha256 = check_file(unfinished(target), file, client)
            if not sha256 and not is_fresh:  # what was left from before may have been bad
                restart(growing)
                _fill(growing, file, hub_id, url, headers, client)
                sha256 = check_file(unfinished(target), file, client)
            if not sha256:
                unfinished(target).unlink()
                raise VerificationError(
                    f"{hub_id}/{file.name}: what arrived does not have the checksum on record "
                    f"({file.blob[:12]}...), so it was removed; run the command again"
                )
            os.replace(unfinished(target), target)
            client.report(Done(file.name, file.size, is_new=True))
            return sha256
    return ensure_file(target, file, hub_id, url, headers, client)  # another process has just made it whole


def place_file(content: Path, pointer: Path) -> None:
    """Let `pointer`, a file of a snapshot, stand for the content: as a link, or else as the file itself."""
    if os.path.exists(pointer) and pointer.samefile(content):
        return
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(content, pointer.parent))
    except FileExistsError:  # another process did the same
        return
    except OSError:
        os.replace(content, pointer)


def check_file(path: Path, file: RemoteFile, client: Client) -> str:
    """The sha256 of a file that is as on record, an empty string of one that is not."""
    size = path.stat().st_size
    if size != file.size:
        return ""
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    done = 0
    with path.open("rb") as content:
        while data := content.read(READ):
            sha256.update(data)
            if not file.sha256:
                blob.update(data)
            done += len(data)
            client.report(Advanced(file.name, min(done, size), size, is_check=True))
    is_right = sha256.hexdigest() == file.sha256 if file.sha256 else blob.hexdigest() == file.blob_id
    return sha256.hexdigest() if is_right else ""


def remove_file(path: Path) -> None:
    """Delete a file of the cache, and the content that it is a link to."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def _fill(
    growing: BinaryIO, file: RemoteFile, hub_id: str, url: str, headers: Mapping[str, str], client: Client
) -> None:
    try:
        receive(client, file.name, url, headers, growing, file.size)
    except FourMError:
        raise
    except Exception as error:  # httpx's or requests' own, by the version of huggingface_hub
        raise explain_file(error, hub_id, file.name, url) from error
    finally:
        growing.flush()


@contextmanager
def _claimed(target: Path, name: str, client: Client) -> Iterator[BinaryIO | None]:
    """The file that collects the bytes, for this process alone; None if another has finished it meanwhile."""
    path, has_waited = unfinished(target), False
    path.parent.mkdir(parents=True, exist_ok=True)
    while not target.exists():
        with path.open("ab") as growing:
            while not _is_locked(growing):
                if not has_waited:
                    client.report(Waiting(name, OTHER_PROCESS, "another process fetches it"))
                has_waited = True
                client.sleep(OTHER_PROCESS)
            with suppress(FileNotFoundError):  # its last holder may have renamed or deleted it
                if os.path.samestat(os.fstat(growing.fileno()), path.stat()):
                    yield growing
                    return
    yield None


def _is_locked(file: BinaryIO) -> bool:
    """Take the lock if it is free; the kernel frees that of a process which is killed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
