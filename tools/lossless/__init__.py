"""The judge on lossless decoders, a run a seed: it must neither accuse nor sleep. `python -m tools.lossless FILE`."""
