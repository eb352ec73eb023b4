"""What the folder of a run holds, and whether it is complete: records, samples, checksums, `verify`."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "findings": "Finding Verdict",
    "formats": "Tokens find_flaw",
    "joining": "Joining check_free check_names check_output open_shards withdraw_output",
    "processes": (
        "ANY_RUN Failure Launch Listed PROCESSES Process close_output list_data list_files now "
        "read_checksums read_failures remove_empty sha256_of_file write_failures"
    ),
    "record": "BASE FRAMES NEXT PLOTS RUN RunRecord SAMPLES SR SR_RUN",
    "samples": "RecordedSample Run SampleWriter chain_names keys_of load_run open_runs samples_for",
    "shard_files": "ShardFiles check_format",
    "sharded": """Counts Marker Member ShardFailure find_done marker_path read_done read_marker read_markers
        settings_digest""",
    "status": "read_status",
    "verify": "verify_folder",
    "verify_shards": "as_ranges",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
