"""What the folder of a run holds: its record, its processes, samples and shards, and who may write there."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "joining": """Joining check_free check_joined check_names check_output open_shards remove_measures
        withdraw_output""",
    "markers": """Counts Marker ShardFailure find_done marker_files marker_path read_done read_marker
        read_markers settings_digest""",
    "members": "Member ShardMembers",
    "processes": """ANY_RUN CHECKSUMS FAILED FAILURES Failure LAUNCH Launch Listed MAX_LIST_BYTES
        OLDER_CHECKSUMS PROCESSES Process ProcessFile close_output is_closed list_data list_files
        list_processes noted_failures now read_checksums read_failures read_launch read_launches remove_empty
        scan_checksums seal sha256_of_file write_failures""",
    "record": """BASE DONE EVAL EVAL_CSV EVAL_DRAWINGS EVAL_JSON FEATURES FRAMES NEXT PLOTS RESERVED_NAMES
        RUN RunRecord SAMPLES SR SR_RUN TOKENS""",
    "samples": """RecordedSample Run SampleWriter chain_names keys_of load_run open_runs read_samples_file
        samples_for""",
    "shard_files": "ShardFiles check_format",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
