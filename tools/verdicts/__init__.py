"""`python -m tools.verdicts`: other systems' decoders before the judge, and docs/verdicts.md of what it said."""
