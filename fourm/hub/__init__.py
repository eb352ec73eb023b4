"""From a name to local files: the catalogue, the Hub, its cache; nothing is trusted before it is checked."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "cache": "cache_folder",
    "catalogue": "CATALOGUE GROUPS find_entry",
    "download": "Job Verified check_room fetch plan_downloads verify_cached",
    "files": (
        "DEMO DEMO_SR ModelFiles check_tokenizers find_modalities find_model find_sr "
        "require_text_tokenizer resolve_tokenizer tokenizer_advice weights_of with_parts"
    ),
    "header": "DTYPES TensorInfo config_of read_header",
    "hubclient": "check_variables",
    "inventory": "Item Sheet describe list_items",
    "store": "KEPT",
    "transfer": "Advanced Client Done Event Waiting",
    "wanted": "PARTI Wanted find_parti read_wanted",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
