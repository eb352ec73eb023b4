"""What of two folders is compared, and what measures find in them, in one process or in many."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "folder": "Asked measure_folder plan settings_of",
    "pairs": "Counts Pairs find_row list_pairs rows_of",
    "results": "Evaluation Number Sample intervals",
    "shares": "Share write_share",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
