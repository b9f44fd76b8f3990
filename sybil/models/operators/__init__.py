"""The decoder-only forward by torch's operators."""
