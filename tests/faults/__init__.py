"""The faults that earlier decoders had, and the checks of the suite that find each of them."""
