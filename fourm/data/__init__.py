"""Reads samples from prompts, tables, folders, tar shards and Parquet, here or in remote storage."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "containers": """CONTAINER_SUFFIXES Container containers_in ending_of expand_braces find_containers
        is_container is_there name_containers read_member split_path""",
    "dataset": """Dataset EXTENSIONS Input Listing PICTURE_SUFFIXES TOKENIZER UNKNOWN check_readable
        choose_samples find_folder flat_advice folders_in lacked list_dataset list_folder match_listings
        match_spellings suffix_of""",
    "layout": """CROP_SETTINGS Crop FITS FRAME Fit Frame KEPT_PIXELS Key MAX_SAMPLES NUM_UNIFORMS PLACE_FORMS
        PICTURES Place SAMPLES_PER_FOLDER Sample VALID_PIXELS centre_crop check_apart escape_dots file_name
        fit_crop number_keys pad_crop parse_key path_of random_crop samples_of_prompts unescape_dots""",
    "lines": "LineRange scan_lines split_rows",
    "mirrors": "local_folder upload_made",
    "parts": "DatasetPart list_part list_parts tops_in",
    "pictures": """Pictures UNREAD_PICTURES count_pictures find_pictures has_wildcards is_path keys_below
        names_in pictures_in""",
    "prompts": """COLUMNS JSON_LINES OTHER_TEXTS TABLES PartOfTable missing_file parse_columns parse_prompts
        read_file read_stream""",
    "shards": """FILES FORMATS Format PARQUET Ranges SHARDS SHARD_SIZE Shard WEBDATASET check_number
        shard_name take_shards""",
    "storage": """RemoteFolder check_address fetch_remote find_remote_containers is_remote local_file
        read_remote_end remote_container""",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
