"""A revision against the working tree, in one run on one machine."""

import os

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # before torch is imported, as `fourm generate` sets it
