"""A request in, events out: from conditions through the engine to results."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "device": "advise_dtype choose_device resolve_dtype resolve_weights",
    "loaded": "LoadedModel",
    "machine": "describe_machine",
    "pipeline": """check check_weights collect has_conditions load_parts loaded_for make_results measure plan
        run save_made sr_request stepwise""",
    "tokenizing": "tokenize_dataset",
    "tokens": "check_tokenizing count_crops tokenize untokenized",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
