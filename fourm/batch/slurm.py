"""A sharded run as an array of SLURM: a script for `sbatch`, each of whose tasks makes its shards."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence

from fourm.errors import FourMError, UsageError

# Options of a command that its tasks do not have: by name, whether a value follows.
_DRIVER = {
    "--executor": True, "--workers": True, "--sbatch": True, "--gpus-per-worker": True, "--dry-run": False,
    "--resume": False, "--shard": True,
}  # fmt: skip


def task_command(command: Sequence[str], out: str) -> list[str]:
    """What each task runs: the command that was typed, without what concerns the program that submits."""
    words, left = list[str](), iter(command[1:])
    for word in left:
        name, equals, _ = word.partition("=")
        if word == "--":  # only arguments follow
            break
        if name not in _DRIVER:
            words.append(word)
        elif _DRIVER[name] and not equals:
            next(left, None)
    if not any(re.match("--out(=|$)", word) for word in words):
        words += ["--out", out]
    arguments = [*left]
    words += ["--shard", "array", *(["--", *arguments] if arguments else [])]
    return [sys.executable, "-m", "fourm_cli", *words]


def job_script(command: Sequence[str], tasks: int, sbatch: str = "") -> str:
    """A script for `sbatch`. sbatch: more of its options, as they are typed there."""
    try:
        more = shlex.split(sbatch)
    except ValueError as error:
        raise UsageError(f"`sbatch`: '{sbatch}' cannot be read ({error})") from error
    if wrong := next((word for word in more if not word.startswith("-") or "\n" in word), None):
        raise UsageError(f"`sbatch`: '{wrong}' is no option; one with a value is --NAME=VALUE")
    given = ["--job-name=fourm", f"--array=0-{tasks - 1}", "--requeue", f"--chdir={os.getcwd()}", *more]
    lines = [f"#SBATCH {shlex.quote(word)}" for word in given]
    return "\n".join(["#!/bin/sh", *lines, f"exec {shlex.join(command)}", ""])


def submit(script: str) -> str:
    """Give a script to `sbatch`; the number of its job."""
    try:
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, capture_output=True, text=True, check=False
        )
    except OSError as error:
        what = f"sbatch cannot be run ({error.strerror}); `dry_run` prints the script"
        raise FourMError(f"`executor=slurm`: {what}") from error
    if done.returncode:
        said = done.stderr.strip() or f"it ended with exit code {done.returncode}"
        raise FourMError(f"`executor=slurm`: sbatch refused the job: {said}")
    return done.stdout.strip().partition(";")[0]
