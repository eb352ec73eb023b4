"""The Hub's cache on this machine: snapshots, and the record of what was downloaded (`pins.json`)."""

import json
import os
import re
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from fourm.errors import FourMError, MissingError, UsageError
from fourm.files.opening import open_own, read_bytes, real
from fourm.files.writing import lock_file, make_below, write_alone
from fourm.hub.catalogue import CATALOGUE, TEXT_TOKENIZER, Entry, find_entry

MAIN = "main"
MEASURES = "measures"  # folder of the weights of networks of measures that are not on the Hub
_FORMAT = 1  # of pins.json
_OUTSIDE = {entry.record for entry in CATALOGUE.values() if not entry.hub_id}
KEPT = "a folder on the way to it is a link out of the cache, so it is not deleted; do that yourself"
_SHA1, _CHECKSUM = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?|[0-9a-f]{8}")
_WORD = r"(?!\S*(?:--|\.\.))[A-Za-z0-9][\w.-]{0,94}(?<![.-])"
HUB_ID = re.compile(rf"(?:{_WORD}/)?{_WORD}", re.ASCII)  # `EPFL-VILAB/4M-21_B`, or a single word
_NO_PATH = re.compile(r"/\.{0,2}/|[\\\0]")  # in a name of a file, between slashes
_REVISION = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9_][\w./-]{0,254}(?<!/)", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository, with its checksum on record."""

    name: str  # relative to the repository, parts separated by "/"
    size: int  # bytes
    # SHA-256, or its first 8 digits; or as in Git, of 40 digits, SHA-1 of "blob SIZE", a zero byte, content.
    checksum: str = ""


@dataclass(frozen=True, slots=True)
class Commit:
    """A repository at one commit; what `pins.json` has of each repository that was downloaded."""

    hub_id: str  # outside the Hub `Entry.record`
    revision: str  # 40 hexadecimal digits; "" outside the Hub
    files: tuple[HubFile, ...]
    repo_type: str = "model"  # or "dataset" or "space"

    def __post_init__(self) -> None:
        is_type = self.repo_type in ("model", "dataset", "space")
        is_known = not self.revision and self.hub_id in _OUTSIDE
        if not (is_known or _SHA1.fullmatch(self.revision)) or not is_type:
            raise ValueError(f"no commit of a repository: {self.repo_type} {self.revision!r}")
        if len({file.name for file in self.files}) != len(self.files):
            raise ValueError("a file is named twice")
        for file in self.files:
            file.name.encode()  # a ValueError for half a character
            is_path = not _NO_PATH.search(f"/{file.name}/")
            is_size = type(file.size) is int and 0 <= file.size <= 1 << 62
            if not is_path or not is_size or not _CHECKSUM.fullmatch(file.checksum):
                raise ValueError(f"no name, size or checksum of a file: {file.name!r}")

    @property
    def home(self) -> Path:
        """Its folder in the cache, which need not exist."""
        return repository_folder(self.hub_id, self.repo_type) if self.revision else fourm_home()

    @property
    def folder(self) -> Path:
        """Its snapshot in the cache: where its files lie."""
        return self.home / "snapshots" / self.revision if self.revision else self.home


def named_entry(text: str) -> Entry | None:
    """What `NAME` or `NAME@REVISION` stands for: an entry of the catalogue, or one that has only a Hub id."""
    name, at, revision = text.partition("@")
    if at and not _REVISION.fullmatch(revision):
        raise UsageError(f"'{text}': after @ comes a commit, branch or tag of the repository")
    entry = find_entry(name)
    if entry is None and "/" in name and HUB_ID.fullmatch(name):
        entry = Entry(name, name, "model", "", "", 0)
    return replace(entry, revision=revision) if entry else None


def fourm_home() -> Path:
    """`$HF_HOME/fourm`, found as the Hub's client finds its own folder, without importing it."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return _expand(os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")) / "fourm"


def cache_folder() -> Path:
    """The Hub's cache, found as the Hub's client finds it: HF_HUB_CACHE, or below HF_HOME."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return _expand(named) if named else fourm_home().parent / "hub"


def text_tokenizer_path() -> Path:
    """Where the released text tokenizer lies once it is downloaded; it need not exist."""
    return fourm_home() / CATALOGUE[TEXT_TOKENIZER].main_file


def repository_folder(hub_id: str, repo_type: str = "model") -> Path:
    """Where the cache keeps a repository; repo_type is "model" or "dataset"."""
    return cache_folder() / "--".join([f"{repo_type}s", *hub_id.split("/")])


def find_snapshot(hub_id: str, revision: str = "", repo_type: str = "model") -> Path | None:
    """The folder of a commit, branch or tag, named like the commit; None where it is not in the cache.

    Without a revision: the one on record, else the branch main. Its files may be missing or broken links.
    """
    repository, pin = repository_folder(hub_id, repo_type), None if revision else find_pin(hub_id)
    wanted = pin.revision if pin else revision or MAIN
    folder = repository / "snapshots" / (read_ref(repository / "refs" / wanted) or wanted)
    return folder if os.path.isdir(folder) else None


