"""The registry of modalities, and the grammar of every kind of text and value that 4M knows."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "boxes": "Box BoxRules Boxes box_grammar",
    "instances": "Group Groups Instance JOINED QUERY_POINTS SAM_INSTANCES SIDE from_json",
    "metadata": "Fact METADATA",
    "numbers": "NUM_CODES",
    "palette": "Colour palette_grammar",
    "poses": "HUMAN_POSES People Person SIDE",
    "registry": (
        "GENERATION_ORDER Kind MAX_SIZE Modality RELEASED Registry SEQUENCE_ROWS TOKENS "
        "UNORDERED is_released load_registry shared_folder"
    ),
    "structured": "Grammar Structured",
    "typed": "fit read_mapping",
    "wordpiece": "EOS_ID FIRST_SENTINEL PAD_ID WordPiece check_prompt encode_full merge_spans",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
