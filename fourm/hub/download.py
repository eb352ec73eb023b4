"""Downloads into the Hub's cache: what is asked for, what of it is missing, fetched, checked and recorded."""

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from fourm.errors import FourMError, MissingError, UsageError, VerificationError, printable
from fourm.files.writing import make_below, write_alone
from fourm.hub import cache, catalogue, remote
from fourm.hub.cache import Commit, HubFile
from fourm.hub.catalogue import CATALOGUE, DEMO, DEMO_SR, GROUPS, TEXT_TOKENIZER, Entry, Source, find_entry
from fourm.hub.header import CONFIG_FILE
from fourm.hub.remote import Address, Advanced, Client, UnreachableError

PART_FILES = (CONFIG_FILE, "modalities.yaml", "text_tokenizer.json", "prompts.txt")
PART_FOLDERS = ("sr", "tokenizers")  # of a model folder
WEIGHTS = ".safetensors"
GITHUB = "https://raw.githubusercontent.com"  # FOURM_GITHUB_ENDPOINT names another
GITHUB_FOLDER = "apple/ml-4m/cda590faa3b9f022c28537193d3e1650527646a3/fourm/utils/tokenizer/trained"
_SHA256 = "8e684e9a0673e39f70702a698869f909ba697f871a0c6b2a07b5f61e91b3526e"
_RELEASED_TEXT = CATALOGUE[TEXT_TOKENIZER]
TEXT = Commit("", "", (HubFile(_RELEASED_TEXT.main_file, _RELEASED_TEXT.num_bytes, _SHA256),))
SPACE = "EPFL-VILAB/4M"  # the demo on the Hub, which brings a copy of the text tokenizer
_ABOUT = re.compile(r"(?:README|LICEN[CS]E|NOTICE)[\w-]*(?:\.md|\.txt|\.rst)?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Download:
    """One repository at one commit, or the text tokenizer, and what of it is to be fetched."""

    entry: Entry  # of the catalogue, or one that has only a Hub id; with the revision that was asked for
    revision: str  # the commit; "" outside the Hub
    folder: Path  # where its files lie once they are complete: the snapshot
    files: tuple[HubFile, ...]  # as the Hub, or the record, has them
    done: Mapping[str, int]  # bytes of each file that are here, perhaps not yet compared with the checksum
    unconfirmed: str = ""  # why the Hub was not asked; then files and sizes are those known here

    @property
    def path(self) -> Path:
        """What it will be: the snapshot's folder, or the one file."""
        if self.entry.sources:
            return self.folder / cache.MEASURES
        is_file = self.entry.kind in ("prompts", "text tokenizer")
        return self.folder / self.entry.main_file if is_file else self.folder

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(file.size for file in self.files)

    @property
    def to_fetch(self) -> int:
        """Bytes that are not here yet."""
        return self.num_bytes - sum(self.done.values())

    @property
    def licence(self) -> str | None:
        """Name of the terms that must be shown, if this is the first download of something under them."""
        is_first = self.to_fetch and cache.find_pin(self.entry.hub_id) is None
        return self.entry.licence if is_first and self.entry.licence == "non-commercial" else None

    def to_json(self) -> dict[str, object]:
        """The job as plain data."""
        return {
            "name": self.entry.name, "hub_id": self.entry.hub_id, "revision": self.revision,
            "path": str(self.path), "bytes": self.num_bytes, "to_fetch": self.to_fetch,
            "files": [{"name": file.name, "bytes": file.size, "to_fetch": file.size - self.done[file.name]}
                      for file in self.files],
            "is_estimate": bool(self.unconfirmed),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verified:
    """The result of comparing one file with the record."""

    name: str  # of what it belongs to, short where there is a short name
    file: str
    path: Path
    problem: str  # "" = it is right, "missing" or "damaged"
    removed: bool = False  # True if it was damaged and the cache's own


def read_wanted(
    names: Sequence[str], named: Mapping[str, str] | None = None, where: str = "", revision: str | None = None
) -> tuple[Entry, ...]:
    """Everything that is named, each once; mistakes are a `UsageError` before anything is fetched.

    named: what a YAML file names, by key (`fourm.schedule.settings.read_names`); where: that file.
    """
    found = [_named(member) for name in names for member in GROUPS.get(name.lower(), (name,))]
    from_file = list[Entry]()
    for key, name in (named or {}).items():
        if key == "data_path":
            from_file += [_named("parti-prompts")] if name == catalogue.PARTI else []
        elif os.path.exists(os.path.expanduser(name)):
            continue  # what is a path on this machine needs no download
        elif key == "text_tok_path":
            if Path(name).name not in (TEXT_TOKENIZER, cache.text_tokenizer_path().name):
                raise UsageError(f"{where}: text_tok_path: {name}: no such file, nor {TEXT_TOKENIZER}")
            from_file.append(_named(TEXT_TOKENIZER))
        elif name not in (DEMO, DEMO_SR):
            try:
                from_file.append(_named(name))
            except UsageError as error:
                raise UsageError(f"{where}: {key}: {error}") from None
    if named is not None and not from_file and not named.keys() - {"text_tok_path", "data_path"}:
        raise UsageError(f"{where}: names no model, tokenizer or prompt set")
    found = list({(one.name, one.revision): one for one in (*found, *from_file)}.values())
    if revision is None:
        return tuple(found)
    one = found[0] if len(found) == 1 else None
    if one is None or not one.hub_id:
        raise UsageError("`revision` is for one repository; with several write NAME@REVISION for each")
    if one.revision not in ("", revision):
        raise UsageError(f"`revision={revision}`: {one.name}@{one.revision} is named; give one of them")
    return (_named(f"{one.name}@{revision}"),)


def plan_downloads(wanted: Sequence[Entry], client: Client, is_estimate: bool = False) -> list[Download]:
    """What is to be fetched; the Hub is asked only for what is not here complete and on record.

    An estimate takes what is known here where the Hub cannot be asked. Such jobs say so, and are not fetched.
    """
    remote.check_variables()
    jobs, away = list[Download](), ""  # away: why the Hub cannot be asked
    for entry in wanted:
        pin = TEXT if entry.kind == "text tokenizer" else cache.find_pin(entry.record)
        if pin and entry.revision not in ("", pin.revision):
            pin = None
        # Of what is outside the Hub and on record there is nothing to ask.
        if pin and (not pin.revision or all(_is_whole(pin.folder / file.name, file) for file in pin.files)):
            jobs.append(_job(entry, pin))
            continue
        can_estimate = is_estimate and (pin or entry.num_bytes)
        if not away or not can_estimate:
            try:
                if entry.sources:
                    jobs.append(_job(entry, _ask_sources(entry, client)))
                    continue
                revision = pin.revision if pin else entry.revision
                found = remote.ask_commit(entry.hub_id, entry.repo_type, revision, client)
                jobs.append(_job(entry, replace(found, files=_choose(entry, found)), found.home / "blobs"))
                continue
            except UnreachableError as error:
                if not can_estimate:
                    raise
                away = str(error)
        jobs.append(replace(_job(entry, pin) if pin else _estimate(entry), unconfirmed=away))
    return jobs


def check_room(jobs: Sequence[Download]) -> None:
    """Refuse what does not fit on the disk."""
    folder, size = cache.cache_folder(), sum(job.to_fetch for job in jobs)
    top = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(top).free
    if free < size:
        raise FourMError(f"{size:,} bytes are to be fetched, but only {free:,} are free on the disk of {top}")


def fetch(job: Download, client: Client) -> Path:
    """Make a job's files complete and record them; returns its path.

    MissingError for what cannot be fetched, VerificationError for a damaged file, which is removed.
    """
    from huggingface_hub import hf_hub_url

    entry, files = job.entry, list[HubFile]()
    try:
        if entry.kind == "text tokenizer":
            _fetch_text(job, client)
            return job.path
        if entry.sources:
            for file, source in zip(job.files, entry.sources, strict=True):
                path, address = job.folder / file.name, _address(entry, source)
                sha256 = remote.ensure_file(path, path, file, address, client, job.folder)
                files.append(replace(file, checksum=sha256))
            _record(Commit(entry.record, "", tuple(files)))
            return job.path
        home, pin = job.folder.parents[1], cache.find_pin(entry.hub_id)
        known = {file.name: file for file in pin.files} if pin and pin.revision == job.revision else {}
        for file in job.files:
            path, blob = job.folder / file.name, home / "blobs" / file.checksum
            if file.name in known and _is_whole(path, file):
                client.report(Advanced(file.name, file.size, file.size, "present"))
                files.append(known[file.name])
                continue
            url = hf_hub_url(entry.hub_id, file.name, revision=job.revision, repo_type=entry.repo_type)
            address = Address(entry.hub_id, url, file.name)
            files.append(replace(file, checksum=remote.ensure_file(path, blob, file, address, client, home)))
        ref = entry.revision or cache.MAIN
        path = home / "refs" / ref  # as the Hub's client notes which commit a branch or tag was
        if job.revision != ref and cache.read_ref(path) != job.revision:
            make_below(home, path.parent)
            write_alone(path, partial(Path.write_text, data=job.revision))  # replaces a link
        _record(Commit(entry.hub_id, job.revision, tuple(files), entry.repo_type))
        return job.path
    except OSError as error:
        told = f"{error.filename or job.path}: cannot be written ({error.strerror or error})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = f"{job.entry.name}: no space is left on the disk of {cache.cache_folder()}"
            told += "; what has arrived is kept, so the same command goes on when there is room"
        raise FourMError(told) from error


def verify_cached(hub_ids: Sequence[str] | None, client: Client) -> tuple[Verified, ...]:
    """Compare what is cached with the record, without a network; None = all that is on record.

    What is outside the Hub has the id `Entry.record`. A damaged file is removed, so that the next download
    fetches it again.
    """
    pins = cache.load_pins() | {"": TEXT}
    if hub_ids is None:
        hub_ids = [hub_id for hub_id, pin in pins.items() if _is_begun(pin)]
    found = list[Verified]()
    for hub_id in hub_ids:
        entry = find_entry(hub_id or TEXT_TOKENIZER)
        name = entry.name if entry else hub_id
        if hub_id not in pins:
            advice = f"`fourm download {name}` fetches, checks and records it"
            raise MissingError(f"{name}: not on record, so there is nothing to compare with; {advice}")
        for file in pins[hub_id].files:
            path, problem, is_removed = pins[hub_id].folder / file.name, "", False
            if not os.path.isfile(path):
                problem = "missing"
            elif not remote.check_file(path, file, client):
                problem, is_removed = "damaged", cache.remove_file(path, pins[hub_id].home)
            found.append(Verified(name, file.name, path, problem, is_removed))
    return tuple(found)


def _named(text: str) -> Entry:
    """One thing by its short name or Hub id, with or without `@REVISION`."""
    entry, name = cache.named_entry(text), text.partition("@")[0]
    if entry is not None and entry.revision and not entry.hub_id:
        raise UsageError(f"{text}: {entry.title} has one version only; leave out @{entry.revision}")
    if entry is not None:
        return entry
    if name in (DEMO, DEMO_SR):
        raise UsageError("the demo model is built in; there is nothing to download")
    if os.path.exists(name):
        raise UsageError(f"{name}: is on this machine already; a short name or Hub id is expected")
    if name in GROUPS:
        raise UsageError(f"{text}: a group has no common revision; write NAME@REVISION for each")
    advice = catalogue.near_entry(name) or "; `fourm download --list` shows all names"
    raise UsageError(f"'{name}' is neither a known name nor a Hub id{advice}")


def _ask_sources(entry: Entry, client: Client) -> Commit:
    """The files of an entry outside the Hub, with their sizes and what is known of their checksums."""
    files = [
        HubFile(f"{cache.MEASURES}/{one.name}", remote.ask_size(_address(entry, one), client), one.sha256)
        for one in entry.sources
    ]
    return Commit(entry.record, "", tuple(files))


def _address(entry: Entry, source: Source) -> Address:
    return Address(entry.name, source.url, source.name, sends_token=False)


def _record(found: Commit) -> None:
    """Write what was found, unless it is on record: a complete cache may be one that cannot be written."""
    if found != cache.find_pin(found.hub_id):
        cache.write_pin(found)


def _is_begun(pin: Commit) -> bool:
    """Whether something of what is on record is here; of a repository, its folder."""
    here = (os.path.exists(pin.folder / file.name) for file in pin.files)
    return os.path.isdir(pin.folder) if pin.revision else any(here)


def _estimate(entry: Entry) -> Download:
    """What the catalogue knows: the largest file, and whether it is here."""
    if entry.sources:
        return Download(
            entry, "", cache.fourm_home(), (HubFile(entry.name, entry.num_bytes),), {entry.name: 0}
        )
    here = None if entry.revision else cache.find_cached(entry)
    path, revision = here or (cache.repository_folder(entry.hub_id, entry.repo_type) / entry.main_file, "")
    size = path.stat().st_size if here else entry.num_bytes
    files, done = (HubFile(entry.main_file, size),), {entry.main_file: size if here else 0}
    return Download(entry, revision, path.parent, files, done)


def _job(entry: Entry, commit: Commit, blobs: Path | None = None) -> Download:
    """A download, and what of each file is here: all of it, or what an earlier run has collected."""
    done = {}
    for file in commit.files:
        path = commit.folder / file.name
        blob = blobs / file.checksum if blobs else path
        part = remote.unfinished(blob)
        collected = min(part.stat().st_size, file.size) if os.path.isfile(part) else 0
        done[file.name] = file.size if _is_whole(path, file) or _is_whole(blob, file) else collected
    return Download(entry, commit.revision, commit.folder, commit.files, done)


def _is_whole(path: Path, file: HubFile) -> bool:
    return os.path.isfile(path) and path.stat().st_size == file.size


def _choose(entry: Entry, found: Commit) -> tuple[HubFile, ...]:
    """Files of a model folder or prompt set, card and licence; never one that would have to be unpickled."""
    is_table, at, chosen = entry.kind == "prompts", f"at {found.revision[:7]}", list[HubFile]()
    for file in found.files:
        path = PurePosixPath(file.name)
        is_part = path.name in PART_FILES or path.name.endswith(WEIGHTS)
        is_part |= entry.kind == "measure" and path.name == "tokenizer.json"
        is_part &= len(path.parts) == 1 or path.parts[0] in PART_FOLDERS
        if (file.name == entry.main_file if is_table else is_part) or _ABOUT.fullmatch(file.name):
            chosen.append(file)
            # Most file systems have names of 255 bytes at most.
            if not file.name.isprintable() or any(len(part.encode()) > 255 for part in path.parts):
                told = f"a file of it has a name that no file can have here: {printable(file.name)[:80]}"
                raise MissingError(f"{entry.hub_id}: {told}")
    if not any(file.name == entry.main_file if is_table else file.name.endswith(WEIGHTS) for file in chosen):
        others = [file.name for file in found.files if file.name.endswith(catalogue.PICKLES)]
        advice = f", only {others[0]}, and pickles are never loaded" if others and not is_table else ""
        what = f"file {entry.main_file}" if is_table else f"{WEIGHTS} file"
        raise MissingError(f"{entry.hub_id} has no {what} {at}{advice}")
    return tuple(sorted(chosen, key=lambda file: file.size))  # the licence before the weights


def _fetch_text(job: Download, client: Client) -> None:
    """The text tokenizer from the reference's repository, or from its demo on the Hub if that fails."""
    from huggingface_hub import hf_hub_url

    (file,), endpoint = job.files, os.environ.get("FOURM_GITHUB_ENDPOINT") or GITHUB
    url = f"{endpoint.rstrip('/')}/{GITHUB_FOLDER}/{file.name}"
    address = Address(TEXT_TOKENIZER, url, file.name, sends_token=False)
    try:
        remote.ensure_file(job.path, job.path, file, address, client, job.folder)
    except (MissingError, VerificationError) as first:
        try:
            space = remote.ask_commit(SPACE, "space", "", client)
            names = [one.name for one in space.files if PurePosixPath(one.name).name == file.name]
            if not names:
                raise MissingError(f"the Space {SPACE} has no file {file.name}")
            url = hf_hub_url(SPACE, names[0], revision=space.revision, repo_type="space")
            address = Address(TEXT_TOKENIZER, url, file.name)
            remote.ensure_file(job.path, job.path, file, address, client, job.folder)
        except MissingError as second:
            raise type(first)(f"{first}; nor from the Hub: {second}") from second
