"""Structured values as text: boxes, metadata, palettes, poses, instances. Plain Python, no torch."""
