"""From options and YAML to a chain of decoding steps, and what the chain costs. No torch."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "best": "Best MOST Scores check_best parse_best",
    "chain": "Chain KEPT Step TargetSpec joining_problem make_chain",
    "configs": "find_config list_configs option_of title_of",
    "cost": "Cost FLOAT32 LIBRARIES MOST_ROWS advise_bfloat16 encoder_width estimate tokenizer_bytes",
    "features": "Features Pool parse_features",
    "keeps": "Keep MASK kept_of_share",
    "plan": """build_chain condition_chain condition_files fill_texts parse_chain parse_words texts_to_fill
        unseen_picture""",
    "schemes": "GREEDY_BELOW SCHEMES TOKEN_CURVES",
    "settings": """Item Layer MAX_SEED OPTIONS REPEATABLE RunSettings SR_PREFIX Setting Settings load_layer
        merge parse_value read_names read_settings""",
    "solvers": "DDIM SOLVERS SPACINGS Solver SolverStep parse_solver plan_steps",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
