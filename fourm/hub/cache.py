"""What the Hub's cache holds on this machine: snapshots of repositories. Nothing is fetched here."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from fourm.data.opening import read_bytes
from fourm.errors import UsageError
from fourm.hub.catalogue import PROMPTS_FILE, WEIGHTS_FILE, Entry, Part
from fourm.hub.pins import fourm_home, pinned_revision, text_tokenizer_path

MAIN = "main"
MAX_REF_BYTES = 1 << 10
_WORD = r"(?!\S*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,94}(?<![.-])"
_HUB_ID = re.compile(rf"(?:{_WORD}/)?{_WORD}", re.ASCII)
_REVISION = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9_][\w./-]{0,254}(?<!/)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository as it lies in the cache; files may be missing or broken links."""

    folder: Path
    revision: str  # the commit


def is_hub_id(name: str) -> bool:
    """True for what could be a repository's name: `EPFL-VILAB/4M-21_B`, or a single word."""
    return _HUB_ID.fullmatch(name) is not None


def split_revision(name: str) -> tuple[str, str]:
    """`NAME@REVISION` in two; the revision is "" where none is named."""
    name, at, revision = name.partition("@")
    if at and not _REVISION.fullmatch(revision):
        raise UsageError(f"'{name}@{revision}': after @ comes a commit, branch or tag of the repository")
    return name, revision


def cache_folder() -> Path:
    """Where the Hub's cache lies, found as the Hub's client finds it: HF_HUB_CACHE, or below HF_HOME."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(os.path.expandvars(os.path.expanduser(named))) if named else fourm_home().parent / "hub"


def repository_folder(hub_id: str, repo_type: str = "model") -> Path:
    """Where the cache keeps a repository; repo_type is "model" or "dataset"."""
    return cache_folder() / "--".join([f"{repo_type}s", *hub_id.split("/")])


def find_snapshot(hub_id: str, revision: str = "", repo_type: str = "model") -> Snapshot | None:
    """The snapshot of a commit, branch or tag; None where it is not in the cache.

    Without a revision it is the one that was recorded when the repository was fetched, else the branch main.
    """
    repository = repository_folder(hub_id, repo_type)
    wanted = revision or pinned_revision(hub_id) or MAIN
    commit = read_ref(repository / "refs" / wanted) or wanted
    folder = repository / "snapshots" / commit
    return Snapshot(folder, commit) if os.path.isdir(folder) else None


def find_cached(entry: Entry) -> tuple[Path, str] | None:
    """The main file of a catalogue's entry and its commit ("" outside the Hub); None where it is not here."""
    if entry.kind is Part.TEXT_TOKENIZER:
        path = text_tokenizer_path()
        return (path, "") if os.path.isfile(path) else None
    snapshot = find_snapshot(entry.hub_id, repo_type=entry.repo_type)
    if snapshot is None:
        return None
    path = snapshot.folder / (PROMPTS_FILE if entry.kind is Part.PROMPTS else WEIGHTS_FILE)
    return (path, snapshot.revision) if os.path.isfile(path) else None


def read_ref(path: Path) -> str:
    """The commit that a branch or tag stood for when it was fetched, or an empty string."""
    try:
        commit = read_bytes(path, MAX_REF_BYTES).decode("ascii").strip()
    except (OSError, ValueError):
        return ""
    return commit if re.fullmatch(r"\w{1,64}", commit, re.ASCII) else ""
