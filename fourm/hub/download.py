"""Downloads into the Hub's cache: what is asked for, what of it is missing, fetched, checked and recorded."""

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from fourm.errors import FourMError, MissingError, UsageError, VerificationError, printable
from fourm.hub import cache, catalogue, remote
from fourm.hub.cache import Commit, HubFile
from fourm.hub.catalogue import GROUPS, PROMPTS_FILE, TEXT_TOKENIZER, Entry, EntryKind, find_entry
from fourm.hub.files import DEMO, DEMO_SR
from fourm.hub.header import CONFIG_FILE
from fourm.hub.remote import Address, Client, Fetched, UnreachableError

PART_FILES = (CONFIG_FILE, "modalities.yaml", "text_tokenizer.json", "prompts.txt")
PART_FOLDERS = ("sr", "tokenizers")  # of a model folder
WEIGHTS = ".safetensors"
GITHUB = "https://raw.githubusercontent.com"  # FOURM_GITHUB_ENDPOINT names another
GITHUB_FOLDER = "apple/ml-4m/cda590faa3b9f022c28537193d3e1650527646a3/fourm/utils/tokenizer/trained"
TEXT_TOKENIZER_SHA256 = "8e684e9a0673e39f70702a698869f909ba697f871a0c6b2a07b5f61e91b3526e"
TEXT_TOKENIZER_BYTES = 1_451_469
SPACE = "EPFL-VILAB/4M"  # the demo on the Hub, which brings a copy of the text tokenizer
_TEXT = re.compile(r"(?:README|LICEN[CS]E|NOTICE)[\w-]*(?:\.md|\.txt|\.rst)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One repository, or the text tokenizer."""

    entry: Entry  # of the catalogue, or one that has only a Hub id
    revision: str = ""  # branch, tag or commit; "" = the recorded one, else main

    @property
    def folder(self) -> Path:
        """Its folder in the Hub's cache, or that of the text tokenizer."""
        if self.entry.is_text_tokenizer:
            return cache.text_tokenizer_path().parent
        return cache.repository_folder(self.entry.hub_id, self.entry.repo_type)


@dataclass(frozen=True, slots=True)
class DownloadFile:
    """One file of a job, and how much of it is here."""

    content: HubFile  # as the Hub, or the record, has it
    path: Path  # where it lies once it is complete
    done: int  # bytes; all of them = it is here, and only its checksum may have to be compared

    @property
    def to_fetch(self) -> int:
        """Bytes that are not here yet."""
        return self.content.size - self.done


@dataclass(frozen=True, slots=True)
class Download:
    """One repository at one commit, or the text tokenizer, and what of it is to be fetched."""

    wanted: Wanted
    revision: str  # the commit; "" outside the Hub
    files: tuple[DownloadFile, ...]
    path: Path  # what it will be: the snapshot's folder, or the one file
    unconfirmed: str = ""  # why the Hub could not be asked; then files and sizes are those known here

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.content.size for file in self.files)

    @property
    def to_fetch(self) -> int:
        """Bytes that are not here yet."""
        return sum(file.to_fetch for file in self.files)

    @property
    def licence(self) -> catalogue.Licence | None:
        """Terms that must be shown, if this is the first download of something under them."""
        entry = self.wanted.entry
        is_first = not entry.licence.is_free and self.to_fetch and cache.find_pin(entry.hub_id) is None
        return entry.licence if is_first else None

    def to_json(self) -> dict[str, object]:
        """The job as plain data."""
        return {
            "name": self.wanted.entry.name, "hub_id": self.wanted.entry.hub_id, "revision": self.revision,
            "path": str(self.path), "bytes": self.num_bytes, "to_fetch": self.to_fetch,
            "files": [{"name": one.content.name, "bytes": one.content.size, "to_fetch": one.to_fetch}
                      for one in self.files],
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


def read_wanted(
    names: Sequence[str],
    config: Mapping[str, str] | None = None,
    where: str = "",
    revision: str | None = None,
) -> tuple[Wanted, ...]:
    """Everything that is named, each once; mistakes are a `UsageError` before anything is fetched.

    config: what a YAML file names, by key (`fourm.schedule.settings.read_names`); where: that file.
    """
    found = [_named(member) for name in names for member in GROUPS.get(name.lower(), (name,))]
    found += _of_config(config, where) if config is not None else []
    found = list({(one.entry.name, one.revision): one for one in found}.values())
    if revision is None:
        return tuple(found)
    cache.split_revision(f"NAME@{revision}")
    if len(found) != 1 or found[0].entry.is_text_tokenizer:
        raise UsageError("--revision is for one repository; with several write NAME@REVISION for each")
    (one,) = found
    if one.revision not in ("", revision):
        raise UsageError(f"--revision {revision}: {one.entry.name}@{one.revision} is named; give one of them")
    return (replace(one, revision=revision),)


def plan_downloads(
    wanted: Sequence[Wanted], client: Client, is_estimate: bool = False
) -> tuple[Download, ...]:
    """What is to be fetched; the Hub is asked only for what is not here complete and on record.

    An estimate takes what is known here where the Hub cannot be asked. Such jobs say so, and are not fetched.
    """
    remote.check_variables()
    jobs, away = list[Download](), ""  # away: why the Hub cannot be asked
    for one in wanted:
        try:
            jobs.append(_plan(one, client, away))
        except UnreachableError as error:
            away = str(error)
            job = _estimate(one, away) if is_estimate else None
            if job is None:
                raise
            jobs.append(job)
    return tuple(jobs)


def check_room(jobs: Sequence[Download]) -> None:
    """Refuse what does not fit on the disk."""
    folder, size = cache.cache_folder(), sum(job.to_fetch for job in jobs)
    top = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(top).free
    if free < size:
        raise FourMError(f"{size:,} bytes are to be fetched, but only {free:,} are free on the disk of {top}")


def fetch(job: Download, client: Client) -> Path:
    """Make a job's files complete and record them; returns its path.

    Raises MissingError for what cannot be fetched and VerificationError for what is not what the Hub has on
    record; it is removed, whether it came just now or lay in the cache before.
    """
    try:
        return _fetch_text(job, client) if job.wanted.entry.is_text_tokenizer else _fetch_files(job, client)
    except OSError as error:
        told = f"{error.filename or job.path}: cannot be written ({error.strerror or error})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = (
                f"{job.wanted.entry.name}: no space is left on the disk of {cache.cache_folder()}; what has "
                "arrived is kept, so the same command goes on when there is room"
            )
        raise FourMError(told) from error


