"""Whoever answers from outside: HTTP servers, and functions that may never come back. Bounded in time and in size."""
