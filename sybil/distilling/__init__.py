"""`sybil distill`: trains a small draft model on the target's distributions over texts and over its own answers."""
