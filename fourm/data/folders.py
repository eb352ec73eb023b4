"""Folders of an output folder: made where they are missing, refused where something else has their name."""

import itertools
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from fourm.data.opening import real
from fourm.errors import FourMError, UsageError


def make_below(root: Path, folder: Path) -> None:
    """Make a folder below root, and those between; FileNotFoundError where root itself is missing.

    FourMError where a link on the way leads out of root: nothing may be written there.
    """
    if leads_out(root, folder):
        raise FourMError(f"{folder} is a link out of {root}; nothing is written there")
    _make_folders(root, folder)


def make_folder(folder: Path) -> None:
    """Make a folder that may be there. `exist_ok` fails if another process removes it at the same moment."""
    with suppress(FileExistsError):
        folder.mkdir()


def make_all(folder: Path) -> None:
    """Make a folder and those above it; `parents=True` is a recursion, for which a thousand are too many."""
    above = itertools.takewhile(lambda path: not os.path.lexists(path), folder.parents)
    for path in (*reversed(tuple(above)), folder):
        path.mkdir(exist_ok=True)


def leads_out(root: Path, folder: Path) -> bool:
    """Whether a link on the way to a folder below root leads out of root."""
    return not real(folder).is_relative_to(real(root))


def mode_of(path: Path) -> int | None:
    """`st_mode` of what is at a path, of a link itself; None if nothing is there.

    A single call, so that no other process changes what is there between two questions.
    """
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def check_root(out: Path) -> None:
    """Refuse an output folder whose name, or that of a folder above it, is taken by something else."""
    there = next((folder for folder in (out, *out.parents) if os.path.lexists(folder)), None)
    if there is not None and not there.is_dir():
        what = "a file" if there.exists() else "a link to nowhere"
        raise UsageError(f"--out {out}: {'' if there == out else f'{there} '}is {what}, not a folder")


def check_folder(root: Path, folder: Path) -> None:
    """UsageError where a folder below root is due, and something else has taken its name."""
    if os.path.lexists(folder) and (not folder.is_dir() or leads_out(root, folder)):
        raise UsageError(f"{folder}: is a file or a link out of {root}, not a folder; move it away")


def check_apart(out: Path, samples: Iterable[tuple[str, Mapping[str, Path]]]) -> None:
    """UsageError where an output folder lies in a modality's folder that is read.

    samples: of each the folder of its key, and its files, `root/modality/folder/name.ext`, by modality.

    Its results would be taken for samples of the dataset, so `--resume` would find other samples than before.
    """
    # A thousand samples share a folder, and there may be a million of them.
    one_of = {(name, folder): path for folder, files in samples for name, path in files.items()}
    tops = {
        path.parents[folder.count("/") + 1]
        for (_, folder), path in one_of.items()
        if path.parent.as_posix().endswith(f"/{folder}")
    }
    for top in sorted(tops):
        refuse_inside(out, top)


def refuse_inside(out: Path, top: Path) -> None:
    """UsageError where an output folder is a modality's folder that is read, or lies in it."""
    there, around = real(out), real(top)
    # What begins with a dot is no sample.
    if there.is_relative_to(around) and not any(
        part.startswith(".") for part in there.relative_to(around).parts
    ):
        raise UsageError(
            f"--out {out}: lies in {top}, which this command reads, so results would be taken for samples; "
            "name a folder elsewhere"
        )


def _make_folders(root: Path, folder: Path) -> None:
    if folder == root:
        root.stat()
        return
    try:
        make_folder(folder)
    except FileNotFoundError:
        _make_folders(root, folder.parent)
        make_folder(folder)
