"""Opens files safely, writes them atomically; reads members of tars and columns of Parquet files."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "columns": "BYTES COLUMN_SUFFIXES Columns KEYED PICTURE TEXT has_cell read_cell read_columns",
    "copies": """add_listed copy_of delete_copies delete_home is_listed is_placeholder made_folder
        temporary_copies write_placeholder""",
    "opening": """SIGNATURE find_exif is_encodable local_name local_path no_folder open_file open_own
        open_text output_path parse_json_lines path_text read_bytes real scheme_problem strip_metadata
        with_single_keys""",
    "tars": "ESCAPED NO_ACCESS SHARD_SUFFIX TarIndex WHOLE WHOLE_ESCAPED read_tar read_tar_member scan_tar",
    "writing": """DRAWING DRAWN_BY PARTIAL check_drawing check_folder check_partial check_root check_writable
        create_atomic create_text foreign_leftovers free_beside is_alive is_written lock_file make_all
        make_below mode_of new_unfinished process_name refuse_inside remove_leftovers remove_unfinished
        server_clock vanished write_alone write_atomic write_data write_text""",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
