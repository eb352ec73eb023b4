"""What checking an output folder finds: kinds of problems and notes, and the verdict on the folder."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fourm.errors import UsageError, as_addresses, printable
from fourm.files.writing import PARTIAL, foreign_leftovers
from fourm.output.processes import FAILURES
from fourm.output.record import EVAL, NEXT, PLOTS

# Kinds of findings, then kinds of notes, which report no damage.
FOREIGN, MISSING, TRUNCATED, ALTERED, UNREADABLE = "foreign", "missing", "truncated", "altered", "unreadable"
UNFINISHED, UNLISTED, OLDER = "unfinished", "unlisted", "older"
ORDER = (FOREIGN, MISSING, TRUNCATED, ALTERED, UNREADABLE)  # in which findings are listed
# Folders directly below the root that hold no results, and what they are for.
OTHER_FOLDERS = {PARTIAL: "unfinished files", PLOTS: "plots", EVAL: "measures"}
Report = Callable[[int, int], None]  # is given the number of files read so far and about how many there are


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem with a file, or a note about it."""

    kind: str  # FOREIGN ... UNREADABLE for a problem, UNFINISHED, UNLISTED or OLDER for a note
    file: str  # path relative to the output folder, with "/"
    detail: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found in a folder."""

    root: Path
    samples: int  # that have at least one result
    failed: int  # results that are listed as failed and do not exist
    files: int  # that were read
    findings: tuple[Finding, ...]  # empty if the folder is as its runs left it
    notes: tuple[Finding, ...]
    failures: str = FAILURES  # where failed results are listed

    @property
    def ok(self) -> bool:
        """True if there are no findings; notes are allowed."""
        return not self.findings

    def to_json(self) -> dict[str, object]:
        """The verdict as plain data for JSON."""
        facts = asdict(self)
        del facts["failures"]
        return {"out": str(facts.pop("root")), "ok": self.ok, **facts}


def check_reserved(root: Path, name: str, is_folder: bool) -> Iterator[Finding]:
    """What is to be said about a name directly below root that runs use for other things than results."""
    if name in OTHER_FOLDERS and not is_folder:
        yield Finding(FOREIGN, name, f"is a file or a link in place of the folder for {OTHER_FOLDERS[name]}")
    elif name == PARTIAL:
        for other in foreign_leftovers(root):
            yield Finding(FOREIGN, f"{name}/{other}", "no process of this program wrote it")
        what = "of a process that is running or was killed; `resume=True` deletes those of killed ones"
        yield Finding(UNFINISHED, name, what)
    elif name in NEXT.values():
        what = "`overwrite=True` was interrupted while it deleted files; `resume=True` continues it"
        yield Finding(MISSING, name, what)


def reason_of(error: UsageError, path: Path) -> str:
    """The sentence of an error without the path that it begins with."""
    return str(error).removeprefix(as_addresses(f"{printable(str(path))}: "))
