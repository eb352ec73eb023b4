"""What a user names becomes samples: texts, tables, folders, tars, pictures, results of a run."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "datasets": "CAPTION kept_names shows_part",
    "notes": "marked_texts note_unknown_words",
    "raw": "find_raw",
    "reading": "choose_keys implied_conditions read_samples",
    "results": "add_kept conditions_from forms_kept read_kept shards_of_run some_sample with_files",
    "shards": "Shards list_shards shards_of_samples",
    "source": "EMPTY Source classify_source folder_of_values is_dataset",
    "texts": "digest_of",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
