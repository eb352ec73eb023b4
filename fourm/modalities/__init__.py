"""The registry of modalities, and the grammar of every kind of text and value that 4M knows."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "facts": """Box BoxRules Boxes Colour FIELDS Fact MAX_COLOURS METADATA Metadata Palette box_grammar
        palette_grammar""",
    "figures": (
        "Group Groups HUMAN_POSES Instance JOINED NUM_CODES PICTURE_SIDE People Person QUERY_POINTS "
        "SAM_INSTANCES instances_from_json"
    ),
    "registry": (
        "GENERATION_ORDER Kind MAX_SIZE Modality RELEASED Registry SEQUENCE_ROWS TOKENS "
        "UNORDERED load_registry shared_folder"
    ),
    "text": """EOS_ID FIRST_SENTINEL Grammar PAD_ID Structured WordPiece check_prompt encode_full merge_spans
        with_marks""",
    "typed": "Limits to_type",
    "yaml_files": "read_mapping",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
