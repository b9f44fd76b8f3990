"""Reads models from disk: their configs, their families, and their tensors by name."""
