"""What the folder of a run holds, and whether it is complete: records, checksums, formats, `verify`."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "checksums": "Listed list_files sha256_of_file",
    "formats": "find_flaw",
    "processes": "ANY_RUN Failure Launch Process lacking now read_checksums write_failures",
    "record": (
        "Joining check_names check_output close_output digest_of_samples remove_empty sha256_of "
        "withdraw_output"
    ),
    "results": "Results Run chain_names open_results samples_for",
    "runfile": "BASE RUN RunRecord SR SR_RUN read_run",
    "verify": "Verdict verify_folder",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
