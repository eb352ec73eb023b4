"""A request in, events out: from conditions through the engine to files."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "device": "advise_dtype choose_device resolve_dtype resolve_weights",
    "events": """Detokenized Event Failed Finished Halved Loading Lost Malformed Noted Saved Started
        Stepped""",
    "job": "count_evaluations order_place preview_place",
    "loaded": "LoadedModel",
    "machine": "describe_machine",
    "pipeline": "check check_weights collect loaded_for measure plan run save_made sr_request",
    "sharded": "ShardedInput Stage make_shard prepare prepare_sr samples_for_sr",
    "tokenizing": "tokenize_dataset",
    "values": "Collector Made picture_of",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
