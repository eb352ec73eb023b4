"""Locks of files that the kernel frees when their process ends, where the file system has such locks."""

import errno
import logging
import time
from functools import cache
from typing import BinaryIO

from filelock import lock_descriptor

_MISSING = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_POLL = 0.02  # seconds between two tries to get a lock


def try_lock(file: BinaryIO) -> bool | None:
    """Lock an open file: True if it is ours now, False if it is another's, None where there are no locks."""
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:
        if error.errno not in _MISSING:
            raise
        _say_missing()
        return None


def wait_for_lock(file: BinaryIO) -> bool:
    """Wait until an open file is ours; False where there are no locks."""
    while (is_ours := try_lock(file)) is False:
        time.sleep(_POLL)
    return bool(is_ours)


@cache
def _say_missing() -> None:
    """Note it once; a program that logs nothing gets the line on stderr."""
    logging.getLogger("fourm").warning(
        "note: this file system has no file locks; leftovers of a killed process stay for a day, and two "
        "downloads of one file do not wait for each other"
    )
