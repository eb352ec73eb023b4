"""fourm: any-to-any generation with 4M multimodal masked transformers."""

__version__ = "0.1.0"
