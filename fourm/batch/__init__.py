"""A run in shards: what any engine needs to hand them to workers, of which each loads the model once."""

from fourm import import_when_used

# What other rooms and programs use, by file. The rest of this folder is private to it.
PUBLIC = {
    "batches": "Batch plan",
    "local": "count_workers run_share",
    "ray": "run_ray",
    "slurm": "job_script submit task_command",
    "worker": "Report Worker",
}
__all__, __getattr__ = import_when_used(__name__, PUBLIC)
