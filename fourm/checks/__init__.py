"""Whether files are valid by their format, and the folder of a run complete: `verify`, `status`."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "findings": "Finding Verdict",
    "formats": "Tokens find_flaw",
    "status": "read_status",
    "verify": "verify_folder",
    "verify_shards": "as_ranges",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
