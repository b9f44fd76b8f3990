"""The faults that decoders had before this one, and the checks of the suite that see each."""
