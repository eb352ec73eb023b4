"""Discrete tokenizers: values to token ids and back."""
