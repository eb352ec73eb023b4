"""File locks, which the kernel releases when a process ends. Some file systems do not support them."""

import errno
import logging
import time
from functools import cache
from typing import BinaryIO

from filelock import lock_descriptor

_MISSING = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_POLL = 0.02  # seconds between two tries to get a lock


def try_lock(file: BinaryIO) -> bool | None:
    """Try to lock an open file: True if locked, False if another process holds it, None without locks."""
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        _say_missing()
        return None


def wait_for_lock(file: BinaryIO) -> bool:
    """Lock an open file, waiting as long as needed; False if the file system has no locks."""
    while (is_ours := try_lock(file)) is False:
        time.sleep(_POLL)
    return bool(is_ours)


@cache
def _say_missing() -> None:
    """Log it once. Without a logging configuration, Python prints warnings to stderr."""
    logging.getLogger("fourm").warning(
        "note: this file system has no file locks; temporary files of a killed process stay for a day, and "
        "two downloads of one file do not wait for each other"
    )
