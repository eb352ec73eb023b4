"""Locks of files that the kernel frees when their process ends, where the file system has such locks."""

import errno
import time
from typing import BinaryIO

from filelock import lock_descriptor

NO_LOCKS = "the file system there has no file locks, so leftovers of a killed process stay for a day"
_MISSING = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_POLL = 0.02  # seconds between two tries to get a lock


def try_lock(file: BinaryIO) -> bool | None:
    """Lock an open file: True if it is ours now, False if it is another's, None where there are no locks."""
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError as error:
        if error.errno in _MISSING:
            return None
        raise


def wait_for_lock(file: BinaryIO) -> bool:
    """Wait until an open file is ours; False where there are no locks."""
    while (is_ours := try_lock(file)) is False:
        time.sleep(_POLL)
    return bool(is_ours)