def find_cached(entry: Entry) -> tuple[Path, str] | None:
    """The main file of a catalogue's entry and its commit ("" outside the Hub); None where it is not here."""
    if entry.sources:
        path = converted_path(entry)
        return (path, "") if os.path.isfile(path) else None
    is_text = entry.kind == "text tokenizer"
    folder = fourm_home() if is_text else find_snapshot(entry.hub_id, repo_type=entry.repo_type)
    if folder is None or not os.path.isfile(folder / entry.main_file):
        return None
    return folder / entry.main_file, "" if is_text else folder.name


def converted_path(entry: Entry) -> Path:
    """Where weights that are pickled at their home lie once they are converted; they need not exist."""
    return fourm_home() / MEASURES / f"{entry.name}.safetensors"


def fetched_paths(entry: Entry) -> tuple[Path, ...]:
    """Where such weights lie as they were fetched; they need not exist."""
    return tuple(fourm_home() / MEASURES / source.name for source in entry.sources)


def find_measure(name: str) -> Path:
    """The weights of the network of a measure. MissingError says how to get them.

    name: of the catalogue's entry.
    """
    entry = CATALOGUE[name]
    if found := find_cached(entry):
        return found[0]
    commands = [f"`fourm download {name}` fetches them"]
    if entry.sources:
        is_fetched = all(map(os.path.isfile, fetched_paths(entry)))
        commands = [] if is_fetched else commands
        commands.append(f"`fourm convert weights {name}` makes them safetensors")
    raise MissingError(f"the weights '{name}' are not on this machine; {', '.join(commands)}")


def find_parti() -> Path:
    """The Parti prompt table in the Hub's cache on this machine."""
    if found := find_cached(CATALOGUE["parti-prompts"]):
        return found[0]
    raise MissingError(
        "the Parti prompts are not on this machine; `fourm download parti-prompts` fetches them, "
        "or give the table itself: `data=PartiPrompts.tsv`"
    )


def read_ref(path: Path) -> str:
    """The commit that a branch or tag stood for when it was fetched, or an empty string."""
    try:
        commit = read_bytes(path, 1 << 10).strip()
    except OSError:
        return ""
    return commit.decode() if re.fullmatch(rb"\w{1,64}", commit) else ""


def pins_path() -> Path:
    """The file with all pins; it need not exist."""
    return fourm_home() / "pins.json"


def load_pins() -> dict[str, Commit]:
    """All pins by Hub id; none where nothing was ever downloaded. A damaged file is a `UsageError`."""
    path = pins_path()
    try:
        record = json.loads(read_bytes(path, 1 << 26))
        if record["format"] != _FORMAT:
            raise UsageError(f"{path}: is of another version of this program (format {record['format']})")
        found = {}
        for hub_id, row in record["pins"].items():
            files = [HubFile(name, file["size"], file["sha256"]) for name, file in row["files"].items()]
            found[hub_id] = Commit(hub_id, row["revision"], tuple(files), row["repo_type"])
        return found
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"is damaged ({type(error).__name__}: {error})"
        raise UsageError(f"{path}: {what}; delete it, and the next `fourm download` writes it anew") from None


def find_pin(hub_id: str) -> Commit | None:
    """The pin of a repository, None if it was never downloaded by this program."""
    return load_pins().get(hub_id)


def write_pin(pin: Commit) -> None:
    """Add a pin, or replace the one of its repository; other processes may do the same at the same time."""
    lock = fourm_home() / "pins.lock"  # this file stays
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open_own(lock, "a")
        has_locks = lock_file(file, wait=True)
    except OSError as error:
        raise FourMError(f"{lock}: cannot be written ({error.strerror})") from error
    with file:
        while True:
            rows = {}
            for hub_id, one in sorted((load_pins() | {pin.hub_id: pin}).items()):
                files = {file.name: {"size": file.size, "sha256": file.checksum} for file in one.files}
                rows[hub_id] = {"repo_type": one.repo_type, "revision": one.revision, "files": files}
            text = json.dumps({"format": _FORMAT, "pins": rows}, indent=1) + "\n"
            write_alone(pins_path(), partial(Path.write_text, data=text, encoding="utf-8"))
            if has_locks:
                return
            time.sleep(0.2)  # another process may just have written a file without this pin
            if find_pin(pin.hub_id) == pin:
                return


def place_file(content: Path, pointer: Path, home: Path) -> None:
    """Make `pointer`, a file of a snapshot, a link to the content; where there are no links, the content."""
    if os.path.exists(pointer) and pointer.samefile(content):
        return
    make_below(home, pointer.parent)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(content, pointer.parent))
    except FileExistsError:
        pass  # another process did the same
    except OSError:  # no links
        os.replace(content, pointer)


def remove_file(path: Path, home: Path) -> bool:
    """Delete a file of the repository `home`, and of what it is a link to only a blob of that repository.

    False if nothing was deleted because a folder on the way to it is a link out of the cache.
    """
    root = real(home.parent) / home.name  # `home` itself may be a link to a folder elsewhere
    if not real(path.parent).is_relative_to(root):
        return False
    target = path.parent / os.readlink(path) if path.is_symlink() else None
    path.unlink(missing_ok=True)
    if target is not None and real(target.parent) == root / "blobs":
        remove_file(target, home)
    return True


def _expand(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path)))
