"""From a name to local files: the catalogue, the Hub, its cache; nothing is trusted before it is checked."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "about": "describe list_models",
    "cache": """KEPT cache_folder converted_path fetched_paths find_cached find_measure find_parti
        fourm_home""",
    "catalogue": "CATALOGUE DEMO DEMO_SR GROUPS LICENCES PARTI Entry find_entry",
    "datasets": "fetch_container find_hub_containers hub_container is_hub_data read_hub_end",
    "digests": "sha256_of",
    "download": "Download check_room fetch plan_downloads read_wanted verify_cached",
    "files": """ModelFiles check_tokenizers decodes_by_diffusion find_model find_sr is_unused missing_parts
        require_text_tokenizer resolve_tokenizer tokenizer_advice tokenizer_sizes weights_of with_parts""",
    "header": """AUTO DTYPES FULL IN_FLOAT32 INT8 LABELS_IN_FLOAT32 TRAINING_BUFFERS WEIGHTS TensorInfo
        TokenizerPart Weights config_of diffuses is_int8 read_header""",
    "remote": "Advanced Client Transfer Waiting",
    "sizes": "TokenizerSizes",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