def verify_cached(hub_ids: Sequence[str] | None, client: Client) -> tuple[Verified, ...]:
    """Compare what is cached with the record, without a network; None = all that is on record.

    The text tokenizer has the id "". A damaged file is removed, so that the next download fetches it again.
    """
    pins, text = cache.load_pins(), cache.text_tokenizer_path()
    if hub_ids is None:
        hub_ids = [hub_id for hub_id, pin in pins.items() if os.path.isdir(pin.folder)]
        hub_ids += [""] if os.path.exists(text) else []
    if away := next((hub_id for hub_id in hub_ids if hub_id and hub_id not in pins), None):
        raise MissingError(
            f"{_short(away)}: not on record, so there is nothing to compare with; "
            f"`fourm download {_short(away)}` fetches, checks and records it"
        )
    found = list[Verified]()

    def verify(name: str, path: Path, file: HubFile, home: Path) -> None:
        if not os.path.isfile(path):
            found.append(Verified(name, file.name, path, "missing"))
        elif remote.check_file(path, file, client):
            found.append(Verified(name, file.name, path, ""))
        else:
            found.append(Verified(name, file.name, path, "damaged", cache.remove_file(path, home)))

    for pin in (pins[hub_id] for hub_id in hub_ids if hub_id):
        for file in pin.files:
            verify(_short(pin.hub_id), pin.folder / file.name, file, pin.folder.parents[1])
    if "" in hub_ids:
        verify(TEXT_TOKENIZER, text, _text_file(), text.parent)
    return tuple(found)


def _named(text: str) -> Wanted:
    """One thing by its short name or Hub id, with or without `@REVISION`."""
    name, revision = cache.split_revision(text)
    entry = find_entry(name)
    if entry is not None and entry.is_text_tokenizer and revision:
        raise UsageError(f"{text}: the text tokenizer has one version only; leave out @{revision}")
    if entry is not None:
        return Wanted(entry, revision)
    if name in (DEMO, DEMO_SR):
        raise UsageError("the demo model is built in; there is nothing to download")
    if "/" in name and cache.is_hub_id(name):
        return Wanted(Entry(name, name, EntryKind.MODEL, "", catalogue.UNKNOWN, 0), revision)
    if os.path.exists(name):
        raise UsageError(f"{name}: is on this machine already; a short name or Hub id is expected")
    if name in GROUPS:
        raise UsageError(f"{text}: a group has no common revision; write NAME@REVISION for each")
    advice = catalogue.near_entry(name) or "; `fourm download --list` shows all names"
    raise UsageError(f"'{name}' is neither a known name nor a Hub id{advice}")


