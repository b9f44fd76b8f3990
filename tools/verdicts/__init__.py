"""`python -m tools.verdicts`: judge other systems' decoders, and write docs/verdicts.md about the results."""
