"""Quality against speed: lossless decoders, lossy rules and targets in few bits, held to one float target."""