def _of_config(named: Mapping[str, str], where: str) -> list[Wanted]:
    """Everything that a YAML file names; what is a path on this machine needs no download."""
    found = list[Wanted]()
    for key, name in named.items():
        if key == "data_path":
            found += [_named("parti-prompts")] if name == catalogue.PARTI else []
        elif os.path.exists(os.path.expanduser(name)):
            continue
        elif key == "text_tok_path":
            if Path(name).name not in (TEXT_TOKENIZER, cache.text_tokenizer_path().name):
                raise UsageError(f"{where}: text_tok_path: {name}: no such file, nor {TEXT_TOKENIZER}")
            found.append(_named(TEXT_TOKENIZER))
        elif name not in (DEMO, DEMO_SR):
            try:
                found.append(_named(name))
            except UsageError as error:
                raise UsageError(f"{where}: {key}: {error}") from None
    if not found and not named.keys() - {"text_tok_path", "data_path"}:
        raise UsageError(f"{where}: names no model, tokenizer or prompt set")
    return found


def _plan(wanted: Wanted, client: Client, away: str) -> Download:
    """What is to be fetched of a repository, or of the text tokenizer, whose size and checksum are known."""
    if wanted.entry.is_text_tokenizer:
        path = cache.text_tokenizer_path()
        return Download(wanted, "", (_look(path, path, _text_file()),), path)
    job = _recorded(wanted)
    if job is not None and all(not file.to_fetch and os.path.exists(file.path) for file in job.files):
        return job
    return (_estimate(wanted, away) if away else None) or _ask(wanted, client)


def _recorded(wanted: Wanted) -> Download | None:
    """A repository as it was fetched before; None for another revision, or if it never was."""
    pin = cache.find_pin(wanted.entry.hub_id)
    if pin is None or wanted.revision not in ("", pin.revision):
        return None
    files = [_look(pin.folder / file.name, pin.folder / file.name, file) for file in pin.files]
    return _job(wanted, pin.revision, files)


def _ask(wanted: Wanted, client: Client) -> Download:
    """A repository as the Hub describes it."""
    entry, pin = wanted.entry, cache.find_pin(wanted.entry.hub_id)
    revision = wanted.revision or (pin.revision if pin else "")
    found = remote.ask_commit(entry.hub_id, entry.repo_type, revision, client)
    chosen = sorted(_choose(entry, found), key=lambda file: file.size)  # the licence before the weights
    files = [_look(found.folder / file.name, wanted.folder / "blobs" / file.blob, file) for file in chosen]
    return _job(wanted, found.revision, files)


def _estimate(wanted: Wanted, reason: str) -> Download | None:
    """What the record or the catalogue knows of a repository; None for one that is in neither."""
    if (job := _recorded(wanted)) is not None:
        return replace(job, unconfirmed=reason)
    if find_entry((entry := wanted.entry).name) is None:
        return None
    here = None if wanted.revision else cache.find_cached(entry)
    path, revision = here or (wanted.folder / entry.main_file, "")
    size = path.stat().st_size if here else entry.num_bytes
    file = DownloadFile(HubFile(entry.main_file, size), path, size if here else 0)
    return Download(wanted, revision, (file,), path.parent, reason)


def _job(wanted: Wanted, revision: str, files: Sequence[DownloadFile]) -> Download:
    folder = wanted.folder / "snapshots" / revision
    is_table = wanted.entry.kind is EntryKind.PROMPTS
    return Download(wanted, revision, tuple(files), folder / PROMPTS_FILE if is_table else folder)


def _choose(entry: Entry, found: Commit) -> list[HubFile]:
    """The files that are fetched: never one that would have to be unpickled."""
    is_table, at = entry.kind is EntryKind.PROMPTS, f"at {found.revision[:7]}"
    chosen = [file for file in found.files if _is_part(file.name, is_table)]
    for name in (file.name for file in chosen):  # most file systems have names of 255 bytes at most
        if not name.isprintable() or any(len(part.encode()) > 255 for part in name.split("/")):
            shown = printable(name)[:80]
            raise MissingError(f"{entry.hub_id}: a file of it has a name that no file can have here: {shown}")
    if is_table and not any(file.name == PROMPTS_FILE for file in chosen):
        raise MissingError(f"{entry.hub_id} has no file {PROMPTS_FILE} {at}")
    if not is_table and not any(file.name.endswith(WEIGHTS) for file in chosen):
        others = [file.name for file in found.files if file.name.endswith(catalogue.PICKLES)]
        advice = f", only {others[0]}, and pickles are never loaded" if others else ""
        raise MissingError(f"{entry.hub_id} has no {WEIGHTS} file {at}{advice}")
    return chosen


