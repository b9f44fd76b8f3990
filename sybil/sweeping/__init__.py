"""`sybil sweep`: a product of settings, a cell each, measured into the rows of one file."""
