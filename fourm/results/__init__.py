"""What a run gives: its events, and from decoded tokens values and files."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "background": "BESIDE Background ahead in_threads",
    "events": """Detokenized Event Failed Finished Halved Loading Lost Malformed Noted Saved Started
        Stepped""",
    "job": """ENCODED Job TokenJob fill_diffusion make_record make_token_record order_place plan_places
        preview_place tokenizers_of""",
    "portions": "Portions as_fourm_errors",
    "saver": "Saver",
    "sinks": "FolderSink ShardSink",
    "token_files": "TokenFiles TokenFolder TokenShard",
    "values": "Collector ResultValues picture_of",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