def _is_part(name: str, is_table: bool) -> bool:
    """True for files of a model folder (configuration, weights, parts, card, licence), or of a prompt set."""
    if is_table or _TEXT.fullmatch(name):
        return name == PROMPTS_FILE or _TEXT.fullmatch(name) is not None
    path = PurePosixPath(name)
    is_wanted = path.name in PART_FILES or path.name.endswith(WEIGHTS)
    return is_wanted and (len(path.parts) == 1 or path.parts[0] in PART_FOLDERS)


def _look(path: Path, blob: Path, content: HubFile) -> DownloadFile:
    """How much of a file is here: all of it (as `path` or `blob`), or what an earlier run has collected."""
    if _has_size(path, content.size) or _has_size(blob, content.size):
        return DownloadFile(content, path, content.size)
    part = remote.unfinished(blob)
    done = min(part.stat().st_size, content.size) if os.path.isfile(part) else 0
    return DownloadFile(content, path, done)


def _has_size(path: Path, size: int) -> bool:
    return os.path.isfile(path) and path.stat().st_size == size


def _fetch_files(job: Download, client: Client) -> Path:
    """Make a repository's files complete, and record them and the name of the commit."""
    entry, home, pin = job.wanted.entry, job.wanted.folder, cache.find_pin(job.wanted.entry.hub_id)
    known = {file.name: file for file in pin.files} if pin and pin.revision == job.revision else {}
    files = []
    for file in job.files:
        name, size = file.content.name, file.content.size
        if _has_size(file.path, size) and name in known:
            client.report(Fetched(name, size, is_new=False))
            files.append(known[name])
        else:
            files.append(HubFile(name, size, _fetch_file(job, file, client)))
    ref = job.wanted.revision or cache.MAIN
    path = home / "refs" / ref  # as the Hub's client notes which commit a branch or tag was
    if job.revision != ref and cache.read_ref(path) != job.revision:
        cache.make_folder_inside(path, home)
        cache.replace_text(path, job.revision)
    found = Commit(entry.hub_id, job.revision, tuple(files), entry.repo_type)
    if found != pin:  # a cache that is complete may be one that cannot be written
        cache.write_pin(found)
    return job.path


def _fetch_file(job: Download, file: DownloadFile, client: Client) -> str:
    """Make one file of a repository complete; returns its sha256."""
    entry, content, home = job.wanted.entry, file.content, job.wanted.folder
    blob = home / "blobs" / content.blob
    is_link = os.path.exists(blob) and os.path.exists(file.path) and file.path.samefile(blob)
    if os.path.isfile(file.path) and not is_link:
        if sha256 := remote.check_file(file.path, content, client):
            client.report(Fetched(content.name, content.size, is_new=False))
            return sha256
        cache.remove_damaged(file.path, home)
    address = remote.file_address(entry.hub_id, content.name, job.revision, entry.repo_type)
    sha256 = remote.ensure_file(blob, content, address, client, home)
    cache.place_file(blob, file.path, home)
    return sha256


def _text_file() -> HubFile:
    name = cache.text_tokenizer_path().name
    return HubFile(name, TEXT_TOKENIZER_BYTES, TEXT_TOKENIZER_SHA256)


def _fetch_text(job: Download, client: Client) -> Path:
    """The text tokenizer from its first home, or from the second if that does not give it."""
    file, path, addresses = _text_file(), job.path, _text_addresses(client)
    try:
        remote.ensure_file(path, file, next(addresses), client, path.parent)
    except (MissingError, VerificationError) as first:
        try:
            remote.ensure_file(path, file, next(addresses), client, path.parent)
        except MissingError as second:
            raise type(first)(f"{first}; nor from the Hub: {second}") from second
    return path


def _text_addresses(client: Client) -> Iterator[Address]:
    """The released text tokenizer: in the reference's repository, then in its demo on the Hub."""
    name, endpoint = cache.text_tokenizer_path().name, os.environ.get("FOURM_GITHUB_ENDPOINT") or GITHUB
    yield Address(TEXT_TOKENIZER, f"{endpoint.rstrip('/')}/{GITHUB_FOLDER}/{name}", sends_token=False)
    space = remote.ask_commit(SPACE, "space", "", client)
    for file in space.files:
        if PurePosixPath(file.name).name == name:
            found = remote.file_address(SPACE, file.name, space.revision, "space")
            yield replace(found, owner=TEXT_TOKENIZER)
            return
    raise MissingError(f"the Space {SPACE} has no file {name}")


def _short(hub_id: str) -> str:
    entry = find_entry(hub_id)
    return entry.name if entry else hub_id
