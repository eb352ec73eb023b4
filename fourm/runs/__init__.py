"""A request in, events out: from conditions through the engine to files."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "convert": "convert_dataset",
    "events": "Detokenized Event Failed Finished Halved Loading Malformed Noted Saved Started Stepped",
    "inputs": """CAPTION EMPTY Source choose_keys digest_of implied_conditions marked_texts note_unknown_words
        read_samples sort_source""",
    "listing": "find_raw_folders list_raw_samples missing_tokenizers",
    "origins": "find_finer names_made plan_finer read_finer read_origin read_replay sr_name",
    "conditions": "Work",
    "device": "choose_device",
    "job": "order_place preview_place",
    "loaded": "LoadedModel",
    "machine": "describe_machine",
    "pipeline": "check check_weights collect follow_on plan run",
    "request": "DETOKENIZER_STEPS Request TokenizeRequest World parse_world",
    "saving": "save_made",
    "tokenizing": "tokenize_dataset",
    "values": "Collector Made picture_of",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
