"""`sybil check`: how much memory a target and its draft need, and what speed they promise, before either is loaded."""
