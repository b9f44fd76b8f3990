"""A small draft for a target of the user's own: trained on what the target says of texts and of its own answers."""
