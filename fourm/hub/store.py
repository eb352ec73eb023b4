"""One file of the Hub's cache: it grows beside its place, is checked, then takes the place."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fourm.data.opening import open_file
from fourm.data.writing import lock_file
from fourm.errors import FourMError, VerificationError
from fourm.hub.remote import RemoteFile, explain_file
from fourm.hub.transfer import Advanced, Client, Done, Waiting, receive, restart

UNFINISHED = ".fourm.incomplete"  # after the name of what it will be
READ = 1 << 22  # bytes read at once to check a file
OTHER_PROCESS = 1.0  # seconds between two looks at what another process fetches
KEPT = "a folder on the way to it is a link out of the cache, so it is not deleted; do that yourself"
# Writes into a plain file or a new one, never through a link, and never waits for the reader of a pipe. Each
# process writes at its own place, so two of them, where there are no locks, write the same bytes there.
_WRITE = os.O_RDWR | os.O_CREAT | sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY")
)  # fmt: skip


def unfinished(target: Path) -> Path:
    """Where the bytes of a file are collected."""
    return target.with_name(target.name + UNFINISHED)


def ensure_file(
    target: Path,
    file: RemoteFile,
    hub_id: str,
    url: str,
    headers: Mapping[str, str],
    client: Client,
    home: Path,
) -> str:
    """Make `target` a whole file with the checksum on record; returns its sha256.

    What lies there but is damaged is removed and fetched again, if it is one of `home` (`remove_file`).
    VerificationError if what comes is damaged too; then nothing is left. On any other error what has arrived
    stays in `unfinished(target)`.
    """
    if target.is_file():
        if sha256 := check_file(target, file, client):
            client.report(Done(file.name, file.size, is_new=False))
            return sha256
        remove_damaged(target, home)
    elif os.path.exists(target):
        raise _no_plain_file(target)
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
    return ensure_file(target, file, hub_id, url, headers, client, home)  # another process has just made it


def place_file(content: Path, pointer: Path, home: Path) -> None:
    """Let `pointer`, a file of a snapshot, stand for the content: as a link, or else as the file itself."""
    if os.path.exists(pointer) and pointer.samefile(content):
        return
    make_folder(pointer, home)
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
    with open_file(path) as content:
        while data := content.read(READ):
            sha256.update(data)
            if not file.sha256:
                blob.update(data)
            done += len(data)
            client.report(Advanced(file.name, min(done, size), size, is_check=True))
    is_right = sha256.hexdigest() == file.sha256 if file.sha256 else blob.hexdigest() == file.blob_id
    return sha256.hexdigest() if is_right else ""


def make_folder(path: Path, home: Path) -> None:
    """Make the folder that a file of the repository `home` is to be written into."""
    if not _folder_of(path).is_relative_to(os.path.realpath(home)):
        raise FourMError(f"{path}: a folder on the way to it is a link out of the cache; delete the link")
    path.parent.mkdir(parents=True, exist_ok=True)


def remove_file(path: Path, home: Path) -> bool:
    """Delete a file of the repository `home`, and of what it is a link to only a blob of that repository.

    False if nothing was deleted because a folder on the way to it is a link out of the cache.
    """
    root = Path(os.path.realpath(home.parent), home.name)  # `home` itself may be a link to a folder elsewhere
    is_own = _folder_of(path).is_relative_to(root)
    removed = is_own
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


def _fill(
    growing: BinaryIO, file: RemoteFile, hub_id: str, url: str, headers: Mapping[str, str], client: Client
) -> None:
    try:
        receive(client, file.name, url, headers, growing, file.size)
    except FourMError:
        raise
    except Exception as error:  # httpx's or requests' own, by the version of huggingface_hub
        raise explain_file(error, hub_id, file.name, url, has_begun=growing.tell() > 0) from error
    finally:
        growing.flush()


@contextmanager
def _claimed(target: Path, name: str, client: Client) -> Iterator[BinaryIO | None]:
    """The file that collects the bytes, for this process alone; None if another has finished it meanwhile."""
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
    try:
        descriptor = os.open(path, _WRITE, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise _no_plain_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_plain_file(path)
    return os.fdopen(descriptor, "r+b")


def _no_plain_file(path: Path) -> FourMError:
    return FourMError(f"{path}: is no plain file, as a file of the cache must be; delete it")


def _folder_of(path: Path) -> Path:
    """The folder of a file, without links."""
    return Path(os.path.realpath(path.parent))
