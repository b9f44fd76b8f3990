"""Is a decoder lossless? Judged from nothing but its sequences and the target that it claims to follow."""
