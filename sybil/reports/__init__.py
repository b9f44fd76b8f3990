"""Figures of what was measured and judged."""
