"""`fourm verify`: an output folder against what its runs have written down."""

import sys
import time
from collections.abc import Callable

import typer

from fourm.errors import VerificationError, printable
from fourm.output.ledger import Finding
from fourm.output.verify import Verdict, verify_folder
from fourm_cli.console import PLAIN_LINE_SECONDS, note, print_json, print_table
from fourm_cli.options import AsJson, Folder, parse_folder

EXAMPLES = """
[bold]Examples[/bold]

fourm verify out/001

fourm generate "a red circle" | fourm verify -

fourm verify out/001 --json | jq -r '.findings[].file'
"""
SHOWN = 20  # findings that get a line of their own; --json has all


def verify(folder: Folder, as_json: AsJson = False) -> None:
    """Check an output folder: files that are missing, cut off, altered or not of its run (exit code 5)."""
    verdict = verify_folder(parse_folder(folder, sys.stdin.buffer), _teller())
    if as_json:
        print_json(verdict.to_json())
    else:
        _show(verdict)
    if not verdict.ok:
        raise typer.Exit(VerificationError.exit_code)


def _show(verdict: Verdict) -> None:
    """The first findings as a table, and a last line that says it all."""
    if shown := [*verdict.findings[:SHOWN], *verdict.notes[:SHOWN]]:
        print_table(("what", "file", "detail"), [_row(finding) for finding in shown])
    if (rest := len(verdict.findings) - SHOWN) > 0:
        print(f"... and {rest:,} more")
    kinds = [finding.kind for finding in verdict.findings]
    counts = [f"{kinds.count(kind):,} {kind}" for kind in dict.fromkeys(kinds)]
    results = "result" if verdict.failed == 1 else "results"
    failed = f", {verdict.failed:,} {results} failed (see failures.jsonl)" if verdict.failed else ""
    samples = "sample" if verdict.samples == 1 else "samples"
    what = f"{verdict.files:,} files of {verdict.samples:,} {samples} checked{failed}"
    print(f"{'ok' if verdict.ok else 'not ok'}: {what}{': ' if counts else ''}{', '.join(counts)}")


def _row(finding: Finding) -> tuple[str, str, str]:
    return finding.kind, printable(finding.file), finding.detail


def _teller() -> Callable[[int, int], None]:
    """Says on stderr the progress of a slow check, every few seconds."""
    spoken = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= PLAIN_LINE_SECONDS:
            spoken = time.monotonic()
            note(f"{done:,} of {total:,} files")

    return tell
