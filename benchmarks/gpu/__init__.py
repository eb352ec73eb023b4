"""All measurements of a GPU in one command of a few minutes; `benchmarks/gpu.sh` starts it."""

import time

STARTED = time.monotonic()  # before torch is imported, which can take long and counts
