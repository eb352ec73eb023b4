"""Checksums of weights, remembered on this machine: a large file that is known is not read again."""

import hashlib
import os
import time
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from fourm.errors import FourMError
from fourm.files.opening import open_file, read_bytes
from fourm.files.writing import write_alone
from fourm.hub.cache import fourm_home

LARGE = 64 << 20  # bytes; smaller files are read in a moment
_SETTLED = 2.0  # seconds after its last change, from which on a file's times tell of every new change


@cache
def sha256_of(path: Path) -> str:
    """sha256 of a file that does not change while this process lives, in hexadecimal.

    Of a large file it is remembered in `$HF_HOME/fourm/digests`, under the file's place, size and times:
    whatever changes a file changes the last of them. Where nothing can be written, it is not remembered.
    """
    with open_file(path) as file:
        before = os.fstat(file.fileno())
        known = _place_of(before)
        if before.st_size >= LARGE:
            with suppress(OSError, ValueError):
                digest = read_bytes(known, 64).decode()
                if len(bytes.fromhex(digest)) == hashlib.sha256().digest_size:
                    return digest
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        settled = time.time() - before.st_ctime > _SETTLED and _place_of(os.fstat(file.fileno())) == known
    if before.st_size >= LARGE and settled:
        with suppress(OSError, FourMError):
            write_alone(known, partial(Path.write_text, data=digest, encoding="ascii"))
    return digest


def _place_of(status: os.stat_result) -> Path:
    facts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return fourm_home() / "digests" / hashlib.sha256(repr(facts).encode()).hexdigest()
