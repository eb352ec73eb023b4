"""From logits and noise to tokens: one loop for every scheme."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "engine": "Engine RELEASED_SENTINELS group_by_counts with_targets",
    "features": "encode_features",
    "sampling": "Noise",
    "scoring": "log_likelihood",
    "steps": "Progress",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
