"""The library as people call it: a loaded model that takes values and gives values."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "calls": "ARGUMENTS",
    "model": "Model load run",
    "reading": "read",
    "results": "Result",
    "schedule": "Schedule",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
