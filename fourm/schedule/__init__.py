"""From options and YAML to a chain of decoding steps, and what the chain costs. No torch."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "chain": "Chain Step TargetSpec joining_problem make_chain",
    "chart": "draw_chain save_chart",
    "cost": "Cost estimate",
    "curves": "TOKEN_CURVES",
    "language": "Item parse_list",
    "memory": "MOST_ROWS Peak overhead tokenizer_bytes",
    "plan": "ALL OPTIONS Option build_chain merge parse_chain",
    "schemes": "SCHEMES",
    "settings": "MAX_SEED RunSettings SR_PREFIX Settings read_names read_settings",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
