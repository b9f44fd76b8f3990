"""Measurement: what a decoder costs, and how it compares with others in the same run."""
