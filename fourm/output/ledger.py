"""What processes wrote down in an output folder, checked: launches, lists of checksums, failures."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fourm.data.opening import read_bytes
from fourm.errors import UsageError
from fourm.output.checksums import Listed, sha256_of_file
from fourm.output.processes import (
    ANY_RUN,
    CHECKSUMS,
    FAILED,
    FAILURES,
    LAUNCH,
    MAX_LIST_BYTES,
    PROCESSES,
    Failure,
    Launch,
    ProcessFile,
    is_launch_as_written,
    list_processes,
    noted_failures,
    read_failures,
    read_launch,
    scan_checksums,
    to_line,
)

MISSING, TRUNCATED, ALTERED, FOREIGN = "missing", "truncated", "altered", "foreign"
UNREADABLE = "unreadable"
UNFINISHED, UNLISTED = "unfinished", "unlisted"  # notes: nothing is wrong with a file


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be, or worth knowing."""

    kind: str
    file: str  # below the folder, with "/"
    detail: str


@dataclass(slots=True)
class Ledger:
    """All of it in one folder, and what is wrong with it."""

    root: Path
    sums: dict[str, Listed] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)  # of samples that were not made since
    findings: list[Finding] = field(default_factory=list)
    _is_readable: bool = True  # the failures

    @staticmethod
    def of(root: Path) -> "Ledger":
        """Read the files of all processes, and what else lies beside them."""
        ledger = Ledger(root)
        files, strange = list_processes(root)
        for name in strange:
            ledger.find(FOREIGN, f"{PROCESSES}/{name}", "no process of this program wrote it")
        by_process = dict[str, dict[str, ProcessFile]]()
        for file in files:
            by_process.setdefault(file.path.stem, {})[file.kind] = file
        for name, kinds in by_process.items():
            ledger._read_process(f"{PROCESSES}/{name}", kinds)
        try:
            ledger.failures = read_failures(root)
        except (OSError, UsageError) as error:
            ledger.find(UNREADABLE, FAILURES, f"cannot be read ({why(error)})")
            ledger._is_readable = False
        return ledger

    def find(self, kind: str, file: str, detail: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(kind, file, detail))

    def check_failures(self) -> None:
        """Whether `failures.jsonl` is what its processes made of their own lists; all of them have ended."""
        lists = (f.file for f in self.findings if f.file.startswith(PROCESSES))
        if not self._is_readable or any(file.endswith(FAILED) for file in lists):
            return  # told already
        noted, path = noted_failures(self.root), self.root / FAILURES
        told = read_bytes(path, MAX_LIST_BYTES).splitlines(keepends=True) if os.path.lexists(path) else []
        lines = {where: to_line(noted[where]).encode() for where in sorted(noted)}
        lost = [f for f in noted.values() if not f.is_resolved(self.root) and lines[f.where] not in told]
        if lost and not told:
            self.find(MISSING, FAILURES, f"{len(lost)} more failed samples are noted in {PROCESSES}")
        elif lost or told != [line for line in lines.values() if line in told]:
            what = f"{len(lost)} more failed samples are noted" if lost else "other lines are noted"
            self.find(ALTERED, FAILURES, f"{what} in {PROCESSES}")
        elif os.path.lexists(path) and not told:
            self.find(FOREIGN, FAILURES, "is empty, and no process leaves such")

    def _read_process(self, name: str, kinds: Mapping[str, ProcessFile]) -> None:
        """What one process wrote down, which it noted when it ended."""
        noted: Mapping[str, str] = {}
        if LAUNCH in kinds:
            noted = self._read_launch(name + LAUNCH, kinds[LAUNCH])
        elif any(file.run != ANY_RUN for file in kinds.values()):
            self.find(MISSING, name + LAUNCH, "other files of this process are here")
        for kind in sorted(noted.keys() - kinds.keys()):
            self.find(MISSING, name + kind, f"{name}{LAUNCH} tells of it")
        for kind, file in kinds.items():
            try:
                wrong = self._read_list(file, is_finished=kind in noted) if kind == CHECKSUMS else ""
                is_changed = kind in noted and sha256_of_file(file.path) != noted[kind]
            except (OSError, UsageError) as error:
                self.find(UNREADABLE, name + kind, f"cannot be read ({why(error)})")
            else:
                if wrong or is_changed:
                    self.find(ALTERED, name + kind, wrong or "was changed after its process had ended")

    def _read_launch(self, name: str, file: ProcessFile) -> Mapping[str, str]:
        """The checksums of the other files of a process that has ended."""
        try:
            launch: Launch = read_launch(file.path)
        except UsageError as error:
            self.find(ALTERED, name, str(error).partition(": ")[2])
            return {}
        if not is_launch_as_written(file, launch):
            self.find(ALTERED, name, "is not as its process wrote it, or not under its name")
        return launch.files

    def _read_list(self, file: ProcessFile, is_finished: bool) -> str:
        """Take in checksums; says what is wrong. Of a killed process the last line may be cut off."""
        scan = scan_checksums(file.path)
        self.sums |= scan.listed
        damaged = scan.damaged + (scan.cut if is_finished else [])
        more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        return f"line {damaged[0]}{more} is cut off or holds no checksum" if damaged else ""


def why(error: Exception) -> str:
    """What an error says, without the file that it names."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
