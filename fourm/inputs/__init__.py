"""Samples and settings become a request, and the batches that a model reads."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "conditions": "ConditionReader PreparedSample Work",
    "convert": "convert_dataset",
    "weights": "convert_weights",
    "kept": "Kept check_mask_files",
    "origins": """check_kept_data find_sr_model names_made plan_sr read_origin read_replay read_sr_input
        sr_name""",
    "request": """DETOKENIZER_STEPS MAX_DETOKENIZER_STEPS NOWHERE Request TokenizeRequest
        check_attention check_kept_weights check_seed""",
    "world": "World other_launcher parse_world",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
