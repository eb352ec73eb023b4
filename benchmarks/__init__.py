"""Measurements: ratios within one run, or shares of this machine's measured peak; never asserted in tests."""
