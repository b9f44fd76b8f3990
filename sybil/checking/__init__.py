"""What a target and its draft would take and bring, before anything is loaded: `sybil check`."""
