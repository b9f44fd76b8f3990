"""Runs of the judge on lossless decoders, each with its own seed: `python -m tools.lossless FILE`. The judge must not
accuse them, and must not miss what it is there to find."""
