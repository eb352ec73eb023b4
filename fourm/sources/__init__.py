"""What a user names becomes samples: texts, tables, folders, tars, pictures, results of a run."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "datasets": "CAPTION shows_part",
    "raw_folders": "find_raw_folders list_raw_samples missing_tokenizers",
    "reading": """EMPTY Source choose_keys digest_of implied_conditions kept_names
        read_samples classify_source""",
    "results": "conditions_from forms_kept shards_of_run with_files",
    "shards": "Shards list_shards shards_of_samples",
    "words": "marked_texts note_unknown_words",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
