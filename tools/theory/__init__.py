"""The numbers and figures of docs/theory.md: `python -m tools.theory` draws the figures."""
