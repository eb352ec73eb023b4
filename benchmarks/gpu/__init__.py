"""All GPU benchmarks in one command of a few minutes, started by `benchmarks/gpu.sh`."""

import time

STARTED = time.monotonic()  # before torch is imported: that time counts too
