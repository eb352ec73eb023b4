"""What a user names becomes samples, a request, and the batches that a model reads."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "conditions": "ConditionReader PreparedSample Work",
    "convert": "convert_dataset",
    "datasets": "CAPTION",
    "kept": "Kept check_mask_files",
    "listing": "find_raw_folders list_raw_samples missing_tokenizers",
    "origins": """conditions_from find_sr_model names_made plan_sr read_origin read_replay read_sr_input
        sr_name with_files""",
    "request": """DDIM DETOKENIZER_STEPS MAX_DETOKENIZER_STEPS NOWHERE Request SOLVERS SPACINGS
        TokenizeRequest World check_attention check_kept_weights check_seed other_launcher
        parse_world""",
    "shards": "Shards list_shards shards_of_run shards_of_samples",
    "sources": """EMPTY Source choose_keys digest_of implied_conditions kept_names
        read_samples classify_source""",
    "words": "marked_texts note_unknown_words",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
