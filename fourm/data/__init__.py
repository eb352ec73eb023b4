"""Where samples come from, and files that appear whole or not at all: names, paths, listings, prompts."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "chunks": "SIGNATURE strip_metadata",
    "crops": "CROP_SETTINGS Crop NUM_UNIFORMS WHOLE centre_crop random_crop",
    "dataset": (
        "Dataset Listing PICTURES REST TOKENIZER flat_advice list_dataset list_folder "
        "match_spellings suffix_of take"
    ),
    "folders": "check_apart check_folder check_root make_all make_below mode_of refuse_inside",
    "layout": (
        "FORMS Key MAX_SAMPLES PARTIAL Place Sample check_partial check_writable create_atomic "
        "create_text is_alive number_keys outputs_of path_of process_name remove_leftovers "
        "samples_of_prompts server_clock strange_leftovers vanished write_alone write_atomic "
        "write_text"
    ),
    "locks": "try_lock wait_for_lock",
    "opening": "open_file open_own open_text read_bytes real",
    "paths": "DRAWING check_drawing free_beside local_name local_path output_path scheme_problem",
    "prompts": "missing_file parse_columns parse_prompts read_file read_prompts read_stream",
    "shards": "read_member split_path",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
