"""Repositories of the Hub into its cache, whole and checked, and the record of what was fetched.

A file grows beside its place, is read again and compared with the checksum that the Hub has on record, and
only then becomes part of the cache. What is not whole stays beside it, and the next run goes on with it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from fourm.errors import FourMError, MissingError, VerificationError, printable
from fourm.hub.cache import MAIN, cache_folder, find_cached, read_ref, repository_folder
from fourm.hub.catalogue import CONFIG_FILE, PROMPTS_FILE, WEIGHTS_FILE, Licence, Part, find_entry
from fourm.hub.hubclient import check_variables, token_headers
from fourm.hub.pins import Pin, PinnedFile, find_pin, load_pins, replace_text, text_tokenizer_path, write_pin
from fourm.hub.remote import (
    TEXT_TOKENIZER_BYTES,
    TEXT_TOKENIZER_SHA256,
    Remote,
    RemoteFile,
    describe,
    file_url,
    github_url,
    space_url,
)
from fourm.hub.store import (
    check_file,
    ensure_file,
    make_folder,
    place_file,
    remove_damaged,
    remove_file,
    unfinished,
)
from fourm.hub.transfer import Client, Done, UnreachableError
from fourm.hub.wanted import TEXT_TOKENIZER, Wanted

PART_FILES = (CONFIG_FILE, "modalities.yaml", "text_tokenizer.json", "prompts.txt")
PART_FOLDERS = ("sr", "tokenizers")  # of a model folder
MAX_PART = 255  # bytes of each part of a path, as in most file systems
WEIGHTS, PICKLES = ".safetensors", (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TEXT = re.compile(r"(?:README|LICEN[CS]E|NOTICE)[\w-]*(?:\.md|\.txt|\.rst)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class File:
    """One file of a job, and how much of it is here."""

    remote: RemoteFile
    path: Path  # where it lies once it is whole
    done: int  # bytes; all of them = it is here, and only its checksum may have to be compared

    @property
    def is_here(self) -> bool:
        """True if it is whole, as far as its size tells."""
        return self.done == self.remote.size and os.path.exists(self.path)


@dataclass(frozen=True, slots=True)
class Job:
    """One repository at one commit, or the text tokenizer, and what of it is to be fetched."""

    wanted: Wanted
    revision: str  # the commit; "" outside the Hub
    files: tuple[File, ...]
    path: Path  # what it will be: the snapshot's folder, or the one file
    unconfirmed: str = ""  # why the Hub could not be asked; then files and sizes are those known here

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.remote.size for file in self.files)

    @property
    def to_fetch(self) -> int:
        """Bytes that are not here yet."""
        return sum(file.remote.size - file.done for file in self.files)

    @property
    def licence(self) -> Licence | None:
        """Terms that must be shown, if this is the first download of something under them."""
        licence = self.wanted.entry.licence if self.wanted.entry else None
        is_first = find_pin(self.wanted.hub_id) is None
        return licence if licence and not licence.is_free and is_first and self.to_fetch else None

    def to_json(self) -> dict[str, object]:
        """The job as plain data."""
        files = [
            {"name": f.remote.name, "bytes": f.remote.size, "to_fetch": f.remote.size - f.done}
            for f in self.files
        ]
        return {
            "name": self.wanted.name, "hub_id": self.wanted.hub_id, "revision": self.revision,
            "path": str(self.path), "bytes": self.num_bytes, "to_fetch": self.to_fetch, "files": files,
            "is_estimate": bool(self.unconfirmed),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verified:
    """What became of comparing one file with the record."""

    name: str  # of what it belongs to, short where there is a short name
    file: str
    path: Path
    problem: str  # "" = it is right, "missing" or "damaged"
    removed: bool = False  # True if it was damaged and the cache's own

    def to_json(self) -> dict[str, object]:
        """The result as plain data."""
        return {
            "name": self.name, "file": self.file, "path": str(self.path), "problem": self.problem,
            "removed": self.removed,
        }  # fmt: skip


def plan_downloads(wanted: Sequence[Wanted], client: Client, is_estimate: bool = False) -> tuple[Job, ...]:
    """What is to be fetched; the Hub is asked only for what is not here whole and on record.

    An estimate takes what is known here where the Hub cannot be asked. Such jobs say so, and are not fetched.
    """
    check_variables()
    jobs, away = list[Job](), ""
    for one in wanted:
        try:
            if away and not one.is_text_tokenizer and (job := _recorded(one) or _estimate(one, away)):
                jobs.append(job)
            else:
                jobs.append(_plan_text(one) if one.is_text_tokenizer else _plan(one, client))
        except UnreachableError as error:
            job = _estimate(one, str(error)) if is_estimate else None
            if job is None:
                raise
            away = str(error)
            jobs.append(job)
    return tuple(jobs)


def check_room(jobs: Sequence[Job]) -> None:
    """Refuse what does not fit on the disk."""
    folder, num_bytes = cache_folder(), sum(job.to_fetch for job in jobs)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise FourMError(
            f"{num_bytes:,} bytes are to be fetched, but only {free:,} are free on the disk of {there}"
        )


def fetch(job: Job, client: Client) -> Path:
    """Make a job's files whole and record them; returns its path.

    Raises MissingError for what cannot be fetched and VerificationError for what is not what the Hub has on
    record; it is removed, whether it came just now or lay in the cache before.
    """
    try:
        if job.wanted.is_text_tokenizer:
            return _fetch_text(job, client)
        pin = find_pin(job.wanted.hub_id)
        known = {file.name: file for file in pin.files} if pin and pin.revision == job.revision else {}
        files = []
        for file in job.files:
            if _has_size(file.path, file.remote.size) and file.remote.name in known:
                client.report(Done(file.remote.name, file.remote.size, is_new=False))
                files.append(known[file.remote.name])
            else:
                sha256 = _fetch_file(job, file, client)
                files.append(PinnedFile(file.remote.name, file.remote.size, sha256))
        _write_ref(job)
        found = Pin(job.wanted.hub_id, job.revision, tuple(files), job.wanted.repo_type)
        if found != pin:  # a cache that is whole may be one that cannot be written
            write_pin(found)
        return job.path
    except OSError as error:
        raise _explain_disk(error, job) from error


def verify_cached(hub_ids: Sequence[str] | None, client: Client) -> tuple[Verified, ...]:
    """Compare what is cached with the record, without a network; None = all that is on record.

    The text tokenizer has the id "". A damaged file is removed, so that the next download fetches it again.
    """
    pins = load_pins()
    if hub_ids is None:
        chosen = [pin for pin in pins.values() if os.path.isdir(_snapshot(pin))]
        is_text = os.path.exists(text_tokenizer_path())
    else:
        for hub_id in hub_ids:
            if hub_id and hub_id not in pins:
                raise MissingError(
                    f"{_short(hub_id)}: not on record, so there is nothing to compare with; "
                    f"`fourm download {_short(hub_id)}` fetches, checks and records it"
                )
        chosen = [pins[hub_id] for hub_id in hub_ids if hub_id]
        is_text = "" in hub_ids
    found = [
        _verify_file(
            _short(pin.hub_id),
            _snapshot(pin) / file.name,
            RemoteFile(file.name, file.size, file.sha256),
            repository_folder(pin.hub_id, pin.repo_type),
            client,
        )
        for pin in chosen
        for file in pin.files
    ]
    if is_text:
        path = text_tokenizer_path()
        found.append(_verify_file(TEXT_TOKENIZER, path, _text_file(), path.parent, client))
    return tuple(found)


def _plan(wanted: Wanted, client: Client) -> Job:
    """A repository: as it is on record, if all of that is here, else as the Hub says."""
    job, pin = _recorded(wanted), find_pin(wanted.hub_id)
    if job is not None and all(file.is_here for file in job.files):
        return job
    revision = wanted.revision or (pin.revision if pin else "")
    remote = describe(wanted.hub_id, wanted.repo_type, revision, client)
    repository = repository_folder(wanted.hub_id, wanted.repo_type)
    folder = repository / "snapshots" / remote.revision
    chosen = _choose(wanted, remote)
    return _job(
        wanted,
        remote.revision,
        tuple(
            _look(folder / file.name, repository / "blobs" / file.blob, file)
            for file in sorted(chosen, key=lambda file: file.size)  # the licence comes before the weights
        ),
    )


def _recorded(wanted: Wanted) -> Job | None:
    """A repository as it was fetched before; None for another revision, or if it never was."""
    pin = find_pin(wanted.hub_id)
    if pin is None or wanted.revision not in ("", pin.revision):
        return None
    folder = _snapshot(pin)
    recorded = [RemoteFile(file.name, file.size, file.sha256) for file in pin.files]
    return _job(
        wanted, pin.revision, tuple(_look(folder / file.name, folder / file.name, file) for file in recorded)
    )


def _estimate(wanted: Wanted, reason: str) -> Job | None:
    """What the record or the catalogue knows of a repository; None for one that is in neither."""
    if (job := _recorded(wanted)) is not None:
        return replace(job, unconfirmed=reason)
    entry = wanted.entry
    if entry is None:
        return None
    here = None if wanted.revision else find_cached(entry)
    name = PROMPTS_FILE if entry.kind is Part.PROMPTS else WEIGHTS_FILE
    folder = repository_folder(wanted.hub_id, wanted.repo_type)
    path, revision = here or (folder / name, "")
    size = path.stat().st_size if here else entry.num_bytes
    return Job(
        wanted, revision, (File(RemoteFile(name, size), path, size if here else 0),), path.parent, reason
    )


def _job(wanted: Wanted, revision: str, files: tuple[File, ...]) -> Job:
    folder = repository_folder(wanted.hub_id, wanted.repo_type) / "snapshots" / revision
    is_table = wanted.entry is not None and wanted.entry.kind is Part.PROMPTS
    return Job(wanted, revision, files, folder / PROMPTS_FILE if is_table else folder)


def _choose(wanted: Wanted, remote: Remote) -> list[RemoteFile]:
    """The files that are fetched: never one that would have to be unpickled."""
    if wanted.entry is not None and wanted.entry.kind is Part.PROMPTS:
        chosen = [file for file in remote.files if file.name == PROMPTS_FILE or _is_text(file.name)]
        if not any(file.name == PROMPTS_FILE for file in chosen):
            raise MissingError(f"{wanted.hub_id} has no file {PROMPTS_FILE} at {remote.revision[:7]}")
        return chosen
    chosen = [file for file in remote.files if _is_part(file.name)]
    for file in chosen:
        if not file.name.isprintable() or any(len(part.encode()) > MAX_PART for part in file.name.split("/")):
            raise MissingError(
                f"{wanted.hub_id}: one of its files has a name that no file can have here: "
                f"{printable(file.name)[:80]}"
            )
    if not any(file.name.endswith(WEIGHTS) for file in chosen):
        others = [file.name for file in remote.files if file.name.endswith(PICKLES)]
        advice = f", only {others[0]}, and pickles are never loaded" if others else ""
        raise MissingError(f"{wanted.hub_id} has no {WEIGHTS} file at {remote.revision[:7]}{advice}")
    return chosen


def _is_part(name: str) -> bool:
    """True for files of a model folder: its configuration, weights, parts, card and licence."""
    path = PurePosixPath(name)
    is_wanted = path.name in PART_FILES or path.name.endswith(WEIGHTS) or _is_text(name)
    return is_wanted and (len(path.parts) == 1 or path.parts[0] in PART_FOLDERS)


def _is_text(name: str) -> bool:
    return _TEXT.fullmatch(name) is not None


def _look(path: Path, content: Path, remote: RemoteFile) -> File:
    """How much of a file is here: its content whole, or what an earlier run has collected."""
    if _has_size(path, remote.size) or _has_size(content, remote.size):
        return File(remote, path, remote.size)
    growing = unfinished(content)
    return File(remote, path, min(growing.stat().st_size, remote.size) if os.path.isfile(growing) else 0)


def _has_size(path: Path, size: int) -> bool:
    return os.path.isfile(path) and path.stat().st_size == size


def _fetch_file(job: Job, file: File, client: Client) -> str:
    """Make one file of a repository whole; returns its sha256."""
    wanted, remote = job.wanted, file.remote
    home = repository_folder(wanted.hub_id, wanted.repo_type)
    content = home / "blobs" / remote.blob
    is_link = os.path.exists(content) and os.path.exists(file.path) and file.path.samefile(content)
    if os.path.isfile(file.path) and not is_link:
        if sha256 := check_file(file.path, remote, client):
            client.report(Done(remote.name, remote.size, is_new=False))
            return sha256
        remove_damaged(file.path, home)
    url = file_url(wanted.hub_id, remote.name, job.revision, wanted.repo_type)
    sha256 = ensure_file(content, remote, wanted.hub_id, url, token_headers(), client, home)
    place_file(content, file.path, home)
    return sha256


def _text_file() -> RemoteFile:
    return RemoteFile(text_tokenizer_path().name, TEXT_TOKENIZER_BYTES, TEXT_TOKENIZER_SHA256)


def _plan_text(wanted: Wanted) -> Job:
    path = text_tokenizer_path()
    return Job(wanted, "", (_look(path, path, _text_file()),), path)


def _fetch_text(job: Job, client: Client) -> Path:
    """The text tokenizer from its home, or from the Space if that does not give it."""
    file, path = _text_file(), job.path
    try:
        ensure_file(path, file, TEXT_TOKENIZER, github_url(), {}, client, path.parent)
    except (MissingError, VerificationError) as first:
        try:
            ensure_file(path, file, TEXT_TOKENIZER, space_url(client), token_headers(), client, path.parent)
        except MissingError as second:
            raise type(first)(f"{first}; nor from the Hub: {second}") from second
    return path


def _write_ref(job: Job) -> None:
    """Note which commit the branch or tag was, as the Hub's client does; a commit needs no note."""
    ref = job.wanted.revision or MAIN
    if job.revision == ref:
        return
    home = repository_folder(job.wanted.hub_id, job.wanted.repo_type)
    if read_ref(path := home / "refs" / ref) == job.revision:
        return
    make_folder(path, home)
    replace_text(path, job.revision)


def _snapshot(pin: Pin) -> Path:
    return repository_folder(pin.hub_id, pin.repo_type) / "snapshots" / pin.revision


def _short(hub_id: str) -> str:
    entry = find_entry(hub_id)
    return entry.name if entry else hub_id


def _verify_file(name: str, path: Path, file: RemoteFile, home: Path, client: Client) -> Verified:
    if not os.path.isfile(path):
        return Verified(name, file.name, path, "missing")
    if check_file(path, file, client):
        return Verified(name, file.name, path, "")
    return Verified(name, file.name, path, "damaged", remove_file(path, home))


def _explain_disk(error: OSError, job: Job) -> FourMError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FourMError(
            f"{job.wanted.name}: no space is left on the disk of {cache_folder()}; what has arrived is kept, "
            "so the same command goes on when there is room"
        )
    return FourMError(f"{error.filename or job.path}: cannot be written ({error.strerror or error})")
